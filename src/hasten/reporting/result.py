"""The result of a run: figures derived from raw rounds, and the words for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np

from hasten.bundle import Status
from hasten.certificate.draws import Over
from hasten.certificate.drop import Drop
from hasten.certificate.looks import Look
from hasten.certificate.verdict import Guard, Judgement
from hasten.core.comparison import Comparison
from hasten.core.invocation import Invocation
from hasten.engines.estimates import Source, check_latency
from hasten.errors import InputError
from hasten.measure.intervals import (
    Quantile,
    Ratio,
    Rounds,
    Statistic,
    paired_ratio,
    quantile,
    ratio_of_means,
)
from hasten.reporting.sizes import Sizes

Fate: TypeAlias = Literal[
    "baseline", "exact", "judged", "left early", "not judged", "skipped", "failed"
]
"""Fate of a candidate: "left early" if it was surely over the limit, "not judged" if it was
slower."""
_NONE: Rounds = MappingProxyType({})
UNEVEN = "{} is compared by its mean: a request that both models answer costs more than the others"
"""Note on a cascade among other candidates."""


@dataclass(frozen=True)
class Row:
    """One model's figures, from rounds that were timed after the choice.

    Attributes:
        role: "default engine", "fastest exact", "winner", "fastest uncertified".
        label: Label of the model, for people.
        ratio: Latency divided by the default engine's, in the row's statistic.
        p50: Median latency of single requests.
        p99: 99th percentile of the latency of single requests.
        mean_ns: Mean latency, in nanoseconds.
        size_bytes: Size of the model's files; None for a Python function.
        accuracy: Accuracy in words: "exact", the certificate, or why there is none.
        statistic: Statistic that the ratio compares.
        mean_ratio: Mean latency over all requests, divided by the default engine's; None in records
            of older versions.
        p99_ratio: p99 divided by the default engine's; None where one of them isn't established,
            and in records of older versions.
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
    mean_ratio: Ratio | None = None
    p99_ratio: Ratio | None = None

    @property
    def speedup(self) -> float:
        """Return how many times faster than the default engine the model is."""
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
    processes: Mapping[int, int] | None = None,
    refused: Rounds = _NONE,
    refused_baseline: Rounds = _NONE,
    by_time: bool = False,
) -> Row:
    """Derive a row from raw rounds.

    Args:
        role: Role of the row in the table.
        label: Label of the model, for people.
        own: Round -> latencies of the model, in nanoseconds.
        baseline: Round -> latencies of the default engine, in nanoseconds.
        size_bytes: Size of the model's files, where it has any.
        accuracy: Accuracy in words.
        statistic: Statistic that the ratio compares.
        processes: Round -> number of the process of each model that took it; None for single ones.
        refused: Round -> latencies of the model while the host was busy, which a p99 counts.
        refused_baseline: The same of the default engine.
        by_time: Whether rounds weigh alike in the p99, rather than requests.
    """
    everything = np.concatenate([np.asarray(block, np.float64) for block in own.values()])
    p99, other = quantile(own, 0.99, refused=refused, by_time=by_time), None
    if p99.high_ns is not None:
        other = quantile(baseline, 0.99, refused=refused_baseline, by_time=by_time).high_ns
    every, every_baseline = {**own, **refused}, {**baseline, **refused_baseline}
    return Row(
        role=role,
        label=label,
        ratio=paired_ratio(own, baseline, statistic, processes=processes),
        p50=quantile(own, 0.5),
        p99=p99,
        mean_ns=float(everything.mean()),
        size_bytes=size_bytes,
        accuracy=accuracy,
        statistic=statistic,
        mean_ratio=ratio_of_means(own, baseline, processes=processes),
        p99_ratio=None
        if other is None
        else paired_ratio(every, every_baseline, "p99", processes=processes),
    )


@dataclass(frozen=True)
class Limit:
    """The distance of a model's latency from the least that the machine allows.

    Attributes:
        role: Role of the row; for a candidate of the search, its label.
        floor_ns: Least time of one request, in nanoseconds.
        ratio: Median latency (for a cascade, the mean) divided by the floor.
        binds: Main part of the floor: "arithmetic", "bytes" or "overhead".
    """

    role: str
    floor_ns: float
    ratio: float
    binds: str


