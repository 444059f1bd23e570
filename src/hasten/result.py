"""What a run comes to: figures derived from raw rounds, and the words for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hasten.bundle import Status
from hasten.certificate.verdict import Judgement
from hasten.measure.intervals import Quantile, Ratio, Rounds, paired_ratio, quantile


@dataclass(frozen=True)
class Row:
    """One model's figures, from rounds that were taken after the choice.

    Attributes:
        role: "default engine", "fastest exact", "winner", "fastest uncertified".
        label: What it is.
        ratio: Latency over the default engine's, p50 by p50.
        p50: Of single requests.
        p99: The same.
        mean_ns: The mean, in nanoseconds.
        size_bytes: Of its files; None for a Python function.
        accuracy: Its accuracy in words: "exact", the certificate, or why there is none.
    """

    role: str
    label: str
    ratio: Ratio
    p50: Quantile
    p99: Quantile
    mean_ns: float
    size_bytes: int | None
    accuracy: str

    @property
    def speedup(self) -> float:
        """How many times faster than the default engine."""
        return 1 / self.ratio.estimate


def row(
    role: str, label: str, own: Rounds, baseline: Rounds, *, size_bytes: int | None, accuracy: str
) -> Row:
    """Derive a row from raw rounds.

    Args:
        role: What it stands for in the table.
        label: What it is.
        own: Round -> latencies in ns.
        baseline: The same, of the default engine.
        size_bytes: Of its files, where it has any.
        accuracy: In words.
    """
    everything = np.concatenate([np.asarray(block, np.float64) for block in own.values()])
    return Row(
        role=role,
        label=label,
        ratio=paired_ratio(own, baseline),
        p50=quantile(own, 0.5),
        p99=quantile(own, 0.99),
        mean_ns=float(everything.mean()),
        size_bytes=size_bytes,
        accuracy=accuracy,
    )


@dataclass(frozen=True)
class Result:
    """The end of a run.

    Attributes:
        bundle: The folder.
        status: "certified", "exact", or "uncertified".
        why: The status in words.
        judgement: The winner's, or where nothing was certified the first that failed.
        population: What the certificate is about.
        rows: The table, the default engine first.
        spread: Of the A/A twins: no smaller difference is called a speed-up.
        threads: How many each engine had.
        tried: Candidate -> what became of it.
        notes: What the reader should know besides.
        seconds: How long the run took.
    """

    bundle: Path
    status: Status
    why: str
    judgement: Judgement | None
    population: str
    rows: tuple[Row, ...]
    spread: float
    threads: int
    tried: Mapping[str, str]
    notes: tuple[str, ...]
    seconds: float

    @property
    def winner(self) -> Row:
        """The row of what the bundle serves."""
        return next(row for row in reversed(self.rows) if row.role != "fastest uncertified")

    @property
    def speedup(self) -> float:
        """The winner's, over the default engine."""
        return self.winner.speedup
