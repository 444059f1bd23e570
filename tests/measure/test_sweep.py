"""A batch curve of real engines in processes of their own."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.faults import Faulty
from tests.support.forked_workers import forked_workers

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.core.workers import Worker
from hasten.engines.base import Artifact, Engine
from hasten.engines.null import Null
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.spool import Spool, write_spool
from hasten.inputs.models.onnx import load
from hasten.measure.curve import CurvePoint
from hasten.measure.deadline import Deadline
from hasten.measure.latency import Pace
from hasten.measure.sweep import sweep
from hasten.measure.workbench import Bench
from hasten.testing import models

BATCHES = [1, 2, 4, 8, 16, 32]
PACE = Pace(warmup_ns=0, block_ns=0, at_least=2, at_most=4)
Taken = tuple[list[CurvePoint], list[str]]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "bench").mkdir()
    return Bench(tmp_path / "bench", Target.host().with_threads(1))


def built(folder: Path, model: Path, engine: Engine, sample: dict[str, Any]) -> Artifact:
    (folder / "built").mkdir()
    return engine.build(load(model).settled_by(sample), Target.host(), folder / "built")


def classifier(bench: Bench, engine: Engine, batch: int | str = "batch") -> Artifact:
    model = models.linear_classifier(bench.folder, batch)
    return built(bench.folder, model, engine, {"x": np.zeros(16, np.float32)})


def swept(bench: Bench, engine: Engine, artifact: Artifact, spool: Spool, **asked: Any) -> Taken:
    settings = {"rounds": 3, "pace": PACE, "budget_s": 60.0, "probe": lambda threads: True}
    settings["usable"] = lambda threads: threads
    settings["clock_s"] = lambda: 0.0  # there is always time, except where a test says so
    with forked_workers():
        return sweep(bench, engine, artifact, spool, **{**settings, **asked})


def shape(points: list[CurvePoint]) -> list[tuple[int, int, int]]:
    return [(point.batch, point.threads, point.sessions) for point in points]


@pytest.mark.parametrize("engine", [OnnxRuntime(), OpenVino()])
def test_batches_of_an_open_axis_double_up_to_32(
    bench: Bench, spool: Spool, engine: Engine
) -> None:
    points, missing = swept(bench, engine, classifier(bench, engine), spool)
    assert missing == []
    assert shape(points) == [(batch, 1, 1) for batch in BATCHES]
    for point in points:
        assert set(point.rounds) == {0, 1, 2}
        assert all(2 <= len(block.latency_ns) <= 4 for block in point.rounds.values())
        assert all(block.elapsed_ns >= sum(block.latency_ns) for block in point.rounds.values())


def test_threads_are_for_one_session_or_for_one_each(bench: Bench, spool: Spool) -> None:
    bench.target = bench.target.with_threads(2)
    points, missing = swept(bench, OnnxRuntime(), classifier(bench, OnnxRuntime()), spool)
    assert missing == []
    assert shape(points) == [(b, 2, 1) for b in BATCHES] + [(b, 1, 2) for b in BATCHES]
    two = [point for point in points if point.sessions == 2]
    assert all(len(block.latency_ns) >= 4 for point in two for block in point.rounds.values())


def test_an_engine_with_threads_of_its_own_is_taken_as_it_is_too(
    bench: Bench, spool: Spool
) -> None:
    bench.target = bench.target.with_threads(2)
    engine = OnnxRuntime(threads=1)
    points, _ = swept(bench, engine, classifier(bench, engine, 1), spool)
    assert shape(points) == [(1, 2, 1), (1, 1, 1), (1, 1, 2)]


def test_a_model_of_one_batch_size_has_a_curve_of_one_batch(bench: Bench, spool: Spool) -> None:
    points, missing = swept(bench, OnnxRuntime(), classifier(bench, OnnxRuntime(), 1), spool)
    assert (shape(points), missing) == ([(1, 1, 1)], [])


def test_requests_are_stacked_of_real_samples(bench: Bench, tmp_path: Path) -> None:
    """Ids beyond the table fail: only what the data has is ever asked."""
    model = models.two_inputs(tmp_path)
    rng = np.random.default_rng(0)
    samples: dict[str, Array] = {
        "features": rng.standard_normal((5, 8), np.float32),
        "ids": rng.integers(0, 10, (5, 3)),
    }
    sample = {name: array[0] for name, array in samples.items()}
    spool = write_spool(ArrayDataset(samples), tmp_path / "few")
    artifact = built(tmp_path, model, OnnxRuntime(), sample)
    points, missing = swept(bench, OnnxRuntime(), artifact, spool)
    assert missing == []
    assert shape(points) == [(batch, 1, 1) for batch in BATCHES]


def test_answers_that_do_not_grow_with_the_request_are_no_batch(
    bench: Bench, tmp_path: Path
) -> None:
    text = (
        "m (float[words, 4] x) => (float[1, 4] y) { y = ReduceMean <axes = [0], keepdims = 1> (x) }"
    )
    model = models.write(tmp_path / "mean.onnx", text, {})
    spool = write_spool(ArrayDataset({"x": np.ones((6, 4), np.float32)}), tmp_path / "ones")
    artifact = built(tmp_path, model, OnnxRuntime(), {"x": np.ones(4, np.float32)})
    points, missing = swept(bench, OnnxRuntime(), artifact, spool)
    assert shape(points) == [(1, 1, 1)]
    assert missing == [
        "batch curve: a request of 2 samples gets fewer answers than that (1 session of 1 "
        "thread, batch 2)"
    ]


def test_a_point_that_dies_is_lost_alone(bench: Bench, spool: Spool) -> None:
    # Six points take two runs each to look at and in each round: the 20th is in the first round,
    # and the process that takes over has 14 left.
    engine = Faulty(Null(), "kill", on_run=20)
    points, missing = swept(bench, engine, classifier(bench, engine), spool, rounds=2)
    (why,) = missing
    assert why.startswith(
        "batch curve: its process was killed by SIGKILL during 'drive' (1 session of 1 thread, batch "
    )
    lost = {int(why.rstrip(")").rpartition("batch ")[2])}
    assert {point.batch for point in points} == set(BATCHES) - lost
    assert len(points) == 5


def test_what_never_opens_has_no_curve(bench: Bench, spool: Spool) -> None:
    engine = Faulty(Null(), "kill", on_run=0)
    points, missing = swept(bench, engine, classifier(bench, Null()), spool)
    assert points == []
    assert missing == [
        "batch curve: its process was killed by SIGKILL during 'open' (1 session of 1 thread)"
    ]


def test_the_rest_of_the_batches_is_left_out_where_the_time_is_short(
    bench: Bench, spool: Spool
) -> None:
    engine = Faulty(Null(), busy_ns=100_000_000)
    points, missing = swept(bench, engine, classifier(bench, engine), spool, budget_s=2.0)
    assert shape(points) == [(1, 1, 1)]
    assert missing == ["batch curve: no time for batches from 2 on (1 session of 1 thread)"]


def test_what_is_ended_at_the_time_limit_isnt_said_to_hang(bench: Bench, spool: Spool) -> None:
    engine = Faulty(Null(), "hang")
    artifact = classifier(bench, engine)
    bench.deadline = Deadline(0.001)
    bench.deadline.enter("further")
    points, missing = swept(bench, engine, artifact, spool)
    assert points == []
    (said,) = missing
    assert said.startswith("batch curve: the time limit was reached (1 session")


def test_turns_end_with_the_time(bench: Bench, spool: Spool) -> None:
    engine = Faulty(Null(), busy_ns=1_000_000)
    over = itertools.chain([0.0] * 20, itertools.repeat(1e9))
    points, missing = swept(
        bench, engine, classifier(bench, engine), spool, rounds=10**6, clock_s=lambda: next(over)
    )
    assert points == []
    assert [why.partition(" (")[0] for why in missing] == [
        "batch curve: there was no time to measure it twice"
    ]


def test_too_large_batches_are_not_asked(bench: Bench, tmp_path: Path) -> None:
    wide = 1 << 22  # 16 MiB a sample, and as much an answer
    text = f"m (float[batch, {wide}] x) => (float[batch, {wide}] y) {{ y = Relu(x) }}"
    model = models.write(tmp_path / "wide.onnx", text, {})
    spool = write_spool(ArrayDataset({"x": np.zeros((2, wide), np.float32)}), tmp_path / "wide")
    artifact = built(tmp_path, model, OnnxRuntime(), {"x": np.zeros(wide, np.float32)})
    points, missing = swept(bench, OnnxRuntime(), artifact, spool)
    assert shape(points) == [(1, 1, 1), (2, 1, 1)]
    assert missing == ["batch curve: over 64 MiB a request from batch 4 on (1 session of 1 thread)"]


@pytest.mark.parametrize(
    ("gives", "kept"),
    [
        (lambda threads: False, [(1, 1, 1)]),
        (lambda threads: True, [(1, 2, 1), (1, 1, 1), (1, 1, 2)]),
    ],
)
def test_turns_on_several_threads_count_only_where_the_host_gives_them(
    bench: Bench, spool: Spool, gives: Callable[[int], bool], kept: list[tuple[int, int, int]]
) -> None:
    bench.target = bench.target.with_threads(2)
    engine = OnnxRuntime(threads=1)
    points, missing = swept(bench, engine, classifier(bench, engine, 1), spool, probe=gives)
    assert shape(points) == kept
    assert missing == (
        []
        if len(kept) == 3
        else [
            "batch curve: the host did not run its threads at once "
            "(1 session of 2 threads, batch 1; 2 sessions of 1 thread, batch 1)"
        ]
    )


def test_a_host_that_runs_one_thread_at_a_time_has_a_curve_of_one(
    bench: Bench, spool: Spool
) -> None:
    bench.target = bench.target.with_threads(2)
    artifact = classifier(bench, OnnxRuntime(), 1)
    points, missing = swept(bench, OnnxRuntime(), artifact, spool, usable=lambda threads: 1)
    assert shape(points) == [(1, 1, 1)]
    assert missing == ["batch curve: one thread only: the host did not run 2 at once"]


def test_turns_are_taken_in_another_order_each_round_and_the_same_for_one_seed(
    bench: Bench, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hasten.measure import sweep as room

    asked: list[int] = []
    turn = room._Sweep._turn

    def noted(self: Any, point: Any, number: int) -> Any:
        asked.append(point.batch)
        return turn(self, point, number)

    monkeypatch.setattr(room._Sweep, "_turn", noted)
    artifact = classifier(bench, Null())
    orders = []
    for seed in (1, 1, 2):
        asked.clear()
        swept(bench, Null(), artifact, spool, seed=seed)
        orders.append([tuple(asked[i : i + 6]) for i in range(0, 18, 6)])
    assert orders[0] == orders[1] != orders[2]
    assert len(set(orders[0])) > 1
    assert all(sorted(order) == BATCHES for order in orders[0])


def test_nobody_is_left_running(
    bench: Bench, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Worker] = []

    class Noted(Worker):
        def __init__(self, log: Path, memory_bytes: int, *, fresh: bool = False) -> None:
            super().__init__(log, memory_bytes, fresh=fresh)
            started.append(self)

    monkeypatch.setattr("hasten.measure.workbench.Worker", Noted)
    engine = Faulty(Null(), "kill", on_run=20)
    swept(bench, engine, classifier(bench, engine), spool, rounds=2)
    assert len(started) == 2
    assert not any(worker.alive for worker in started)
