"""What is known beforehand of models on a device that isn't here, as a run for it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hasten.bundle import Status
from hasten.certificate.drop import Drop
from hasten.certificate.verdict import Judgement
from hasten.engines.estimates import Source, check_latency
from hasten.report.result import Asked


@dataclass(frozen=True)
class Foreseen:
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
class Foresight:
    """The end of a run for a device that isn't here.

    Attributes:
        bundle: The folder.
        status: "certified", "exact", or "uncertified".
        why: The status in words.
        judgement: Of what ships, or where nothing was certified the first that failed.
        population: What the certificate is about.
        device: As it was asked for.
        noun: What it is, in words.
        rows: The candidates that were made for it, the fastest first, then those that failed.
        winner: Label of what ships.
        compared: How its answers were checked against those of its device, in words.
        area: Name of the figure that the frontier sets against the rank; empty where there is none.
        notes: What the reader should know besides.
        seconds: How long the run took.
        asked: What was asked for.
        budget_ns: What one request may take; None where that wasn't asked.
    """

    bundle: Path
    status: Status
    why: str
    judgement: Judgement | None
    population: str
    device: str
    noun: str
    rows: tuple[Foreseen, ...]
    winner: str
    compared: str
    area: str
    notes: tuple[str, ...]
    seconds: float
    asked: Asked
    budget_ns: float | None = None

    @property
    def shipped(self) -> Foreseen | None:
        """The row of what ships; None where that is the original, for the host."""
        return next((row for row in self.rows if row.label == self.winner), None)

    @property
    def within_budget(self) -> bool | None:
        """Whether what ships is within the budget; None where that can't be told, or none was given."""
        shipped = self.shipped
        if self.budget_ns is None or shipped is None or shipped.latency_ns is None:
            return None
        return shipped.latency_ns <= self.budget_ns
