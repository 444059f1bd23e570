"""How many draws the bets take that `certify` and `optimize` make on groups and scores between 0 and 1.

    python benchmarks/certificate_bets.py [--runs 400] [--seed 0] [--only aim|prior|ways]

Prints three Markdown tables. The first compares today's bets, which aim at the capital that is missing
and are cautious at first, with the exact test of 0/1 scores and with the bets that were made before, which
aimed too, but staked 0.8 of what would just suffice from the first draw on. The second says what today's
bets save by a prior from the search. Draws are those at a power of 80% where the mean drop is 0, from a
probit curve through the power at seven numbers of draws; their 95% intervals come from a parametric
bootstrap. "False" is the share of certificates where the drop equals the limit, at so many draws. The
third table has the power of other ways to bet that were tried. Shares have 95% intervals of Clopper and
Pearson.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol
from unittest.mock import patch

import numpy as np
from certificate_reruns import interval
from numpy.typing import NDArray
from scipy import stats

from hasten.certificate import betting
from hasten.certificate.betting import BettingPrior, betting_certifies, fewest_unchanged
from hasten.certificate.draws import EXACT, fewest_draws
from hasten.certificate.exact import paired_certifies

Floats = NDArray[np.float64]

ALPHA, POWER = 0.05, 0.8
NOTHING = BettingPrior()
AROUND = (0.6, 0.75, 0.9, 1.0, 1.1, 1.25, 1.4)
"""Numbers of draws at which the power is simulated, as multiples of a guess."""
SEARCHED = 300
"""Draws of the search split that a prior comes from."""
_certifies = cache(paired_certifies)


class Test(Protocol):
    """A test of whether a mean difference of a limit or more is rejected."""

    def __call__(self, falls: Floats, limit: float) -> bool: ...


@dataclass(frozen=True)
class Drawn:
    """A distribution of differences between the original's scores and a candidate's.

    Attributes:
        name: Name in the table.
        limit: Limit that is tested.
        changed: Chance that a draw differs, where the mean drop is 0.
        size: Size of a difference: 1 for 0/1 scores, 1/4 where a sample of a group of four differs.
    """

    name: str
    limit: float
    changed: float
    size: float = 1.0

    def draw(self, rng: np.random.Generator, runs: int, n: int, drop: float = 0.0) -> Floats:
        """Return differences, `(runs, n)`, whose mean is the drop."""
        lost = drop / self.size + max(self.changed - drop / self.size, 0.0) / 2
        luck = rng.random((runs, n))
        gained = lost - drop / self.size
        return self.size * ((luck < lost) * 1.0 - (luck > 1 - gained))

    def guess(self) -> int:
        """Return a number of draws near which the power is about 80%."""
        spread = math.sqrt(self.size**2 * self.changed)
        normal = ((1.645 + 0.842) * spread / self.limit) ** 2
        return int(1.3 * normal + 0.8 * math.log(1 / ALPHA) / self.limit)


FLIPS = (
    Drawn("0/1, 1% change", 0.01, 0.01),
    Drawn("0/1, 2% change", 0.01, 0.02),
    Drawn("0/1, 1% change", 0.02, 0.01),
    Drawn("0/1, 5% change", 0.02, 0.05),
    Drawn("0/1, 10% change", 0.03, 0.10),
)
GROUPS = (
    Drawn("0/1, 2% change", 0.01, 0.02),
    Drawn("0/1, 5% change", 0.02, 0.05),
    Drawn("one of four in 4% of groups", 0.01, 0.04, 0.25),
    Drawn("one of four in 20% of groups", 0.02, 0.20, 0.25),
    Drawn("scores, 30% change by 0.05", 0.01, 0.30, 0.05),
)


def exact(falls: Floats, limit: float) -> bool:
    """Judge 0/1 scores by the exact test."""
    return _certifies(int((falls > 0).sum()), int((falls < 0).sum()), len(falls), limit, ALPHA)


def today(falls: Floats, limit: float, prior: BettingPrior = NOTHING) -> bool:
    """Judge by today's bets."""
    return betting_certifies(falls, limit, ALPHA, prior)


