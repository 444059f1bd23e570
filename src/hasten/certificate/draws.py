"""Draws that a certificate bounds: one difference each, by the method that the scores allow."""

import bisect
import math
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hasten.certificate.betting import (
    MOST_TRIED,
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

Over: TypeAlias = Literal["samples", "groups"]

_ORDER_SEED = 0
BETTING_COST = 1.18
"""Draws that betting needs for each draw of the exact test, at most of those in benchmarks/certificate_bets.py."""


@dataclass(frozen=True)
class Draws:
    """Differences original - candidate, one per draw.

    A group of many rows makes few draws of all: as few as there would be if every group had its size. So groups
    may be cut: a group counts with at most `cut` rows at its mean difference, and its rows beyond count as
    lost, whatever they answered. That bounds the drop from above, and the cut depends on sizes alone.

    Attributes:
        differences: Difference of each draw, or mean difference of each group, shape (draws,).
        weights: Rows of each draw that count at its difference, shape (draws,).
        heaviest: Largest number of rows of a draw, among all data that these were drawn from.
        beyond: Number of rows to count as lost beside those, for the groups with more rows than the cut.
        grouped: Whether draws are groups; groups of one sample each count as samples.
        losses_only: Whether gains were counted as zero.
        counts: Numbers lost and gained, for 0/1 scores where a draw is one sample; None for other scores.
        estimate: Mean difference over what is asked: samples, or groups.
        largest: Number of samples in the largest group.
    """

    differences: Floats
    weights: Floats
    heaviest: float
    beyond: int
    grouped: bool
    losses_only: bool
    counts: tuple[int, int] | None
    estimate: float
    largest: int

    @property
    def samples(self) -> int:
        """Return the number of rows that count, those that count as lost among them."""
        return round(float(self.weights.sum())) + self.beyond

    @property
    def method(self) -> Method:
        """Return the method that bounds the differences."""
        if self.counts is None:
            return BETTING
        return ONE_SHARE if self.losses_only else EXACT

    @property
    def relative(self) -> Floats:
        """Return the rows of each draw by the mean draw's, shape (draws,)."""
        return np.asarray(self.weights / self.weights.mean())

    @property
    def unevenness(self) -> float:
        """Return the rows of the largest draw by the mean draw's: 1 where all are equal."""
        return self.heaviest / float(self.weights.mean())

    def left(self, max_drop: float) -> float:
        """Return the limit on the draws that are left, where those beyond the cut count as lost."""
        share = self.beyond / self.samples
        return (max_drop - share) / (1 - share)


def drawn(
    original: Floats,
    candidate: Floats,
    *,
    losses_only: bool,
    binary: bool,
    groups: NDArray[np.generic] | None,
    max_drop: float,
    over: Over = "samples",
    sizes: NDArray[np.int64] | None = None,
) -> Draws:
    """Pair up scores.

    Args:
        original: Scores of the original in [0, 1], shape (n,).
        candidate: Scores of the candidate on the same samples, in [0, 1], shape (n,).
        losses_only: Whether to count gains as zero.
        binary: Whether the scores may be counted as 0/1.
        groups: Label of each sample's group, shape (n,); None where there are no groups.
        max_drop: Limit that will be tested; it decides how groups are cut.
        over: Units of the mean: all samples, or all groups, each counting once.
        sizes: Number of samples in each group of all data that these were drawn from, shape (groups,); by
            default of these alone.

    Raises:
        InputError: there isn't one group per sample.
    """
    falls = original - candidate
    differences = np.maximum(falls, 0) if losses_only else falls
    n = differences.size
    labels = np.arange(n) if groups is None else groups
    means = group_means(differences, labels)
    _, first, own = np.unique(labels, return_index=True, return_counts=True)
    everywhere = own if sizes is None else np.concatenate([own, sizes])
    largest = int(everywhere.max())
    estimate = float(differences.mean())
    if largest == 1 or over == "groups":
        grouped = means.size < n
        counted = binary and not grouped
        counts = (int(np.sum(falls > 0)), int(np.sum(falls < 0))) if counted else None
        mean = float(means.mean())
        return Draws(
            means, np.ones(means.size), 1.0, 0, grouped, losses_only, counts, mean, largest
        )
    whole = own if sizes is None else sizes
    cut = best_cut(whole, max_drop, binary=binary)
    if cut == 1:  # one row of each group is a sample like any other
        means, falls = differences[first], falls[first]
    counted = binary and cut == 1
    counts = (int(np.sum(falls > 0)), int(np.sum(falls < 0))) if counted else None
    kept = np.minimum(own, cut).astype(np.float64)
    share = np.sum(np.maximum(whole - cut, 0)) / whole.sum()
    beyond = math.ceil(kept.sum() * share / (1 - share) - 1e-9)
    heaviest = float(min(largest, cut))
    return Draws(means, kept, heaviest, beyond, True, losses_only, counts, estimate, largest)


def best_cut(sizes: NDArray[np.int64], max_drop: float, *, binary: bool = True) -> int:
    """Return the most rows with which a group should count, so that most can be shown.

    Args:
        sizes: Number of samples in each group, shape (groups,).
        max_drop: Limit that will be tested.
        binary: Whether scores are 0/1, so that single rows could be counted exactly.
    """
    total = int(sizes.sum())

    def shown(cut: int) -> float:
        """Return how fast evidence grows with the draws, where nothing changes."""
        share = np.sum(np.maximum(sizes - cut, 0)) / total
        rate = (max_drop - share) / (1 - share) * np.minimum(sizes, cut).mean() / cut
        return float(rate * (BETTING_COST if binary and cut == 1 else 1.0))

    return int(max(np.unique(sizes), key=shown)) if total else 1


def bounded(draws: Draws, max_drop: float, alpha: float, prior: BettingPrior) -> tuple[bool, float]:
    """Return whether a mean difference of `max_drop` or more is rejected, and its upper bound.

    Betting takes the draws in an order shuffled with a fixed seed. The bound is one candidate's own: of
    several that are tested one after another, the test protects the limit alone.

    Args:
        draws: Draws to bound the mean of.
        max_drop: Limit as an absolute share, in (0, 1).
        alpha: Level of both the test and the bound.
        prior: Prior by which bets are set.
    """
    n = draws.samples
    if draws.counts is None:
        shuffled, weights = _shuffled(draws)
        left, share, heaviest = draws.left(max_drop), draws.beyond / n, draws.heaviest
        certified = left > 0 and betting_certifies(shuffled, left, alpha, prior, weights, heaviest)
        bound = betting_upper_bound(shuffled, alpha, prior, weights, heaviest)
        bound = share + (1 - share) * bound
    elif draws.losses_only:
        bound = clopper_pearson_upper(draws.counts[0] + draws.beyond, n, alpha)
        certified = bound <= max_drop
    else:
        lost, gained = draws.counts
        certified = paired_certifies(lost + draws.beyond, gained, n, max_drop, alpha)
        bound = paired_upper_bound(lost + draws.beyond, gained, n, alpha)
    # Verdict and bound come from one family of tests; the search for the bound may stop a hair beside it.
    beside = math.nextafter(max_drop, 1.0)
    return certified, min(bound, max_drop) if certified else max(bound, beside)


def refuted(draws: Draws, max_drop: float, alpha: float, prior: BettingPrior) -> bool:
    """Whether a mean difference of `max_drop` or less is rejected: the mirror of `bounded`.

    Rows beyond the cut count as gained, or as unchanged where gains count as zero.
    """
    n, share = draws.samples, draws.beyond / draws.samples
    if draws.counts is None:
        gain = 0.0 if draws.losses_only else share
        left = (max_drop + gain) / (1 - share) if share < 1 else 1.0
        shuffled, weights = _shuffled(draws)
        return left < 1 and betting_refutes(shuffled, left, alpha, prior, weights, draws.heaviest)
    lost, gained = draws.counts
    if draws.losses_only:
        return 1 - clopper_pearson_upper(n - lost, n, alpha) >= max_drop
    return paired_refutes(lost, gained + draws.beyond, n, max_drop, alpha)


def _shuffled(draws: Draws) -> tuple[Floats, Floats]:
    order = np.random.default_rng(_ORDER_SEED).permutation(draws.differences.size)
    return draws.differences[order], draws.weights[order]


@cache
def fewest_draws(method: Method, max_drop: float, alpha: float, unevenness: float = 1.0) -> int:
    """Return the fewest draws that certify where nothing changes at all.

    Where these are more than a million, it is about so many: telling exactly takes memory for each of them.

    Args:
        method: Method that judges.
        max_drop: Limit on the drop.
        alpha: Level of the test.
        unevenness: Rows of the largest draw by the mean draw's, for betting.

    Raises:
        InputError: max_drop or alpha is outside (0, 1).
    """
    if method == BETTING:
        return fewest_unchanged(max_drop, alpha, unevenness)
    alone = math.ceil(math.log(alpha) / math.log1p(-max_drop) - 1e-9)
    if method == ONE_SHARE or alone > MOST_TRIED:
        return alone
    # Below alpha = 0.05, outcomes with a few lost and more gained rank as high as none at all.
    more = range(alone, 2 * alone + 10)
    return alone + bisect.bisect_left(
        more, True, key=lambda n: paired_certifies(0, 0, n, max_drop, alpha)
    )
