"""Whole runs made short for tests: few short rounds, one core, and no pass unless asked for.

`python -m tests.support.quick optimize ...` is the command line with such runs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from hasten.cli import main
from hasten.measure.effort import EFFORTS, Effort

ROUNDS = 12
"""Short ones: the interval of a few long ones would take in 1 on a busy host, whoever raced."""
SETTLED = 0.5


@contextlib.contextmanager
def quick_runs(
    *,
    passes: bool = False,
    curve_s: float = 0.0,
    limits: bool = False,
    load_s: float = 0.0,
    rounds: int = ROUNDS,
) -> Iterator[None]:
    """Make the runs inside short: what they call the normal effort is a small one.

    Args:
        passes: Whether models are transformed at all; else engines are tried alone.
        curve_s: Most seconds for the batch curve; 0 for none.
        limits: Whether what ships is profiled and set against what the machine can do.
        load_s: Most seconds for each scenario of a load; 0 for none.
        rounds: Number of rounds of the race and of the fresh figures.
    """
    effort = Effort(
        depth="all" if passes else "engines",
        race_rounds=int(os.environ.get("HASTEN_RACE_ROUNDS", rounds)),
        final_rounds=rounds,
        settle=SETTLED,
        race_settle=SETTLED,
        warmup_ns=2_000_000,
        block_ns=6_000_000,
        at_least=8,
        ceilings=limits,
        curve_s=curve_s,
        load_s=load_s,
    )
    usual, cpus = EFFORTS["normal"], os.sched_getaffinity(0)
    EFFORTS["normal"] = effort
    os.sched_setaffinity(0, {_own(sorted(cpus))})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)
        EFFORTS["normal"] = usual


def _own(cpus: Sequence[int]) -> int:
    """One processor for each of the processes that a suite runs in."""
    number = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
    return cpus[int(number) % len(cpus)]


if __name__ == "__main__":
    with quick_runs():
        main()
