"""The end of a run for an absent device: what ships, with the figures of the device's tools."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hasten import bundle
from hasten.bundle import Part, Status
from hasten.certificate.certification import last_certified
from hasten.certificate.verdict import Judgement
from hasten.core.devices import family_of
from hasten.core.target import Target
from hasten.errors import CandidateError
from hasten.inputs.data.spool import write_spool
from hasten.measure.candidate import Trial
from hasten.measure.exactness import unchanged_in_words
from hasten.optimization import delivery
from hasten.optimization.estimated.comparison import compare_with_program, program_of, simulates
from hasten.optimization.estimated.passed_over import passed_over
from hasten.optimization.estimated.trials import Estimation, comparable, ranked
from hasten.optimization.job import Job
from hasten.optimization.judge import Ending, Shipment, Verdicts
from hasten.optimization.ready import Ready
from hasten.reporting.result import EstimateRow, Estimates, Result
from hasten.reporting.summary import allowed

AREAS = {"fpga": ("TRELLIS_COMB", "ICESTORM_LC"), "tpu": ("peak_memory_bytes",)}
"""Figures of area by device family, of which the first that exists is plotted against the rank."""


@dataclass
class Finish:
    """Turns the verdicts into a decision on what ships.

    Attributes:
        job: The run at work.
        ready: Model and data of the run.
        trials: Trials of every candidate.
        verdicts: Verdicts of the sealed data on the ladder.
        compared: Number of samples on which what ships was compared with its program, in words.
        exact: Key of the exact candidate to fall back on; empty for the original, on this host.
    """

    job: Job
    ready: Ready
    trials: Estimation
    verdicts: Verdicts
    compared: str = ""
    exact: str = ""

    def ending(self) -> Ending:
        """Decide what ships, with all figures of the device's tools, or say why nothing does."""
        passed = last_certified(self.verdicts)
        status, why, winner = self._choice(passed)
        if winner is not None:
            try:
                winner = self.trials.ask_further(winner)
            except CandidateError as error:
                label = winner.candidate.label
                self.job.notes.append(f"not all figures of {label} are known: {error}")
            self.job.notes += passed_over(self.trials, self.verdicts, winner)
        job, order, target = self.job, self.job.order, self.ready.target
        result = Result(
            bundle=order.out,
            status=status,
            why=why,
            judgement=passed[1] if passed else _first_judgement(self.verdicts),
            population=order.population,
            rows=(),
            spread=0.0,
            threads=1,
            tried={},
            notes=(*self.ready.parts.notes, *job.notes),
            seconds=job.deadline.elapsed_s,
            asked=delivery.asked(job, self.ready),
            budget_ns=None if order.budget_s is None else 1e9 * order.budget_s,
            estimates=Estimates(
                device=target.device,
                noun=family_of(target).noun,
                rows=tuple(self._rows()),
                winner=self.trials.exact.label if winner is None else winner.candidate.label,
                compared=self.compared,
                area=self._area(),
            ),
        )
        return Ending(self._shipment(status, why, winner, passed), result)

    def _shipment(
        self, status: Status, why: str, winner: Trial | None, passed: tuple[str, Judgement] | None
    ) -> Shipment:
        """Return what goes into the bundle; where nothing ships, the original for this host."""
        trials = self.trials
        exact: Part = bundle.part(
            trials.exact.label, (), trials.exact.engine, trials.exact_artifact
        )
        if winner is None:
            return Shipment(status, why, exact, exact, Target.host())
        certified = status == "certified" and passed is not None
        return Shipment(
            status,
            why,
            delivery.part_of(winner.candidate, trials.artifact(winner)),
            exact,
            self.ready.target,
            judgement=passed[1] if certified and passed is not None else None,
        )

    def _choice(self, passed: tuple[str, Judgement] | None) -> tuple[Status, str, Trial | None]:
        """Return the status, the reason and what ships; None is the original on this host."""
        if passed is not None:
            trial = self.trials.done[passed[0]]
            if trial.candidate.engine.faithful:
                return self._simulated(trial, passed[1])
            if trial.exact:
                return "exact", self._kept(), trial
            return (
                "uncertified",
                "judged on this host; the last bits of answers may differ on a "
                f"{family_of(self.ready.target).noun}: {passed[1].in_words()}; to certify it "
                f"there, run on the device: {self._certify()}",
                trial,
            )
        why = _why_not(self.verdicts, bool(self.trials.estimated()), self._first_reason())
        able = [t for t in self.trials.estimated() if self.trials.able(t)]
        if self.job.order.accept_uncertified and able:
            return "uncertified", allowed(why), able[0]
        if self.exact:
            return "exact", f"{why}: {self._kept()}", self.trials.done[self.exact]
        return "exact", f"{why}; the bundle holds the original, for this host", None

    def _kept(self) -> str:
        """Say that what ships is exact, and on how many samples that was seen."""
        parts = self.ready.parts
        samples = len(parts.search) + len(parts.sealed)
        return (
            "the model that ships keeps the original's precision, and on this host "
            f"{unchanged_in_words(samples)}"
        )

    def _simulated(self, trial: Trial, judgement: Judgement) -> tuple[Status, str, Trial | None]:
        """Return the status, the reason and what ships for a design that passed on its program.

        The design is certified only if its RTL was simulated.
        """
        if program_of(self.trials, trial) is not trial and not simulates(trial):
            return (
                "uncertified",
                "Verilator isn't installed, so the RTL was not simulated; the program that it was made "
                f"from passed: {judgement.in_words()}",
                trial,
            )
        try:
            self.compared = self._compared_on_all(trial)
        except CandidateError as error:
            return "exact", f"{error}; the bundle holds the original, for this host", None
        return "certified", judgement.in_words(), trial

    def _first_reason(self) -> str:
        """Return why the first candidate that failed did; where none could be judged, why the first was skipped."""
        trials = list(self.trials.done.values())
        reasons = [(t, t.failure) for t in trials]
        if not any(t.scores for t in trials):
            reasons += [(t, t.skipped) for t in trials]
        return next((f"{trial.candidate.label}: {why}" for trial, why in reasons if why), "")

    def _certify(self) -> str:
        """Return the command that certifies the bundle on its device."""
        bundle = shlex.quote(str(self.job.order.out))
        limit = f"{100 * self.ready.promise.max_drop:.6g}%"
        return f"hasten certify {bundle} --data new.npz --max-drop {limit}"

    def _compared_on_all(self, trial: Trial) -> str:
        """Compare what ships on the sealed data too, and state the number of samples compared."""
        folder = self.job.folder / "sealed"
        shutil.rmtree(folder, ignore_errors=True)
        count = compare_with_program(
            self.trials, trial, write_spool(self.ready.parts.sealed, folder)
        )
        if not count:
            return ""
        return (
            f"the RTL answered all {count + len(self.ready.parts.search):,} samples that judged it as "
            "its fixed-point program did, bit for bit"
        )

    def _rows(self) -> Iterator[EstimateRow]:
        """Yield rows of what the device's tools estimated, fastest first, then the others."""
        good, units = self.trials.estimated(), self.ready.search_units
        frontier = self._frontier(good)
        for trial in good:
            estimate = trial.estimate
            assert estimate is not None
            yield EstimateRow(
                label=trial.candidate.label,
                source=estimate.source,
                said=self.trials.outcome(trial),
                latency_ns=estimate.latency_ns,
                rank=ranked(trial)[0],
                unit=ranked(trial)[1],
                figures=estimate.figures,
                limits=estimate.limits,
                drop=self.trials.observed(trial, units),
                frontier=trial.candidate.key in frontier,
            )
        for trial in self.trials.done.values():
            if trial not in good:
                yield EstimateRow(
                    label=trial.candidate.label,
                    source="none",
                    said=self.trials.outcome(trial),
                    drop=self.trials.observed(trial, units),
                )

    def _area(self) -> str:
        """Return the name of the figure that stands for area; empty where the family has none."""
        for name in AREAS.get(self.ready.target.family, ()):
            if any(t.estimate and name in t.estimate.figures for t in self.trials.estimated()):
                return name
        return ""

    def _frontier(self, trials: Sequence[Trial]) -> set[str]:
        """Return keys of candidates under the limit that none beats in both speed and area."""
        name, kept, least = self._area(), set(), float("inf")
        for trial in comparable(trials):
            if trial.estimate is None or not self.trials.able(trial):
                continue
            area = trial.estimate.figures.get(name, 0.0)
            if area < least:
                kept.add(trial.candidate.key)
                least = area
        return kept


def _first_judgement(judged: Verdicts) -> Judgement | None:
    return next((entry for _, entry in judged if isinstance(entry, Judgement)), None)


def _why_not(judged: Verdicts, estimated: bool, reason: str) -> str:
    """Return the reason why nothing passed.

    Args:
        judged: Verdicts of the sealed data.
        estimated: Whether the device's tools estimated any candidate.
        reason: First candidate that failed or was skipped, with the reason; "" if there is none.
    """
    if judged:
        entry = judged[0][1]
        return entry if isinstance(entry, str) else entry.in_words()
    if estimated:
        return "no design for the device keeps the limit and answers as its program does"
    nothing = "no model for the device is accurate enough"
    return f"{nothing}; {reason}" if reason else nothing
