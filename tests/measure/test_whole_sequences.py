"""Candidates on whole sequences: each carries its own states, so its errors add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.support import recurrent

from hasten.core.model import Model
from hasten.core.sequences import Scored, Sequences
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Engine
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.sequences import open_sequences
from hasten.inputs.data.spool import write_spool
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.auroc import Auroc
from hasten.inputs.metrics.custom import Custom
from hasten.inputs.metrics.top_k import Top1
from hasten.inputs.models.onnx import load
from hasten.measure.accuracy import score_once
from hasten.measure.steps import over_steps, scored_steps
from hasten.measure.workbench import Bench, OpenWorker

STATES = (("h", "h_out"),)
COUNT, STEPS = 24, 10


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return recurrent.gru(tmp_path)


@pytest.fixture
def model(path: Path) -> Model:
    sample = {"x": (recurrent.WIDE,), "h": (recurrent.HIDDEN,)}
    return load(path).settled_by({n: np.zeros(s, np.float32) for n, s in sample.items()})


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench", Target.host(), sequences=Sequences(STATES))


def data(model: Model, **more: Array) -> Dataset:
    arrays = {"x": recurrent.sequences(COUNT, STEPS), **more}
    return open_sequences(arrays, model.inputs, STATES, None)


def opened(bench: Bench, engine: Engine, model: Model) -> OpenWorker:
    folder = bench.folder / type(engine).__name__
    folder.mkdir(parents=True)
    return bench.open_built(engine, bench.build(engine, model, folder), fresh=False)


def agreement(bench: Bench, model: Model, samples: Dataset) -> float:
    exact, leaky = (opened(bench, e, model) for e in (OnnxRuntime(), recurrent.Leaky()))
    try:
        found = list(score_once(bench, exact, {"leaky": leaky}, samples, Agreement("scores")))
    finally:
        exact.worker.kill()
        leaky.worker.kill()
    return float(np.concatenate([scores["leaky"] for _, scores in found]).mean())


def test_small_errors_of_a_step_add_up_over_a_sequence(
    bench: Bench, model: Model, tmp_path: Path
) -> None:
    samples = data(model)
    whole = agreement(bench, model, samples)
    exact = opened(
        Bench(tmp_path / "b", Target.host(), sequences=Sequences(STATES)), OnnxRuntime(), model
    )
    spool = write_spool(samples, tmp_path / "sequences")
    steps = bench.unroll(exact, spool, tmp_path / "steps", COUNT * STEPS)
    exact.worker.kill()
    alone = agreement(Bench(tmp_path / "alone", Target.host()), model, steps)
    assert alone == 1.0
    assert whole < 1.0


def test_calibration_sees_steps_with_the_states_of_the_exact_model(
    bench: Bench, model: Model, path: Path, tmp_path: Path
) -> None:
    spool = write_spool(data(model), tmp_path / "sequences")
    exact = opened(bench, OnnxRuntime(), model)
    steps = bench.unroll(exact, spool, tmp_path / "steps", 24)
    exact.worker.kill()
    assert len(steps) == 24
    every = recurrent.sequences(COUNT, STEPS)
    found = steps.inputs(range(24))
    places = {tuple(x): (i, t) for i, seq in enumerate(every) for t, x in enumerate(seq.tolist())}
    taken = [places[tuple(x)] for x in found["x"].tolist()]
    assert len({t for _, t in taken}) == STEPS
    for (index, step), state in zip(taken, found["h"], strict=True):
        if step:
            before = recurrent.unrolled(path, every[index, :step])[1]
            np.testing.assert_array_equal(state, before[0])
        else:
            assert not state.any()


@pytest.mark.parametrize(
    ("asked", "metric", "labels", "scored"),
    [
        (None, None, None, "all"),
        (None, None, np.zeros((5, 3)), "all"),
        (None, None, np.zeros(5), "last"),
        (None, "top1", np.zeros(5), "last"),
        (None, "my.py:score", np.zeros(5), "all"),
        ("last", None, None, "last"),
        ("last", None, np.zeros((5, 3)), "last"),
    ],
)
def test_which_steps_count_follows_from_the_labels(
    asked: Scored | None, metric: str | None, labels: Array | None, scored: Scored
) -> None:
    assert scored_steps(asked, metric, labels, 3) == scored


def test_every_step_cannot_be_scored_by_a_label_for_the_sequence() -> None:
    with pytest.raises(InputError) as caught:
        scored_steps("all", None, np.zeros(5), 3)
    assert str(caught.value) == (
        'scored="all" needs a label for each of 3 steps; got labels [5]: give labels (n, steps, ...), '
        "or score the last step"
    )


def test_a_sequence_scores_the_mean_of_its_steps_without_padding() -> None:
    scores = np.zeros((2, 4, 3), np.float32)
    scores[:, :, 1] = 1  # the class of every answer is 1
    labels = np.array([[1, 1, 0, 1], [1, 0, 0, 1]])  # the fourth of the first is padding
    outputs = {"y": scores, "lengths": np.array([3, 4])}
    all_ = over_steps(Top1(), Sequences(STATES, "all", lengths=True))
    np.testing.assert_allclose(all_.score(outputs, outputs, labels), [2 / 3, 1 / 2])
    last = over_steps(Top1(), Sequences(STATES, "last", lengths=True))
    assert last.score(outputs, outputs, labels).tolist() == [0, 1]
    assert last.score(outputs, outputs, np.array([1, 0])).tolist() == [1, 0]


def test_an_own_function_sees_the_answers_stacked_along_the_steps() -> None:
    metric = Custom("my.py:score")
    assert over_steps(metric, Sequences(STATES)) is metric
    assert over_steps(metric, None) is metric


def test_a_metric_over_a_set_reads_the_last_step_on_any_scale() -> None:
    """Logits aren't in [0, 1], and nothing says that a reading must be."""
    last = over_steps(Auroc(), Sequences(STATES, "last"))
    answers = {"y": np.array([[[0.0], [3.0]], [[9.0], [-2.0]]])}
    labels = np.array([1, 0])
    assert last.checked(last.score(answers, answers, labels), 2).tolist() == [3, -2]
