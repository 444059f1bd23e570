"""Screening: each candidate is timed beside the baseline, and its answers are scored."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Collection, Sequence

import numpy as np

from hasten.certificate.promise import Promise
from hasten.core.tensors import Array, Tensors
from hasten.core.varying import first_of
from hasten.core.words import amount, lost_in_words
from hasten.engines.base import Engine
from hasten.errors import CandidateError, InputError, NotCovered, OutOfTime
from hasten.inputs.data.spool import Spool
from hasten.inputs.metrics.same_answers import EXACT_TOLERANCE, differences
from hasten.measure.accuracy import beside, unanswered
from hasten.measure.candidate import Candidate, Measurement, Single, Trial
from hasten.measure.deadline import Deadline
from hasten.measure.exactness import (
    FAULT_TOLERANCE,
    changed_in_words,
    unchanged_in_words,
)
from hasten.measure.intervals import Ratio, Rounds, Statistic, paired_ratio
from hasten.measure.journal import Journal
from hasten.measure.latency import Pace, rounds
from hasten.measure.workbench import OpenWorker, Workbench
from hasten.optimization.measured.cross_check import cross_check
from hasten.optimization.trials import Trials
from hasten.passes.base import Skipped

SCREEN_ROUNDS = 6
SCREEN_NOISE = 0.05
"""Relative error of a ratio that a few turns can settle."""
_HOPELESS_SLOW = 1.5
_MOST_WRONG = 0.1
"""Share of the first answers that an engine with exact settings may get wrong, such as classes that nearly tie."""
_REFERENCE_LIMIT_S = 30.0
_REFERENCE_SHARE = 0.1
_NO_OPERATOR = re.compile("is not a registered function/op|No opset import for domain")
"""Words of ONNX Runtime about an operator of a domain that it doesn't have."""
_ONE_SHAPE = "the engine takes one shape, and samples differ in shape: it is tried in buckets, where those are tried"
_LIBRARY = "; if you have a library with the operator, give it with custom_ops=LIBRARY"


