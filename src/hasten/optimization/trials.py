"""What became of the candidates of a run, whatever compares their speed: scores beside the original's."""

from __future__ import annotations

import math

import numpy as np

from hasten.certificate.drop import Drop, observed_drop
from hasten.certificate.promise import Promise
from hasten.core.records import from_record
from hasten.core.tensors import Array
from hasten.inputs.data.spool import Spool
from hasten.measure.accuracy import ExactAnswers, scored
from hasten.measure.candidate import Trial
from hasten.measure.journal import Journal
from hasten.measure.workbench import OpenWorker, Workbench

_LEAST_SCORED = 128
_ONE_SIDED_95 = 1.645


class Trials:
    """Trials by candidate, kept in the journal, and how each answered beside the original.

    Attributes:
        bench: Workbench on which candidates are made.
        journal: Journal that keeps each trial; what is in it isn't made again.
        samples: The search split.
        promise: What is to be shown of a candidate.
        done: Candidate's key -> trial.
        notes: What the reader should know.
        exact_answers: The original's answers, from the subclass's `begin` on.
        exact_scores: The original's score of each sample, `(n,)`, from `begin` on.

    Args:
        sealed_draws: How many independent draws there are to certify by; by default as many as there
            are samples.
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
    ) -> None:
        self.bench, self.journal, self.samples, self.promise = bench, journal, samples, promise
        self._sealed_draws = sealed_draws or len(samples)
        self.notes: list[str] = []
        self.done: dict[str, Trial] = {}
        for event in journal.events("trial"):
            trial = from_record(Trial, event["trial"], trusted=True)
            self.done[trial.candidate.key] = trial

    def answer(self, opened: OpenWorker) -> None:
        """Let the original answer the search split.

        Raises:
            CandidateError: it can't.
        """
        self.bench.fit_chunk(opened, self.samples)
        folder = self.bench.folder / "exact-answers"
        self.exact_answers = ExactAnswers(self.bench, opened, self.samples, folder)
        self.exact_scores = self.exact_answers.scores(self.promise.metric)

    def scores(self, opened: OpenWorker, same: Array | None = None) -> tuple[float, ...]:
        """Score a candidate on the search split; one that is surely over the limit is left early.

        Args:
            opened: The candidate.
            same: Scores that it has if it computes the same as another candidate; the first chunk
                tells whether it does.
        """
        parts: list[Array] = []
        for part in scored(self.bench, opened, self.exact_answers, self.promise.metric):
            if same is not None and np.array_equal(part, same[: len(part)]):
                return tuple(map(float, same))
            same = None
            parts.append(part)
            falls = self._falls(np.concatenate(parts))
            if hopeless(falls, len(self.samples), self.promise.max_drop):
                break
        return tuple(map(float, np.concatenate(parts)))

    def keep(self, trial: Trial) -> Trial:
        """Put a trial into the journal."""
        self.done[trial.candidate.key] = trial
        self.journal.append("trial", trial=trial)
        return trial

    @property
    def binary(self) -> bool:
        """Whether every score on the search split is 0 or 1."""
        scores = [np.array(t.scores) for t in self.done.values() if t.scores]
        return bool(np.isin(np.concatenate([self.exact_scores, *scores]), (0.0, 1.0)).all())

    def drops(self, trial: Trial) -> Array:
        """Return the paired differences of a scored trial, `(n,)`: what bets are set by."""
        return self._falls(np.array(trial.scores))

    def observed(self, trial: Trial, units: Array) -> Drop | None:
        """Return the drop of a trial on the search split with its interval; None where it wasn't scored.

        Args:
            trial: The candidate's.
            units: Samples with one number were drawn together, `(n,)`.
        """
        if not trial.scores or trial.failure:
            return None
        falls = self.drops(trial)
        return observed_drop(
            falls,
            units[: len(falls)],
            binary=self.binary,
            only_falls=self.promise.guard == "lost" or bool((self.exact_scores == 1).all()),
        )

    def risk(self, trial: Trial) -> float:
        """Return the drop that a trial would probably be certified for; 1 for one never scored."""
        return risk(self.drops(trial), self._sealed_draws) if trial.scores else 1.0

    def _falls(self, scores: Array) -> Array:
        falls = self.exact_scores[: len(scores)] - scores
        return np.asarray(np.maximum(falls, 0) if self.promise.guard == "lost" else falls)


def risk(falls: Array, draws: int) -> float:
    """Return about the bound that so many draws like these would certify.

    A negative mean counts as none: what flips much gains as much as it loses now and then, and the
    next draws won't be so kind. Taken as it is, it would make whoever flips most look safest.

    Args:
        falls: Of each sample's score, `(n,)`.
        draws: To certify by.
    """
    mean, energy = float(falls.mean()), float((falls**2).mean())
    return max(mean, 0.0) + _ONE_SIDED_95 * math.sqrt(energy / draws)


def hopeless(falls: Array, samples: int, max_drop: float) -> bool:
    """Whether the drop so far is over the limit by more than three standard errors.

    Args:
        falls: Of the samples so far, `(n,)`.
        samples: How many there are in all.
        max_drop: The limit.
    """
    n = len(falls)
    if n < min(_LEAST_SCORED, samples):
        return False
    error = float(falls.std()) / np.sqrt(n)
    return bool(float(falls.mean()) - 3 * error > max_drop)
