"""When a supervisor holds a silent event loop for one that hangs."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

from tests.support.waiting import until

from hasten.serving.shared_state import SharedState
from hasten.serving.supervision.heartbeat import LOADING_TIMES, Heartbeat, Thread, main_thread

WAITING = Thread("S", 1.0)


def silent_looks(
    heartbeat: Heartbeat, looks: int, step_s: float = 1.0, **seen: object
) -> list[bool]:
    """Look so many times at a loop that doesn't beat."""
    thread = seen.get("thread", WAITING)
    assert isinstance(thread, Thread)
    loading = bool(seen.get("loading"))
    begin_s = heartbeat._looked_s
    return [
        heartbeat.hangs(7, loading, thread, begin_s + step_s * look) for look in range(1, looks + 1)
    ]


def watched(most_s: float = 30.0) -> Heartbeat:
    heartbeat = Heartbeat(most_s, 100.0)
    assert not heartbeat.hangs(7, False, WAITING, 101.0)
    return heartbeat


def test_a_loop_that_does_not_beat_for_long_enough_hangs() -> None:
    assert silent_looks(watched(), 30) == [False] * 29 + [True]


def test_a_beat_begins_anew() -> None:
    heartbeat = watched()
    assert not any(silent_looks(heartbeat, 29))
    assert not heartbeat.hangs(8, False, WAITING, 131.0)
    assert not any(heartbeat.hangs(8, False, WAITING, 131.0 + look) for look in range(1, 30))
    assert heartbeat.hangs(8, False, WAITING, 161.0)


def test_a_loop_that_computes_all_the_time_hangs() -> None:
    heartbeat = watched()
    found = [
        heartbeat.hangs(7, False, Thread("R", 1.0 + look), 101.0 + look) for look in range(1, 31)
    ]
    assert found == [False] * 29 + [True]


def test_a_loop_that_gets_no_processor_does_not_hang() -> None:
    heartbeat = watched()
    assert not any(
        heartbeat.hangs(7, False, Thread("R", 1.0 + 0.01 * look), 101.0 + look)
        for look in range(1, 1000)
    )


def test_a_stopped_process_does_not_hang_nor_one_that_waits_for_a_disk() -> None:
    for state in "TtD":
        assert not any(silent_looks(watched(), 1000, thread=Thread(state, 1.0)))


def test_a_gap_in_which_the_supervisor_stood_still_counts_as_two_looks() -> None:
    assert silent_looks(watched(), 14, step_s=86_400.0) == [False] * 14
    assert silent_looks(watched(), 15, step_s=86_400.0)[-1]


def test_a_loop_beside_which_a_bundle_is_opened_may_be_silent_for_longer() -> None:
    heartbeat = watched()
    assert not any(silent_looks(heartbeat, 30 * LOADING_TIMES - 1, loading=True))
    assert silent_looks(heartbeat, 1, loading=True) == [True]


def test_short_limits_are_looked_at_more_often() -> None:
    assert (Heartbeat(30.0, 0.0).pause_s, Heartbeat(1.0, 0.0).pause_s) == (1.0, 0.25)


def test_the_system_says_whether_a_process_waits_computes_or_is_stopped() -> None:
    code = "import sys\nsys.stdin.readline()\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        until(lambda: main_thread(process.pid).state == "S")
        process.stdin.write(b"go\n")
        process.stdin.flush()
        until(lambda: main_thread(process.pid).state == "R")
        before_s = main_thread(process.pid).computed_s
        until(lambda: main_thread(process.pid).computed_s > before_s)
        os.kill(process.pid, 19)
        until(lambda: main_thread(process.pid).state == "T")
        process.kill()
    assert main_thread(process.pid).state == ""


def test_each_beat_is_another_number_and_never_none() -> None:
    shared = SharedState.new(4)
    seen = []
    for _ in range(600):
        shared.beat(loading=False)
        seen.append(shared.pulse[0])
    assert 0 not in seen
    assert all(one != other for one, other in itertools.pairwise(seen))
    assert shared.working_models() == set()
    shared.beat(loading=True)
    assert shared.pulse[1]
    shared.clear()
    assert shared.pulse == (0, False)
    shared.close()
