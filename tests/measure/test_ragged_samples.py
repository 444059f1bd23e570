"""Samples that differ in shape: answered in parts of like shapes, and timed as the same mix by everyone."""

import contextlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.support import ragged, varying

from hasten.core.target import Target
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import Uneven
from hasten.inputs.data.ragged import RaggedDataset
from hasten.inputs.data.spool import Spool, write_spool
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.models import onnx
from hasten.measure.accuracy import ExactAnswers, score_once, scored
from hasten.measure.workbench import Bench
from hasten.measure.worker import time_requests

LENGTHS = [4, 4, 7, 4, 7, 7, 7, 2]


@pytest.fixture
def samples(tmp_path: Path) -> Spool:
    ids = [np.arange(1, n + 1) for n in LENGTHS]
    data = RaggedDataset({"ids": ids, "mask": [np.ones(n, np.int64) for n in LENGTHS]})
    return write_spool(data, tmp_path / "samples")


def test_every_request_of_a_mix_is_timed_as_often_whoever_is_faster() -> None:
    for each_ns in (1_000, 700_000):
        clock, asked = [0], Counter[int]()

        def run(request: int, each_ns: int = each_ns, clock: list[int] = clock) -> None:
            clock[0] += each_ns
            asked[request] += 1  # noqa: B023 - it is called within this turn

        requests: list[object] = [0, 1, 2]
        took = time_requests(
            run,  # type: ignore[arg-type]
            requests,  # type: ignore[arg-type]
            warmup_ns=0,
            block_ns=1_000_000,
            at_least=1,
            at_most=100,
            whole=True,
            clock_ns=lambda clock=clock: clock[0],  # type: ignore[misc]
        )
        assert len(took) == {1_000: 102, 700_000: 3}[each_ns]
        assert len(set(asked.values())) == 1


def test_answers_come_in_parts_of_one_shape_and_scores_in_order(
    samples: Spool, tmp_path: Path
) -> None:
    model = onnx.load(ragged.encoder(tmp_path))
    model = model.settled_by({name: array[0] for name, array in samples.inputs([0]).items()})
    bench, engine = Bench(tmp_path / "bench", Target.host().with_threads(1), chunk=6), OnnxRuntime()
    (tmp_path / "bench").mkdir()
    artifact = bench.build(engine, model, tmp_path / "built")
    opened = bench.open_built(engine, artifact, fresh=False)
    try:
        parts = [part["states"].shape[:2] for part in bench.predict(opened, samples)]
        assert parts == [(2, 4), (1, 7), (1, 4), (2, 7), (1, 7), (1, 2)]
        exact = ExactAnswers(bench, opened, samples, tmp_path / "exact")
        metric = Agreement("logits")
        assert np.concatenate(list(scored(bench, opened, exact, metric))).tolist() == [1.0] * 8
        seen: list[tuple[str, int]] = []
        chunks = score_once(
            bench,
            opened,
            {"again": opened},
            samples,
            metric,
            lambda key, outputs: seen.append((key, len(outputs["logits"]))),
        )
        for own, scores in chunks:
            assert np.array_equal(own, scores["again"])
        assert [count for key, count in seen if key == ""] == [2, 1, 1, 2, 1, 1]
        assert [key for key, _ in seen] == ["", "again"] * 6
    finally:
        opened.worker.kill()


@pytest.mark.parametrize(
    ("lengths", "found", "said"),
    [
        ([3, 4, 3], [2, 2, 3], "[2, 2] for one sample and [3, 2] for another"),
        ([3, 4, 3], [2, 2, 1], "[2, 2] for one sample and [1, 2] for another"),
        ([3, 4, 5], [1, 2, 1], "[2, 2] for one sample and [1, 2] for another"),
        ([5, 3, 4], [2, 1, 1], ""),
        ([3, 4, 5], [3, 4, 2], ""),
    ],
    ids=["of one shape", "of one row", "larger", "explained", "never one row"],
)
def test_answers_whose_rows_no_shape_explains_are_uneven(
    tmp_path: Path, lengths: list[int], found: list[int], said: str
) -> None:
    x = [np.full(length, -1, np.float32) for length in lengths]
    for row, count in zip(x, found, strict=True):
        row[:count] = 1
    samples = write_spool(RaggedDataset({"x": x}), tmp_path / "samples")
    model = onnx.load(varying.lengths(tmp_path)).settled_by({"x": x[0]})
    bench, engine = Bench(tmp_path / "bench", Target.host().with_threads(1), chunk=6), OnnxRuntime()
    (tmp_path / "bench").mkdir()
    opened = bench.open_built(engine, bench.build(engine, model, tmp_path / "built"), fresh=False)
    try:
        with pytest.raises(Uneven) if said else contextlib.nullcontext() as error:
            ExactAnswers(bench, opened, samples, tmp_path / "exact")
    finally:
        opened.worker.kill()
    assert not said or str(error.value) == f"output 'positive' has the shape {said}"  # type: ignore[union-attr]
