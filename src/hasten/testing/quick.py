"""Whole runs made short for tests: fewer rounds, one core, and no pass unless asked for.

`python -m hasten.testing.quick optimize ...` is the command line with such runs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import hasten.benchmark
import hasten.delivery
import hasten.optimization
import hasten.run
from hasten.candidate import Single
from hasten.cli import main
from hasten.search import grid as grids

RACE_ROUNDS, FINAL_ROUNDS = 4, 4


@contextlib.contextmanager
def quick_runs(
    *, passes: bool = False, curve_s: float = 0.0, limits: bool = False
) -> Iterator[None]:
    """Make the runs inside short.

    Args:
        passes: Whether models are transformed at all; False tries the engines alone.
        curve_s: How long the batch curve may take; 0 for none.
        limits: Whether what ships is profiled and set against what the machine can do.
    """

    def untouched(*args: Any, **named: Any) -> list[Single]:
        return [c for c in grids.grid(*args, **named) if passes or not c.passes]

    cpus = os.sched_getaffinity(0)
    with contextlib.ExitStack() as undo:
        for module, name, value in (
            (hasten.run, "RACE_ROUNDS", RACE_ROUNDS),
            (hasten.delivery, "FINAL_ROUNDS", FINAL_ROUNDS),
            (hasten.delivery, "CURVE_S", curve_s),
            (hasten.delivery, "LIMITS", limits),
            (hasten.run, "SETTLED", float("inf")),
            (hasten.run, "RACE_SETTLED", float("inf")),
            (hasten.benchmark, "SETTLED", float("inf")),
            (hasten.optimization, "grid", untouched),
        ):
            undo.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        undo.callback(os.sched_setaffinity, 0, cpus)
        os.sched_setaffinity(0, {min(cpus)})
        yield


if __name__ == "__main__":
    with quick_runs():
        main()
