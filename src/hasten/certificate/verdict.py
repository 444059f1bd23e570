"""Verdicts from per-sample scores, with the bound, the counts behind it, and the words for it."""

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from hasten.certificate.betting import BettingPrior
from hasten.certificate.draws import Draws, Over, bounded, drawn, refuted
from hasten.certificate.planning import check_limits, samples_needed
from hasten.core.words import amount, points
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric

Floats: TypeAlias = NDArray[np.float64]
Guard: TypeAlias = Literal["net", "lost", "changed"]

_MUCH = 0.01
"""Least share of all samples in one group that is worth a word where data is short."""


class Verdict(StrEnum):
    """Verdict of the sealed data; only what is certified ships with a certificate.

    Attributes:
        CERTIFIED: The limit holds, with the asked confidence.
        NOT_ACCURATE_ENOUGH: The limit doesn't hold, with the asked confidence.
        NOT_ENOUGH_DATA: The data shows neither.
    """

    CERTIFIED = "certified"
    NOT_ACCURATE_ENOUGH = "not accurate enough"
    NOT_ENOUGH_DATA = "not enough data"


@dataclass(frozen=True)
class Judgement:
    """One verdict and its grounds, in plain fields that go into JSON as they are.

    Attributes:
        verdict: Verdict of the sealed data.
        guard: Quantity that is bounded: the net drop, the share lost, or the share changed.
        metric: Name of the score.
        method: Method of the bound.
        max_drop: Largest drop that was allowed, as an absolute share.
        confidence: Confidence of the bound, in (0, 1).
        n: Number of draws: samples, or groups where data is grouped.
        groups: Number of draws of several samples, such as groups; None where every sample is a draw
            of its own.
        lost: Number of inputs that became wrong, or of answers that changed; None for grouped
            scores or scores not 0/1.
        gained: Number of inputs that became right; None for grouped scores or scores not 0/1.
        bound: Upper confidence bound on the drop of this candidate alone, as an absolute share. Of
            several that are tested one after another the test protects `max_drop`, not this.
        estimate: Observed drop, as an absolute share; negative where accuracy rose.
        samples_needed: Draws that would probably settle it, where data is short and the observed
            drop is below the limit; else None.
        samples: Number of samples, where draws are groups; None in records of older versions.
        over: "samples" where groups count by their size in the mean, "groups" where each counts once.
        beyond: Number of samples that count as lost whatever they answered, since they repeat others.
        largest: Number of samples in the largest group.
        prior: Prior by which bets were set, for a later test of the same candidate on other data.
    """

    verdict: Verdict
    guard: Guard
    metric: str
    method: str
    max_drop: float
    confidence: float
    n: int
    groups: int | None
    lost: int | None
    gained: int | None
    bound: float
    estimate: float
    samples_needed: int | None = None
    samples: int | None = None
    over: Over = "samples"
    beyond: int = 0
    largest: int = 1
    prior: BettingPrior = field(default_factory=BettingPrior)

    def in_words(self) -> str:
        """Return one sentence for people: what is certain, or what would make it so."""
        if self.verdict is Verdict.CERTIFIED:
            sure = f"{_sure(self.confidence)}% confident that"
            return f"{sure} {self._claim(f'{100 * self.max_drop:.6g}')} ({self._evidence()})"
        if self.samples_needed is not None:
            shown = goal(self.guard, self.metric, self.max_drop)
            return (
                f"not enough data: {self._draws()} can't show {shown}{self._over}{self._uneven()}; "
                f"about {_about(self.samples_needed):,}{f' {self._draw}s' if self._draw else ''} would"
            )
        allowed = f"{100 * self.max_drop:.6g}{'%' if self._about_change else ''}"
        fact = f"{self._fact(_two_digits(self.estimate))}, and less than {allowed} was allowed"
        if self.verdict is Verdict.NOT_ACCURATE_ENOUGH:
            return f"not accurate enough: {fact} ({self._evidence()}); only a candidate closer to the original would pass, not more data"
        return f"not enough data: {fact}, but {self._draws()} can't tell ({self._evidence()}); more would settle it, either way"

    @property
    def about_needed(self) -> int | None:
        """Return `samples_needed` as `in_words` rounds it; None where it isn't known."""
        return None if self.samples_needed is None else _about(self.samples_needed)

    def evidence(self) -> str:
        """Return what was counted, in words: "n=200: 0 lost, 0 gained"."""
        return self._evidence()

    @property
    def _about_change(self) -> bool:
        return _about_change(self.guard, self.metric)

    def _claim(self, share: str) -> str:
        if self._about_change:
            return f"at most {share}% of answers change{self._over}"
        if self.guard == "lost":
            if self.lost is None:
                unit = self._unit or "inputs"
                return f"the average loss in {self._noun} over {unit} is at most {points(share)}"
            return f"at most {share}% of inputs go from right to wrong{self._over}"
        return f"{self._mean} falls by at most {points(share)}"

    @property
    def _unit(self) -> str:
        """Noun for what the mean is over, where samples and draws differ; empty where they don't."""
        if self.groups is None or self._own_draw:
            return ""
        if self.over == "groups":
            return "groups"
        # Records of older versions don't say how many samples their groups hold.
        return "samples" if self.samples is not None and self.samples > self.n else ""

    @property
    def _over(self) -> str:
        """Words for what the mean is over, where samples and draws differ."""
        return f", as a mean over {self._unit}" if self._unit else ""

    @property
    def _mean(self) -> str:
        """Words for the score that falls, and what its mean is over, before a verb."""
        return f"{self._noun}{self._over}{',' if self._over else ''}"

    def _uneven(self) -> str:
        """Words for a group that holds so much that the others say little."""
        if self.samples is None or self.over != "samples":
            return ""
        return uneven(self.largest, self.samples, self.n)

    def _fact(self, share: str) -> str:
        if self._about_change:
            return f"{share}% of answers changed{self._over}"
        if self.guard == "lost":
            return f"losses alone came to {points(share)} of {self._noun}{self._over}"
        return f"{self._mean} fell by {points(share)}"

    def _draws(self) -> str:
        plural = "" if self.n == 1 else "s"
        drawn = f"{self.n:,} {self._draw or 'sample'}{plural}"
        if self.samples is None or self.over != "samples" or self._own_draw:
            return drawn
        return f"{self.samples:,} samples in {drawn}" if self.samples > self.n else drawn

    @property
    def _draw(self) -> str:
        """Noun for one draw that isn't a sample; empty for a sample."""
        return self._own_draw or ("" if self.groups is None else "group")

    @property
    def _own_draw(self) -> str:
        kind = _kind(self.metric)
        return "" if kind is None else kind.draw

    def _evidence(self) -> str:
        size = self._draws() if self._draw and self.lost is None else f"n={self._counted:,}"
        beyond = f", {amount(self.beyond, 'repeat')} counted as lost" if self.beyond else ""
        if self._about_change:
            beyond = beyond.replace("lost", "changed")
            return (
                f"{size}: {_two_digits(self.estimate)}% changed{beyond}"
                if self.lost is None
                else f"{size}: {self.lost:,} changed{beyond}"
            )
        if self.lost is None:
            return f"{size}: observed {points(_two_digits(self.estimate))}{beyond}"
        return f"{size}: {self.lost:,} lost, {self.gained:,} gained{beyond}"

    @property
    def _counted(self) -> int:
        """Return the number of samples behind counts of single samples."""
        return self.n if self.samples is None else self.samples

    @property
    def _noun(self) -> str:
        kind = _kind(self.metric)
        if kind is None:
            return self.metric
        return kind.title or f"the mean {kind.noun}"


