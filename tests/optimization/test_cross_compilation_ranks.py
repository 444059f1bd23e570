"""How candidates for a device that isn't here are compared."""

from __future__ import annotations

from hasten.engines.estimates import Estimate
from hasten.engines.null import Null
from hasten.measure.candidate import Single, Trial
from hasten.optimization.estimated.trials import comparable, ranked


def trial(estimate: Estimate) -> Trial:
    return Trial(Single((), Null()), estimate=estimate)


CYCLES = trial(Estimate("compiler estimate", rank=9e6, unit="cycles"))
UNRANKED = trial(Estimate("compiler estimate", figures={"plan_bytes": 100.0}))


def test_whom_the_tools_do_not_rank_is_not_set_beside_whom_they_do() -> None:
    assert comparable([UNRANKED, CYCLES]) == [CYCLES]


def test_where_they_rank_nobody_sizes_are_compared() -> None:
    assert comparable([UNRANKED]) == [UNRANKED]
    assert ranked(UNRANKED) == (100.0, "bytes")
