"""How many answers a candidate can change that counts as exact, by the rule that was used before and today's.

    python benchmarks/exact_answers.py [--runs 1000] [--seed 0]

An adversary moves the two highest scores of a sample past each other, wherever that takes less than the
tolerance of a thousandth of the largest output, or in some of these samples alone. Before, a candidate was
exact if its outputs on the first 64 samples of the search split were within the tolerance. Today it is if
it changes no answer of the whole search split, and none of the sealed one. Prints a Markdown table: the
share of all answers that the candidate changes, and how often it counts as exact, with exact 95% intervals
of Clopper and Pearson.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from certificate_reruns import interval
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from hasten.cli.demos.digits import digits
from hasten.core.tensors import Array
from hasten.inputs.metrics.top_k import Top1
from hasten.measure.exactness import EXACT_TOLERANCE, Changes, difference

CHUNK = 64
SPLITS = ((210, 490), (1050, 2450))
"""Numbers of search and sealed samples, of 1,000 and of 5,000."""


@dataclass(frozen=True)
class Outputs:
    """Scores of classes, of a population of samples.

    Attributes:
        name: Name in the table.
        scores: Scores of the original, `(n, classes)`.
    """

    name: str
    scores: Array

    def swapped(self) -> tuple[Array, NDArray[np.bool_]]:
        """Return other scores, and which of the samples can be answered otherwise within the tolerance."""
        moved, rows = self.scores.copy(), np.arange(len(self.scores))
        second, first = np.argsort(self.scores, axis=1)[:, -2:].T
        middle = (self.scores[rows, first] + self.scores[rows, second]) / 2
        # The largest output of any chunk is at least that of the sample itself.
        room = 0.99 * EXACT_TOLERANCE * np.abs(self.scores).max(axis=1)
        past = np.maximum(1e-6 * np.abs(middle), 1e-9)
        near = self.scores[rows, first] - middle + past < room
        moved[rows[near], first[near]] = (middle - past)[near]
        moved[rows[near], second[near]] = (middle + past)[near]
        return moved, moved.argmax(axis=1) != self.scores.argmax(axis=1)


def constructed(rng: np.random.Generator, count: int = 22_000) -> Outputs:
    """Return scores whose two highest are nearly equal in each 110th sample."""
    scores = 4 * rng.standard_normal((count, 10))
    rows = np.arange(0, count, 110)
    first = scores[rows].argmax(axis=1)
    scores[rows, (first + 1) % 10] = scores[rows, first] - 1e-4
    return Outputs("constructed, ten classes", scores)


def real() -> Outputs:
    """Return scores of a logistic regression of handwritten digits, on those that it wasn't trained on."""
    images, labels = digits()
    rows = images.reshape(len(images), -1)
    half = len(rows) // 2
    model = LogisticRegression(max_iter=60, tol=1e-2).fit(rows[:half], labels[:half])
    return Outputs("logistic regression, MNIST", model.decision_function(rows[half:]))


def changed(one: Array, own: Array) -> int:
    """Return how many answers a run counts as changed, chunk by chunk."""
    changes, scores = Changes(Top1()), np.ones(len(own))
    for start, stop in pairwise([*range(0, len(own), CHUNK), len(own)]):
        changes.add({"y": one[start:stop]}, {"y": own[start:stop]})
    return changes.count(scores, scores)


def exact_before(one: Array, own: Array) -> bool:
    """Whether a candidate was exact by its first 64 samples."""
    return difference({"y": one[:CHUNK]}, {"y": own[:CHUNK]}) <= EXACT_TOLERANCE


def rows_of(outputs: Outputs, part: float, runs: int, rng: np.random.Generator) -> None:
    """Print how often a candidate that changes a part of what it can counts as exact."""
    moved, can = outputs.swapped()
    does = can & (np.cumsum(can) <= round(part * can.sum()))
    candidate = np.where(does[:, np.newaxis], moved, outputs.scores)
    for search, sealed in SPLITS:
        counts = np.zeros(3, np.int64)
        for _ in range(runs):
            drawn = rng.integers(0, len(does), search + sealed)
            one, own = candidate[drawn], outputs.scores[drawn]
            searched = changed(one[:search], own[:search]) == 0
            both = searched and changed(one[search:], own[search:]) == 0
            counts += (exact_before(one, own), searched, both)
        cells = (
            f"{outputs.name}",
            f"{100 * does.mean():.2f}%",
            f"{search:,} + {sealed:,}",
            *(interval(count, runs) for count in counts),
        )
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    print(
        "| outputs | answers changed | search + sealed samples | before: exact | "
        "today, by the search split | today, by both |\n|---|---|---|---|---|---|"
    )
    for outputs in (constructed(rng), real()):
        for part in (1.0, 0.3, 0.1):
            rows_of(outputs, part, args.runs, rng)
    return 0


if __name__ == "__main__":
    sys.exit(main())
