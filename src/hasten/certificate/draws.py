"""Draws that a certificate bounds: one difference each, by the method that the scores allow."""

import bisect
import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hasten.certificate.betting import (
    BettingPrior,
    betting_certifies,
    betting_refutes,
    betting_upper_bound,
    fewest_unchanged,
    group_means,
)
from hasten.certificate.exact import (
    clopper_pearson_upper,
    paired_certifies,
    paired_refutes,
    paired_upper_bound,
)

Floats: TypeAlias = NDArray[np.float64]
Method: TypeAlias = Literal["exact unconditional test, Tango order", "Clopper-Pearson", "betting"]

EXACT: Method = "exact unconditional test, Tango order"
ONE_SHARE: Method = "Clopper-Pearson"
BETTING: Method = "betting"

_ORDER_SEED = 0


@dataclass(frozen=True)
class Draws:
    """Differences original - candidate, one per draw.

    Attributes:
        differences: Difference of each draw, or mean difference of each group, shape (draws,).
        grouped: Whether draws are groups; groups of one sample each count as samples.
        losses_only: Whether gains were counted as zero.
        counts: Numbers lost and gained, for 0/1 scores without groups; None for other scores.
    """

    differences: Floats
    grouped: bool
    losses_only: bool
    counts: tuple[int, int] | None

    @property
    def method(self) -> Method:
        """Return the method that bounds the differences."""
        if self.counts is None:
            return BETTING
        return ONE_SHARE if self.losses_only else EXACT


def drawn(
    original: Floats,
    candidate: Floats,
    *,
    losses_only: bool,
    binary: bool,
    groups: NDArray[np.generic] | None,
) -> Draws:
    """Pair up scores.

    Args:
        original: Scores of the original in [0, 1], shape (n,).
        candidate: Scores of the candidate on the same samples, in [0, 1], shape (n,).
        losses_only: Whether to count gains as zero.
        binary: Whether the scores may be counted as 0/1.
        groups: Label of each sample's group, shape (n,); None where there are no groups.

    Raises:
        InputError: there isn't one group per sample.
    """
    falls = original - candidate
    differences = np.maximum(falls, 0) if losses_only else falls
    means = differences if groups is None else group_means(differences, groups)
    if means.size < differences.size:
        return Draws(means, True, losses_only, None)
    counts = (int(np.sum(falls > 0)), int(np.sum(falls < 0))) if binary else None
    return Draws(differences, False, losses_only, counts)


def bounded(draws: Draws, max_drop: float, alpha: float, prior: BettingPrior) -> tuple[bool, float]:
    """Return whether a mean difference of `max_drop` or more is rejected, and its upper bound.

    Betting takes the draws in an order shuffled with a fixed seed.

    Args:
        draws: Draws to bound the mean of.
        max_drop: Limit as an absolute share, in (0, 1).
        alpha: Level of both the test and the bound.
        prior: Prior by which bets are set.
    """
    n = draws.differences.size
    if draws.counts is None:
        shuffled = _shuffled(draws)
        certified = betting_certifies(shuffled, max_drop, alpha, prior)
        bound = betting_upper_bound(shuffled, alpha, prior)
    elif draws.losses_only:
        bound = clopper_pearson_upper(draws.counts[0], n, alpha)
        certified = bound <= max_drop
    else:
        certified = paired_certifies(*draws.counts, n, max_drop, alpha)
        bound = paired_upper_bound(*draws.counts, n, alpha)
    # Verdict and bound come from one family of nested tests; bisection may stop a hair above.
    return certified, min(bound, max_drop) if certified else bound


def refuted(draws: Draws, max_drop: float, alpha: float, prior: BettingPrior) -> bool:
    """Whether a mean difference of `max_drop` or less is rejected: the mirror of `bounded`."""
    n = draws.differences.size
    if draws.counts is None:
        return betting_refutes(_shuffled(draws), max_drop, alpha, prior)
    if draws.losses_only:
        return 1 - clopper_pearson_upper(n - draws.counts[0], n, alpha) >= max_drop
    return paired_refutes(*draws.counts, n, max_drop, alpha)


def _shuffled(draws: Draws) -> Floats:
    return np.random.default_rng(_ORDER_SEED).permutation(draws.differences)


@cache
def fewest_draws(method: Method, max_drop: float, alpha: float) -> int:
    """Return the fewest draws that certify where nothing changes at all.

    Raises:
        InputError: max_drop or alpha is outside (0, 1).
    """
    if method == BETTING:
        return fewest_unchanged(max_drop, alpha)
    alone = math.ceil(math.log(alpha) / math.log1p(-max_drop) - 1e-9)
    if method == ONE_SHARE:
        return alone
    # Below alpha = 0.05, outcomes with a few lost and more gained rank as high as none at all.
    more = range(alone, 2 * alone + 10)
    return alone + bisect.bisect_left(
        more, True, key=lambda n: paired_certifies(0, 0, n, max_drop, alpha)
    )
