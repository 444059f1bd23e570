"""How often certificates are false, by simulation, on each path, against generators that try to break them.

Three tables: some paths at one setting each, beside what the same data gave before a fault was mended
(`false`); the worst setting that a search finds on each path (`attack`); and the samples that each test,
of `hasten` and of others, needs for a power of 80% (`power`). A false certificate is one whose sentence is
untrue of the population: the true drop is the limit or more.

    python benchmarks/certificate.py --runs 20000
    python benchmarks/certificate.py attack --runs 20000
    python benchmarks/certificate.py power --runs 20000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from certificate_attacks import attack
from certificate_judging import deciding_alone
from certificate_power import power
from certificate_rivals import ALPHA
from numpy.typing import NDArray
from scipy import stats

from hasten.certificate import draws as drawing
from hasten.certificate.betting import BettingPrior
from hasten.certificate.certification import judge_ladder, last_certified
from hasten.certificate.draws import bounded, drawn
from hasten.certificate.promise import Promise
from hasten.inputs.metrics.top_k import Top1

Floats = NDArray[np.float64]
NO_PRIOR = BettingPrior()


@dataclass(frozen=True)
class Path:
    """One path to a certificate.

    Attributes:
        name: Name of the path in the table.
        false: Function from a generator of random numbers to whether one run ends in a false certificate.
        before: Function of that kind by the rules that were mended; None where they held.
    """

    name: str
    false: Callable[[np.random.Generator], bool]
    before: Callable[[np.random.Generator], bool] | None = None


def certified(
    original: Floats,
    candidate: Floats,
    limit: float,
    *,
    losses_only: bool = False,
    binary: bool = True,
    groups: NDArray[np.int64] | None = None,
    sizes: NDArray[np.int64] | None = None,
    over: drawing.Over = "samples",
    prior: BettingPrior = NO_PRIOR,
) -> bool:
    """Whether scores are certified, as `judge` decides it, without the bound that it shows beside."""
    draws = drawn(
        original,
        candidate,
        losses_only=losses_only,
        binary=binary,
        groups=groups,
        max_drop=limit,
        over=over,
        sizes=sizes,
    )
    return bounded(draws, limit, ALPHA, prior)[0]


def flips(rng: np.random.Generator, n: int, lost: float, gained: float) -> tuple[Floats, Floats]:
    """Draw 0/1 scores of an original and a candidate with given chances of a loss and a gain."""
    kind = rng.choice(3, n, p=[lost, gained, 1 - lost - gained])
    original, candidate = np.ones(n), np.ones(n)
    candidate[kind == 0] = 0
    original[kind == 1] = 0
    return original, candidate


def net(rng: np.random.Generator) -> bool:
    return certified(*flips(rng, 506, 0.03, 0.01), 0.02)


def net_rare(rng: np.random.Generator) -> bool:
    return certified(*flips(rng, 1204, 0.0101, 0.0001), 0.01)


def lost(rng: np.random.Generator) -> bool:
    return certified(*flips(rng, 480, 0.01, 0.05), 0.01, losses_only=True)


def changed(rng: np.random.Generator) -> bool:
    return certified(*flips(rng, 480, 0.01, 0.0), 0.01, losses_only=True)


def scores(rng: np.random.Generator) -> bool:
    """Scores with rare disasters and small gains, whose mean drop is the limit."""
    n, rare, gain = 600, 0.03, 0.01
    fall = np.where(rng.random(n) < rare, 0.7, -gain)
    truth = rare * 0.7 - (1 - rare) * gain
    return certified(np.full(n, 0.8), 0.8 - fall, truth, binary=False)


def _unequal(rng: np.random.Generator, by_samples: bool) -> bool:
    """Large groups are lost far more often than small ones: over samples the drop is large, over groups small."""
    count = 400
    size = np.where(rng.random(count) < 0.1, 20, 1)
    chance = np.where(size == 20, 0.2, 0.0)
    gone = rng.random(count) < chance
    groups = np.repeat(np.arange(count), size)
    candidate = 1.0 - np.repeat(gone, size)
    truth = 0.1 * 20 * 0.2 / (0.1 * 20 + 0.9)
    limit = truth if by_samples else 0.05  # over groups the truth is 2%
    over: drawing.Over = "samples" if by_samples else "groups"
    return certified(np.ones(len(groups)), candidate, limit, groups=groups, over=over)


def unequal_groups(rng: np.random.Generator) -> bool:
    return _unequal(rng, by_samples=True)


def unequal_groups_before(rng: np.random.Generator) -> bool:
    """The claim was about samples in its words, and about groups in its figures."""
    return _unequal(rng, by_samples=False)


def _repeats(
    rng: np.random.Generator, share: float, fate: float, limit: float
) -> tuple[Floats, NDArray[np.int64]]:
    """Draw rows of which a share are one input, that the candidate gets wrong; others fail with a chance."""
    n = 1000
    same = rng.random(n) < share
    gone = np.where(same, 1.0, rng.random(n) < fate)
    content = np.where(same, 0, 1 + np.arange(n))
    return 1.0 - gone, content


def one_input_repeats(rng: np.random.Generator) -> bool:
    candidate, content = _repeats(rng, 0.3, 0.0, 0.01)
    return certified(np.ones(1000), candidate, 0.01, groups=content)


def one_input_repeats_before(rng: np.random.Generator) -> bool:
    candidate, content = _repeats(rng, 0.3, 0.0, 0.01)
    _, first = np.unique(content, return_index=True)
    return certified(np.ones(len(first)), candidate[first], 0.01)


def few_repeats(rng: np.random.Generator) -> bool:
    """The repeated input is a share that just isn't allowed, beside other losses."""
    candidate, content = _repeats(rng, 0.005, 0.00503, 0.01)
    return certified(np.ones(1000), candidate, 0.01, groups=content)


