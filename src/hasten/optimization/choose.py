"""From what was measured to a ladder, safest first. Pure: records in, an order out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.errors import InputError
from hasten.measure.intervals import Ratio

RUNGS = 4
"""A ladder's most rungs: each is a model to run on all of the sealed data."""


@dataclass(frozen=True)
class Standing:
    """How one candidate did on the search split.

    Attributes:
        key: The candidate's key.
        exact: Whether it keeps the model's own precision and agrees with the reference.
        ratio: Latency over the baseline's.
        drop: Estimated fall on the search split, in absolute share; 0 for the exact.
        risk: The fall that it would probably be certified for, which tells who is safer; 0 for the
            exact. Of few samples, the one that flips most comes out best by luck.
    """

    key: str
    exact: bool
    ratio: Ratio
    drop: float
    risk: float


def faster(one: Ratio, other: Ratio, spread: float) -> bool:
    """Whether one is faster than the other by more than the noise (both against one baseline).

    Args:
        one: Its ratio to the baseline.
        other: The other's.
        spread: How far the baseline measured against itself reaches from 1.
    """
    return one.estimate < other.estimate * (1 - spread) and one.high < other.estimate


def fastest_exact(standings: Sequence[Standing], baseline: str, spread: float) -> str:
    """Return the exact candidate to fall back on; the baseline unless one clearly beats it.

    Raises:
        InputError: the baseline isn't among them.
    """
    by_key = {standing.key: standing for standing in standings}
    if baseline not in by_key:
        raise InputError("the baseline was not measured, so nothing can be compared to it")
    best = by_key[baseline]
    for standing in sorted(standings, key=lambda s: s.ratio.estimate):
        if standing.exact and faster(standing.ratio, best.ratio, spread):
            return standing.key
    return baseline


def undecided(standings: Sequence[Standing], max_drop: float) -> tuple[str, ...]:
    """Return the inexact candidates under the limit that nobody surely beats, fastest first.

    A few turns leave many so: whoever seemed slightly slower than another that is as safe may be faster.

    Args:
        standings: All that was measured.
        max_drop: The limit on the drop, in absolute share.
    """
    able = [s for s in standings if not s.exact and s.drop < max_drop]
    return tuple(
        own.key
        for own in sorted(able, key=lambda s: (s.ratio.estimate, s.risk))
        if not any(
            (o.exact or o.risk <= own.risk) and o.ratio.high < own.ratio.low for o in standings
        )
    )


def ladder(
    standings: Sequence[Standing],
    exact: str,
    *,
    spread: float,
    max_drop: float,
    rungs: int = RUNGS,
) -> tuple[str, ...]:
    """Order the candidates worth certifying from safest to fastest.

    A rung is faster than the exact candidate beyond the noise, was under the limit on the search
    split, and no faster candidate was as safe. Where two tie in speed within the noise, the
    safer one stays.

    Args:
        standings: All that was measured.
        exact: Key of the exact candidate to beat.
        spread: The A/A spread.
        max_drop: The limit on the drop, in absolute share.
        rungs: At most so many; the fastest and the safest always stay.

    Returns:
        Keys, without the exact one; empty where nothing inexact is worth it.
    """
    floor = next(s.ratio for s in standings if s.key == exact)
    able = [
        s for s in standings if not s.exact and s.drop < max_drop and faster(s.ratio, floor, spread)
    ]
    kept: list[Standing] = []
    head = 0.0  # the fastest of those that tie with the last kept; ties don't chain
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
