"""An upper bound on the mean of bounded differences, by betting, for fractional scores and groups.

A bettor stakes on small differences, against the null hypothesis "the mean difference is m or
more". The bettor's capital, prod (1 + bet_t w_t (m - d_t)), is then a supermartingale that starts at
1, so the chance that it ever reaches 1 / alpha is at most alpha (Ville). It may therefore be watched
as samples come in, and stopped early. Source: Waudby-Smith and Ramdas, JRSS B 86:1, 2024, sections
3 and 4.

A draw is a sample, or a group with its mean difference d_t and its size in rows w_t, divided by the
mean size. The null hypothesis is then about the mean over rows, E[w d] / E[w], in which a group counts by
its size. A bet is at most 1 / max(w), so that no group can ruin the bettor.

Differences are used in the order given, which must not depend on their values: `judge` shuffles
them with a fixed seed. A file sorted by outcome would break the bound.

Each bet aims at the capital that is still missing, with the draws that are left: a bettor who is behind
stakes more. Early bets are cautious, since few draws tell how large the changes are (both: Voracek and
Orabona, "STaR-Bets", arXiv 2505.22422, 2025). So bets depend on m, and the hypotheses that aren't
rejected don't have to be an interval: the bound is the largest of them.
"""

import bisect
import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hasten.errors import InputError

Floats: TypeAlias = NDArray[np.float64]

MOST_TRIED = 1_000_000
"""Largest number of draws for which it is tried out whether so many certify."""
_FURTHER = 5.0
"""Changes, as large as those before, that count in the variance from the start."""
_LARGEST_BET = 0.99
"""Largest bet, in units of 1 / max(weight)."""
_PSEUDO_SQUARE = 0.05
"""An invented squared difference, so that no variance is taken to be zero."""
_GRID = 65
_BOUND_WIDTH = 1e-6
_SMALLEST_BOUND = 1e-6


@dataclass(frozen=True)
class BettingPrior:
    """Knowledge from the search split of the differences; if wrong, it costs samples, not validity.

    Attributes:
        mean: Mean over rows of original - candidate on the search split, in [-1, 1].
        variance: Mean of (w (d - mean))^2 over its draws, w being a draw's rows by the mean draw's.
        n: Number of draws that the mean and the variance come from; 0 where nothing is known.
    """

    mean: float = 0.0
    variance: float = 0.0
    n: int = 0

    def __post_init__(self) -> None:
        if not (-1 <= self.mean <= 1 and 0 <= self.variance < math.inf and self.n >= 0):
            raise InputError(
                f"a prior has a mean in [-1, 1], a variance and a number of draws: got {self.mean}, "
                f"{self.variance} and {self.n}"
            )

    @classmethod
    def from_differences(cls, differences: Floats, weights: Floats | None = None) -> "BettingPrior":
        """Return the prior of a search split's draws.

        Args:
            differences: Difference of each draw, shape (n,).
            weights: Rows of each draw, up to a factor, shape (n,); all equal by default.
        """
        if differences.size == 0:
            return cls()
        relative = _relative(weights, differences)
        mean = float(np.mean(relative * differences))
        spread = relative * (differences - mean)
        return cls(mean, float(np.mean(spread**2)), int(differences.size))


def betting_upper_bound(
    differences: Floats,
    alpha: float,
    prior: BettingPrior,
    weights: Floats | None = None,
    heaviest: float = 0.0,
) -> float:
    """Return an upper confidence bound on the mean of differences, at least 0 and at most 1.

    Args:
        differences: original - candidate per draw, each in [-1, 1], shape (n,), in an order that
            doesn't depend on their values.
        alpha: Largest chance that the bound is below the true mean.
        prior: Prior from data that is disjoint from these differences.
        weights: Rows of each draw, up to a factor, shape (n,); all equal by default.
        heaviest: Largest number of rows that a draw may have, where that is more than these have.

    Raises:
        InputError: there are no differences, some lie outside [-1, 1], alpha is outside (0, 1), or the
            weights aren't positive, one for each difference.
    """
    _check(differences, alpha)
    relative = _relative(weights, differences)
    largest = _largest(relative, weights, heaviest)
    low, high = 0.0, 1.0
    grid = np.concatenate([[0.0], np.geomspace(_SMALLEST_BOUND, 1.0, _GRID)])
    while True:
        kept = ~_rejects(differences, relative, grid, alpha, prior, largest)
        last = int(np.flatnonzero(kept).max(initial=-1))
        low = grid[last] if last >= 0 else low
        high = grid[last + 1] if last + 1 < len(grid) else high
        if last + 1 >= len(grid) or high - low <= _BOUND_WIDTH:
            return float(high)
        grid = np.linspace(low, high, _GRID)


