"""Other tests of "the drop is at least the limit", by which those of `hasten` are measured.

Tests of counts are given as their region: for each number gained the most lost that are certified. Tests
that bet take sequences of drops, one run a row, and answer for all runs at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hasten.certificate.betting import BettingPrior, _rejects
from hasten.certificate.exact import clopper_pearson_upper, paired_certifies, tango_statistic

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ALPHA = 0.05
SEARCHED = 3 / 7
"""Draws that a run searches on for each that it seals, as it splits data."""
Counts = Callable[[int, int, int, float], bool]
"""Test of the numbers lost and gained, out of a number of samples, at a limit."""
Sequences = Callable[[Floats, float], Bools]
"""Test of drops, shape (runs, n), at a limit."""

quick_certifies = cache(paired_certifies)


def exact(lost: int, gained: int, n: int, limit: float) -> bool:
    """The test of `hasten` for 0/1 scores."""
    return quick_certifies(lost, gained, n, limit, ALPHA)


def tango(lost: int, gained: int, n: int, limit: float) -> bool:
    """Score interval with its normal approximation (Tango, Stat. Med. 17:891, 1998)."""
    statistic = tango_statistic(np.array(lost), np.array(gained), n, limit)
    return bool(statistic <= stats.norm.ppf(ALPHA))


def lost_alone(lost: int, gained: int, n: int, limit: float) -> bool:
    """Exact binomial bound on the share lost, by which gains count for nothing."""
    return lost < n and clopper_pearson_upper(lost, n, ALPHA) <= limit


def wald(lost: int, gained: int, n: int, limit: float) -> bool:
    """Normal approximation of the mean difference, with the observed variance."""
    mean = (lost - gained) / n
    variance = max((lost + gained) / n - mean**2, 0.0) * n / max(n - 1, 1)
    return bool(mean + stats.norm.ppf(1 - ALPHA) * math.sqrt(variance / n) < limit)


def bootstrap(lost: int, gained: int, n: int, limit: float) -> bool:
    """Percentile bootstrap of the mean difference, with all resamples instead of some thousand."""
    flips = lost + gained
    if flips == 0:
        return True
    least = math.ceil(limit * n - 1e-9)  # the drop of a resample that reaches the limit
    flipped = np.arange(_most(n, flips / n) + 1)
    # Of m flips, more than (m + least - 1) / 2 lost make that drop.
    reach = stats.binom.sf(np.ceil((flipped + least) / 2) - 1, flipped, lost / flips)
    return bool((stats.binom.pmf(flipped, n, flips / n) * reach).sum() <= ALPHA)


def mcnemar(lost: int, gained: int, n: int, limit: float) -> bool:
    """McNemar's test used wrongly: that no loss was found is taken for there being none."""
    return lost <= gained or stats.binomtest(lost, lost + gained, 0.5).pvalue > ALPHA


def _most(n: int, share: float) -> int:
    """Return a count that is passed with a chance of less than 1e-12."""
    return int(min(n, stats.binom.isf(1e-12, n, share) + 1))


def region(test: Counts, n: int, limit: float, gained: int) -> Ints:
    """Return the most lost that a test certifies, for 0 to `gained` gained; -1 where it certifies none.

    Each test certifies whatever has fewer lost and more gained than something that it certifies.
    """
    most, lost = np.full(min(gained, n) + 1, -1), -1
    for more in range(len(most)):
        lost = min(lost, n - more)
        while lost + 1 + more <= n and test(lost + 1, more, n, limit):
            lost += 1
        most[more] = lost
    return most


def chance(test: Counts, n: int, limit: float, lose: float, gain: float) -> float:
    """Return the chance that a test certifies: an exact sum over all outcomes, to within 1e-12."""
    most = region(test, n, limit, _most(n, gain) if gain else 0)
    gained = np.arange(len(most))
    inside = stats.binom.cdf(most, n - gained, lose / (1 - gain))
    return float((stats.binom.pmf(gained, n, gain) * inside).sum())


def betting(drops: Floats, limit: float) -> Bools:
    """The test of `hasten` for other scores and groups, with no prior."""
    ones, means = np.ones_like(drops), np.array([limit])
    return _rejects(drops, ones, means, ALPHA, BettingPrior(), 1.0)


def betting_after_search(drops: Floats, limit: float) -> Bools:
    """The test of `hasten` with the prior of a search, whose draws are the last ones of each row."""
    n = round(drops.shape[1] / (1 + SEARCHED))
    search, sealed = drops[:, n:], drops[:, :n]
    mean, variance = search.mean(axis=1, keepdims=True), search.var(axis=1, keepdims=True)
    # The fields of a BettingPrior, with one value for each run.
    prior: Any = SimpleNamespace(mean=mean, variance=variance, n=search.shape[1])
    return _rejects(sealed, np.ones_like(sealed), np.array([limit]), ALPHA, prior, 1.0)


def hedged_capital(drops: Floats, limit: float) -> Bools:
    """Predictable plug-in bets (Waudby-Smith and Ramdas, JRSS B 86:1, 2024, section 4.4).

    Of the hedged capital only the side that can show a small drop bets, with the whole level; the bets are
    cut at 3/4 of the largest, the larger of the two values that the paper names.
    """
    runs, n = drops.shape
    mean = (1 - limit) / 2  # of x = (1 - drop) / 2, which lies in [0, 1]
    total, square = np.full(runs, 0.5), np.full(runs, 0.25)
    capital, reached = np.zeros(runs), np.zeros(runs, bool)
    goal = math.log(1 / ALPHA)
    for t in range(n):
        x = (1 - drops[:, t]) / 2
        bet = np.minimum(np.sqrt(2 * goal * (t + 1) / (square * n)), 0.75 / mean)
        capital += np.log1p(bet * (x - mean))
        reached |= capital >= goal
        total += x
        square += (x - total / (t + 2)) ** 2
    return reached


def star(drops: Floats, limit: float, rng: np.random.Generator | None = None) -> Bools:
    """STaR-Bets as published (Voracek and Orabona, arXiv 2505.22422, 2025, with their code's constants).

    Args:
        drops: Drops, shape (runs, n).
        limit: Limit on their mean.
        rng: Source of the number by which the paper randomizes its last step; None leaves that out, so
            that the same data always give the same answer.
    """
    runs, n = drops.shape
    mean = (1 - limit) / 2
    capital, square, goal = np.zeros(runs), np.zeros(runs), math.log(1 / ALPHA)
    for number in range(n):
        t = number + 0.0001
        x = (1 - drops[:, number]) / 2
        spread = np.minimum(square / t + (mean + 0.0001) * n / t**2, 0.001 + mean * (1 - mean))
        bet = np.sqrt(2 * np.maximum(goal - capital, 0.0) / ((n - t) * spread))
        capital += np.log1p(np.minimum(bet, 1 / (mean + 0.001)) * (x - mean))
        square += (x - mean) ** 2
    return capital >= goal + (0.0 if rng is None else np.log(rng.random(runs)))
