"""Whole runs made short for tests: short rounds, one core, and no pass unless asked for.

`python -m tests.support.quick optimize ...` is the command line with such runs.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import hasten.evaluation.benchmark
import hasten.optimization.delivery
import hasten.optimization.loads
import hasten.optimization.optimize
import hasten.optimization.run
from hasten.cli import main
from hasten.measure.candidate import Single
from hasten.measure.intervals import Statistic
from hasten.measure.latency import Pace, pace_for
from hasten.optimization.search import grid as grids
from hasten.passes.base import Pass

ROUNDS = 12
"""Short ones: the interval of a few long ones would take in 1 on a busy host, whoever raced."""
SETTLED = 0.5
TURN = {"warmup_ns": 2_000_000, "block_ns": 6_000_000, "at_least": 8}


@contextlib.contextmanager
def quick_runs(
    *,
    passes: bool | type[Pass] = False,
    curve_s: float = 0.0,
    limits: bool = False,
    load_s: float = 0.0,
) -> Iterator[None]:
    """Make the runs inside short.

    Args:
        passes: Whether models are transformed at all, or by which pass alone; False tries the
            engines alone.
        curve_s: How long the batch curve may take; 0 for none.
        limits: Whether what ships is profiled and set against what the machine can do.
        load_s: How long each scenario of a load may take; 0 for none.
    """

    def shorter(objective: Statistic, limit_s: float) -> Pace:
        usual = pace_for(objective, limit_s)
        return replace(usual, **TURN | {"at_least": max(usual.at_least, TURN["at_least"])})

    def untouched(*args: Any, **named: Any) -> list[Single]:
        kind = passes if isinstance(passes, type) else Pass
        chosen = [c for c in grids.grid(*args, **named) if passes or not c.passes]
        return [c for c in chosen if all(isinstance(step, kind) for step in c.passes)]

    cpus = os.sched_getaffinity(0)
    with contextlib.ExitStack() as undo:
        for module, name, value in (
            (
                hasten.optimization.run,
                "RACE_ROUNDS",
                int(os.environ.get("HASTEN_RACE_ROUNDS", ROUNDS)),
            ),
            (hasten.optimization.delivery, "FINAL_ROUNDS", ROUNDS),
            (hasten.optimization.optimize, "pace_for", shorter),
            (hasten.evaluation.benchmark, "Pace", functools.partial(Pace, **TURN)),
            (hasten.optimization.delivery, "CURVE_S", curve_s),
            (hasten.optimization.loads, "LOAD_S", load_s),
            (hasten.optimization.run.Run, "LIMITS", limits),
            (hasten.optimization.run, "SETTLED", SETTLED),
            (hasten.optimization.run, "RACE_SETTLED", SETTLED),
            (hasten.evaluation.benchmark, "SETTLED", SETTLED),
            (hasten.optimization.optimize, "grid", untouched),
        ):
            undo.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        undo.callback(os.sched_setaffinity, 0, cpus)
        os.sched_setaffinity(0, {_own(sorted(cpus))})
        yield


def _own(cpus: Sequence[int]) -> int:
    """One processor for each of the processes that a suite runs in."""
    number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    return cpus[int(number) % len(cpus)]


if __name__ == "__main__":
    with quick_runs():
        main()
