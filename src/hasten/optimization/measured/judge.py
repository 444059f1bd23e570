"""The judge that measures: it screens, races, chooses, and times the choice in fresh rounds."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

from hasten.bundle import Part
from hasten.errors import CandidateError, InputError, NothingRuns, OutOfTime
from hasten.inputs.metrics.suggestions import hint_of_chosen
from hasten.inputs.metrics.top_k import Top1
from hasten.measure.candidate import Candidate
from hasten.measure.ceilings import measure
from hasten.measure.deadline import Deadline
from hasten.measure.effort import EFFORTS
from hasten.measure.intervals import Ratio
from hasten.measure.roofline import Ceilings, Floor, floor
from hasten.measure.workbench import OpenWorker
from hasten.optimization.choose import Standing, fastest_exact, ladder
from hasten.optimization.data_needed import calibrating, warn_of_scores
from hasten.optimization.delivery import part_of
from hasten.optimization.folding import Given
from hasten.optimization.grid import grid, originals
from hasten.optimization.job import Job
from hasten.optimization.judge import Ending, Judge, Ladder, Shipment, Verdicts
from hasten.optimization.measured.decoding import with_smaller_decoding
from hasten.optimization.measured.drafting import draft
from hasten.optimization.measured.ending import Finish, write_interim
from hasten.optimization.measured.exploration import Exploration
from hasten.optimization.measured.racing import Racing
from hasten.optimization.measured.screening import SCREEN_NOISE
from hasten.optimization.measured.spending import LIMITS_S, Spending
from hasten.optimization.outline import outline_of
from hasten.optimization.preparation import engine_names
from hasten.optimization.ready import Ready

_TOLD = 3
"""Largest number of failures that an error names."""


class Measured(Judge):
    """Times candidates in turns, on this host or on a device in it.

    Attributes:
        racing: Candidates of the run and their races.

    Args:
        job: The run at work.
        ready: Model and data of the run.
    """

    def __init__(self, job: Job, ready: Ready) -> None:
        self.job, self.ready = job, ready
        self.racing = Racing(job, ready)
        self.trials = self.racing.trials
        self.spending = Spending(self.racing)
        job.deadline.follow(self.spending.plan)

    def close(self) -> None:
        """End the processes that are still running."""
        self.racing.trials.close()

    @property
    def original(self) -> str:
        """Key of the baseline."""
        return self.racing.trials.baseline.key

    def search(self) -> None:
        """Try candidates on the search split until nothing promising is left, or the time is up."""
        order, ready = self.job.order, self.ready
        proposed = grid(
            ready.model,
            ready.target,
            engine_names=engine_names(order, ready.target),
            pass_names=order.passes if order.effort.depth != "engines" else (),
            keep_float=order.keep_float,
            small_models=ready.small_models,
        )
        inexact = [one for one in proposed if ready.made_up and not one.exact]
        proposed = [one for one in proposed if one not in inexact]
        outline = outline_of(self.job, ready, proposed, drafted=inexact)
        self.job.tell("prepare", "opening the original model", 0, 1, outline=outline)
        self.racing.settle_threads()
        # On a device the host's engines only answer for the original where none of the device's runs it.
        hosts = originals(ready.model) if ready.target.kind == "attached" else []
        self.racing.trials.begin([*proposed, *hosts])
        self.job.varying = self.racing.trials.bench.varying
        self.job.notes += [*self.racing.trials.notes, *self._original()]
        if not self.racing.trials.answered:
            self._check_device()
            return
        calibration = calibrating(order, ready)
        warn_of_scores(ready, calibration, self.job.notes, binary=self.trials.binary)
        omissions = order.effort.omissions_for(ragged=bool(ready.extents))
        if order.effort != EFFORTS["normal"] and omissions:
            self.job.notes.append(f"left out at this effort: {'; '.join(omissions)}")
        Exploration(
            self.racing.trials,
            self.job,
            units=ready.search_units,
            sealed_draws=ready.sealed_draws,
            on_better=lambda trial: write_interim(self.racing, trial),
            least=self._least,
        ).explore(proposed)
        if inexact:
            draft(self.racing, self.job, inexact)
        self._check_device()

    def _check_device(self) -> None:
        """Check that something ran on the device, where the run is for a device of this host.

        Raises:
            NothingRuns: nothing did, so that only a model for the host could ship.
        """
        racing, trials = self.racing, self.racing.trials.done.values()
        ran = [t for t in trials if t.measurement is not None and not t.failure]
        if any(racing.on_device(c) for c in (racing.trials.baseline, *(t.candidate for t in ran))):
            return
        tried = sorted(trials, key=lambda t: len(t.candidate.passes))
        failed = {
            t.candidate.label: t.failure or t.skipped for t in tried if t.failure or t.skipped
        }
        why = "; ".join(f"{label}: {failure}" for label, failure in list(failed.items())[:_TOLD])
        more = f"; and {len(failed) - _TOLD} more didn't run" if len(failed) > _TOLD else ""
        raise NothingRuns(
            f"nothing runs on {racing.bench.target.device}, so no model is made for it: "
            f"{why or 'the time limit came before anything was tried there'}{more}; hasten "
            "doctor says what "
            "this host has and lacks"
        )

    def _least(self, precision: str | None) -> Floor | None:
        """Return the least time that this machine can take for the model, on any engine.

        Args:
            precision: Precision of every layer; None for the machine's fastest.

        Returns:
            The floor; None where it can't be computed.
        """
        if not self.racing.limited or self.ready.unrolled is not None:
            return None
        if self.job.deadline.left_s() < LIMITS_S * self.racing.slow:
            return None
        self.racing.trials.opened_baseline().worker.sleep()
        try:
            layers = self.racing.bench.work()
            everywhere = precision and {layer.name: precision for layer in layers}
            if (ceilings := self._ceilings) is None:
                return None
            return floor(layers, ceilings, everywhere or None)
        except (CandidateError, InputError):
            return None  # the note is made at the end, where latencies are compared with it

    @functools.cached_property
    def _ceilings(self) -> Ceilings | None:
        """Ceilings of the machine, measured where they are first asked for; None if no engine can show them.

        Raises:
            OutOfTime: the deadline came first.
        """
        bench = self.racing.bench
        self.job.tell("ceilings", "measuring what the machine can do", 0, 1)
        try:
            return measure(bench.target, bench.folder, deadline=self.job.deadline)
        except InputError:
            return None

    def _original(self) -> list[str]:
        """Return a note on the original's own score: what agrees with it is as wrong as it is."""
        known, metric = self.racing.trials.known_scores, self.ready.promise.metric
        if not len(known):
            return []
        share = float(known.mean())
        if not metric.needs_labels and share == 1:
            return []
        wrong = (
            ""
            if share >= 0.5
            else "; if you expected more, the labels or the preparation are wrong, and then any "
            f"certificate is wrong too{self._chosen_beside()}"
        )
        return [
            f"the original's own {metric.noun} is {100 * share:.1f}% on {len(known):,} "
            f"samples of the search split{wrong}"
        ]

    def _chosen_beside(self) -> str:
        """Return a clause on an output of classes that the metric doesn't read, or nothing."""
        metric, model = self.ready.promise.metric, self.ready.model
        if not isinstance(metric, Top1) or len(model.outputs) == 1:
            return ""
        outputs = {o.name: (o.dtype, o.shape) for o in model.outputs if o.name != metric.output}
        return hint_of_chosen(outputs)

    def choose(self) -> Ladder:
        """Race the best, then choose the exact model to beat and the ladder of those to certify."""
        self.job.deadline.enter("race")
        chosen = self._chosen(self.racing.field())
        self.job.deadline.enter("certify")
        affordable = self.spending.affordable(chosen)
        return with_smaller_decoding(self.racing, affordable, self.spending.decoding_s)

    def _chosen(self, wanted: Sequence[Candidate]) -> Ladder:
        """Choose among candidates by a race or, where there is no time for one, by their few turns."""
        baseline = self.racing.trials.baseline.key
        field = self.racing.affordable(wanted)
        if self.job.deadline.limited and not field:
            return self._unraced(wanted)
        standings = self.racing.race(field)
        even = Ratio(1.0, 1.0, 1.0, standings.counted)
        entered = [Standing(baseline, True, even, 0.0, 0.0)] + [
            self.racing.standing(self.racing.trials.done[c.key], standings.ratio(c.key))
            for c in field
            if standings.stands(c.key)
        ]
        settle = self.racing.effort.race_settle
        if standings.spread > settle:
            self.job.notes.append(
                f"in the race the same model differed from itself by {100 * standings.spread:.0f}%, so "
                "smaller gains may have been missed: run again on a quieter machine"
            )
        # Whom a noisy race takes for faster is tested all the same: the fresh rounds decide.
        noise, limit = min(standings.spread, settle), self.ready.search_promise.max_drop
        exact = fastest_exact(entered, baseline, noise)
        rungs = ladder(entered, exact, spread=noise, max_drop=limit)
        threads = standings.threads
        if threads < self.racing.asked_threads:
            threads, stays = self.racing.threads_to_ship(self.racing.candidate((exact, *rungs)[-1]))
            exact, rungs = (exact, rungs) if stays else (baseline, ())
        return Ladder(exact, rungs, threads)

    def _unraced(self, wanted: Sequence[Candidate]) -> Ladder:
        """Choose by the turns that each candidate had when it was tried; fresh rounds judge the choice."""
        trials, baseline = self.racing.trials, self.racing.trials.baseline.key
        if wanted:
            self.job.notes.append(
                "the time limit left no time for a race: the candidates to certify were chosen "
                "by the few turns that each had"
            )
        even = Ratio(1.0, 1.0, 1.0, 0)
        tried = [trials.done[c.key] for c in wanted]
        entered = [Standing(baseline, True, even, 0.0, 0.0)] + [
            self.racing.standing(t, trials.ratio(t)) for t in tried if t.measurement is not None
        ]
        exact = fastest_exact(entered, baseline, SCREEN_NOISE)
        limit = self.ready.search_promise.max_drop
        rungs = ladder(entered, exact, spread=SCREEN_NOISE, max_drop=limit)
        return Ladder(exact, rungs, self.racing.bench.target.threads)

    def stand_by(self, ladder: Ladder) -> None:
        """Give engines the number of threads that was settled with the ladder."""
        self.racing.use_threads(ladder.threads)

    def open_exact(self) -> OpenWorker:
        """Open the baseline, or on its engine the model as it was given, where that isn't the same.

        Raises:
            InputError: it fails.
        """
        self.racing.trials.close()
        baseline, given = self.racing.trials.baseline, self.ready.given
        try:
            if given is not None:
                artifact = given.build(self.racing.bench, baseline.engine)
            else:
                artifact = self.racing.artifact(baseline)
            return self.racing.bench.open_built(baseline.engine, artifact, fresh=False)
        except OutOfTime:
            raise
        except CandidateError as error:
            raise InputError(f"the baseline failed: {error}") from error

    def part_as_given(self, given: Given) -> Part:
        """Return a bundle's record of the model as it was given, on the baseline's engine.

        Raises:
            CandidateError: it can't be built.
        """
        baseline = self.racing.trials.baseline
        unhurried = dataclasses.replace(self.racing.bench, deadline=Deadline())
        return part_of(baseline, given.build(unhurried, baseline.engine))

    @contextlib.contextmanager
    def opened(self, key: str) -> Iterator[OpenWorker]:
        """Open a candidate.

        Raises:
            CandidateError: it can't be opened any more.
        """
        candidate = self.racing.candidate(key)
        artifact = self.racing.artifact(candidate)
        opened = self.racing.bench.open_built(candidate.engine, artifact, fresh=False)
        try:
            yield opened
        finally:
            opened.worker.kill()

    def conclude(
        self, ladder: Ladder, verdicts: Verdicts, keep: Callable[[Shipment], None]
    ) -> Ending:
        """Time the choice in fresh rounds, and decide what ships."""
        return Finish(self.racing, ladder, verdicts, keep).ending()
