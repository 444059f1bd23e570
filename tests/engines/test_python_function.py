"""A person's own function, to compare with."""

import os
from pathlib import Path

import numpy as np
import pytest

from hasten.core.target import Target
from hasten.engines.python_function import PythonFunction
from hasten.errors import CandidateError
from hasten.inputs.models.onnx import load
from hasten.testing import models

X = np.ones((1, 16), np.float32)


def answer(folder: Path, code: str) -> dict[str, object]:
    (folder / "mine.py").write_text(code)
    model = load(models.linear_classifier(folder)).settled_by({"x": X[0]})
    engine, target = PythonFunction(f"{folder / 'mine.py'}:predict"), Target.host().with_threads(1)
    with engine.open(engine.build(model, target, folder), target) as session:
        return dict(session.run({"x": X}))


@pytest.mark.parametrize("returned", ["x[:, :4]", "[x[:, :4]]", "{'logits': x[:, :4]}"])
def test_what_a_function_gives_has_the_models_output_names(tmp_path: Path, returned: str) -> None:
    answers = answer(tmp_path, f"def predict(x): return {returned}")
    assert list(answers) == ["logits"]


def test_a_function_has_as_many_processors_as_an_engine_has_threads(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    code = "import os, numpy\ndef predict(x): return numpy.array([len(os.sched_getaffinity(0))])"
    assert answer(tmp_path, code)["logits"] == [1]
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two processors")
def test_threads_that_a_function_bound_elsewhere_are_brought_back(tmp_path: Path) -> None:
    elsewhere = Target.host().cpus[1]
    code = f"""
import os, threading, numpy
here, going = [], threading.Event()
def astray():
    os.sched_setaffinity(0, {{{elsewhere}}})
    here.append(threading.get_native_id())
    going.set()
    threading.Event().wait()
def predict(x):
    if not here:
        threading.Thread(target=astray, daemon=True).start()
        going.wait()
    return numpy.array(sorted(os.sched_getaffinity(here[0])))
"""
    (tmp_path / "mine.py").write_text(code)
    model = load(models.linear_classifier(tmp_path)).settled_by({"x": X[0]})
    engine, target = (
        PythonFunction(f"{tmp_path / 'mine.py'}:predict"),
        Target.host().with_threads(1),
    )
    with engine.open(engine.build(model, target, tmp_path), target) as session:
        assert session.run({"x": X})["logits"].tolist() == [elsewhere]
        assert session.run({"x": X})["logits"].tolist() == [target.cpus[0]]


def test_what_a_function_raises_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CandidateError) as error:
        answer(tmp_path, "def predict(x): raise ValueError('first\\nsecond')")
    assert str(error.value) == "the function raised ValueError: first"