def betting_certifies(
    differences: Floats,
    max_drop: float,
    alpha: float,
    prior: BettingPrior,
    weights: Floats | None = None,
    heaviest: float = 0.0,
) -> bool:
    """Whether "the mean difference is max_drop or more" is rejected at any time in the given order.

    Raises:
        InputError: an argument is out of its range, as in `betting_upper_bound`, or max_drop is
            outside (0, 1).
    """
    _check(differences, alpha)
    _check_max_drop(max_drop)
    relative = _relative(weights, differences)
    largest = _largest(relative, weights, heaviest)
    return bool(_rejects(differences, relative, np.array([max_drop]), alpha, prior, largest)[0])


def betting_refutes(
    differences: Floats,
    max_drop: float,
    alpha: float,
    prior: BettingPrior,
    weights: Floats | None = None,
    heaviest: float = 0.0,
) -> bool:
    """Whether "the mean difference is max_drop or less" is rejected at any time in the given order.

    The bets are those of `betting_certifies` on max_drop - difference, scaled into [-1, 1].

    Raises:
        InputError: an argument is out of its range, as in `betting_certifies`.
    """
    _check(differences, alpha)
    _check_max_drop(max_drop)
    turned, expected = _turned(differences, max_drop, prior)
    relative = _relative(weights, differences)
    largest = _largest(relative, weights, heaviest)
    return bool(_rejects(turned, relative, np.array([0.0]), alpha, expected, largest)[0])


def fewest_unchanged(max_drop: float, alpha: float, largest: float = 1.0) -> int:
    """Return the fewest draws without any difference that certify, with no prior knowledge.

    Where these are more than a million, it is about so many.

    Args:
        max_drop: Limit on the mean difference.
        alpha: Level of the test.
        largest: Rows of the largest draw, by the mean draw's, at least 1. The other draws are taken to
            have about the mean.

    Raises:
        InputError: max_drop or alpha is outside (0, 1).
    """
    _check_max_drop(max_drop)
    # At the largest bet this many suffice; while less is missing the bet is smaller, which takes more.
    enough = math.ceil(math.log(1 / alpha) / math.log1p(_LARGEST_BET * max_drop / largest))
    if enough > MOST_TRIED:
        return enough
    return enough + bisect.bisect_left(
        range(enough, 4 * enough + 100),
        True,
        key=lambda n: _unchanged_certifies(n, max_drop, alpha, largest),
    )


def _unchanged_certifies(n: int, max_drop: float, alpha: float, largest: float) -> bool:
    means = np.array([max_drop])
    return bool(_rejects(np.zeros(n), np.ones(n), means, alpha, BettingPrior(), largest)[0])


def group_means(values: Floats, groups: NDArray[np.generic]) -> Floats:
    """Return the mean of each group's values, one draw per group, in the order of sorted labels.

    Args:
        values: Value of each sample, shape (n,).
        groups: Label of each sample's group, such as a video, a patient or a photo, shape (n,).

    Raises:
        InputError: the shapes differ.
    """
    if values.shape != groups.shape or values.ndim != 1:
        raise InputError(
            f"every sample needs one group: got scores of shape {values.shape} and groups of shape {groups.shape}; give one label per sample"
        )
    _, index = np.unique(groups, return_inverse=True)
    return np.asarray(np.bincount(index, weights=values) / np.bincount(index), dtype=np.float64)


def _check(differences: Floats, alpha: float) -> None:
    if not 0 < alpha < 1:
        raise InputError(
            f"alpha is a level between 0 and 1: got {alpha}; 95% confidence is alpha=0.05"
        )
    if differences.ndim != 1 or differences.size == 0:
        raise InputError(
            f"nothing to bound: got differences of shape {differences.shape}; give at least one, in one dimension"
        )
    if not np.all(np.abs(differences) <= 1):
        raise InputError(
            "differences lie between -1 and 1: got some outside, or not a number; give scores between 0 and 1"
        )


def _check_max_drop(max_drop: float) -> None:
    if not 0 < max_drop < 1:
        raise InputError(f"max_drop is a share between 0 and 1: got {max_drop}; 1% is 0.01")