@dataclass(frozen=True)
class Outcome:
    """The outcome of one candidate in the search.

    Attributes:
        label: Label of the candidate, for people.
        fate: Outcome in a word.
        said: Outcome in a line, with the reason where it failed or was skipped.
        ratio: Latency divided by the default engine's, from a few turns; None where it never ran.
        drop: Drop of the scores; None where it wasn't judged.
        rung: Place on the ladder that was certified, 0 for the safest; None where it isn't on it.
        limit: Distance from the least time that the machine allows, from a few turns; None where
            unknown.
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
    """The verdict of the sealed data on one candidate of the ladder.

    Attributes:
        label: Label of the candidate, for people.
        judgement: Judgement of the candidate; None where it failed.
        failure: Reason of the failure; None where it didn't fail.
    """

    label: str
    judgement: Judgement | None
    failure: str | None = None


ORIGINAL = "as it is"
"""Name of the method that changes no architecture: the original, in any precision."""


@dataclass(frozen=True)
class Method:
    """One method of making a model lighter, by its best candidate, timed in shared rounds.

    Attributes:
        name: "as it is" for the original in other forms; for other methods, the name given.
        label: Label of the method's best candidate, for people.
        ratio: Latency divided by the default engine's.
        p50: Median latency of single requests.
        drop: Drop of the scores on the search split; None for an exact candidate.
        said: Verdict of the sealed data in words, or that there is none.
        trained: Way in which the model was made, in words.
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
    """Request that a run carried out.

    Attributes:
        invocation: Command or call that started the run.
        metric: Name of the score.
        noun: Name of the bounded quantity, in words: "accuracy", "agreement", ...
        guard: Quantity that is bounded.
        max_drop: Limit on the drop, as an absolute share.
        confidence: Confidence of the certificate.
        seed: Seed of the split and of all orders.
        searched: Number of samples that the search saw.
        sealed: Number of samples that the search never saw.
        mean_over: Units of the certificate's mean: samples or groups.
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
    mean_over: Over = "samples"


@dataclass(frozen=True)
class EstimateRow:
    """One candidate for an absent device, as far as the device's own tools tell.

    Attributes:
        label: Label of the candidate, for people.
        source: Source of the figures.
        said: Outcome of the candidate, in words.
        latency_ns: Latency of one request, in nanoseconds; only for designs placed and routed.
        rank: Figure that candidates are compared by, less is faster; None where there is none.
        unit: Unit of `rank`.
        figures: Areas, clocks and sizes, by name.
        limits: Name of a figure -> how much of it the device has.
        drop: Drop of the scores on the search split; None where it wasn't judged.
        frontier: Whether no other candidate under the limit is both as fast and as small.
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
        """Check that the source can tell a latency, where there is one."""
        check_latency(self.source, self.latency_ns)


@dataclass(frozen=True)
class Estimates:
    """The figures of an absent device's tools, for the candidates that were made for it.

    Attributes:
        device: Device as it was asked for.
        noun: Name of the device's kind, in words.
        rows: Candidates that were made for the device, fastest first, then those that failed.
        winner: Label of what ships.
        compared: Check of its answers against the device's, in words.
        area: Name of the figure that the frontier plots against the rank; empty where none is.
    """

    device: str
    noun: str
    rows: tuple[EstimateRow, ...]
    winner: str
    compared: str = ""
    area: str = ""

    @property
    def shipped(self) -> EstimateRow | None:
        """Return the row of what ships; None where that is the original, for the host."""
        return next((row for row in self.rows if row.label == self.winner), None)


