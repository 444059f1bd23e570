"""What a run comes to: figures derived from raw rounds, and the words for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from hasten.bundle import Status
from hasten.certificate.drop import Drop
from hasten.certificate.verdict import Guard, Judgement
from hasten.core.invocation import Invocation
from hasten.engines.estimates import Source, check_latency
from hasten.errors import InputError
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
class Method:
    """One method to make a model lighter, by its best candidate, timed in the same rounds as the others.

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
class EstimateRow:
    """One candidate, as far as the device's own tools tell.

    Attributes:
        label: What it is.
        source: Where its figures come from.
        said: What became of it, in words.
        latency_ns: Of one request, in nanoseconds; only of designs that were placed and routed.
        rank: What candidates are compared by, less is faster; None where nothing says so.
        unit: Of `rank`.
        figures: Areas, clocks, sizes, by name.
        limits: Of a figure's name, how much of it the device has.
        drop: Of its scores on the search split; None where it wasn't judged.
        frontier: Whether no other is both as fast and as small, of those under the limit.
    """

    label: str
    source: Source
    said: str
    latency_ns: float | None = None
    rank: float | None = None
    unit: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    drop: Drop | None = None
    frontier: bool = False

    def __post_init__(self) -> None:
        """Check the latency's source."""
        check_latency(self.source, self.latency_ns)


@dataclass(frozen=True)
class Estimates:
    """What the tools of a device that isn't here say of the candidates that were made for it.

    Attributes:
        device: The device as it was asked for.
        noun: Name of its kind, in words.
        rows: The candidates that were made for it, the fastest first, then those that failed.
        winner: Label of what ships.
        compared: How its answers were checked against those of its device, in words.
        area: Name of the figure that the frontier sets against the rank; empty where there is none.
    """

    device: str
    noun: str
    rows: tuple[EstimateRow, ...]
    winner: str
    compared: str = ""
    area: str = ""

    @property
    def shipped(self) -> EstimateRow | None:
        """The row of what ships; None where that is the original, for the host."""
        return next((row for row in self.rows if row.label == self.winner), None)


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
        methods: Methods to make the model lighter that were compared; empty where there was but one.
        budget_ns: What one request may take; None where that wasn't asked.
        method: The method whose model the bundle serves; empty where none were compared.
        estimates: What the tools of a device that isn't here say; None where latency was measured.
            Where there are any, `rows` is empty.
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
    methods: tuple[Method, ...] = ()
    budget_ns: float | None = None
    method: str = ""
    estimates: Estimates | None = None

    @property
    def winner(self) -> Row:
        """The row of what the bundle serves.

        Raises:
            InputError: no latency was measured, since the device isn't here.
        """
        if not self.rows and self.estimates is not None:
            raise InputError(
                f"no latency was measured: {self.estimates.device} isn't here; see the result's estimates"
            )
        return next(row for row in reversed(self.rows) if row.role != "fastest uncertified")

    @property
    def shipped(self) -> EstimateRow | None:
        """The row of what ships for a device that isn't here; None where nothing for it does."""
        return None if self.estimates is None else self.estimates.shipped

    @property
    def latency_ns(self) -> float:
        """What a request to the winner takes, as measured: its p50, a cascade's mean.

        Raises:
            InputError: no latency was measured, since the device isn't here.
        """
        winner = self.winner
        return winner.mean_ns if winner.statistic == "mean" else winner.p50.value_ns

    @property
    def within_budget(self) -> bool | None:
        """Whether that is within the budget; None where it can't be told, or none was given."""
        if self.budget_ns is None:
            return None
        if self.estimates is None:
            return self.latency_ns <= self.budget_ns
        known_ns = None if self.shipped is None else self.shipped.latency_ns
        return None if known_ns is None else known_ns <= self.budget_ns

    @property
    def speedup(self) -> float:
        """The winner's, over the default engine.

        Raises:
            InputError: no latency was measured, since the device isn't here.
        """
        return self.winner.speedup
