"""The benchmark of the first minutes runs once on a small network, untimed, with the environment of the tests."""

import importlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

pytestmark = pytest.mark.seconds

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_its_network_is_right_and_an_answer_on_disk_is_marked(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    exact_bundle: Path,
    certified_bundle: Path,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    minutes = importlib.import_module("first_minutes")
    monkeypatch.setattr(minutes, "WIDTHS", ((16, 0), (32, 0)))
    model, data = minutes.subject(tmp_path, samples=100)
    session = onnxruntime.InferenceSession(model)
    with np.load(data) as arrays:
        answers = session.run(None, {"x": arrays["x"]})[0].argmax(axis=1)
        assert (answers == arrays["labels"]).mean() > 0.9
    clock = minutes.Clock()
    minutes._look(tmp_path / "none", clock)
    minutes._look(exact_bundle, clock)
    minutes._look(certified_bundle, clock)
    found = [line.split(" s  ")[1].split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert found == [
        "certified",
        "it is timed again, and ships",
    ]  # the exact one is the original itself, which is no faster
