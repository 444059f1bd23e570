"""How many samples each test needs to certify in 80% of runs, and how often it is wrong at that number.

python benchmarks/certificate.py power --runs 20000
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import certificate_rivals as rivals
import numpy as np
from certificate_rivals import ALPHA, Counts, Sequences

from hasten.certificate.exact import clopper_pearson_upper
from hasten.certificate.planning import samples_needed

POWER = 0.8
SCANNED = 1000
"""Runs by which a number of samples, or a worst case, is looked for; it is then drawn again."""
CASES = (
    (0.01, 0.0025, 0.0025),
    (0.01, 0.01, 0.01),
    (0.02, 0.005, 0.005),
    (0.02, 0.025, 0.025),
    (0.01, 0.002, 0.0),
)
"""Limit, and the shares lost and gained by the candidate that is to be certified."""
GAINS = (0.0, 0.0005, 0.002, 0.005, 0.01, 0.02, 0.05, 0.2)
"""Shares gained by candidates whose drop is the limit, among which each test's worst is looked for."""
MOST = 20_000
"""Number of samples beyond which nobody looks."""


@dataclass(frozen=True)
class Share:
    """Share of runs.

    Attributes:
        value: The share.
        low: Lower end of its 95% interval, or the share itself where it was summed up.
        high: Upper end likewise.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, runs: int) -> Share:
        """Return the share of runs that were drawn, with the interval of Clopper and Pearson."""
        low = 1 - clopper_pearson_upper(runs - count, runs, 0.025)
        return cls(count / runs, low, clopper_pearson_upper(count, runs, 0.025))

    @property
    def words(self) -> str:
        """The share in percent, with its interval where it was drawn."""
        if self.low == self.high:
            return f"{100 * self.value:.2f}%"
        return f"{100 * self.value:.2f}% ({100 * self.low:.2f} to {100 * self.high:.2f})"


@dataclass(frozen=True)
class Rival:
    """One test in the table.

    Attributes:
        name: Name in the table.
        passes: Function from a limit, a number of samples, the shares lost and gained, and a number of
            runs to the share of runs that it certifies; exact sums draw no runs.
        drawn: Whether runs are drawn.
    """

    name: str
    passes: Callable[[float, int, float, float, int], Share]
    drawn: bool


def _summed(name: str, test: Counts) -> Rival:
    @cache
    def passes(limit: float, n: int, lose: float, gain: float, runs: int) -> Share:
        value = rivals.chance(test, n, limit, lose, gain)
        return Share(value, value, value)

    return Rival(name, passes, drawn=False)


def _drawn(name: str, test: Sequences, searched: float = 0.0) -> Rival:
    """Return a test of drawn runs, each with a search's draws beside: so many for each of the test's."""

    @cache
    def passes(limit: float, n: int, lose: float, gain: float, runs: int) -> Share:
        seed = zlib.crc32(repr((name, limit, n, lose, gain, runs)).encode())
        rng, count = np.random.default_rng(seed), 0
        whole = n + round(searched * n)
        for some in _chunks(runs, whole):
            numbers = rng.random((whole, some)).T  # a step of all runs lies together in memory
            drops = (numbers < lose) - 1.0 * ((numbers >= lose) & (numbers < lose + gain))
            count += int(test(drops, limit).sum())
        return Share.of(count, runs)

    return Rival(name, passes, drawn=True)


def _chunks(runs: int, n: int) -> Iterator[int]:
    """Yield numbers of runs that fit into memory together."""
    most = max(1, 4_000_000 // n)
    while runs:
        yield min(runs, most)
        runs -= min(runs, most)


def _randomized() -> Sequences:
    rng = np.random.default_rng(1)
    return lambda drops, limit: rivals.star(drops, limit, rng)


RIVALS = (
    _summed("hasten, 0/1 scores: exact, Tango's order", rivals.exact),
    _drawn("hasten, other scores: betting", rivals.betting),
    _drawn("the same, with what the search knew", rivals.betting_after_search, rivals.SEARCHED),
    _summed("exact binomial on the lost alone", rivals.lost_alone),
    _drawn("hedged capital (2024)", rivals.hedged_capital),
    _drawn("STaR-Bets (2025), last step not randomized", rivals.star),
    _drawn("STaR-Bets (2025), as published", _randomized()),
    _summed("Tango's interval, approximate", rivals.tango),
    _summed("Wald", rivals.wald),
    _summed("bootstrap", rivals.bootstrap),
    _summed("McNemar used wrongly", rivals.mcnemar),
)


def fewest(rival: Rival, limit: float, lose: float, gain: float, start: int, runs: int) -> int:
    """Return a number of samples that suffices for a power of 80%, where one fewer doesn't; by bisection."""

    def enough(n: int) -> bool:
        return rival.passes(limit, n, lose, gain, runs).value >= POWER

    low, high = 0, start
    while high < MOST and not enough(high):
        low, high = high, min(2 * high, MOST)
    # Drawn power tells n apart no better than to about a hundredth of itself.
    width = max(1, high // 200) if rival.drawn else 1
    while high - low > width:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def worst(rival: Rival, limit: float, n: int, runs: int) -> tuple[float, Share]:
    """Return the gains at which a test most often certifies a drop of the limit, and how often it does."""
    scanned = {
        gain: rival.passes(limit, n, limit + gain, gain, min(runs, SCANNED)).value
        for gain in GAINS
        if limit + 2 * gain < 1
    }
    gain = max(scanned, key=scanned.__getitem__)
    return gain, rival.passes(limit, n, limit + gain, gain, runs)


def power(runs: int) -> None:
    """Print for each case and test the samples and labels for a power of 80%, and the worst size there."""
    print(
        f"{runs:,} runs where runs are drawn, 95% intervals; {len(GAINS)} shares gained are tried for "
        f"the false certificates\n"
    )
    print(
        "| limit; lost, gained | test | samples | labels | false certificates at the limit, at worst | "
        "keeps to 5% |\n|---|---|---|---|---|---|"
    )
    for limit, lose, gain in CASES:
        planned = samples_needed(lose + gain, lose - gain, limit, 1 - ALPHA)
        for rival in RIVALS:
            n = fewest(rival, limit, lose, gain, planned, min(runs, SCANNED))
            where, size = worst(rival, limit, n, runs)
            count, labels = f"{n:,}", f"{n * (lose + gain):,.0f}"
            if rival.passes(limit, n, lose, gain, min(runs, SCANNED)).value < POWER:
                count, labels = f"over {MOST:,}", ""
            if rival is RIVALS[0]:
                count += f" (planned: {planned:,})"
            keeps = "no" if size.low > ALPHA else "yes"
            print(
                f"| {limit:.0%}; {lose:.2%}, {gain:.2%} | {rival.name} | {count} | {labels} | "
                f"{size.words} at {where:.2%} gained | {keeps} |",
                flush=True,
            )