def earlier(falls: Floats, limit: float) -> bool:
    """Judge by the bets that were made before: 0.8 of the stake that would just suffice, at most 0.9."""
    n = len(falls)
    before = np.concatenate([[0.0], np.cumsum(falls[:-1] ** 2)])
    variance = (0.05 + before) / (1 + np.arange(n))
    spread = 0.8 * np.sqrt(2 / (variance * np.arange(n, 0, -1)))
    missing = math.log(1 / ALPHA)
    for fall, wide in zip(falls.tolist(), spread.tolist(), strict=True):
        missing -= math.log1p(min(wide * math.sqrt(missing), 0.9) * (limit - fall))
        if missing <= 0:
            return True
    return False


@dataclass(frozen=True)
class Needed:
    """Draws at a power of 80%, with their 95% interval."""

    draws: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.draws:,.0f} ({self.low:,.0f} to {self.high:,.0f})"

    def of(self, other: Needed) -> str:
        """Return these draws as a multiple of others, with an interval as if both were independent."""
        error = math.hypot(math.log(self.high / self.low), math.log(other.high / other.low)) / 2
        ratio = self.draws / other.draws
        return f"{ratio:.2f} ({ratio * math.exp(-error):.2f} to {ratio * math.exp(error):.2f})"


def needed(
    drawn: Drawn, runs: int, rng: np.random.Generator, judge: Callable[[Floats], bool]
) -> Needed:
    """Return how many draws a test takes.

    Args:
        drawn: Distribution of the draws.
        runs: Number of runs at each number of draws.
        rng: Source of all that is random.
        judge: Function of the draws to whether they are certified.
    """

    def powers(guess: float, runs: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        sizes = np.array([max(2, round(guess * part)) for part in AROUND])
        return sizes, np.array([sum(map(judge, drawn.draw(rng, runs, int(n)))) for n in sizes])

    few = max(20, runs // 5)
    rough = _crossing(*powers(drawn.guess(), few), few)
    sizes, passed = powers(float(np.clip(rough, drawn.guess() / 3, 3 * drawn.guess())), runs)
    again = rng.binomial(
        runs, np.clip(passed / runs, 0.5 / runs, 1 - 0.5 / runs), (400, len(sizes))
    )
    resampled = np.quantile([_crossing(sizes, counts, runs) for counts in again], [0.025, 0.975])
    return Needed(_crossing(sizes, passed, runs), *map(float, resampled))


def _crossing(sizes: NDArray[np.int64], passed: NDArray[np.int64], runs: int) -> float:
    """Return the number of draws at which a probit line through powers reaches 80%.

    A line that few runs leave nearly flat is followed no further than to twice the draws.
    """
    power = np.clip((passed + 0.5) / (runs + 1), 1e-6, 1 - 1e-6)
    probits, x = stats.norm.ppf(power), np.sqrt(sizes)
    weights = stats.norm.pdf(probits) / np.sqrt(power * (1 - power))  # of the probits' errors
    slope, start = np.polyfit(x, probits, 1, w=weights)
    root = max((stats.norm.ppf(POWER) - start) / max(slope, 1e-9), 0.0)
    return float(np.clip(root**2, sizes[0] / 2, 2 * sizes[-1]))


def false_rate(
    drawn: Drawn, n: float, runs: int, rng: np.random.Generator, judge: Callable[[Floats], bool]
) -> str:
    """Return how often a test certifies where the drop equals the limit."""
    return interval(sum(map(judge, drawn.draw(rng, runs, round(n), drawn.limit))), runs)


def aim(runs: int, rng: np.random.Generator) -> None:
    """Print what aiming at the missing capital saves."""
    print(
        "| draws, limit | exact test | today's bets | earlier bets | today / exact | earlier / exact "
        "| today / earlier | today: false | earlier: false |\n|---|---|---|---|---|---|---|---|---|"
    )
    whole, now = fewest_draws(EXACT, 0.01, ALPHA), fewest_unchanged(0.01, ALPHA)
    before = next(n for n in range(whole, 2 * whole) if earlier(np.zeros(n), 0.01))
    ratios = (now / whole, before / whole, now / before)
    shown = " | ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"| nothing changes, 1% | {whole} | {now} | {before} | {shown} | | |")
    for drawn in FLIPS:
        tests: tuple[Test, ...] = (exact, today, earlier)
        judges = [partial(test, limit=drawn.limit) for test in tests]
        counts = [needed(drawn, runs, rng, judge) for judge in judges]
        cells = [*map(str, counts), counts[1].of(counts[0]), counts[2].of(counts[0])]
        cells.append(counts[1].of(counts[2]))
        cells += [
            false_rate(drawn, n.draws, 10 * runs, rng, judge)
            for n, judge in zip(counts[1:], judges[1:], strict=True)
        ]
        print(f"| {drawn.name}, {drawn.limit:.0%} | {' | '.join(cells)} |", flush=True)


def prior(runs: int, rng: np.random.Generator) -> None:
    """Print what a prior from the search saves."""
    print(
        "| draws, limit | no prior | prior of the search | with / without | with: false | "
        "prior that promised no change: false |\n|---|---|---|---|---|---|"
    )
    promised = BettingPrior(0.0, 0.0, SEARCHED)
    for drawn in GROUPS:
        alone = partial(today, limit=drawn.limit)
        searched = partial(after_search, drawn=drawn, rng=rng)
        without, with_it = (needed(drawn, runs, rng, judge) for judge in (alone, searched))
        cells = [str(without), str(with_it), with_it.of(without)]
        cells += [
            false_rate(drawn, with_it.draws, 10 * runs, rng, judge)
            for judge in (partial(searched, drop=drawn.limit), partial(alone, prior=promised))
        ]
        print(f"| {drawn.name}, {drawn.limit:.0%} | {' | '.join(cells)} |", flush=True)


def after_search(falls: Floats, drawn: Drawn, rng: np.random.Generator, drop: float = 0.0) -> bool:
    """Judge by today's bets, with the prior of a search split of its own."""
    seen = drawn.draw(rng, 1, SEARCHED, drop)[0]
    return today(falls, drawn.limit, BettingPrior.from_differences(seen))


def _with(**constants: float) -> Test:
    """Return today's test with other constants."""

    def judge(falls: Floats, limit: float) -> bool:
        with patch.multiple(betting, **constants):
            return today(falls, limit)

    return judge


def ways(runs: int, rng: np.random.Generator) -> None:
    """Print the power of other ways to bet on the same draws."""
    tests = {
        "today": today,
        "earlier": earlier,
        "no caution": _with(_FURTHER=0.0),
        "less caution": _with(_FURTHER=2.5),
        "more caution": _with(_FURTHER=10.0),
        "bets up to 0.9": _with(_LARGEST_BET=0.9),
    }
    print(f"| draws, limit | {' | '.join(tests)} |\n|---|{'---|' * len(tests)}")
    cases = (
        (Drawn("0/1, 1% change", 0.01, 0.01), 900, 0.0),
        (Drawn("0/1, 5% change", 0.02, 0.05), 1000, 0.0),
        (Drawn("0/1, 1% lost, nothing gained", 0.02, 0.01), 500, 0.01),
        (Drawn("one of four in 20% of groups", 0.02, 0.20, 0.25), 300, 0.0),
        (Drawn("scores, 30% change by 0.05", 0.01, 0.30, 0.05), 360, 0.0),
    )
    for drawn, n, drop in cases:
        falls = drawn.draw(rng, runs, n, drop)
        cells = [
            interval(sum(test(one, drawn.limit) for one in falls), runs) for test in tests.values()
        ]
        print(f"| {n:,} draws, {drawn.name}, {drawn.limit:.0%} | {' | '.join(cells)} |", flush=True)


TABLES = {"aim": aim, "prior": prior, "ways": ways}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TABLES)
    args = parser.parse_args()
    for name in [args.only] if args.only else TABLES:
        TABLES[name](args.runs, np.random.default_rng(args.seed))
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
