"""Which programs become designs: each takes minutes of place and route."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hasten.measure.candidate import Single, Trial
from hasten.optimization.estimated.fixed_point import (
    FixedPointSearch,
    in_place_of,
    worth_designs,
)
from hasten.passes.fixed_point import FixedPoint


@pytest.mark.parametrize(
    ("risks", "chosen"),
    [
        ([], []),
        ([0.01], [0]),
        ([0.02, 0.01], [0, 1]),
        ([0.05, 0.04, 0.025, 0.02, 0.012, 0.001], [2, 4, 0]),
        ([0.05, 0.04, 0.02], [2, 0]),
        ([0.09, 0.05], [1, 0]),
    ],
)
def test_the_smallest_that_will_be_certified_comes_first_then_a_safer_one(
    risks: list[float], chosen: list[int]
) -> None:
    assert worth_designs(risks, 0.03) == chosen


def test_what_does_not_fit_gives_way_to_what_is_a_tenth_smaller() -> None:
    costs = [60.0, 64.0, 68.0, 73.0, 78.0, 84.0, 90.0, 96.0, 100.0]
    assert [costs[i] for i in in_place_of(costs, 8)] == [100.0, 90.0, 78.0, 68.0, 60.0]
    assert list(in_place_of(costs, 0)) == [0]


@pytest.mark.parametrize(
    ("seconds", "cost", "too_long"),
    [
        ({}, 9e9, False),
        ({100.0: 60.0}, 200.0, False),
        ({100.0: 60.0}, 400.0, True),
        ({0.0: 1.0}, 50.0, False),
    ],
)
def test_what_would_hardly_be_routed_in_time_is_not_begun(
    seconds: dict[float, float], cost: float, too_long: bool
) -> None:
    board = cast(Any, SimpleNamespace(bench=SimpleNamespace(limit_s=900.0)))
    search = FixedPointSearch(cast(Any, None), board, ())
    search._routed.update(seconds)
    assert search._too_long(cost) is too_long


def test_a_choice_that_the_search_returns_to_is_judged_and_told_once() -> None:
    told: list[str] = []
    trials = SimpleNamespace(done={}, outcome=lambda _: "judged")

    def judge(candidate: Single) -> Trial:
        assert candidate.key not in trials.done
        trial = trials.done[candidate.key] = Trial(candidate)
        return trial

    def tell(stage: str, label: str, done: int, total: int, outcome: str | None = None) -> None:
        told.extend(filter(None, [outcome]))

    trials.judge = judge
    search = FixedPointSearch(cast(Any, SimpleNamespace(tell=tell)), cast(Any, trials), ())
    assert search._judge(FixedPoint(6, 6, 6)) is search._judge(FixedPoint(6, 6, 6))
    assert len(told) == 1
