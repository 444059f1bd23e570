"""Trials of a run's candidates, scored beside the original, whichever way speed is compared."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from hasten.certificate.draws import drawn
from hasten.certificate.drop import Drop, observed_drop
from hasten.certificate.planning import samples_needed
from hasten.certificate.promise import Promise
from hasten.core.records import from_record
from hasten.core.tensors import Array, Tensors
from hasten.core.varying import note_of
from hasten.errors import InputError, IntegrityError, Uneven
from hasten.inputs.data.spool import Spool
from hasten.inputs.metrics.unlabelled import missing_labels
from hasten.measure.accuracy import ExactAnswers, answered, scored, unscored
from hasten.measure.candidate import Trial
from hasten.measure.exactness import Changes
from hasten.measure.journal import Journal
from hasten.measure.steps import over_steps
from hasten.measure.workbench import OpenWorker, Workbench
from hasten.optimization.shapes import time_first

DOUBT = 1.28
"""Standard errors: in one case of ten the true drop exceeds the observed one by more than these."""
_LEAST_SCORED = 128
_ONE_SIDED_95 = 1.645


class Trials:
    """Trials by candidate, kept in the journal, with scores beside the original's.

    Attributes:
        bench: Workbench on which candidates are made.
        journal: Journal that keeps each trial; a candidate in it isn't made again.
        samples: The search split.
        promise: Promise that the certificate makes.
        done: Candidate's key -> trial.
        notes: Notes for the reader of the result.
        exact_answers: Answers of the original, from the subclass's `begin` on.
        exact_scores: Score of the original on each sample, `(n,)`, from `begin` on.

    Args:
        sealed_draws: Number of independent draws to certify by; by default the number of samples.
        units: Number of each sample's group, `(n,)`; by default every sample stands alone.
        trusted: Import paths of the user's own engines, which the journal may name.

    Raises:
        InputError: a trial in the journal can't be read, or names code or a library that the run doesn't.
    """

    exact_answers: ExactAnswers
    exact_scores: Array

    def __init__(
        self,
        bench: Workbench,
        journal: Journal,
        samples: Spool,
        promise: Promise,
        *,
        sealed_draws: int | None = None,
        units: Array | None = None,
        trusted: Collection[str] = (),
    ) -> None:
        self.bench, self.journal, self.samples, self.promise = bench, journal, samples, promise
        self._sealed_draws = sealed_draws or len(samples)
        self._units = np.arange(len(samples)) if units is None else units
        self.notes: list[str] = []
        self.done: dict[str, Trial] = {}
        for event in journal.events("trial"):
            trial = self._read(event.get("trial"), trusted)
            self.done[trial.candidate.key] = trial

    def _read(self, record: object, trusted: Collection[str]) -> Trial:
        """Read a trial of the journal, which may name no code that the user's own command doesn't."""
        try:
            trial = from_record(Trial, record, trusted=trusted)
            strange = set(trial.artifact.custom_ops if trial.artifact else ())
            strange -= set(self.bench.model.custom_ops)
            if strange:
                raise IntegrityError(f"it names the library {min(strange)}, which this run doesn't")
        except IntegrityError as error:
            path = self.journal.path
            raise InputError(
                f"can't resume: a trial in {path} can't be used: {error}; remove {path.parent} to start again"
            ) from error
        return trial

    def answer(self, opened: OpenWorker) -> None:
        """Run the original on the search split, and keep its answers and scores.

        Raises:
            CandidateError: it can't answer.
            InputError: its answers can't be scored.
        """
        self.bench.fit_chunk(opened, self.samples)
        folder = self.bench.folder / "exact-answers"
        began = time.monotonic()
        self.exact_answers = self._answers(opened, folder)
        took_s = time.monotonic() - began
        self.bench.deadline.saw("answer", took_s / max(1, len(self.samples)))
        try:
            self.exact_scores = self._over(self.exact_answers.scores(self.promise.metric))
        except InputError as error:
            if self.bench.varying:
                raise unscored(error, self.bench.varying) from error
            if note := time_first(self.bench.model, self.samples):
                raise InputError(f"{error}; {note}") from error
            raise
        if self.bench.varying:
            self.notes.append(note_of(self.bench.varying))

    def _answers(self, opened: OpenWorker, folder: Path) -> ExactAnswers:
        """Run the original on the search split; the bench learns which outputs have sizes that depend on values.

        Raises:
            CandidateError: it can't answer, or all of its outputs are such.
        """
        while True:
            try:
                return ExactAnswers(self.bench, opened, self.samples, folder)
            except Uneven as error:
                steady = {spec.name for spec in opened.artifact.outputs} - {*self.bench.varying}
                if error.output not in steady or len(steady) == 1:
                    raise
                self.bench.varying += (error.output,)

    def scores(
        self, opened: OpenWorker, same: Array | None = None, samples: Spool | None = None
    ) -> tuple[float, ...]:
        """Score a candidate on the search split; stop early if it is surely over the limit.

        Args:
            opened: The candidate, open.
            same: Scores of another candidate that may compute the same; the first chunk tells
                whether it does, and then these scores are returned.
            samples: The search split as the candidate takes it; by default as the original does.
        """
        parts: list[Array] = []
        told = scored(self.bench, opened, self.exact_answers, self.promise.metric, samples)
        if self.promise.metric.over_set:
            parts += told
            return tuple(map(float, self._over(np.concatenate(parts))))
        for part in told:
            if same is not None and np.array_equal(part, same[: len(part)]):
                return tuple(map(float, same))
            same = None
            parts.append(part)
            falls = self._falls(np.concatenate(parts))
            if hopeless(falls, len(self.samples), self.promise.max_drop):
                break
        return tuple(map(float, np.concatenate(parts)))

    def compared(
        self, opened: OpenWorker, check: Callable[[Tensors, Tensors], None] = lambda *_: None
    ) -> tuple[tuple[float, ...], int]:
        """Score a candidate with exact settings on all of the search split, and compare its answers.

        Args:
            opened: The candidate, open.
            check: Callback that receives the outputs of the first chunk and the original's, and may
                raise CandidateError.

        Returns:
            Score of each sample, and the number of answers that changed.
        """
        metric = self.promise.metric
        parts: list[Array] = []
        changes = Changes(over_steps(metric, self.bench.sequences))
        for scores, outputs, own in answered(self.bench, opened, self.exact_answers, metric):
            if not parts:
                check(outputs, own)
            parts.append(scores)
            changes.add(outputs, own)
        whole = self._over(np.concatenate(parts))
        return tuple(map(float, whole)), changes.count(whole, self.exact_scores)

    def keep(self, trial: Trial) -> Trial:
        """Add a trial to the journal."""
        self.done[trial.candidate.key] = trial
        self.journal.append("trial", trial=trial)
        return trial

    @property
    def binary(self) -> bool:
        """Whether every score on the search split is 0 or 1, each of one sample."""
        metric = self.promise.metric
        if metric.over_set:
            return False
        if missing_labels(metric, self.samples.labels) is not None and not (
            metric.binary and metric.answers == "classes"
        ):
            return False  # a sample without a label scores 0 or 1, whatever the others do
        scores = [np.array(t.scores) for t in self.done.values() if t.scores]
        return bool(np.isin(np.concatenate([self.exact_scores, *scores]), (0.0, 1.0)).all())

    def drops(self, trial: Trial) -> Array:
        """Return the paired differences of a scored trial, `(n,)`, by which bets are set."""
        return self._falls(np.array(trial.scores))

    def observed(self, trial: Trial, units: Array) -> Drop | None:
        """Return a trial's drop on the search split with its interval; None where it has no scores.

        Args:
            trial: Trial of the candidate.
            units: Number of each sample's group, `(n,)`; equal numbers were drawn together.
        """
        if not trial.scores or trial.failure:
            return None
        falls = self.drops(trial)
        return observed_drop(
            falls,
            units[: len(falls)],
            binary=self.binary,
            only_falls=self.promise.guard == "lost" or bool((self.exact_scores == 1).all()),
            over=self.promise.mean_over,
        )

    def risk(self, trial: Trial) -> float:
        """Return the drop that a trial would probably be certified for; 1 if never scored."""
        return risk(self.drops(trial), self._sealed_draws) if trial.scores else 1.0

    def probably_certified(
        self,
        trial: Trial,
        units: Array,
        sealed_draws: int,
        *,
        scale: float = 1.0,
        doubt: float = 0.0,
    ) -> bool:
        """Whether a candidate would probably be certified on so many sealed draws.

        Args:
            trial: Trial of the candidate; an exact one needs no certificate.
            units: Number of each search sample's draw, `(n,)`, as the certificate counts draws.
            sealed_draws: Number of sealed draws.
            scale: Factor on its flips and its drop.
            doubt: Standard errors to add to its observed drop.
        """
        if trial.exact or not trial.scores:
            return trial.exact
        scores, promise = np.array(trial.scores), self.promise
        draws = drawn(
            self.exact_scores[: len(scores)],
            scores,
            losses_only=promise.guard != "net",
            binary=self.binary,
            groups=units[: len(scores)],
            max_drop=promise.max_drop,
            over=promise.mean_over,
        )
        weighted = draws.relative * draws.differences
        flips = scale * float(np.mean(weighted**2))
        count = len(weighted)
        error = (max(flips, 1 / count) / count) ** 0.5  # that nothing flipped may be luck
        drop = scale * max(0.0, float(weighted.mean())) + doubt * error  # a gain is luck
        left = draws.left(promise.max_drop)
        if drop >= left:
            return False
        needed = samples_needed(
            max(flips, drop),
            drop,
            left,
            promise.confidence,
            method=draws.method,
            unevenness=draws.unevenness,
        )
        return needed <= sealed_draws

    @property
    def known_scores(self) -> Array:
        """Scores of the original on the samples that have a label, `(k,)`."""
        missing = missing_labels(self.promise.metric, self.samples.labels)
        if not len(self.exact_scores):  # there was no time to answer the search split
            return self.exact_scores
        return self.exact_scores if missing is None else self.exact_scores[~missing]

    def _over(self, readings: Array) -> Array:
        return self.promise.metric.over(readings, self.samples.labels, self._units)

    def _falls(self, scores: Array) -> Array:
        falls = self.exact_scores[: len(scores)] - scores
        return np.asarray(np.maximum(falls, 0) if self.promise.guard == "lost" else falls)


def risk(falls: Array, draws: int) -> float:
    """Return roughly the bound that would be certified on a number of draws like these.

    A negative mean counts as zero. A candidate that flips many answers gains as much as it loses
    now and then, and the next draws won't be so kind; taken as it is, its mean would make the
    candidate that flips most look safest.

    Args:
        falls: Drop of each sample's score, `(n,)`.
        draws: Number of draws to certify by.
    """
    # Not by mean(), most of whose time for so few numbers isn't spent on adding them.
    mean, energy = float(falls.sum() / len(falls)), float((falls**2).sum() / len(falls))
    return max(mean, 0.0) + _ONE_SIDED_95 * math.sqrt(energy / draws)


def hopeless(falls: Array, samples: int, max_drop: float) -> bool:
    """Whether the drop so far is over the limit by more than three standard errors.

    Args:
        falls: Drop of each sample's score so far, `(n,)`.
        samples: Number of samples in all.
        max_drop: Limit on the drop.
    """
    n = len(falls)
    if n < min(_LEAST_SCORED, samples):
        return False
    error = float(falls.std()) / np.sqrt(n)
    return bool(float(falls.mean()) - 3 * error > max_drop)
