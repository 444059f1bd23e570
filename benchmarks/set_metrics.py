"""Whether what is said about figures over a set is true, by simulation with known figures.

    python benchmarks/set_metrics.py [--runs 20000] [--intervals 1000] [--seed 0]

Scores are normal in each class, so the AUROC is known, and noise on the candidate lowers it by just as
much as wanted. Prints two Markdown tables. The first: how often a candidate that lies at the limit is
certified by disjoint comparisons, which may be 5% at most, and how often one that ranks alike is; with
rows alone, with groups that share score and label, with scores that tie, and with the best of several
candidates shipped. The second: how often the bootstrap's 95% interval of a change holds the change of a
far larger set, which nobody promises.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from hasten.certificate.betting import BettingPrior, betting_certifies
from hasten.certificate.draws import bounded, drawn
from hasten.certificate.exact import clopper_pearson_upper
from hasten.certificate.figures import Setting
from hasten.inputs.metrics.pairs import Pairing
from hasten.inputs.set_metrics import parse_set_metric

Floats = NDArray[np.float64]

ALPHA, MAX_DROP, APART = 0.05, 0.02, 1.5
NAMES = ("auroc", "ks", "brier", "log_loss", "calibration_error", "average_precision", "f1")
LARGE = 400_000
"""Rows of the set whose figures stand for the truth."""


@dataclass(frozen=True)
class Cell:
    """A kind of data.

    Attributes:
        name: Name for people.
        rows: Number of sealed rows.
        positive: Share of class 1.
        group: Rows of a group, which share score and label.
        digits: Decimals that scores are rounded to; None for scores that don't tie.
    """

    name: str
    rows: int
    positive: float
    group: int = 1
    digits: int | None = None


CELLS = (
    Cell("600 rows, half positive", 600, 0.5),
    Cell("1,200 rows, a quarter", 1200, 0.25),
    Cell("4,000 rows, a twentieth", 4000, 0.05),
    Cell("1,200 rows in groups of 4", 1200, 0.5, group=4),
    Cell("1,200 rows, scores that tie", 1200, 0.25, digits=1),
)


def noise_for(drop: float) -> float:
    """Return the noise's standard deviation that lowers the AUROC by so much."""
    if not drop:
        return 0.0
    lowered = special.ndtri(special.ndtr(APART / 2**0.5) - drop) * 2**0.5
    return float(((APART / lowered) ** 2 - 1) ** 0.5)


def differences(
    rng: np.random.Generator, cell: Cell, noises: tuple[float, ...]
) -> tuple[Floats, ...]:
    """Return the differences of the draws of several candidates on one set."""
    count = cell.rows // cell.group
    classes = (rng.random(count) < cell.positive).astype(np.int64)
    own = rng.standard_normal(count) + APART * classes
    units = np.repeat(np.arange(count), cell.group)
    pairing = Pairing.of(classes[units], units)

    def scored(scores: Floats) -> Floats:
        rounded = scores if cell.digits is None else scores.round(cell.digits)
        return pairing.scores(rounded[units], classes[units])

    original = scored(own)
    return tuple(original - scored(own + one * rng.standard_normal(count)) for one in noises)


def drop_of(cell: Cell, noise: float) -> float:
    """Return the true fall of the AUROC; where scores tie, by a large set."""
    if cell.digits is None:
        return float(
            special.ndtr(APART / 2**0.5) - special.ndtr(APART / (2 * (1 + noise**2)) ** 0.5)
        )
    rng, metric = np.random.default_rng(99), parse_set_metric("auroc")
    classes = (rng.random(10 * LARGE) < cell.positive).astype(np.int64)
    own = rng.standard_normal(len(classes)) + APART * classes
    noisy = own + noise * rng.standard_normal(len(classes))
    figures = [metric.value({"s": one.round(cell.digits)}, classes) for one in (own, noisy)]
    return figures[0] - figures[1]