class Screening(Trials):
    """The baseline, kept open, and the trial of every candidate beside it.

    Attributes:
        baseline: Default candidate of the first engine, on the untouched model, from `begin` on.
        answered: Whether the original answered the search split, from `begin` on; else the time limit
            left no time to, and nothing can be judged.

    Args:
        bench: Workbench on which candidates are made.
        journal: Journal that keeps each trial; a trial in it isn't run again.
        samples: The search split.
        promise: Promise of the certificate; a candidate surely over its limit is left early.
        pace: Lengths of the turns.
        seed: Seed of the orders.
        objective: Statistic that latencies are compared by. A few short turns show no p99; here the
            mean, which slow requests raise too, stands in for it.
        sealed_draws: Number of draws to certify by; None for as many as there are samples here.
    """

    def __init__(
        self,
        bench: Workbench,
        journal: Journal,
        samples: Spool,
        promise: Promise,
        *,
        pace: Pace,
        seed: int,
        objective: Statistic = "p50",
        sealed_draws: int | None = None,
        units: Array | None = None,
        trusted: Collection[str] = (),
    ) -> None:
        super().__init__(
            bench,
            journal,
            samples,
            promise,
            sealed_draws=sealed_draws,
            units=units,
            trusted=trusted,
        )
        self._pace, self._seed = pace, seed
        self._statistic: Statistic = "mean" if objective == "p99" else objective
        self._open: OpenWorker | None = None
        self.baseline: Candidate
        self.answered = True

    def begin(self, grid: Sequence[Single]) -> None:
        """Open the baseline: the first engine that runs the untouched model, in its default form.

        Raises:
            InputError: no engine runs the model, or the model's own answers aren't finite.
        """
        self.baseline, self._open, unable = self._first_that_opens(grid)
        self.bench.deadline.enter("search")
        try:
            self._answer_original(self._open)
        except OutOfTime:
            self.answered, self.exact_scores = False, np.zeros(0)
            self.notes.append(
                "the time limit came before the original had answered the search split, so nothing else "
                "was tried"
            )
        except CandidateError as error:
            raise unanswered(error) from error
        self._cross_check(grid)
        own = Trial(self.baseline, self._open.artifact, properties=dict(self._open.properties))
        for trial in (*unable, own):  # only now, so that a run that can't begin leaves no journal
            if trial.candidate.key not in self.done:
                self.keep(trial)

    def _answer_original(self, opened: OpenWorker) -> None:
        """Run the original on the search split, however long it takes where earlier trials were scored.

        A resumed run judges them beside these answers.

        Raises:
            OutOfTime: the time limit came first, in a run that has no trials yet.
            CandidateError: it can't answer.
        """
        hurried, began = self.bench, time.monotonic()
        if self.done:
            self.bench = dataclasses.replace(hurried, deadline=Deadline())
        try:
            self.answer(opened)
        finally:
            hurried.chunk, hurried.varying = self.bench.chunk, self.bench.varying
            self.bench = hurried
        took_s = time.monotonic() - began
        self.bench.deadline.saw("answer", took_s / max(1, len(self.samples)))

    def _first_that_opens(self, grid: Sequence[Single]) -> tuple[Single, OpenWorker, list[Trial]]:
        """Open the first default engine that runs the model; also return those that didn't."""
        unable: list[Trial] = []
        settled = {candidate.engine.settling() for candidate in grid}
        for candidate in grid:
            if candidate.passes or not candidate.exact or candidate.engine in settled:
                continue
            try:
                return candidate, self.bench.open(candidate), unable
            except NotCovered as error:
                unable.append(Trial(candidate, skipped=str(error)))
            except CandidateError as error:
                unable.append(Trial(candidate, failure=str(error)))
        why = "; ".join(f"{t.candidate.label}: {t.failure or t.skipped}" for t in unable)
        hint = _LIBRARY if _NO_OPERATOR.search(why) else _hint_of_substitutes(unable)
        raise InputError(f"no engine runs this model: {why or 'none is installed'}{hint}")

    def close(self) -> None:
        """End the baseline's process."""
        if self._open is not None:
            self._open.worker.kill()
            self._open = None

    def opened_baseline(self) -> OpenWorker:
        """Return the baseline's worker, restarted if it is gone."""
        if self._open is None or not self._open.worker.alive:
            self.close()
            unhurried = dataclasses.replace(self.bench, deadline=Deadline())
            self._open = unhurried.open(self.baseline)  # every trial is timed beside it
        return self._open

    def _cross_check(self, grid: Sequence[Single]) -> None:
        """Note where another engine says that the baseline's answer to one sample is wrong.

        Where the time limit came first, nothing is noted.
        """
        if not self.answered:
            return
        own = first_of(self._first_answers())
        limit_s = max(1.0, min(_REFERENCE_LIMIT_S, _REFERENCE_SHARE * self.bench.deadline.left_s()))
        note = cross_check(self.bench, self.baseline, own, self.samples, grid, limit_s=limit_s)
        self.notes += [note] if note else []

    def run(self, candidate: Candidate, beat: float = 1.0) -> Trial:
        """Try one candidate, unless the journal has it; score it unless it surely isn't faster.

        Raises:
            OutOfTime: the time limit came first; the candidate counts as untried.
        """
        if candidate.key in self.done:
            return self.done[candidate.key]
        trial = Trial(candidate)
        if self.samples.ragged and takes_one_shape(candidate.engine):
            return self.keep(dataclasses.replace(trial, skipped=_ONE_SHAPE))
        try:
            opened = self.bench.open(candidate)
        except (Skipped, NotCovered) as skipped:
            return self.keep(dataclasses.replace(trial, skipped=str(skipped)))
        except OutOfTime:
            raise
        except CandidateError as error:
            return self.keep(dataclasses.replace(trial, failure=str(error)))
        try:
            trial = dataclasses.replace(
                trial, artifact=opened.artifact, properties=dict(opened.properties)
            )
            trial = self._screen(trial, opened)
            if trial.measurement is not None and self._worth_scoring(trial, beat):
                trial = self._score(trial, opened)
        except OutOfTime:
            raise
        except CandidateError as error:
            trial = dataclasses.replace(trial, failure=str(error))
        finally:
            opened.worker.kill()
        return self.keep(trial)

    def timed(self, candidate: Candidate, opened: OpenWorker) -> Trial:
        """Time an open candidate, or its draft, against the baseline; its answers aren't judged."""
        return self._screen(Trial(candidate, opened.artifact), opened)

    def _screen(self, trial: Trial, opened: OpenWorker) -> Trial:
        """Time a candidate against the baseline in a few turns; one that is far slower gets two."""
        entrants = {"baseline": self.opened_baseline().worker, "candidate": opened.worker}
        threads, deadline = self.bench.target.threads, self.bench.deadline
        theirs: dict[int, tuple[int, ...]] = {}
        ours: dict[int, tuple[int, ...]] = {}
        turns = rounds(
            entrants,
            self.samples.folder,
            threads=threads,
            pace=self._pace,
            seed=self._seed,
            probe=lambda _: True,  # every round counts in a first look
        )
        began = time.monotonic()
        for turn in turns:
            began, took_s = time.monotonic(), time.monotonic() - began
            deadline.saw("turn", took_s / len(entrants))
            if "candidate" in turn.failed:
                raise CandidateError(turn.failed["candidate"])
            if "baseline" in turn.failed:
                raise InputError(f"the baseline failed: {turn.failed['baseline']}")
            ours[turn.number], theirs[turn.number] = (
                turn.latency_ns["candidate"],
                turn.latency_ns["baseline"],
            )
            count = len(ours)
            if count >= SCREEN_ROUNDS or (count >= 2 and self._far_slower(ours, theirs)):
                break
            if deadline.left_s() < took_s:
                raise OutOfTime("the time limit came before it was timed")
        return dataclasses.replace(
            trial,
            measurement=Measurement("measured", threads, ours),
            baseline=Measurement("measured", threads, theirs),
        )

    def _far_slower(self, ours: Rounds, theirs: Rounds) -> bool:
        return paired_ratio(ours, theirs, self._statistic).low > _HOPELESS_SLOW

    def _worth_scoring(self, trial: Trial, beat: float) -> bool:
        """Whether to check answers: exact candidates always, others unless they are slower."""
        return trial.candidate.exact or self.ratio(trial).low < beat

    def _score(self, trial: Trial, opened: OpenWorker) -> Trial:
        if trial.candidate.exact:
            if self.ratio(trial).estimate >= 1 + SCREEN_NOISE:  # it ships in no case
                outputs, own, _ = next(beside(self.bench, opened, self.exact_answers))
                _check_exact(outputs, own)
                changed = int((differences(outputs, own) > EXACT_TOLERANCE).sum())
                return dataclasses.replace(trial, changed=changed or None)
            scores, changed = self.compared(opened, _check_exact)
            return dataclasses.replace(trial, scores=scores, changed=changed)
        same = self._scores_of_the_same(trial.candidate)
        return dataclasses.replace(trial, scores=self.scores(opened, same))

    def _scores_of_the_same(self, candidate: Candidate) -> Array | None:
        """Return the scores of a trial that differs in scheduling alone, so computes the same."""
        for trial in self.done.values():
            tunings = trial.candidate.engine.tunings(self.bench.target)
            same = trial.candidate.passes == candidate.passes and candidate.engine in tunings
            if same and trial.scores:
                return np.array(trial.scores)
        return None

    def _first_answers(self) -> Tensors:
        return next(iter(self.exact_answers))[0]

    def measured(self) -> list[Trial]:
        """Return the trials that were timed and didn't fail."""
        return [t for t in self.done.values() if t.measurement is not None and not t.failure]

    def outcome(self, trial: Trial) -> str:
        """Describe the outcome of a trial in one line."""
        if trial.skipped:
            return f"skipped: {trial.skipped}"
        if trial.failure:
            return f"failed: {trial.failure}"
        if trial.candidate.least:
            said = lost_in_words(100 * self.drop(trial))
            return f"raced from bytes to decision, {said} on {amount(len(trial.scores or ()), 'sample')}"
        if trial.measurement is None:
            return "the baseline"
        speed = f"{1 / self.ratio(trial).estimate:.2f}x"
        if trial.candidate.exact and trial.changed is None:
            return f"{speed}, exact settings; not faster, so not every answer was compared"
        if trial.exact:
            return f"{speed}, exact: {unchanged_in_words(len(self.samples))}"
        if trial.scores is None:
            return f"{speed}, not faster, so not judged"
        if trial.changed:
            speed += f", exact settings, but {changed_in_words(trial.changed)}"
        drop = 100 * self.drop(trial)
        early = ", left early" if len(trial.scores) < len(self.samples) else ""
        # Without a label in the search each changed answer counts as lost.
        lost = lost_in_words(drop) if len(self.known_scores) else f"{drop:.2f}% changed"
        return f"{speed}, {lost} on {amount(len(trial.scores), 'sample')}{early}"

    def ratio(self, trial: Trial) -> Ratio:
        """Return a measured trial's latency over the baseline's, in the statistic of the run."""
        return ratio(trial, "mean" if trial.candidate.engine.uneven else self._statistic)

    def drop(self, trial: Trial) -> float:
        """Return the estimated drop of a trial: 0 for an exact one, 1 for one never scored."""
        if trial.exact:
            return 0.0
        if not trial.scores:
            return 1.0
        return float(self.drops(trial).mean())

    def risk(self, trial: Trial) -> float:
        """Return the drop that a trial would probably be certified for; 0 for an exact one."""
        return 0.0 if trial.exact else super().risk(trial)

    def flips(self, trial: Trial) -> float:
        """Return the mean absolute difference of a trial's scores, such as the share changed."""
        scores = np.array(trial.scores)
        return float(np.abs(self.exact_scores[: len(scores)] - scores).mean())


