"""What a certificate bounds: one difference per draw, by the method that its scores allow."""

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
        differences: Shape (draws,); of groups their means.
        grouped: Whether draws are groups. Groups of one sample each are samples.
        losses_only: Whether gains were counted as nothing.
        counts: Lost and gained among 0/1 scores without groups; None for others.
    """

    differences: Floats
    grouped: bool
    losses_only: bool
    counts: tuple[int, int] | None

    @property
    def method(self) -> Method:
        """How they are bounded."""
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
        original: Scores in [0, 1], shape (n,).
        candidate: The same, on the same samples.
        losses_only: Count no gain.
        binary: Whether they may be counted as 0/1.
        groups: A label per sample, or None.

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
    """Return whether a mean difference of `max_drop` or more is rejected, and the upper bound on it.

    Betting takes the draws in an order that a fixed seed shuffles.

    Args:
        max_drop: In absolute share, in (0, 1).
        alpha: The level of both.
        prior: What bets are set by.
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
    """Return whether a mean difference of `max_drop` or less is rejected: `bounded`, mirrored."""
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
    """Return how many draws certify where nothing changes at all.

    Raises:
        InputError: a limit or level outside (0, 1).
    """
    if method == BETTING:
        return fewest_unchanged(max_drop, alpha)
    alone = math.ceil(math.log(alpha) / math.log1p(-max_drop) - 1e-9)
    if method == ONE_SHARE:
        return alone
    # Below alpha = 0.05 outcomes with a few lost and more gained rank as high as none at all.
    more = range(alone, 2 * alone + 10)
    return alone + bisect.bisect_left(
        more, True, key=lambda n: paired_certifies(0, 0, n, max_drop, alpha)
    )
