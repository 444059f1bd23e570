"""Samples that differ in shape: answered in parts of like shapes, and timed as the same mix by everyone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.support import ragged

from hasten.core.target import Target
from hasten.engines.onnxruntime.engine import OnnxRuntime
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