def judge(
    original: Floats,
    candidate: Floats,
    *,
    guard: Guard,
    max_drop: float,
    confidence: float,
    metric: str,
    prior: BettingPrior,
    groups: NDArray[np.generic] | None = None,
    binary: bool | None = None,
    over: Over = "samples",
    sizes: NDArray[np.int64] | None = None,
) -> Judgement:
    """Test one candidate on sealed scores.

    0/1 scores without groups are judged exactly. Other scores are judged by betting on the
    differences of draws, shuffled with a fixed seed.

    Args:
        original: Scores of the original in [0, 1], shape (n,); for guard "changed", all ones.
        candidate: Scores of the candidate on the same samples, shape (n,); for guard "changed",
            agreement with the original.
        guard: Quantity that is bounded.
        max_drop: Limit on the drop, as an absolute share.
        confidence: Confidence of the bound.
        metric: Name of the score.
        prior: Prior from the search split's draws.
        groups: Label of each sample's group, shape (n,): samples that were drawn together, or are equal.
            A group is one draw with all its samples.
        binary: Whether scores are 0/1; None finds out. Set False where fractional scores merely
            happen to be 0/1.
        over: Mean that the claim is about, where there are groups: the mean over all samples, in which a group
            counts by its size, or the mean over groups, in which each counts once. Either is about
            data whose groups are of sizes such as these.
        sizes: Number of samples in each group of all data that these were drawn from, shape (groups,). By
            default of these alone, which may lack the largest.

    Raises:
        InputError: the scores don't pair up or lie outside [0, 1], or a limit is outside (0, 1).
    """
    original, candidate = np.asarray(original, np.float64), np.asarray(candidate, np.float64)
    _check(original, candidate, guard, max_drop, confidence)
    is_binary = bool(np.all((original % 1 == 0) & (candidate % 1 == 0)))
    if binary and not is_binary:
        raise InputError(
            "binary scores are 0 or 1: got others; leave out binary if scores lie between them"
        )
    draws = drawn(
        original,
        candidate,
        losses_only=guard != "net",
        binary=is_binary and binary is not False,
        groups=groups,
        max_drop=max_drop,
        over=over,
        sizes=sizes,
    )
    certified, bound = bounded(draws, max_drop, 1 - confidence, prior)
    verdict, needed = _verdict(draws, certified, max_drop, confidence, prior)
    lost, gained = draws.counts or (None, None)
    return Judgement(
        verdict=verdict,
        guard=guard,
        metric=metric,
        method=draws.method,
        max_drop=max_drop,
        confidence=confidence,
        n=draws.differences.size,
        groups=draws.differences.size if draws.grouped else None,
        lost=lost,
        gained=gained,
        bound=bound,
        estimate=draws.estimate,
        samples_needed=needed,
        samples=original.size if over == "groups" else draws.samples,
        over=over,
        beyond=draws.beyond,
        largest=draws.largest,
        prior=prior,
    )