def few_repeats_before(rng: np.random.Generator) -> bool:
    candidate, content = _repeats(rng, 0.005, 0.00503, 0.01)
    _, first = np.unique(content, return_index=True)
    return certified(np.ones(len(first)), candidate[first], 0.01)


def copied_rows(rng: np.random.Generator) -> bool:
    """Every sample was copied some times, as oversampling does: few of the rows are independent."""
    count = 120
    size = rng.integers(1, 9, count)
    gone = rng.random(count) < 0.02
    candidate, content = 1.0 - np.repeat(gone, size), np.repeat(np.arange(count), size)
    return certified(np.ones(len(content)), candidate, 0.02, groups=content)


def copied_rows_before(rng: np.random.Generator) -> bool:
    """Rows that count as independent."""
    count = 120
    size = rng.integers(1, 9, count)
    candidate = 1.0 - np.repeat(rng.random(count) < 0.02, size)
    return certified(np.ones(len(candidate)), candidate, 0.02)


def equal_groups(rng: np.random.Generator) -> bool:
    count, each = 300, 4
    gone = np.repeat(rng.random(count) < 0.03, each)
    groups = np.repeat(np.arange(count), each)
    return certified(np.ones(count * each), 1.0 - gone, 0.03, groups=groups)


def largest_group_in_the_search(rng: np.random.Generator) -> bool:
    """The group that fails is in the search split or in the sealed one; sizes of both are known."""
    count = 700
    size = np.ones(count, np.int64)
    size[0] = 60
    sealed = rng.random(count) < 0.7
    chance = np.where(size == 60, 0.2, 0.0)  # over samples the truth is about 0.2 * 60 / 759
    gone = rng.random(count) < chance
    groups = np.repeat(np.arange(count)[sealed], size[sealed])
    candidate = 1.0 - np.repeat(gone[sealed], size[sealed])
    return certified(np.ones(len(groups)), candidate, 0.0158, groups=groups, sizes=size)


def largest_group_before(rng: np.random.Generator) -> bool:
    count = 700
    sealed = rng.random(count) < 0.7
    gone = np.zeros(count)
    gone[0] = rng.random() < 0.2
    n = int(sealed.sum())
    return certified(np.ones(n), 1.0 - gone[sealed], 0.0158)


def _ladder(rng: np.random.Generator, drops: tuple[float, ...]) -> int | None:
    """Return the number of the rung that ships, of some whose true drops are given."""
    names = [str(i) for i in range(len(drops))]
    n, common = 900, rng.random(900)
    own = {
        name: 1.0 - ((common < drop) | (rng.random(n) < 0.002))
        for name, drop in zip(names, drops, strict=True)
    }
    judged = judge_ladder(
        np.ones(n),
        names,
        own,
        np.arange(n),
        {},
        Promise(Top1(), max_drop=0.02, confidence=1 - ALPHA),
    )
    passed = last_certified(judged)
    return int(passed[0]) if passed else None


def four_rungs(rng: np.random.Generator) -> bool:
    shipped = _ladder(rng, (0.001, 0.0182, 0.0182, 0.0182))
    return shipped is not None and shipped > 0


PATHS = (
    Path("net, 506 samples", net),
    Path("net, few flips", net_rare),
    Path("lost", lost),
    Path("changed", changed),
    Path("fractional scores, rare disasters", scores),
    Path("groups of equal size", equal_groups),
    Path("groups of unequal size", unequal_groups, unequal_groups_before),
    Path("one input is 30% of the rows", one_input_repeats, one_input_repeats_before),
    Path("one input is 0.5% of the rows", few_repeats, few_repeats_before),
    Path("rows copied 1 to 8 times", copied_rows, copied_rows_before),
    Path(
        "the largest group may be in the search", largest_group_in_the_search, largest_group_before
    ),
    Path("a ladder of four rungs", four_rungs),
)


def rate(false: int, runs: int) -> str:
    """Return a share of runs in percent, with its 95% interval."""
    low = 0.0 if not false else float(stats.beta.ppf(0.025, false, runs - false + 1))
    high = 1.0 if false == runs else float(stats.beta.ppf(0.975, false + 1, runs - false))
    return f"{100 * false / runs:.2f}% ({100 * low:.2f} to {100 * high:.2f})"


def count(path: Callable[[np.random.Generator], bool], runs: int, seed: int) -> int:
    """Return in how many runs a path ends in a false certificate."""
    rng = np.random.default_rng(seed)
    with deciding_alone():
        return sum(path(rng) for _ in range(runs))


def false_rates(runs: int, only: str) -> None:
    """Print how often each path ends in a false certificate at one setting, and by earlier rules."""
    print(f"limit at the true drop, level {100 * ALPHA:g}%, {runs:,} runs a cell, 95% intervals\n")
    print("| path | false certificates | before |\n|---|---|---|")
    for seed, path in enumerate(PATHS):
        if only not in path.name:
            continue
        before = "" if path.before is None else rate(count(path.before, runs, seed), runs)
        print(
            f"| {path.name} | {rate(count(path.false, runs, seed), runs)} | {before} |", flush=True
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("table", nargs="?", choices=["false", "attack", "power"], default="false")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--only", default="", help="Part of the name of the paths to run.")
    args = parser.parse_args()
    if args.table == "power":
        power(args.runs)
    elif args.table == "attack":
        attack(args.runs, args.only)
    else:
        false_rates(args.runs, args.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
