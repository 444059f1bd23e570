"""Whole runs made short for tests: few short rounds, one core, and no pass or plot unless asked for.

`python -m tests.support.quick optimize ...` is the command line with such runs. HASTEN_TEST_PLOTS=1 draws plots, too,
and HASTEN_TEST_PAUSE="trial 1,round 3" stops the process, as SIGSTOP does, once the first trial is in its journal,
and again once the third round is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.support.at_hand import at_hand
from tests.support.forked_workers import forked_workers
from tests.support.nominal_times import nominal_times
from tests.support.scripted_races import scripted_races

from hasten.cli import main
from hasten.lightening import prospects
from hasten.measure import ceilings, under_load
from hasten.measure.effort import EFFORTS, Effort
from hasten.measure.journal import Journal
from hasten.optimization.estimated import fixed_point

ROUNDS = 12
"""Short ones: the interval of a few long ones would take in 1 on a busy host, whoever raced."""
SETTLED = 0.5
_OWN = "HASTEN_TEST_CPU"
_AT_HAND = ("onnx", "onnxruntime", "openvino")
"""What most workers of a run import; none of it starts a thread before it opens a model."""


@contextlib.contextmanager
def quick_runs(
    *,
    passes: bool = False,
    curve_s: float = 0.0,
    limits: bool = False,
    load_s: float = 0.0,
    stages_s: float = 0.0,
    starts: int = 0,
    rounds: int = ROUNDS,
    plots: bool = False,
    fresh: bool = False,
    races: bool = True,
) -> Iterator[None]:
    """Make the runs inside short: what they call the normal effort is a small one.

    The quick effort is as small, but searches as far as it does elsewhere. Engines that are busy on
    purpose take as long as they say, whatever else the machine does.

    Args:
        passes: Whether models are transformed at all; else engines are tried alone.
        curve_s: Most seconds for the batch curve; 0 for none.
        limits: Whether what ships is profiled and set against what the machine can do.
        load_s: Most seconds for each scenario of a load; 0 for none.
        stages_s: Most seconds for the stages of a run with `end_to_end`; 0 for none.
        starts: Number of cold starts of each model; 0 for none.
        rounds: Number of rounds of the race and of the fresh figures.
        plots: Whether the plots of a report are drawn, which takes a second; else their places are
            empty.
        fresh: Whether each process of a race is a fresh interpreter, as published figures need; else
            it is forked, which takes a third of the time, and has the runtimes in memory.
        races: Whether candidates race in processes, which are most of a run; else their times are scripted. A
            test that isn't about times, processes or their failures needs none. All engines are then
            equally fast but those with nominal times, so without these only the original model ships.
    """
    effort = Effort(
        depth="all" if passes else "engines",
        race_rounds=rounds,
        final_rounds=rounds,
        p99_rounds=0,
        processes=3,
        settle=SETTLED,
        race_settle=SETTLED,
        warmup_ns=500_000,
        block_ns=2_000_000,
        at_least=6,
        ceilings=limits,
        curve_s=curve_s,
        load_s=load_s,
        stages_s=stages_s,
        starts=starts,
    )
    cpus = os.sched_getaffinity(0)
    with contextlib.ExitStack() as quick:
        brief = replace(effort, depth=EFFORTS["quick"].depth)
        quick.enter_context(patch.dict(EFFORTS, normal=effort, quick=brief))
        if not fresh:
            quick.enter_context(forked_workers())
            quick.enter_context(at_hand(*_AT_HAND))
        quick.enter_context(nominal_times())
        pace = effort.pace("p50")
        quick.enter_context(patch.multiple(ceilings, TURNS=1, PACE=pace))
        quick.enter_context(patch.multiple(prospects, PACE=pace, _FIRST_LOOK=pace))
        quick.enter_context(patch.multiple(fixed_point, WIDTHS=(6, 5, 4), _REFINED=2, _CUTS=(4.0,)))
        quick.enter_context(patch.object(under_load, "_CAPACITY_NS", 50_000_000))
        # Tests end processes, never the machine, so nothing need be on the disk itself.
        quick.enter_context(patch("os.fsync", lambda _: None))
        if not races:
            quick.enter_context(scripted_races())
        if not plots:
            quick.enter_context(patch("hasten.reporting.drawing.Plot._svg", lambda *_: ""))
        quick.callback(os.sched_setaffinity, 0, cpus)
        os.sched_setaffinity(0, {_own(sorted(cpus))})
        yield


def _own(cpus: Sequence[int]) -> int:
    """One processor for each of the processes that tests run in, and for what it starts."""
    if _OWN not in os.environ:
        number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
        free = filter(_claimed, cpus)
        os.environ[_OWN] = str(next(free, cpus[int(number) % len(cpus)]))
    own = int(os.environ[_OWN])
    return own if own in cpus else cpus[0]


def _claimed(cpu: int) -> bool:
    """Claim a processor for this process, until it ends, unless another has."""
    file = -1
    try:
        file = os.open(
            Path(tempfile.gettempdir(), f"hasten-tests-{cpu}.lock"), os.O_CREAT | os.O_RDWR
        )
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if file >= 0:
            os.close(file)
        return False
    return True


@contextlib.contextmanager
def _paused_at(moments: Collection[str]) -> Iterator[None]:
    """Stop this process whenever so many events of a kind are in a run's journal."""
    append, counts = Journal.append, Counter[str]()

    def appended(self: Journal, event: str, **fields: Any) -> None:
        append(self, event, **fields)
        counts[event] += 1
        if f"{event} {counts[event]}" in moments:
            os.kill(os.getpid(), signal.SIGSTOP)

    with patch.object(Journal, "append", appended):
        yield


if __name__ == "__main__":
    with contextlib.ExitStack() as _stack:
        if _moments := os.environ.get("HASTEN_TEST_PAUSE"):
            _stack.enter_context(_paused_at(_moments.split(",")))
        _stack.enter_context(quick_runs(plots=bool(os.environ.get("HASTEN_TEST_PLOTS"))))
        main()
