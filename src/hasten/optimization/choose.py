"""The choice of the candidates to certify, safest first. Pure functions of measured figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.errors import InputError
from hasten.measure.intervals import Ratio

RUNGS = 4
"""Largest number of rungs of a ladder; each rung is a model that runs on all of the sealed data."""


@dataclass(frozen=True)
class Standing:
    """Result of one candidate on the search split.

    Attributes:
        key: Key of the candidate.
        exact: Whether it keeps the model's own precision and agrees with the reference.
        ratio: Latency divided by the baseline's.
        drop: Estimated drop on the search split, as an absolute share; 0 for an exact candidate.
        risk: Drop that the candidate would probably be certified for, by which safety is compared;
            0 for an exact candidate. The drop itself won't do: among candidates judged on few
            samples, the one that flips most answers has the lowest drop by luck.
    """

    key: str
    exact: bool
    ratio: Ratio
    drop: float
    risk: float


def faster(one: Ratio, other: Ratio, spread: float) -> bool:
    """Whether one candidate is faster than another by more than the noise.

    Args:
        one: Latency of the first candidate, divided by the baseline's.
        other: Latency of the second candidate, divided by the same baseline's.
        spread: Largest distance from 1 of the baseline's ratio to itself.
    """
    return one.estimate < other.estimate * (1 - spread) and one.high < other.estimate


def slower(ratio: Ratio, noise: float) -> bool:
    """Whether a candidate is slower than another, surely or by more than the noise.

    Args:
        ratio: Latency of the candidate, divided by the other's.
        noise: Distance from 1 of the baseline's ratio to itself.
    """
    return ratio.low > 1 or ratio.estimate > 1 + noise


def fastest_exact(standings: Sequence[Standing], baseline: str, spread: float) -> str:
    """Return the exact candidate to fall back on: the baseline unless another clearly beats it.

    Raises:
        InputError: the baseline isn't among the candidates.
    """
    by_key = {standing.key: standing for standing in standings}
    if baseline not in by_key:
        raise InputError("the baseline was not measured, so nothing can be compared with it")
    best = by_key[baseline]
    for standing in sorted(standings, key=lambda s: s.ratio.estimate):
        if standing.exact and faster(standing.ratio, best.ratio, spread):
            return standing.key
    return baseline


def undecided(standings: Sequence[Standing], max_drop: float) -> tuple[str, ...]:
    """Return the inexact candidates under the limit that none surely beats, fastest first.

    After a few turns many remain: a candidate that looks slightly slower than an equally safe one
    may in truth be faster.

    Args:
        standings: Every candidate that was measured.
        max_drop: Limit on the drop, as an absolute share.
    """
    able = [s for s in standings if not s.exact and s.drop < max_drop]
    return tuple(
        own.key
        for own in sorted(able, key=lambda s: (s.ratio.estimate, s.risk))
        if not any(
            (o.exact or o.risk <= own.risk) and o.ratio.high < own.ratio.low for o in standings
        )
    )


def entrants(
    standings: Sequence[Standing], baseline: str, *, max_drop: float, most: int
) -> tuple[str, ...]:
    """Return the inexact candidates to race: the ladder so far, then near ties, fastest first.

    The safest near tie that looks faster than the baseline always takes part, after the safest that
    surely is. On a busy machine its few turns may not show yet that it is, so the ladder may lack it.

    Args:
        standings: Every candidate that was measured.
        baseline: Key of the baseline.
        max_drop: Limit on the drop, as an absolute share.
        most: Largest number of keys to return, at least 2.
    """
    close = undecided(standings, max_drop)
    risks = {standing.key: standing.risk for standing in standings if standing.ratio.estimate < 1}
    safest = min((key for key in close if key in risks), key=risks.__getitem__, default=None)
    rungs = ladder(standings, baseline, spread=0.0, max_drop=max_drop, rungs=most)
    if safest is not None and safest not in rungs:
        fewer = ladder(standings, baseline, spread=0.0, max_drop=max_drop, rungs=most - 1)
        rungs = (*fewer[:1], safest, *fewer[1:])
    return tuple(dict.fromkeys([*rungs, *close]))[:most]


def ladder(
    standings: Sequence[Standing],
    exact: str,
    *,
    spread: float,
    max_drop: float,
    rungs: int = RUNGS,
) -> tuple[str, ...]:
    """Order the candidates worth certifying from safest to fastest.

    A rung is faster than the exact candidate beyond the noise, stayed under the limit on the search
    split, and no faster candidate is as safe. Of two candidates whose speeds differ by less than
    the noise, the safer one stays.

    Args:
        standings: Every candidate that was measured.
        exact: Key of the exact candidate to beat.
        spread: Largest distance from 1 of the baseline's ratio to itself (A/A).
        max_drop: Limit on the drop, as an absolute share.
        rungs: Largest number of rungs to return; the fastest and the safest always stay.

    Returns:
        Keys of the rungs, without the exact candidate; empty where nothing inexact is worth it.
    """
    floor = next(s.ratio for s in standings if s.key == exact)
    able = [
        s for s in standings if not s.exact and s.drop < max_drop and faster(s.ratio, floor, spread)
    ]
    kept: list[Standing] = []
    head = 0.0  # ratio of the fastest that ties with the last one kept, so that ties don't chain
    for standing in sorted(able, key=lambda s: (s.ratio.estimate, s.risk)):
        if kept and standing.risk >= kept[-1].risk:
            continue
        if kept and standing.ratio.estimate < head * (1 + spread):
            kept[-1] = standing
        else:
            kept.append(standing)
            head = standing.ratio.estimate
    kept.reverse()  # safest first
    if len(kept) > rungs:
        step = (len(kept) - 1) / max(1, rungs - 1)
        kept = [kept[round(i * step)] for i in range(rungs)]
    return tuple(standing.key for standing in kept)