def _turned(
    differences: Floats, max_drop: float, prior: BettingPrior
) -> tuple[Floats, BettingPrior]:
    """Return max_drop - difference as a share of its largest value, and the prior of that."""
    most = 1 + max_drop
    expected = BettingPrior((max_drop - prior.mean) / most, prior.variance / most**2, prior.n)
    return (max_drop - differences) / most, expected


def _relative(weights: Floats | None, differences: Floats) -> Floats:
    """Return weights divided by their mean, in the shape of the differences.

    Raises:
        InputError: there isn't one positive weight for each difference.
    """
    if weights is None:
        return np.ones_like(differences)
    if weights.shape != differences.shape or not np.all(weights > 0):
        raise InputError(
            f"every draw needs a positive weight: got weights of shape {weights.shape} for "
            "differences of "
            f"shape {differences.shape}; give the number of each group's samples"
        )
    return np.asarray(weights / weights.mean(axis=-1, keepdims=True), dtype=np.float64)


def _largest(relative: Floats, weights: Floats | None, heaviest: float) -> float:
    """Return the largest relative weight: of these draws, or of one with `heaviest` rows."""
    mean = 1.0 if weights is None else float(weights.mean())
    return max(float(relative.max()), heaviest / mean)


def _rejects(
    differences: Floats,
    weights: Floats,
    means: Floats,
    alpha: float,
    prior: BettingPrior,
    largest: float,
) -> NDArray[np.bool_]:
    """Whether the bettor's capital against a mean or more ever reaches 1 / alpha.

    A stake of sqrt(2 log(missing) / (left variance)) just suffices if the draws that are left go as expected
    (Waudby-Smith and Ramdas, eq. 15, with the capital that is missing for 1 / alpha). The t-th stake uses
    only draws before t.

    Args:
        differences: Sequences of differences, shape (n,), or (rows, n).
        weights: Relative weights in the shape of the differences.
        means: Means to test, shape (tests,); with rows, one test for each row or for all.
        largest: Largest relative weight that a draw may have.
    """
    n = differences.shape[-1]
    most = _LARGEST_BET / largest
    goal = math.log(1 / alpha)
    spread = _spread(differences, weights, prior)
    if differences.ndim == 1 and means.size == 1:
        gains = weights * (float(means[0]) - differences)
        return np.array([_reaches(gains.tolist(), spread.tolist(), goal, most)])
    capital = np.zeros(np.broadcast_shapes(differences.shape[:-1], means.shape))
    reached = np.zeros(capital.shape, bool)
    for t in range(n):
        stake = np.minimum(spread[..., t] * np.sqrt(np.maximum(goal - capital, 0.0)), most)
        capital += np.log1p(stake * (weights[..., t] * (means - differences[..., t])))
        reached |= capital >= goal
        if reached.all():
            break
    return reached


def _spread(differences: Floats, weights: Floats, prior: BettingPrior) -> Floats:
    """Return the stakes before each draw, but for the root of what is missing, by draws before it alone.

    To the variance some further changes are added, most of them at first. Without them a bettor stakes too
    much before a first rare, large change; they are as large as those before, so small changes of all draws
    add little.
    """
    n = differences.shape[-1]
    squares = (weights * (differences - prior.mean)) ** 2
    before, fourth = _sums_before(squares), _sums_before(squares**2)
    draws = np.arange(n)
    variance = (_PSEUDO_SQUARE + prior.n * prior.variance + before) / (1 + prior.n + draws)
    usual = (_PSEUDO_SQUARE + fourth) / (_PSEUDO_SQUARE + before)
    variance += _FURTHER * usual * n / (draws + n / 2) ** 2
    return np.asarray(np.sqrt(2 / (variance * (n - draws))))


def _sums_before(values: Floats) -> Floats:
    """Return, for each draw, the sum over the draws before it."""
    sums = np.zeros_like(values)
    np.cumsum(values[..., :-1], axis=-1, out=sums[..., 1:])
    return sums


def _reaches(gains: list[float], spread: list[float], goal: float, most: float) -> bool:
    """Whether the capital reaches its goal in one sequence; plain floats are quicker here than arrays."""
    missing = goal
    for gain, wide in zip(gains, spread, strict=True):
        stake = wide * math.sqrt(missing)
        missing -= math.log1p((stake if stake < most else most) * gain)
        if missing <= 0:
            return True
    return False
