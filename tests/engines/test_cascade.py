import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.support.faults import Faulty

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.base import Artifact, Session
from hasten.engines.cascade import Cascade, margins
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError
from hasten.inputs.models.onnx import load
from hasten.testing import models

ORT, OV = OnnxRuntime(), OpenVino()
NEGATIVE = Faulty(ORT, "wrong")
"""Gives the negative of its first answer to every request: easily told from the careful one's."""
X = np.random.default_rng(0).standard_normal((32, 16), dtype=np.float32)


@pytest.fixture
def host() -> Target:
    return Target.host().with_threads(1)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    original = load(models.linear_classifier(tmp_path)).settled_by({"x": X[0]})
    return dataclasses.replace(original, origin=original)


def build(engine: Cascade, model: Model, host: Target, folder: Path) -> Artifact:
    (folder / "built").mkdir()
    return engine.build(model, host, folder / "built")


def cascade(threshold: float, fast: OnnxRuntime | OpenVino | Faulty = OV) -> Cascade:
    return Cascade(fast, ORT, threshold, "logits")


def exact_scores(
    model: Model, host: Target, folder: Path
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    (folder / "alone").mkdir()
    with ORT.open(ORT.build(model, host, folder / "alone"), host) as session:
        return np.asarray(session.run({"x": X})["logits"])


@given(
    arrays.arrays(np.float32, (5, 7), elements=st.floats(-100, 100, width=32)), st.integers(1, 6)
)
def test_the_margin_lies_between_a_rank_and_the_next(
    scores: np.ndarray[tuple[int, int], np.dtype[np.float32]], rank: int
) -> None:
    ordered = np.sort(scores, axis=1)[:, ::-1]
    np.testing.assert_array_equal(margins(scores, rank), ordered[:, rank - 1] - ordered[:, rank])


def test_only_close_answers_are_asked_again(model: Model, host: Target, tmp_path: Path) -> None:
    right = exact_scores(model, host, tmp_path)
    threshold = float(np.median(margins(-right[:1])) + 1e-3)
    never = cascade(0.0, NEGATIVE)
    artifact = build(never, model, host, tmp_path)  # the same files, whatever the threshold
    with cascade(threshold, NEGATIVE).open(artifact, host) as session:
        # The fast one's answer to anything is the negative of the first: below the threshold.
        np.testing.assert_allclose(session.run({"x": X[:1]})["logits"], right[:1], rtol=1e-5)
        assert session.properties()["asked again"] == "1 of 1"
    with never.open(artifact, host) as session:
        np.testing.assert_allclose(session.run({"x": X[:1]})["logits"], -right[:1], rtol=1e-5)
        assert session.properties()["asked again"] == "0 of 1"


def test_a_device_warms_up_and_is_timed_by_the_fast_models_clocks(
    model: Model, host: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "settle", lambda session, again: again())
    monkeypatch.setattr(Session, "device_times", lambda session: {"stream_ns": "1"})
    engine, asked = cascade(0.5), list[None]()
    with engine.open(build(engine, model, host, tmp_path), host) as session:
        session.settle(lambda: asked.append(None))
        assert session.device_times() == {"stream_ns": "1"}
    assert asked == [None]


def test_of_a_batch_only_the_close_rows_are_asked_again(
    model: Model, host: Target, tmp_path: Path
) -> None:
    right = exact_scores(model, host, tmp_path)
    threshold = float(np.quantile(margins(right), 0.25))
    engine = cascade(threshold)
    with engine.open(build(engine, model, host, tmp_path), host) as session:
        given = {"x": X.copy()}
        answers = session.run(given)
        np.testing.assert_allclose(answers["logits"], right, rtol=1e-4, atol=1e-5)
        assert session.properties()["asked again"] == "8 of 32"
        np.testing.assert_array_equal(given["x"], X)


def test_a_careful_model_for_one_at_a_time_is_asked_row_by_row(
    host: Target, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    one = load(models.linear_classifier(tmp_path / "one", batch=1)).settled_by({"x": X[0]})
    open_batch = load(models.linear_classifier(tmp_path)).settled_by({"x": X[0]})
    model = dataclasses.replace(open_batch, origin=one)
    right = exact_scores(open_batch, host, tmp_path)
    for number, share in enumerate((0.25, 1.0)):  # of all of them too
        engine = cascade(float(np.quantile(margins(right), share)) + 1e-6)
        (tmp_path / str(number)).mkdir()
        artifact = build(engine, model, host, tmp_path / str(number))
        with engine.open(artifact, host) as session:
            answers = session.run({"x": X})
            np.testing.assert_allclose(answers["logits"], right, rtol=1e-4, atol=1e-5)


def test_answers_that_are_no_numbers_are_asked_again(
    model: Model, host: Target, tmp_path: Path
) -> None:
    engine = cascade(0.0, Faulty(ORT, "nan"))
    with engine.open(build(engine, model, host, tmp_path), host) as session:
        assert np.isfinite(session.run({"x": X[:1]})["logits"]).all()


def test_what_the_output_is_not_is_said(model: Model, host: Target, tmp_path: Path) -> None:
    artifact = build(cascade(0.1), model, host, tmp_path)
    for engine, message in (
        (
            Cascade(OV, ORT, 0.1, "scores"),
            "a cascade reads class scores (n, classes) of more than 1 class from the output "
            "'scores'; the model gives logits [1, 4]",
        ),
        (
            Cascade(OV, ORT, 0.1, "logits", rank=4),
            "a cascade reads class scores (n, classes) of more than 4 classes from the output "
            "'logits'; the model gives logits [1, 4]",
        ),
    ):
        with engine.open(artifact, host) as session, pytest.raises(CandidateError) as error:
            session.run({"x": X[:1]})
        assert str(error.value) == message


def test_its_profile_is_that_of_the_fast_model(model: Model, host: Target, tmp_path: Path) -> None:
    artifact = build(cascade(1e9), model, host, tmp_path)
    steps = cascade(1e9).profile(artifact, host, [{"x": X[:1]}])
    (tmp_path / "alone").mkdir()
    alone = OV.profile(OV.build(model, host, tmp_path / "alone"), host, [{"x": X[:1]}])
    assert [step.name for step in steps] == [step.name for step in alone]


def test_without_an_original_there_is_nothing_to_ask(
    model: Model, host: Target, tmp_path: Path
) -> None:
    with pytest.raises(CandidateError) as error:
        build(cascade(0.1), dataclasses.replace(model, origin=None), host, tmp_path)
    assert str(error.value) == (
        "a cascade needs the original and the model that passes made from it"
    )


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"fast": [], "careful": []},
        {"fast": ["../../etc/passwd"], "careful": ["careful/linear_classifier.onnx"]},
        {"fast": ["/etc/passwd"], "careful": ["careful/linear_classifier.onnx"]},
        {"fast": [1], "careful": [2]},
        [],
    ],
)
def test_a_list_that_names_other_files_is_refused(
    model: Model, host: Target, tmp_path: Path, index: object
) -> None:
    artifact = build(cascade(0.1), model, host, tmp_path)
    artifact.path.write_text(json.dumps(index))
    with pytest.raises(CandidateError, match=r"^cascade\.json is damaged: "):
        with cascade(0.1).open(artifact, host):
            pass


def test_its_runtimes_are_those_of_both() -> None:
    assert cascade(0.1).runtimes == (OV, ORT)
    assert not cascade(0.1).exact


def test_a_careful_model_of_other_inputs_is_refused(
    model: Model, host: Target, tmp_path: Path
) -> None:
    artifact = build(cascade(0.1), model, host, tmp_path)
    index = json.loads(artifact.path.read_text())
    index["careful inputs"][0]["name"] = "y"
    artifact.path.write_text(json.dumps(index))
    with (
        pytest.raises(CandidateError, match=r"^cascade\.json is damaged: its models take other"),
        cascade(0.1).open(artifact, host),
    ):
        pass