def takes_one_shape(engine: Engine) -> bool:
    """Whether sessions of an engine of this host take requests of one shape alone, beside the number of rows."""
    return engine.settles and not engine.reshapes and "host" in engine.families


def _hint_of_substitutes(unable: Sequence[Trial]) -> str:
    """Return what to do where engines would run the model in another way than the one refused; "" elsewhere."""
    for trial in unable:
        other = trial.candidate.engine.substitute(trial.skipped or "")
        if other is not None:
            return (
                f'; "{other.words()}" is tried only beside an engine that runs the model as it is: '
                "allow one more, such as onnxruntime"
            )
    return ""


def _check_exact(outputs: Tensors, own: Tensors) -> None:
    """Refuse a candidate whose settings are exact, but whose first answers are surely wrong.

    One that is only less precise than the original is judged as if its settings weren't exact.

    Raises:
        CandidateError: they differ by more than a lack of precision explains.
    """
    gaps = differences(outputs, own)
    wrong = int((gaps > FAULT_TOLERANCE).sum())
    if wrong > _MOST_WRONG * len(gaps):
        raise CandidateError(
            "its settings are exact, but its answers differ from the baseline's by up to "
            f"{gaps.max():.1e} of the largest output for {wrong} of {amount(len(gaps), 'sample')}; a lack of "
            f"precision explains {FAULT_TOLERANCE:.0e}"
        )


def ratio(trial: Trial, statistic: Statistic = "p50") -> Ratio:
    """Return a measured trial's latency over the baseline's, from its screening rounds."""
    assert trial.measurement is not None
    assert trial.baseline is not None
    return paired_ratio(trial.measurement.rounds, trial.baseline.rounds, statistic)
