"""Count the boxes that the model of a bundle loses and gains against its exact network, by class.

    python examples/driving/classes.py yolo.hasten --views 400

draws views that the run has not seen, asks both models about each, and prints a table.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from stream import draw

import hasten
from hasten.cli.tables import aligned
from hasten.inputs.metrics.detection_f1 import overlaps

LEAST_OVERLAP = 0.5
"""Least IoU of two boxes of a class that are one object, as in `metric.py`."""
SEED = 1
"""Seed of the views that are drawn here; those that the run has seen have 0."""
EVERY = "all"
"""Name of the table's last row."""

Decision = Sequence[Mapping[str, Any]]


@dataclass
class Count:
    """Boxes of a class in all views.

    Attributes:
        kept: Boxes of the exact network that the other model finds too.
        lost: Scores of those that it doesn't find.
        gained: Scores of boxes that only the other model finds.
    """

    kept: int = 0
    lost: list[float] = field(default_factory=list)
    gained: list[float] = field(default_factory=list)

    def add(self, other: Count) -> None:
        """Count the boxes of another class too."""
        self.kept += other.kept
        self.lost += other.lost
        self.gained += other.gained


def compare(found: Decision, exact: Decision, counts: dict[str, Count]) -> None:
    """Count what a decision has lost and gained against the exact network's on the same view.

    A box of the best score comes first, and is paired with the free box of its class that it overlaps most.
    """
    for label in {one["label"] for one in (*found, *exact)}:
        mine, theirs = (
            sorted((one for one in told if one["label"] == label), key=lambda one: -one["score"])
            for told in (found, exact)
        )
        overlap = overlaps(_corners(mine), _corners(theirs))
        free, count = set(range(len(theirs))), counts[label]
        for row, one in enumerate(mine):
            best = max(free, key=lambda column: overlap[row, column], default=None)
            if best is not None and overlap[row, best] >= LEAST_OVERLAP:
                free.remove(best)
                count.kept += 1
            else:
                count.gained.append(one["score"])
        count.lost += [theirs[column]["score"] for column in sorted(free)]


def counted(bundle: Path, views: Iterable[bytes]) -> dict[str, Count]:
    """Ask both models of a bundle about views, and return the counts by class, and of all as `EVERY`."""
    counts: dict[str, Count] = defaultdict(Count)
    with hasten.load(bundle) as winner, hasten.load(bundle, which="exact") as exact:
        for view in views:
            compare(winner.decide(view), exact.decide(view), counts)
    total = Count()
    for count in counts.values():
        total.add(count)
    return {**counts, EVERY: total}


def table(counts: Mapping[str, Count]) -> str:
    """Return the counts as text, the class with most boxes first."""
    lines = [("class", "exact boxes", "lost", "gained", "score of the lost", "of the gained")]
    for label, count in sorted(
        counts.items(), key=lambda item: (item[0] == EVERY, -item[1].kept - len(item[1].lost))
    ):
        boxes = count.kept + len(count.lost)
        lost = f"{len(count.lost)} ({len(count.lost) / boxes:.1%})" if boxes else "0"
        scores = (f"{median(each):.2f}" if each else "-" for each in (count.lost, count.gained))
        lines.append((label, str(boxes), lost, str(len(count.gained)), *scores))
    return aligned(lines)


def _corners(boxes: Decision) -> np.ndarray:
    return np.array([one["box"] for one in boxes], np.float64).reshape(-1, 4)


def main() -> None:
    """Draw the views, ask and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--views", type=int, default=400, help="number of views")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), given.views, SEED)
        views = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    print(table(counted(given.bundle, views)))
    print(f"{given.views} views that the run has not seen; scores are medians")


if __name__ == "__main__":
    main()
