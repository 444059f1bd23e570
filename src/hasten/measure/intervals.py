"""Statistics of raw latencies: paired ratios and quantiles with intervals, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from hasten.errors import InputError
from hasten.measure.replicates import grouped, interval
from hasten.measure.tail import Moments, lasting, worth_in_time

Statistic: TypeAlias = Literal["p50", "p99", "mean"]
Rounds: TypeAlias = Mapping[int, Sequence[int]]
Floats: TypeAlias = npt.NDArray[np.float64]
Picks: TypeAlias = npt.NDArray[np.int64]

_RESAMPLES = 1000
_ALPHA = 0.05
"""Chance that each bound of a quantile may be wrong."""
_LEAST_FOR_P99 = 299
"""Fewest independent requests for a p99: fewer lie all below it in more than 5% of cases."""
_RAREST_BURST = 0.1
"""Least share of slowed rounds that a middle quantile's upper bound must have had a chance to see."""
_TAIL = 0.9
"""Least quantile whose upper bound hangs on rare moments, so that rounds are its units."""
_WIDEST = math.log(1e6)
"""Log of the most that an interval of ratios reaches: two rounds of a stalled host would give more, and say nothing."""
_NONE: Rounds = MappingProxyType({})


@dataclass(frozen=True)
class Ratio:
    """Latency of one candidate divided by another's, from the rounds that both ran in.

    Attributes:
        estimate: Estimate of the ratio; below 1 is faster.
        low: Lower end of the 95% interval.
        high: Upper end of the 95% interval.
        rounds: Number of rounds behind the estimate.
    """

    estimate: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> float:
        """Return the interval's largest distance from 1; for a model against itself, the noise."""
        return max(abs(1 - self.low), abs(self.high - 1))


@dataclass(frozen=True)
class Quantile:
    """A quantile of dependent latencies.

    Attributes:
        value_ns: Sample quantile, in nanoseconds.
        low_ns: Lower 95% confidence bound, in nanoseconds; 0 where too few samples establish one.
        high_ns: Upper 95% confidence bound, in nanoseconds; None where too few samples establish
            one.
        effective: Number of independent samples that the dependent ones are worth.
    """

    value_ns: float
    low_ns: float
    high_ns: float | None
    effective: int


def _block_statistic(block: Sequence[int], statistic: Statistic) -> float:
    """Return a block's mean or median; in plain Python, since most blocks are a few requests."""
    if statistic == "mean":
        return sum(block) / len(block)
    ordered = sorted(block)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _middle_mean(values: Floats) -> Floats:
    """Return the mean of the middle half on the last axis, where disturbed rounds hardly count."""
    n = values.shape[-1]
    cut = n // 4
    return np.sort(values, axis=-1)[..., cut : n - cut].mean(axis=-1)  # type: ignore[no-any-return]


