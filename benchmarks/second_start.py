"""Second starts: the time from a new process to a bundle's first answer, with what the first start kept.

    python benchmarks/second_start.py [MODEL or BUNDLE ...] [--starts 7] [--folder FOLDER] [--out results.json]

Makes a bundle of each model of the README by a quick search, unless the folder has it already, and starts a new process
alternately with an empty cache, with a filled one and without. It prints the medians, and the second start's time over
the first's with a 95% interval from starts that were made one after another, in wall-clock and in processor time. The
aims are a second and 40%.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from jpeg_decoders import in_words

import hasten
from hasten.bundle import read
from hasten.bundle.cold import ColdStart, Starts, cold_start
from hasten.cli.tables import aligned, starts_table
from hasten.core.records import to_record
from hasten.measure.intervals import Ratio, Rounds, paired_ratio

README = ("efficientnet_lite0", "minilm", "yolov3_tiny")
"""Models of the README's table, by their names in `models.py`."""
MOST_S, MOST_SHARE = 1.0, 0.4
"""Aims: the longest second start, and its largest share of the first."""
HEAD = (
    "bundle",
    "first start",
    "second",
    "second over first",
    "processors, first",
    "second",
    "second over first",
    "aims met",
)


def made(name: str, folder: Path) -> Path:
    """Return a model's bundle, made by a quick search where it isn't there yet."""
    from models import CACHE, MODELS

    bundle = folder / f"{name}.hasten"
    if not bundle.exists():
        subject = MODELS[name]
        hasten.optimize(
            subject.module(CACHE),
            subject.data(),
            max_drop=subject.max_drop,
            metric=subject.metric,
            training=subject.training(),
            effort="quick",
            out=bundle,
        )
    return bundle


def ratios(found: ColdStart) -> tuple[Ratio, Ratio]:
    """Return the second start over the first, in wall-clock and in processor time."""
    first, second, *_ = found.rows
    return (
        paired_ratio(_whole(second), _whole(first)),
        paired_ratio(_rounds(second.processor_ns), _rounds(first.processor_ns)),
    )


def _whole(starts: Starts) -> Rounds:
    return _rounds([sum(stages) for stages in starts.stages_ns])


def _rounds(spans: Sequence[int]) -> Rounds:
    return {number: (span,) for number, span in enumerate(spans)}


def line(name: str, found: ColdStart) -> tuple[str, ...]:
    """Return a bundle's line of the table."""
    first, second, *_ = found.rows
    wall, processors = ratios(found)
    aims = (("a second", second.total_ns / 1e9 < MOST_S), ("40%", wall.estimate < MOST_SHARE))
    spent = (f"{median(row.processor_ns) / 1e6:,.0f} ms" for row in (first, second))
    return (
        name,
        *(f"{row.total_ns / 1e6:,.0f} ms" for row in (first, second)),
        in_words(wall),
        *spent,
        in_words(processors),
        ", ".join(aim for aim, met in aims if met) or "none",
    )


def measured(bundles: dict[str, Path], starts: int) -> dict[str, Any]:
    """Start each bundle, print, and return the records."""
    lines, records = [HEAD], {}
    for name, bundle in bundles.items():
        found = cold_start(bundle, starts=starts)
        print(f"{name}: {read(bundle).winner.label}\n{starts_table(found.rows)}\n")
        lines.append(line(name, found))
        wall, processors = ratios(found)
        records[name] = {
            "starts": to_record(found),
            "wall": to_record(wall),
            "processors": to_record(processors),
        }
    print(aligned(lines))
    return records


def main() -> None:
    """Parse the command line, make the bundles, start them and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("subjects", nargs="*", default=README, metavar="MODEL or BUNDLE")
    parser.add_argument("--starts", type=int, default=7, help="counted starts of each kind")
    parser.add_argument("--folder", type=Path, help="folder of bundles, kept for the next time")
    parser.add_argument("--out", type=Path, help="file for the records, as JSON")
    given = parser.parse_args()
    if given.starts < 2:
        parser.error(f"a ratio with an interval needs 2 starts; got --starts {given.starts}")
    os.environ.setdefault("HASTEN_LEDGER", "off")
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bundles = {
            Path(one).stem: Path(one) if Path(one).exists() else made(one, folder)
            for one in given.subjects
        }
        records = measured(bundles, given.starts)
    if given.out is not None:
        given.out.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
