import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.support.desk import Desk
from tests.support.faults import Faulty

from hasten.core.target import Target
from hasten.engines.null import Null
from hasten.inputs.data.spool import Spool
from hasten.measure import environment, probe
from hasten.measure.latency import Pace, Round, rounds

PACE = Pace(warmup_ns=0, block_ns=0, at_least=2, at_most=2)


def orders(desk: Desk, spool: Spool, seed: int, first: int = 0, count: int = 6) -> list[list[str]]:
    workers = dict(zip("abcd", (one.worker for one in desk.opened), strict=True))
    turns = rounds(workers, spool.folder, threads=1, pace=PACE, seed=seed, first=first)
    return [list(next(turns).latency_ns) for _ in range(count)]


def test_orders_are_shuffled_and_the_same_for_one_seed(desk: Desk, spool: Spool) -> None:
    for _ in range(4):
        desk.open(Null())
    one = orders(desk, spool, 7)
    assert all(sorted(order) == ["a", "b", "c", "d"] for order in one)
    assert len({tuple(order) for order in one}) > 1
    assert orders(desk, spool, 7) == one
    assert orders(desk, spool, 8) != one
    assert orders(desk, spool, 7, first=4, count=2) == one[4:]


def test_a_failed_entrant_spoils_no_other(desk: Desk, spool: Spool) -> None:
    workers = {"good": desk.worker(Null()), "bad": desk.worker(Faulty(Null(), "kill"))}
    turns = rounds(workers, spool.folder, threads=1, pace=PACE, seed=0)
    first = next(turns)
    assert set(first.latency_ns) == {"good"}
    assert first.failed == {"bad": "its process was killed by SIGKILL during 'time'"}
    del workers["bad"]
    second = next(turns)
    assert (set(second.latency_ns), second.failed, second.number) == ({"good"}, {}, 1)


def test_an_entrant_killed_in_its_sleep_fails_its_own_turn(desk: Desk, spool: Spool) -> None:
    workers = {"good": desk.worker(Null()), "bad": desk.worker(Null())}
    turns = rounds(workers, spool.folder, threads=1, pace=PACE, seed=0)
    next(turns)
    os.kill(workers["bad"].pid, signal.SIGKILL)
    turn = next(turns)
    assert set(turn.latency_ns) == {"good"}
    assert turn.failed == {"bad": "its process was killed by SIGKILL during 'time'"}


@pytest.mark.parametrize(
    ("answers", "counts"), [((True, True), True), ((True, False), False), ((False,), False)]
)
def test_a_round_counts_where_the_probe_passes_before_and_after(
    desk: Desk, spool: Spool, answers: tuple[bool, ...], counts: bool
) -> None:
    left, asked = list(answers), []

    def look(threads: int) -> bool:
        asked.append(threads)
        return left.pop(0)

    workers = {"one": desk.worker(Null())}
    turn = next(rounds(workers, spool.folder, threads=3, pace=PACE, seed=0, probe=look))
    assert isinstance(turn, Round)
    assert turn.counts is counts
    assert asked == [3] * len(answers)


def test_requests_rotate_and_are_the_same_for_all_in_a_round(desk: Desk, spool: Spool) -> None:
    worker = desk.worker(Null())
    asked = []

    class Recorded:
        def ask(self, do: str, **command: int) -> list[int]:
            asked.append(command["first"])
            return [1]

        def sleep(self) -> None:
            worker.sleep()

    entrants = {"a": Recorded(), "b": Recorded()}
    turns = rounds(entrants, spool.folder, threads=1, pace=PACE, seed=0)  # type: ignore[arg-type]
    for _ in range(3):
        next(turns)
    assert asked == [0, 0, 61, 61, 122, 122]


def test_one_thread_needs_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "thread_scaling", lambda threads: 0.0)
    assert probe.scales(1)
    assert not probe.scales(2)


@pytest.mark.parametrize(
    ("threads", "scaling", "passes"),
    [(2, 1.8, True), (2, 1.79, False), (4, 3.6, True), (4, 3.5, False)],
)
def test_the_probe_asks_for_nine_tenths_of_each_core(
    monkeypatch: pytest.MonkeyPatch, threads: int, scaling: float, passes: bool
) -> None:
    monkeypatch.setattr(probe, "thread_scaling", lambda threads: scaling)
    assert probe.scales(threads) is passes


def test_scaling_is_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [0], []

    def work() -> None:
        now[0] += 3_000_000

    def together(threads: int, passes: int) -> int:
        asked.append((threads, passes))
        return 12_000_000

    monkeypatch.setattr(probe, "_work", work)
    monkeypatch.setattr(probe, "_together_ns", together)
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter_ns=lambda: now[0]))
    assert probe.thread_scaling(2) == pytest.approx(2 * 9 / 12)  # three passes alone
    assert asked == [(2, 3)]


def test_threads_that_share_a_core_show_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs on the core, too, only slow the threads down: work alone is timed without them."""
    own = threading.get_ident()

    def now_ns() -> int:
        return time.thread_time_ns() if threading.get_ident() == own else time.perf_counter_ns()

    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter_ns=now_ns))
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        # A stall of the host in the work alone can let a probe pass, but not half of them.
        assert sum(probe.scales(2) for _ in range(20)) <= 10
    finally:
        os.sched_setaffinity(0, cpus)


def test_a_sandbox_that_forbids_binding_is_probed_unbound(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, cpus: set[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    assert probe.thread_scaling(len(os.sched_getaffinity(0))) > 0


def test_an_environment_says_what_two_measurements_must_share(tmp_path: Path) -> None:
    target = Target.host()
    facts = environment.environment(target)
    assert facts["processor"] == target.processor
    assert facts["cpus"] == str(len(target.cpus))
    assert facts["isa"].split() == list(target.isa)
    assert {"hasten", "numpy", "onnxruntime", "python", "kernel", "system"} <= facts.keys()
