"""An upper bound on the mean of bounded differences, by betting, for fractional scores and groups.

A bettor stakes on small differences, against the null hypothesis "the mean difference is m or
more". The bettor's capital, prod (1 + bet_t (m - d_t)), is then a supermartingale that starts at 1,
so the chance that it ever reaches 1 / alpha is at most alpha (Ville). It may therefore be watched
as samples come in, and stopped early. Source: Waudby-Smith and Ramdas, JRSS B 86:1, 2024, sections
3 and 4.

Differences are used in the order given, which must not depend on their values: `judge` shuffles
them with a fixed seed. A file sorted by outcome would break the bound.

Bets are at most 1 and don't depend on m. So for every m >= 0 no capital is negative, and capital
rises with m along any path: the rejected hypotheses are exactly those above one bound, found by
bisection.
"""

import bisect
import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

from hasten.errors import InputError

Floats: TypeAlias = NDArray[np.float64]

# The capital is split among these bettors: (share, multiple of the bet for the expected variance,
# largest bet). The first does best where the search split was right; the others help where it was
# wrong. Splitting costs the first log(1 / share) of capital, about 12% of the samples.
_BETTORS = ((0.7, 1.0, 0.95), (0.2, 0.5, 0.6), (0.1, 2.0, 0.99))
_PSEUDO_SQUARE = 0.05  # an invented squared difference, so that no variance is taken to be zero
_BOUND_WIDTH = 1e-7


@dataclass(frozen=True)
class BettingPrior:
    """Knowledge from the search split of the differences; if wrong, it costs samples, not validity.

    Attributes:
        mean: Mean of original - candidate over the search split, in [-1, 1].
        variance: Variance of original - candidate over the search split, in [0, 1].
        n: Number of draws that the mean and the variance come from; 0 where nothing is known.
    """

    mean: float = 0.0
    variance: float = 0.0
    n: int = 0

    @classmethod
    def from_differences(cls, differences: Floats) -> "BettingPrior":
        """Return the prior of a search split's differences or group means, shape (n,)."""
        if differences.size == 0:
            return cls()
        return cls(float(differences.mean()), float(differences.var()), int(differences.size))


def betting_upper_bound(differences: Floats, alpha: float, prior: BettingPrior) -> float:
    """Return an upper confidence bound on the mean of differences, at least 0 and at most 1.

    Args:
        differences: original - candidate per draw, each in [-1, 1], shape (n,), in an order that
            doesn't depend on their values.
        alpha: Largest chance that the bound is below the true mean.
        prior: Prior from data that is disjoint from these differences.

    Raises:
        InputError: there are no differences, some lie outside [-1, 1], or alpha is outside (0, 1).
    """
    _check(differences, alpha)
    bets = _bets(differences, alpha, prior)
    low, high = 0.0, 1.0
    while high - low > _BOUND_WIDTH:
        middle = (low + high) / 2
        low, high = (low, middle) if _rejects(differences, bets, middle, alpha) else (middle, high)
    return high


def betting_certifies(
    differences: Floats, max_drop: float, alpha: float, prior: BettingPrior
) -> bool:
    """Whether "the mean difference is max_drop or more" is rejected at any time in the given order.

    Raises:
        InputError: an argument is out of its range, as in `betting_upper_bound`, or max_drop is
            outside (0, 1).
    """
    _check(differences, alpha)
    _check_max_drop(max_drop)
    return bool(_rejects(differences, _bets(differences, alpha, prior), max_drop, alpha))


def betting_refutes(
    differences: Floats, max_drop: float, alpha: float, prior: BettingPrior
) -> bool:
    """Whether "the mean difference is max_drop or less" is rejected at any time in the given order.

    The bets are those of `betting_certifies` on max_drop - difference, scaled into [-1, 1].

    Raises:
        InputError: an argument is out of its range, as in `betting_certifies`.
    """
    _check(differences, alpha)
    _check_max_drop(max_drop)
    turned, expected = _turned(differences, max_drop, prior)
    return bool(_rejects(turned, _bets(turned, alpha, expected), 0.0, alpha))


def fewest_unchanged(max_drop: float, alpha: float) -> int:
    """Return the fewest draws without any difference that certify, with no prior knowledge.

    The first bettor alone, at the largest bet, needs no fewer.

    Raises:
        InputError: max_drop or alpha is outside (0, 1).
    """
    share, _, most = _BETTORS[0]
    enough = math.ceil(math.log(1 / (share * alpha)) / math.log1p(most * max_drop))
    return 1 + bisect.bisect_left(
        range(1, enough),
        True,
        key=lambda n: betting_certifies(np.zeros(n), max_drop, alpha, BettingPrior()),
    )


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


def _bets(differences: Floats, alpha: float, prior: BettingPrior) -> Floats:
    """Return each bettor's stake before each draw; the t-th uses only draws before t.

    sqrt(2 log(1 / alpha) / (n variance)) wins most where it just suffices (Waudby-Smith and Ramdas,
    eq. 15).

    Args:
        differences: Sequences of differences, one per row, shape (..., n).

    Returns:
        Stakes, shape (bettors, ..., n).
    """
    n = differences.shape[-1]
    squares = (differences - prior.mean) ** 2
    before = np.zeros_like(squares)
    np.cumsum(squares[..., :-1], axis=-1, out=before[..., 1:])
    known = _PSEUDO_SQUARE + prior.n * prior.variance + before
    variance = known / (1 + prior.n + np.arange(n))
    best = np.sqrt(2 * math.log(1 / alpha) / (n * variance))
    return np.stack([np.minimum(multiple * best, most) for _, multiple, most in _BETTORS])


def _rejects(differences: Floats, bets: Floats, mean: float, alpha: float) -> NDArray[np.bool_]:
    """Whether the bettors' joint capital against `mean` or more ever reaches 1 / alpha, by row."""
    shares = np.reshape([share for share, _, _ in _BETTORS], (-1,) + (1,) * differences.ndim)
    capital = np.cumsum(np.log1p(bets * (mean - differences)), axis=-1)
    joint = special.logsumexp(capital, axis=0, b=shares)
    return np.asarray(np.max(joint, axis=-1) >= math.log(1 / alpha))