@dataclass(frozen=True)
class Result:
    """The end of a run.

    Attributes:
        bundle: Folder of the bundle.
        status: "certified", "exact", or "uncertified".
        why: Reason for the status, in words.
        judgement: Judgement of the winner; where nothing was certified, the first that failed.
        population: Population that the certificate is about.
        rows: Rows of the table, the default engine first.
        spread: Difference between the A/A twins; no smaller difference is called a speed-up.
        threads: Number of threads that each engine had.
        tried: Candidate -> its outcome in words.
        notes: Further notes for the reader.
        seconds: Duration of the run.
        outcomes: Outcomes of every candidate, with figures.
        ladder: Verdicts of the sealed data, safest first, up to the first that failed.
        asked: Request to the run; None in records of older versions.
        objective: Statistic that the rows' ratios and the spread compare: the one asked for, or the
            mean where p99 was asked for and isn't established.
        limits: Distances of models from what the machine can do; empty where unknown.
        loads: Results of what ships under load, a line for each scenario.
        methods: Methods of making the model lighter that were compared; empty for a single one.
        budget_ns: Time that one request may take, in nanoseconds; None where no budget was given.
        method: Name of the method whose model the bundle serves; empty where none were compared.
        estimates: Figures of an absent device's tools, with `rows` empty; None where latency was
            measured.
        steps: Mean number of steps of a sequence, where samples are sequences that a model answers
            step by step; else 1. Latencies are of whole sequences.
        comparison: Figures, scores and decisions of what ships beside the original's, on the sealed
            samples; None where nothing was compared.
        look: Look at the sealed samples: which one it is, by the ledger, and the level at which
            candidates were tested; None where none was.
        batches: Batch sizes that the certificate covers, in words; empty where nothing was certified.
        sizes: Forms that were compared by their packed size, with `rows` empty; None where speed was
            compared.
        inexact: Reason why no inexact form ships; empty where one does, and in records of older
            versions.
        default_threads: Number of threads that the default engine takes unless told otherwise.
        shipped_threads: Number of threads that the bundle runs on.
        on_all: Latency of what ships, on the threads that it ships with, over that of the default
            engine on all of its own, where `rows` are of fewer threads; None where the rows tell it, and
            where it wasn't measured.
        decided_s: Time from the start at which what ships was decided and its figures known, in seconds;
            what follows are further measurements. None in records of older versions.
        decoded: Way in which pictures are decoded for what ships, where that isn't as the pipeline states, in words; else
            empty.
        whole: Time of what ships from a file's bytes to the decision, over that with pictures decoded as the
            pipeline states and the same model; None where they are.
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
    steps: float = 1.0
    comparison: Comparison | None = None
    look: Look | None = None
    batches: str = ""
    sizes: Sizes | None = None
    inexact: str = ""
    default_threads: int = 0
    shipped_threads: int = 0
    on_all: Ratio | None = None
    decided_s: float | None = None
    decoded: str = ""
    whole: Ratio | None = None

    @property
    def winner(self) -> Row:
        """Return the row of what the bundle serves.

        Raises:
            InputError: no latency was measured, since the device isn't here or sizes were compared.
        """
        if self.sizes is not None:
            raise InputError(
                "no latency was measured: forms were compared by size; see the result's sizes"
            )
        if not self.rows and self.estimates is not None:
            raise InputError(
                f"no latency was measured: {self.estimates.device} isn't here; see the result's estimates"
            )
        return next(row for row in reversed(self.rows) if row.role != "fastest uncertified")

    @property
    def shipped(self) -> EstimateRow | None:
        """Return the row of what ships for an absent device; None where nothing for it does."""
        return None if self.estimates is None else self.estimates.shipped

    @property
    def latency_ns(self) -> float:
        """Return the latency of a request to the winner: its p50, or a cascade's mean.

        Raises:
            InputError: no latency was measured, since the device isn't here.
        """
        winner = self.winner
        return winner.mean_ns if winner.statistic == "mean" else winner.p50.value_ns

    @property
    def step_ns(self) -> float:
        """Return the latency of one step of a sequence; without sequences, that of a request.

        Raises:
            InputError: no latency was measured, since the device isn't here.
        """
        return self.latency_ns / self.steps

    @property
    def within_budget(self) -> bool | None:
        """Whether the latency meets the budget; None where it is unknown, or there is no budget."""
        if self.budget_ns is None:
            return None
        if self.estimates is None:
            return self.step_ns <= self.budget_ns
        known_ns = None if self.shipped is None else self.shipped.latency_ns
        return None if known_ns is None else known_ns <= self.budget_ns

    @property
    def speedup(self) -> float:
        """Return how many times faster than the default engine the winner is, on as many threads.

        Where the host was busy these may be fewer threads than the default engine takes by itself;
        `on_all` compares what ships with that.

        Raises:
            InputError: no latency was measured, since the device isn't here.
        """
        return self.winner.speedup

    def _repr_html_(self) -> str:
        """Return the result as a card, for notebooks."""
        from hasten.reporting.card import card  # which is made of results
        from hasten.reporting.notebook import as_html

        return as_html(card(self))
