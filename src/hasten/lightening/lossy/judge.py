"""The judge that compares candidates by the size they are packed to, and certifies the smallest."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from hasten import bundle
from hasten.bundle import Status
from hasten.certificate.certification import last_certified
from hasten.certificate.verdict import Judgement
from hasten.core.target import Target
from hasten.core.words import points
from hasten.engines.base import Engine
from hasten.engines.installed import engine_kinds
from hasten.lightening.lossy.rungs import LEAST_ELEMENTS
from hasten.lightening.lossy.sizes import Packed, packed
from hasten.measure.candidate import Single, Trial
from hasten.measure.intervals import Ratio
from hasten.measure.workbench import OpenWorker
from hasten.optimization import delivery
from hasten.optimization.choose import Standing, ladder
from hasten.optimization.data_needed import calibrating, warn_of_scores
from hasten.optimization.estimated.trials import Estimation
from hasten.optimization.job import Job
from hasten.optimization.judge import Ending, Judge, Ladder, Shipment, Verdicts
from hasten.optimization.preparation import engine_names
from hasten.optimization.ready import Ready
from hasten.reporting.result import Result, Rung
from hasten.reporting.sizes import SizeRow, Sizes

UNTOUCHED = "the model as it is, packed without loss"


class Smallest(Judge):
    """Compares candidates by the size that they are packed to; nothing is timed.

    Args:
        job: The run at work.
        ready: Model, data and smaller forms of the run.
    """

    trials: Estimation

    def __init__(self, job: Job, ready: Ready) -> None:
        self.job, self.ready = job, ready
        self.trials = Estimation(
            ready.bench(job.folder, job.order.trial_limit_s or 300.0),
            job.journal,
            ready.parts.search,
            ready.search_promise,
            sealed_draws=ready.sealed_draws,
            units=ready.parts.search_units,
            trusted=Engine.paths(job.order.engines or ()),
        )

    @property
    def original(self) -> str:
        """Nothing: the model as it is needs no test."""
        return ""

    def search(self) -> None:
        """Score each form on the search split."""
        self.job.tell("prepare", "opening the original model", 0, 1)
        ready, order, trials = self.ready, self.job.order, self.trials
        kinds = engine_kinds(engine_names(order, ready.target))
        engines = [next(iter(kind.variants(ready.target))) for kind in kinds]
        trials.begin([Single((), one) for one in engines if "onnx" in one.formats])
        warn_of_scores(ready, calibrating(order, ready), self.job.notes, binary=trials.binary)
        metric, known = ready.promise.metric, trials.known_scores
        if metric.needs_labels and len(known):
            self.job.notes.append(
                f"the original's own {metric.noun} is {100 * float(known.mean()):.1f}% on "
                f"{len(known):,} samples of the search split"
            )
        for number, form in enumerate(ready.small_models):
            candidate = Single((form,), trials.exact.engine)
            self.job.tell("try", form.name, number, len(ready.small_models))
            trial = trials.judge(candidate)
            said = f"{form.name}: {trials.outcome(trial)}"
            self.job.tell("try", form.name, number + 1, len(ready.small_models), said)

    @cached_property
    def untouched(self) -> Packed:
        """Size of the model as it is, packed without loss."""
        return packed(self.ready.model, LEAST_ELEMENTS)

    @cached_property
    def sizes(self) -> dict[str, Packed]:
        """Candidate's key -> size of its form when it is packed."""
        return {
            Single((form,), self.trials.exact.engine).key: packed(
                form.source(self.ready.model), LEAST_ELEMENTS
            )
            for form in self.ready.small_models
        }

    def choose(self) -> Ladder:
        """Choose the forms to certify: smaller than the model as it is, and under the limit."""
        trials, most = self.trials, self.untouched.packed_bytes
        standings = [
            Standing(
                key,
                False,
                _sure(size.packed_bytes / most),
                float(trials.drops(trials.done[key]).mean()),
                trials.risk(trials.done[key]),
            )
            for key, size in self.sizes.items()
            if key in trials.done and trials.able(trials.done[key])
        ]
        original = Standing("", True, _sure(1.0), 0.0, 0.0)
        rungs = ladder(
            [original, *standings],
            "",
            spread=0.0,
            max_drop=self.ready.search_promise.max_drop,
            rungs=max(1, len(standings)),
        )
        return Ladder("", rungs)

    def stand_by(self, ladder: Ladder) -> None:
        """Do nothing: there is no number of threads to settle."""

    def open_exact(self) -> OpenWorker:
        """Open the original.

        Raises:
            InputError: it fails.
        """
        return self.trials.opened_exact()

    @contextlib.contextmanager
    def opened(self, key: str) -> Iterator[OpenWorker]:
        """Open a form.

        Raises:
            CandidateError: it can't be opened any more.
        """
        with self.trials.opened(self.trials.done[key]) as opened:
            yield opened

    def conclude(
        self, ladder: Ladder, verdicts: Verdicts, decided: Callable[[Shipment], None]
    ) -> Ending:
        """Decide what ships: the smallest form that is certified, else the model as it is."""
        return _Finish(self, verdicts).ending()

    def close(self) -> None:
        """Do nothing: no process is left running between steps."""