def goal(guard: Guard, metric: str, max_drop: float) -> str:
    """Return the goal of a certificate, in words that follow "can't show"."""
    share = f"{100 * max_drop:.6g}"
    if _about_change(guard, metric):
        return f"that at most {share}% of answers change"
    return f"{'losses' if guard == 'lost' else 'a fall'} of at most {points(share)}"


def uneven(largest: int, samples: int, draws: int) -> str:
    """Return words on a group that holds so much that the others say little; empty where none does."""
    if largest < max(_MUCH * samples, 2 * samples / draws):
        return ""
    return f", because up to {largest:,} samples are equal or belong to one group, and count as one"


def _about_change(guard: Guard, metric: str) -> bool:
    kind = _kind(metric)
    return guard == "changed" or (kind is not None and kind.of_changes)


def _kind(metric: str) -> type[Metric] | None:
    """Return the class of a metric by its name; None where the registry doesn't have the name."""
    return Metric.member(metric) if metric in Metric.registry else None


def _check(
    original: Floats, candidate: Floats, guard: Guard, max_drop: float, confidence: float
) -> None:
    check_limits(max_drop, confidence)
    if guard not in get_args(Guard):
        raise InputError(f"guard is one of {', '.join(get_args(Guard))}: got {guard}")
    if original.shape != candidate.shape or original.ndim != 1 or original.size == 0:
        raise InputError(
            f"scores come in pairs: got original of shape {original.shape} and candidate of shape {candidate.shape}; give one score per sample for each"
        )
    if not all(np.all((scores >= 0) & (scores <= 1)) for scores in (original, candidate)):
        raise InputError(
            "scores lie between 0 and 1: got some outside, or not a number; scale the metric"
        )
    if guard == "changed" and not np.all(original == 1):
        raise InputError(
            "guard 'changed' compares with the original's own answers: got original scores other than 1; give agreement as candidate and ones as original"
        )


def _verdict(
    draws: Draws, certified: bool, max_drop: float, confidence: float, prior: BettingPrior
) -> tuple[Verdict, int | None]:
    """Return the verdict, and the draws that would probably certify where only data is short."""
    if certified:
        return Verdict.CERTIFIED, None
    if draws.estimate >= max_drop:
        shown = refuted(draws, max_drop, 1 - confidence, prior)
        return Verdict.NOT_ACCURATE_ENOUGH if shown else Verdict.NOT_ENOUGH_DATA, None
    needed = draws_needed(draws, max_drop, confidence)
    return Verdict.NOT_ENOUGH_DATA, max(draws.differences.size + 1, needed) if needed else None


def draws_needed(draws: Draws, max_drop: float, confidence: float) -> int | None:
    """Return how many draws like these would probably certify; None where none would."""
    left = draws.left(max_drop)
    weighted = draws.relative * draws.differences
    drop, square = float(weighted.mean()), float(np.mean(weighted**2))
    if drop >= left:
        return None
    return samples_needed(
        max(square, abs(drop)),
        drop,
        left,
        confidence,
        method=draws.method,
        unevenness=draws.unevenness,
    )


def _about(count: int) -> int:
    """Round up to two significant digits."""
    unit = int(10 ** max(len(str(count)) - 2, 0))
    return -(-count // unit) * unit


def _two_digits(share: float) -> str:
    return f"{float(f'{100 * share:.2g}'):.6g}"


def _sure(confidence: float) -> str:
    """Return a confidence in percent, rounded down where six digits would make it certainty."""
    shown = f"{100 * confidence:.6g}"
    return (
        shown if shown != "100" or confidence == 1 else f"{math.floor(1e9 * confidence) / 1e7:.9g}"
    )
