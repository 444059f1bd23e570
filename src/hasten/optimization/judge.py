"""The contract of a judge, which makes candidates, compares their speed and decides what ships."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from hasten.bundle import Part, Status
from hasten.certificate.batches import Batches, Coverage
from hasten.certificate.certification import last_certified
from hasten.certificate.changed import ChangedShare
from hasten.certificate.looks import Look
from hasten.certificate.verdict import Judgement
from hasten.core.comparison import Comparison
from hasten.core.target import Target
from hasten.measure.workbench import OpenWorker
from hasten.optimization.folding import Given
from hasten.optimization.job import Job
from hasten.optimization.ready import Ready
from hasten.optimization.trials import Trials
from hasten.reporting.result import Result

Verdicts: TypeAlias = Sequence[tuple[str, Judgement | str]]
"""Pairs of a candidate's key and its judgement, or the reason why it failed; safest first."""


@dataclass(frozen=True)
class Ladder:
    """The candidates worth certifying, frozen before the sealed data is read.

    Attributes:
        exact: Key of the exact candidate to fall back on; empty where the original is none, or, of a
            form of it that normalizes pixels itself, where there is no time to compare it.
        rungs: Keys of the candidates to certify, safest first.
        threads: Number of threads that engines use from here on.
        batches: Rung -> batch sizes that it is tested at beside lone samples.
    """

    exact: str
    rungs: tuple[str, ...]
    threads: int = 1
    batches: dict[str, Batches] = field(default_factory=dict)


@dataclass(frozen=True)
class Sealed:
    """Result on the sealed data.

    Attributes:
        verdicts: Verdicts on the ladder, from which it is decided what ships.
        comparisons: Comparisons with the original, of those that may ship; they decide nothing.
        fallen: Key of a candidate that was exact in the search -> how its sealed answers differ, in
            words. It is a candidate like any other, which ships only with a certificate.
        look: Look at the sealed data, by the ledger; None where no candidate was tested.
        coverage: Certified candidate -> batch sizes that its certificate covers.
        unlabelled: Candidate's key -> number of samples without a label on which its answer differs
            from the original's: each counts as lost. Candidates without any are left out.
        held: Whether every certified candidate held in all the batch sizes that were tested, too.
        changed: Share of answers that the fastest certified candidate changed; None if it isn't known.
        cut: Whether the time limit came before all sealed samples were answered: then nobody has seen a
            verdict, and the original ships as it was given.
    """

    verdicts: Verdicts = ()
    comparisons: tuple[Comparison, ...] = ()
    fallen: Mapping[str, str] = field(default_factory=dict)
    look: Look | None = None
    coverage: Mapping[str, Coverage] = field(default_factory=dict)
    unlabelled: Mapping[str, int] = field(default_factory=dict)
    held: bool = True
    changed: ChangedShare | None = None
    cut: bool = False

    @property
    def covered(self) -> Coverage:
        """Return the batch sizes that the certificate of the fastest certified candidate covers."""
        passed = last_certified(self.verdicts)
        return self.coverage.get(passed[0], Coverage()) if passed else Coverage()

    def comparison_of(self, label: str) -> Comparison | None:
        """Return the comparison of a model by its description; None where there is none."""
        return next((one for one in self.comparisons if one.label == label), None)


@dataclass(frozen=True)
class Shipment:
    """Model and figures that go into a bundle.

    Attributes:
        status: "certified", "exact" or "uncertified".
        why: Reason for the status, in words.
        winner: Model that the bundle serves.
        exact: Exact model that the bundle falls back on; None where it is left out.
        target: Device that the winner runs on.
        threads: Number of threads that the winner had when it was certified.
        judgement: Judgement of the sealed data on the winner; None where it isn't certified.
        least: Pixels of the shorter side that are enough where the winner's pictures are decoded smaller; 0 where
            they aren't.
    """

    status: Status
    why: str
    winner: Part
    exact: Part | None
    target: Target
    threads: int = 1
    judgement: Judgement | None = None
    least: int = 0


@dataclass(frozen=True)
class Ending:
    """A judge's conclusion from the verdicts.

    Attributes:
        shipment: Contents of the bundle.
        result: Result of the run.
        records: Raw records behind the figures, by file name.
    """

    shipment: Shipment
    result: Result
    records: Mapping[str, Any] = field(default_factory=dict)


class Judge(ABC):
    """Makes candidates, compares their speed, and decides what ships.

    One judge measures, on this host or on a device in it; the other asks the tools of a device that
    isn't here. The run is the same for both.

    Attributes:
        job: The run at work.
        ready: Model and data of the run.
        trials: Trials of the candidates.
    """

    job: Job
    ready: Ready
    trials: Trials

    @property
    @abstractmethod
    def original(self) -> str:
        """Key of the original; empty where it is no candidate."""

    @abstractmethod
    def search(self) -> None:
        """Try candidates on the search split until nothing promising is left, or the time is up."""

    @abstractmethod
    def choose(self) -> Ladder:
        """Choose the candidates that are worth certifying, by the search alone."""

    @abstractmethod
    def stand_by(self, ladder: Ladder) -> None:
        """Prepare for a frozen ladder, whether this run froze it or a run that is now resumed."""

    @abstractmethod
    def open_exact(self) -> OpenWorker:
        """Open the original as it was given, with which every candidate is compared.

        Raises:
            InputError: it fails.
        """

    def part_as_given(self, given: Given) -> Part:
        """Return a bundle's record of the model as it was given, on the default engine.

        Raises:
            CandidateError: it can't be built.
        """
        raise NotImplementedError("only a judge that measures folds anything into a model")

    @abstractmethod
    def opened(self, key: str) -> AbstractContextManager[OpenWorker]:
        """Open the artifact that answers for a candidate on this host.

        Raises:
            CandidateError: it can't be opened.
        """

    @abstractmethod
    def conclude(
        self, ladder: Ladder, verdicts: Verdicts, keep: Callable[[Shipment], None]
    ) -> Ending:
        """Decide what ships, with its figures, from the verdicts of the sealed data.

        Args:
            ladder: Ladder as it was frozen.
            verdicts: Verdicts of the sealed data.
            keep: Function that writes a bundle, to call before figures that take long.
        """

    @abstractmethod
    def close(self) -> None:
        """End the processes that are still running."""
