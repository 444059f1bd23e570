"""How often the bound of the chosen rung lies under its true drop, and how often the limit's sentence is false.

    python benchmarks/certificate_bounds.py [--runs 10000] [--ladders 25] [--scan 500] [--seed 0]

A ladder of 2 to 4 rungs is judged on sealed samples by `judge_ladder`, and the last certified rung ships.
Its own bound is compared with its true drop, and the limit with it too. For each number of rungs, some
ladders of random drops at or under the limit are tried on a few runs, and the one whose bounds were wrong
most often is run again with other random numbers. Prints a Markdown table of shares of all runs, with 95%
intervals of Clopper and Pearson.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from unittest.mock import patch

import numpy as np
from certificate_reruns import interval
from numpy.typing import NDArray

from hasten.certificate import draws
from hasten.certificate.certification import judge_ladder, last_certified
from hasten.certificate.exact import paired_certifies, paired_refutes, paired_upper_bound
from hasten.certificate.promise import Promise
from hasten.inputs.metrics.top_k import Top1

Floats = NDArray[np.float64]

ALPHA, LIMIT, SEALED, RIGHT = 0.05, 0.02, 490, 0.8
"""Level, limit, sealed samples, and the share of them that the original gets right."""
PROMISE = Promise(Top1(), max_drop=LIMIT, confidence=1 - ALPHA)


@dataclass(frozen=True)
class Rungs:
    """A ladder by what is true of its rungs.

    Attributes:
        drops: True drop of each rung, safest first.
        gain: Chance that a rung gets a sample right that the original gets wrong.
        nested: Whether a sample that one rung loses is lost by each that loses more; else rungs are
            independent.
    """

    drops: tuple[float, ...]
    gain: float = 0.0
    nested: bool = False

    def __str__(self) -> str:
        drops = ", ".join(f"{100 * drop:.1f}" for drop in self.drops)
        how = "nested" if self.nested else "independent"
        many = "1 rung" if len(self.drops) == 1 else f"{len(self.drops)} rungs"
        return f"{many}: {drops} points; {100 * self.gain:.1f}% gained; {how}"

    def scores(self, rng: np.random.Generator) -> tuple[Floats, dict[str, Floats]]:
        """Draw the original's scores on the sealed samples, and those of each rung by its number."""
        right = rng.random(SEALED) < RIGHT
        luck = rng.random((len(self.drops), SEALED))
        theirs = {}
        for number, drop in enumerate(self.drops):
            chance = np.where(right, (drop + self.gain) / RIGHT, self.gain / (1 - RIGHT))
            flipped = luck[0 if self.nested else number] < chance
            theirs[str(number)] = (right ^ flipped).astype(np.float64)
        return right.astype(np.float64), theirs


@dataclass(frozen=True)
class Outcome:
    """Runs with one ladder.

    Attributes:
        runs: Number of runs.
        shipped: Number in which a rung was certified.
        bounds: Number in which the shipped rung's own bound was under its true drop.
        limits: Number in which the limit was under it, so that the certificate was false.
    """

    runs: int
    shipped: int
    bounds: int
    limits: int


def simulated(rungs: Rungs, runs: int, rng: np.random.Generator) -> Outcome:
    """Judge a ladder on other sealed samples in each run."""
    names, units = [str(i) for i in range(len(rungs.drops))], np.arange(SEALED)
    counts = np.zeros(3, np.int64)
    for _ in range(runs):
        original, theirs = rungs.scores(rng)
        passed = last_certified(judge_ladder(original, names, theirs, units, {}, PROMISE))
        if passed is not None:
            drop = rungs.drops[int(passed[0])]
            # A rung at the limit has a drop of the limit or more, which its certificate denies.
            counts += (1, passed[1].bound <= drop, drop >= LIMIT)
    return Outcome(runs, *map(int, counts))


def random_rungs(count: int, rng: np.random.Generator) -> Rungs:
    """Return a ladder whose last rung lies at the limit, and the others anywhere under it."""
    under = np.sort(rng.uniform(0.001, LIMIT, count - 1)).tolist()
    gain = float(rng.choice([0.0, 0.002, 0.01]))
    return Rungs((*under, LIMIT), gain, nested=bool(rng.random() < 0.3))


def worst(count: int, ladders: int, runs: int, rng: np.random.Generator) -> Rungs:
    """Return the ladder, of some, whose bounds were wrong most often."""
    tried = [random_rungs(count, rng) for _ in range(ladders)]
    return max(tried, key=lambda rungs: simulated(rungs, runs, rng).bounds)


@contextmanager
def judged_once() -> Iterator[None]:
    """Judge the same counts once, and don't ask whether a refused candidate is surely too bad."""
    with ExitStack() as stack:
        for name, stand_in in (
            ("paired_certifies", cache(paired_certifies)),
            ("paired_upper_bound", cache(paired_upper_bound)),
            ("paired_refutes", cache(paired_refutes)),
        ):
            stack.enter_context(patch.object(draws, name, stand_in))
        yield


PLAIN = (
    Rungs((0.02,)),
    Rungs((0.007, 0.02)),
    Rungs((0.007, 0.012, 0.02)),
    Rungs((0.005, 0.008, 0.012, 0.02)),
    Rungs((0.005, 0.008, 0.012, 0.02), nested=True),
)


def table(ladders: Sequence[Rungs], runs: int, rng: np.random.Generator) -> None:
    """Print a row for each ladder."""
    for rungs in ladders:
        found = simulated(rungs, runs, rng)
        cells = (found.shipped, found.bounds, found.limits)
        print(f"| {rungs} | " + " | ".join(interval(one, runs) for one in cells) + " |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--ladders", type=int, default=25)
    parser.add_argument("--scan", type=int, default=500, help="runs of each ladder that is tried")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    print(
        "| ladder | a rung ships | its bound is under its true drop | the limit is |\n"
        "|---|---|---|---|"
    )
    with judged_once():
        table(PLAIN, args.runs, rng)
        found = [worst(count, args.ladders, args.scan, rng) for count in (2, 3, 4)]
        table(found, args.runs, rng)
    return 0


if __name__ == "__main__":
    sys.exit(main())
