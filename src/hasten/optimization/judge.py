"""The contract of a judge: who makes a run's candidates, compares their speed, and says what ships."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from hasten.bundle import Part, Status
from hasten.certificate.verdict import Judgement
from hasten.core.target import Target
from hasten.measure.workbench import OpenWorker
from hasten.optimization.job import Job
from hasten.optimization.preparation import Ready
from hasten.optimization.trials import Trials
from hasten.reporting.result import Result

Verdicts: TypeAlias = Sequence[tuple[str, Judgement | str]]
"""A candidate's key, and what the sealed data showed of it or why it failed; safest first."""


@dataclass(frozen=True)
class Ladder:
    """The candidates that are worth certifying; frozen before the sealed data are read.

    Attributes:
        exact: Key of the exact candidate to fall back on.
        rungs: Keys of the candidates to certify, safest first.
        threads: Number of threads that engines have from here on.
    """

    exact: str
    rungs: tuple[str, ...]
    threads: int = 1


@dataclass(frozen=True)
class Shipment:
    """What goes into a bundle.

    Attributes:
        status: "certified", "exact" or "uncertified".
        why: The status in words.
        winner: The model that the bundle serves.
        exact: The exact model that it falls back on.
        target: The device that the winner runs on.
        threads: Number of threads that the winner had when it was certified.
        judgement: What the sealed data showed of the winner; None where it isn't certified.
    """

    status: Status
    why: str
    winner: Part
    exact: Part
    target: Target
    threads: int = 1
    judgement: Judgement | None = None


@dataclass(frozen=True)
class Ending:
    """What a judge makes of the verdicts.

    Attributes:
        shipment: What goes into the bundle.
        result: The run's result.
        records: Raw records behind the figures, by file name.
    """

    shipment: Shipment
    result: Result
    records: Mapping[str, Any] = field(default_factory=dict)


class Judge(ABC):
    """Makes candidates, compares their speed, and says what ships.

    One judge measures, on this host or on a device in it; the other asks the tools of a device that
    isn't here. The run is the same for both.

    Attributes:
        job: The run.
        ready: Its model and data.
        trials: What became of the candidates.
    """

    job: Job
    ready: Ready
    trials: Trials

    @abstractmethod
    def search(self) -> None:
        """Try candidates on the search split until nothing promising is left, or the time is up."""

    @abstractmethod
    def choose(self) -> Ladder:
        """Choose the candidates that are worth certifying, by the search alone."""

    @abstractmethod
    def stand_by(self, ladder: Ladder) -> None:
        """Take up a frozen ladder, a resumed run's too."""

    @abstractmethod
    def open_exact(self) -> OpenWorker:
        """Open the original, which every candidate is compared to.

        Raises:
            InputError: it fails.
        """

    @abstractmethod
    def opened(self, key: str) -> AbstractContextManager[OpenWorker]:
        """Open what answers for a candidate on this host.

        Raises:
            CandidateError: it can't be opened.
        """

    @abstractmethod
    def conclude(self, ladder: Ladder, verdicts: Verdicts) -> Ending:
        """Say what ships, with its figures, by what the sealed data showed."""

    @abstractmethod
    def close(self) -> None:
        """End the processes that are still there."""
