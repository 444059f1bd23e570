"""What a run comes to: figures derived from raw rounds, and the words for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from hasten.bundle import Status
from hasten.certificate.drop import Drop
from hasten.certificate.verdict import Guard, Judgement
from hasten.core.invocation import Invocation
from hasten.measure.intervals import Quantile, Ratio, Rounds, Statistic, paired_ratio, quantile

Fate: TypeAlias = Literal[
    "baseline", "exact", "judged", "left early", "not judged", "skipped", "failed"
]
"""What became of a candidate: left early, since it was surely beyond the limit; not judged, since it
was slower."""
UNEVEN = (
    "{} is compared by its mean: a request that is asked again costs both models, the others one"
)
"""What is to be said of a cascade among others."""


@dataclass(frozen=True)
class Row:
    """One model's figures, from rounds that were taken after the choice.

    Attributes:
        role: "default engine", "fastest exact", "winner", "fastest uncertified".
        label: What it is.
        ratio: Latency over the default engine's, by what the result says that it compares.
        p50: Of single requests.
        p99: The same.
        mean_ns: The mean, in nanoseconds.
        size_bytes: Of its files; None for a Python function.
        accuracy: Its accuracy in words: "exact", the certificate, or why there is none.
        statistic: What the ratio compares.
    """

    role: str
    label: str
    ratio: Ratio
    p50: Quantile
    p99: Quantile
    mean_ns: float
    size_bytes: int | None
    accuracy: str
    statistic: Statistic = "p50"

    @property
    def speedup(self) -> float:
        """How many times faster than the default engine."""
        return 1 / self.ratio.estimate


def row(
    role: str,
    label: str,
    own: Rounds,
    baseline: Rounds,
    *,
    size_bytes: int | None,
    accuracy: str,
    statistic: Statistic = "p50",
) -> Row:
    """Derive a row from raw rounds.

    Args:
        role: What it stands for in the table.
        label: What it is.
        own: Round -> latencies in ns.
        baseline: The same, of the default engine.
        size_bytes: Of its files, where it has any.
        accuracy: In words.
        statistic: What the ratio compares.
    """
    everything = np.concatenate([np.asarray(block, np.float64) for block in own.values()])
    return Row(
        role=role,
        label=label,
        ratio=paired_ratio(own, baseline, statistic),
        p50=quantile(own, 0.5),
        p99=quantile(own, 0.99),
        mean_ns=float(everything.mean()),
        size_bytes=size_bytes,
        accuracy=accuracy,
        statistic=statistic,
    )


@dataclass(frozen=True)
class Limit:
    """How far a model is from the least that the machine can take for it.

    Attributes:
        role: Of its row; of a candidate of the search its label.
        floor_ns: The least time of one request, in nanoseconds.
        ratio: Its p50 over that, a cascade's mean.
        binds: What the floor consists of mostly: "arithmetic", "bytes" or "overhead".
    """

    role: str
    floor_ns: float
    ratio: float
    binds: str


@dataclass(frozen=True)
class Outcome:
    """What became of one candidate in the search.

    Attributes:
        label: What it is.
        fate: In a word.
        said: The same in a line, with the reason where it failed or was skipped.
        ratio: Latency over the default engine's, from a few turns; None where it never ran.
        drop: Of its scores; None where it wasn't judged.
        rung: Its place on the ladder that was certified, 0 the safest; None where it isn't on it.
        limit: By those turns, how far it is from the least that the machine can take; None where
            that isn't known.
    """

    label: str
    fate: Fate
    said: str
    ratio: Ratio | None = None
    drop: Drop | None = None
    rung: int | None = None
    limit: Limit | None = None


@dataclass(frozen=True)
class Rung:
    """What the sealed data said of one candidate of the ladder.

    Attributes:
        label: What it is.
        judgement: None where it failed.
        failure: Why it failed; None where it didn't.
    """

    label: str
    judgement: Judgement | None
    failure: str | None = None


@dataclass(frozen=True)
class Way:
    """One way to a lighter model, by the best that it came to, timed in the same rounds as the others.

    Attributes:
        name: "as it is" for the original in other forms; of the others as they were handed in.
        label: What its best candidate is.
        ratio: Latency over the default engine's.
        p50: Of single requests.
        drop: Of its scores on the search split; None for an exact one.
        said: What the sealed data said of it, or that they weren't asked.
        trained: How it came about, in words.
    """

    name: str
    label: str
    ratio: Ratio
    p50: Quantile
    drop: Drop | None
    said: str
    trained: str = ""


@dataclass(frozen=True)
class Asked:
    """What was asked for.

    Attributes:
        invocation: How.
        metric: The score's name.
        noun: What is bounded, in words: "accuracy", "agreement", ...
        guard: What is bounded.
        max_drop: The limit, in absolute share.
        confidence: Of the certificate.
        seed: Of the split and of all orders.
        searched: How many samples the search saw.
        sealed: How many it never saw.
    """

    invocation: Invocation
    metric: str
    noun: str
    guard: Guard
    max_drop: float
    confidence: float
    seed: int
    searched: int
    sealed: int


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
        outcomes: What became of every candidate, with its figures.
        ladder: What the sealed data said, safest first, up to the first that failed.
        asked: What was asked for; None in records of older versions.
        objective: What the rows' ratios and the spread compare: what was asked for, or the mean
            where a p99 was and isn't established.
        limits: How far models are from what the machine can do; empty where that isn't known.
        loads: What ships under load, a line for each scenario.
        ways: The ways to a lighter model that were compared; empty where there was but one.
        budget_ns: What one request may take; None where that wasn't asked.
        way: The way whose model the bundle serves; empty where none were compared.
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
    outcomes: tuple[Outcome, ...] = ()
    ladder: tuple[Rung, ...] = ()
    asked: Asked | None = None
    objective: Statistic = "p50"
    limits: tuple[Limit, ...] = ()
    loads: tuple[str, ...] = ()
    ways: tuple[Way, ...] = ()
    budget_ns: float | None = None
    way: str = ""

    @property
    def winner(self) -> Row:
        """The row of what the bundle serves."""
        return next(row for row in reversed(self.rows) if row.role != "fastest uncertified")

    @property
    def latency_ns(self) -> float:
        """What a request to the winner takes: its p50, a cascade's mean."""
        winner = self.winner
        return winner.mean_ns if winner.statistic == "mean" else winner.p50.value_ns

    @property
    def within_budget(self) -> bool | None:
        """Whether that is within the budget; None where none was given."""
        return None if self.budget_ns is None else self.latency_ns <= self.budget_ns

    @property
    def speedup(self) -> float:
        """The winner's, over the default engine."""
        return self.winner.speedup