@dataclass(frozen=True)
class _Finish:
    """Turns the verdicts into a decision on what ships."""

    judge: Smallest
    verdicts: Verdicts

    def ending(self) -> Ending:
        judge, job = self.judge, self.judge.job
        passed = last_certified(self.verdicts)
        status, why, winner = self._choice(passed)
        result = Result(
            bundle=job.order.out,
            status=status,
            why=why,
            judgement=passed[1] if passed else _first_judgement(self.verdicts),
            population=job.order.population,
            rows=(),
            spread=0.0,
            threads=1,
            tried={row.label: row.said for row in self._rows()},
            notes=(*judge.ready.parts.notes, *job.notes),
            seconds=job.deadline.elapsed_s,
            ladder=tuple(
                Rung(
                    judge.trials.done[key].candidate.label,
                    entry if isinstance(entry, Judgement) else None,
                    entry if isinstance(entry, str) else None,
                )
                for key, entry in self.verdicts
            ),
            asked=delivery.asked(job, judge.ready),
            sizes=Sizes(
                weights_bytes=judge.untouched.weights_bytes,
                lossless_bytes=judge.untouched.packed_bytes,
                rows=tuple(self._rows()),
                winner=UNTOUCHED if winner is None else winner.candidate.label,
            ),
        )
        return Ending(self._shipment(status, why, winner, passed), result)

    def _choice(self, passed: tuple[str, Judgement] | None) -> tuple[Status, str, Trial | None]:
        """Return the status, the reason and what ships; None is the model as it is."""
        trials = self.judge.trials
        if passed is not None:
            return "certified", passed[1].in_words(), trials.done[passed[0]]
        return "exact", f"no smaller form is certified: {self._why_not()}; {UNTOUCHED}", None

    def _why_not(self) -> str:
        if self.verdicts:
            entry = self.verdicts[0][1]
            return entry if isinstance(entry, str) else entry.in_words()
        limit = 100 * self.judge.ready.promise.max_drop
        return f"in the search, every smaller form loses {points(f'{limit:.6g}')} or more"

    def _shipment(
        self, status: Status, why: str, winner: Trial | None, passed: tuple[str, Judgement] | None
    ) -> Shipment:
        trials = self.judge.trials
        exact = bundle.part(trials.exact.label, (), trials.exact.engine, trials.exact_artifact)
        if winner is None:
            return Shipment(status, why, exact, exact, Target.host())
        made = delivery.part_of(winner.candidate, trials.artifact(winner))
        judgement = None if passed is None else passed[1]
        return Shipment(status, why, made, exact, Target.host(), judgement=judgement)

    def _rows(self) -> Iterator[SizeRow]:
        """Yield the forms, largest first, with what they lose."""
        judge, trials = self.judge, self.judge.trials
        tested = {key: number for number, (key, _) in enumerate(self.verdicts)}
        frontier = self._frontier()
        for form in judge.ready.small_models:
            key = Single((form,), trials.exact.engine).key
            size, trial = judge.sizes[key], trials.done[key]
            yield SizeRow(
                label=trial.candidate.label,
                packed_bytes=size.packed_bytes,
                left=size.left,
                values=size.values,
                said=trials.outcome(trial),
                drop=trials.observed(trial, judge.ready.search_units),
                frontier=key in frontier,
                rung=tested.get(key),
            )

    def _frontier(self) -> set[str]:
        """Return the keys of the forms that no other beats in both size and accuracy."""
        trials, kept, least = self.judge.trials, set(), float("inf")
        able = [key for key in self.judge.sizes if trials.done[key].scores]
        falls = {key: float(trials.drops(trials.done[key]).mean()) for key in able}
        for key in sorted(able, key=lambda key: (self.judge.sizes[key].packed_bytes, falls[key])):
            if falls[key] < least:
                kept.add(key)
                least = falls[key]
        return kept


def _first_judgement(judged: Sequence[tuple[str, Judgement | str]]) -> Judgement | None:
    return next((entry for _, entry in judged if isinstance(entry, Judgement)), None)


def _sure(ratio: float) -> Ratio:
    return Ratio(ratio, ratio, ratio, 1)