def rate(hits: int, runs: int) -> str:
    """Write a share with its exact 95% interval."""
    low = 1 - clopper_pearson_upper(runs - hits, runs, 0.025)
    high = clopper_pearson_upper(hits, runs, 0.025)
    return f"{100 * hits / runs:.2f}% ({100 * low:.2f} to {100 * high:.2f})"


def share(runs: int, once: Callable[[], bool]) -> str:
    """Repeat a run, and write how often it came true."""
    return rate(sum(once() for _ in range(runs)), runs)


def certificates(runs: int, rng: np.random.Generator) -> None:
    """Print how often candidates pass: one at the limit, one that ranks alike, the best of four."""
    print(
        "| data | at the limit | ranks alike | bound under the truth, best of 4 |\n|---|---|---|---|"
    )
    for cell in CELLS:
        noise = noise_for(MAX_DROP)
        limit = drop_of(cell, noise)

        def passes(noise: float, cell: Cell = cell, limit: float = limit) -> bool:
            (searched,) = differences(rng, cell, (noise,))
            (sealed,) = differences(rng, cell, (noise,))
            prior = BettingPrior.from_differences(searched[: len(searched) // 3])
            return betting_certifies(sealed, limit, ALPHA, prior)

        def flattered(cell: Cell = cell, limit: float = limit, noise: float = noise) -> bool:
            """Whether the bound of the candidate that looks best lies under its true fall."""
            found = differences(rng, cell, (noise,) * 4)
            best = min(found, key=lambda one: float(one.mean()))
            falls = drawn(
                best, 0 * best, losses_only=False, binary=False, groups=None, max_drop=limit
            )
            return bounded(falls, 0.5, ALPHA / 4, BettingPrior())[1] < limit

        cells = (
            share(runs, lambda: passes(noise)),  # noqa: B023 - called before the next turn
            share(runs // 10, lambda: passes(0.02)),
            share(runs // 10, flattered),
        )
        print(f"| {cell.name} | {' | '.join(cells)} |", flush=True)


def intervals(runs: int, rng: np.random.Generator) -> None:
    """Print how often the bootstrap's interval holds the change of a far larger set."""
    metrics = [parse_set_metric(name) for name in NAMES]
    noise = noise_for(MAX_DROP)

    def scores(rows: int) -> tuple[NDArray[np.int64], dict[str, Floats], dict[str, Floats]]:
        classes = (rng.random(rows) < 0.25).astype(np.int64)
        own = rng.standard_normal(rows) + APART * classes
        noisy = own + noise * rng.standard_normal(rows)
        # The probability of class 1 given the original's score, so that the original is calibrated.
        logits = (APART * (one - APART / 2) + special.logit(0.25) for one in (own, noisy))
        before, after = ({"p": special.expit(one)} for one in logits)
        return classes, before, after

    classes, before, after = scores(LARGE)
    truth = [metric.value(after, classes) - metric.value(before, classes) for metric in metrics]
    print(f"\n| figure | {' | '.join(f'{rows:,} rows' for rows in (200, 1000))} |\n|---|---|---|")
    held = {rows: np.zeros(len(metrics), np.int64) for rows in (200, 1000)}
    for rows, counts in held.items():
        for _ in range(runs):
            classes, before, after = scores(rows)
            setting = Setting(metrics, None, classes, np.arange(rows), 0.95)
            figures = setting.compare("m", before, after).figures
            counts += [
                one.low <= true <= one.high for one, true in zip(figures, truth, strict=True)
            ]
    for place, metric in enumerate(metrics):
        cells = " | ".join(rate(int(counts[place]), runs) for counts in held.values())
        print(f"| {metric.noun} | {cells} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=20_000, help="simulated runs of a cell")
    parser.add_argument(
        "--intervals", type=int, default=1000, help="simulated bootstraps of a cell"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    certificates(given.runs, rng)
    intervals(given.intervals, rng)


if __name__ == "__main__":
    main()