def _block_length(n: int, alike: float) -> int:
    """Return the length of blocks: n^(1/3) rounds, or as many as are alike where that is more."""
    return max(1, round(math.cbrt(n)), min(math.ceil(alike), n // 2))


def _student(blocks: float, confidence: float) -> float:
    """Return the factor by which few blocks widen an interval made with the normal quantile.

    The bootstrap sees only the spread of its few blocks, and understates it.

    Source: Student's quantile by Abramowitz and Stegun, 26.7.5, over the normal one; variance n-1.
    """
    df = max(1.0, blocks - 1)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    t = (
        z
        + (z**3 + z) / (4 * df)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
    )
    return float(t / z * np.sqrt((df + 1) / df))


def _resampled_rounds(n: int, length: int, rng: np.random.Generator) -> Picks:
    """Return indices of circular blocks of successive rounds, since neighbours in time are alike.

    Args:
        n: Number of rounds.
        length: Number of rounds in a block.
        rng: Source of the blocks' starts.

    Returns:
        Indices of shape `(resamples, n)`.

    Source: circular block bootstrap, Politis and Romano 1992.
    """
    starts = rng.integers(0, n, (_RESAMPLES, -(-n // length)))
    return ((starts[:, :, None] + np.arange(length)) % n).reshape(_RESAMPLES, -1)[:, :n]


def paired_ratio(
    candidate: Rounds,
    baseline: Rounds,
    statistic: Statistic = "p50",
    *,
    confidence: float = 0.95,
    processes: Mapping[int, int] | None = None,
) -> Ratio:
    """Compare two candidates round by round, so that what slows a whole round cancels.

    Args:
        candidate: Round -> latencies of the candidate, in nanoseconds.
        baseline: Round -> latencies of the baseline, in nanoseconds.
        statistic: Statistic of each block; a p99 needs many samples, so it pools all rounds.
        confidence: Confidence of the interval.
        processes: Round -> number of the process of each candidate that took it. The interval is
            over processes where there are several, whose lasting differences no round shows.

    Raises:
        InputError: the two share fewer than two rounds.
    """
    if statistic == "p99":
        return _ratio(candidate, baseline, _pooled_logs, confidence, processes)

    def middle_logs(
        candidate: Rounds, baseline: Rounds, shared: Sequence[int], picks: Picks
    ) -> tuple[float, Floats]:
        logs = np.array(
            [
                np.log(_block_statistic(candidate[r], statistic))
                - np.log(_block_statistic(baseline[r], statistic))
                for r in shared
            ]
        )
        return float(_middle_mean(logs)), _middle_mean(logs[picks])

    return _ratio(candidate, baseline, middle_logs, confidence, processes)


def ratio_of_means(
    candidate: Rounds, baseline: Rounds, *, processes: Mapping[int, int] | None = None
) -> Ratio:
    """Compare two candidates by their means over all requests, where rare stalls count in full.

    The mean of paired rounds hardly counts a round that was disturbed, whoever disturbed it.

    Args:
        candidate: Round -> latencies of the candidate, in nanoseconds.
        baseline: Round -> latencies of the baseline, in nanoseconds.
        processes: As for `paired_ratio`.

    Raises:
        InputError: the two share fewer than two rounds.
    """
    return _ratio(candidate, baseline, _mean_logs, 0.95, processes)


Sampled: TypeAlias = Callable[[Rounds, Rounds, Sequence[int], Picks], tuple[float, Floats]]
"""Function of two candidates, the n rounds that count, and indices of shape `(resamples, n)`: it
returns the log ratio over these rounds, and over each resample of them."""


def _ratio(
    candidate: Rounds,
    baseline: Rounds,
    sampled: Sampled,
    confidence: float,
    processes: Mapping[int, int] | None,
) -> Ratio:
    """Return a ratio with its interval: over processes where there are several, else over rounds."""
    shared = sorted(candidate.keys() & baseline.keys())
    if len(shared) < 2:
        raise InputError(f"a paired ratio needs 2 rounds that both ran in; got {len(shared)}")
    groups = grouped(shared, processes)
    if len(groups) > 1:
        none = np.empty((0, 0), np.int64)
        logs = [sampled(candidate, baseline, g, none.reshape(0, len(g)))[0] for g in groups]
        estimate, low, high = interval(logs, confidence)
    else:
        estimate, low, high = _over_rounds(candidate, baseline, shared, sampled, confidence)
    low, high = min(max(low, -_WIDEST), estimate), max(min(high, _WIDEST), estimate)
    return Ratio(math.exp(estimate), math.exp(low), math.exp(high), len(shared))


def _over_rounds(
    candidate: Rounds, baseline: Rounds, shared: Sequence[int], sampled: Sampled, confidence: float
) -> tuple[float, float, float]:
    """Return a log ratio and its interval, from blocks as long as rounds were seen to be alike."""
    middles = [
        np.log([_block_statistic(one[r], "p50") for r in shared], dtype=np.float64)
        for one in (candidate, baseline)
    ]
    length = _block_length(len(shared), lasting(middles[0] - middles[1]))
    picks = _resampled_rounds(len(shared), length, np.random.default_rng(len(shared)))
    estimate, draws = sampled(candidate, baseline, shared, picks)
    tail = (1 - confidence) / 2
    wider = _student(len(shared) / length, confidence)
    low, high = estimate + wider * (np.quantile(draws, [tail, 1 - tail]) - estimate)
    return estimate, float(low), float(high)


def _mean_logs(
    candidate: Rounds, baseline: Rounds, shared: Sequence[int], picks: Picks
) -> tuple[float, Floats]:
    """Return the log ratio of the means over all rounds pooled, and that of each resample."""
    rows = np.stack([np.arange(len(shared)), *picks])

    def means(rounds: Rounds) -> Floats:
        sums = np.array([float(np.sum(rounds[r], dtype=np.float64)) for r in shared])
        counts = np.array([len(rounds[r]) for r in shared])
        found: Floats = sums[rows].sum(axis=1) / counts[rows].sum(axis=1)
        return found

    logs = np.log(means(candidate)) - np.log(means(baseline))
    return float(logs[0]), logs[1:]


def _pooled_logs(
    candidate: Rounds, baseline: Rounds, shared: Sequence[int], picks: Picks
) -> tuple[float, Floats]:
    """Return the log ratio of the p99s over all rounds pooled, and that of each resample."""
    n = len(shared)
    counts = np.stack([np.bincount(pick, minlength=n) for pick in (np.arange(n), *picks)])
    logs = np.log(_p99s(candidate, shared, counts)) - np.log(_p99s(baseline, shared, counts))
    return float(logs[0]), logs[1:]


def _p99s(rounds: Rounds, shared: Sequence[int], counts: npt.NDArray[np.int64]) -> Floats:
    """Return the p99s of pooled rounds, each round counted a number of times.

    Args:
        rounds: Round -> latencies in nanoseconds.
        shared: Numbers of the n rounds that count.
        counts: Number of times that each round is counted, shape `(resamples, n)`.
    """
    values = np.concatenate([np.asarray(rounds[r], np.float64) for r in shared])
    lengths = np.array([len(rounds[r]) for r in shared])
    order = np.argsort(values)[::-1]
    owner = np.repeat(np.arange(len(shared)), lengths)[order]
    above = 0.01 * (counts @ lengths)
    places, left = np.zeros(len(counts), np.int64), np.arange(len(counts))
    for depth in (len(values) // 8, len(values)):  # it is nearly always in the top eighth
        taken = np.cumsum(counts[left][:, owner[:depth]], axis=1)
        places[left] = (taken <= above[left, None]).sum(axis=1)
        left = left[places[left] == depth]
    found: Floats = values[order][places]
    return found


def establishes(rounds: Rounds, statistic: Statistic) -> bool:
    """Whether rounds can show a statistic well enough to choose by; a p99 takes many of them.

    A p99 to be told takes far more: see `quantile`.

    Args:
        rounds: Round -> latencies in nanoseconds, at least one.
        statistic: Statistic to be shown.
    """
    if statistic != "p99":
        return True
    requests = sum(len(block) for block in rounds.values())
    few = requests < _LEAST_FOR_P99 or (1 - _RAREST_BURST) ** len(rounds) > _ALPHA
    return not few and effective_samples(rounds, 0.99) >= _LEAST_FOR_P99


def effective_samples(rounds: Rounds, q: float) -> int:
    """Return the number of independent samples that latencies are worth for bounding a quantile.

    Latencies above the quantile may come in bursts that the bulk doesn't show, or hit whole rounds.
    So the smallest of three estimates counts: by the autocorrelation of all ranks, by that of the
    latencies above the sample quantile, and by how much their share differs between rounds.

    Args:
        rounds: Round -> latencies in nanoseconds, at least one.
        q: Quantile, in (0, 1).

    Source: in time, `worth_in_time`; between rounds, Korn and Graubard's effective sample size of a
    share in clusters (Survey Methodology 24:193, 1998).
    """
    blocks = [np.asarray(rounds[r], np.float64) for r in sorted(rounds) if len(rounds[r])]
    values = np.concatenate(blocks)
    n = len(values)
    if n < 4 or float(values.std()) == 0.0:
        return n
    # Ranks are used, so that an outlier of a second doesn't hide the dependence of the rest.
    ranks = np.argsort(np.argsort(values, kind="stable")).astype(np.float64)
    above = (values > np.quantile(values, q)).astype(np.float64)
    lengths = [len(block) for block in blocks]
    worth = min(worth_in_time(ranks), worth_in_time(above), _worth_between(above, lengths))
    return max(1, min(n, int(worth)))


def _worth_between(above: Floats, lengths: Sequence[int]) -> float:
    """Return a share's binomial variance over its variance between rounds, which may be few."""
    n, share = len(above), float(above.mean())
    starts = np.cumsum([0, *lengths[:-1]])
    squares = float(np.square(np.add.reduceat(above - share, starts)).sum())
    if squares == 0:
        return n
    return share * (1 - share) * n**2 / squares / _student(len(lengths), 1 - 2 * _ALPHA) ** 2


def binomial_cdf(n: int, q: float) -> Floats:
    """Return P(Binomial(n, q) <= k) for k = 0..n, with numpy alone."""
    k = np.arange(n)
    log_steps = np.log((n - k) / (k + 1)) + np.log(q / (1 - q))
    log_mass = n * np.log1p(-q) + np.concatenate([[0.0], np.cumsum(log_steps)])
    total: Floats = np.minimum(np.cumsum(np.exp(log_mass)), 1.0)
    return total


def quantile(
    rounds: Rounds, q: float, *, refused: Rounds = _NONE, by_time: bool = False
) -> Quantile:
    """Return a quantile with one-sided 95% confidence bounds.

    The upper bound of a p99 takes about 350 rounds or more: 299 that are all fast are seen in 5% of
    cases where one in a hundred is slow throughout. Where successive rounds are alike it takes as
    many times more. It holds for slowdowns that begin three times or more within the rounds; no
    measurement shows what is rarer. That of a middle quantile takes 29 rounds.

    Args:
        rounds: Round -> latencies in nanoseconds, at least one.
        q: Quantile in (0, 1), such as 0.99.
        refused: Latencies of rounds that don't count elsewhere, since the host was busy then. They
            are part of the tail.
        by_time: Whether each round weighs alike, as it does for requests at random times. A closed
            loop sends fewer of them while it is slow.

    Raises:
        InputError: there are no latencies.

    Source: order statistics; above the 90th percentile the upper bound is that of `Moments`.
    """
    every = {**rounds, **refused}
    blocks = [np.asarray(every[r], np.float64) for r in sorted(every) if len(every[r])]
    if not blocks:
        raise InputError("a quantile needs latencies; got none")
    values = np.sort(np.concatenate(blocks))
    effective = effective_samples(every, q)
    cdf = binomial_cdf(effective, q)
    # The k-th smallest (from 1) lies at or above the quantile with probability cdf[k - 1].
    upper = int(np.searchsorted(cdf, 1 - _ALPHA)) + 1
    lower = int(np.searchsorted(cdf, _ALPHA, side="right"))
    # A sample that is worth several stands for all of them: the last above, the first below.
    scale = len(values) / effective
    high = None
    if q >= _TAIL:
        high = Moments(blocks, by_time=by_time).upper(q, _ALPHA)
    elif upper <= effective and (1 - _RAREST_BURST) ** len(blocks) <= _ALPHA:
        high = float(values[min(len(values), math.ceil(upper * scale)) - 1])
    low = float(values[int((lower - 1) * scale)]) if lower else 0.0
    value = Moments(blocks, by_time=True).at(1 - q) if by_time else float(np.quantile(values, q))
    return Quantile(value, min(low, value), high, effective)
