"""The end of a run that measures: fresh figures for the choice, and what ships."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hasten.bundle import Part
from hasten.bundle.batch_mates import share_batch_axis
from hasten.bundle.cold import COLD
from hasten.bundle.manifest import UNCERTIFIED_YET, untimed_yet
from hasten.certificate.certification import last_certified
from hasten.certificate.verdict import Judgement
from hasten.core.records import to_record
from hasten.core.target import Target
from hasten.engines.artifacts import batch_sizes
from hasten.engines.layers import LayerTime
from hasten.errors import CandidateError
from hasten.measure.candidate import Trial
from hasten.measure.curve import CURVE, CurvePoint, curve_record
from hasten.measure.exactness import unchanged_in_words
from hasten.measure.intervals import Ratio
from hasten.measure.race import AGAIN, BASELINE, Standings
from hasten.measure.scenario import LoadTest, in_words, load_record
from hasten.measure.stages import WAYS
from hasten.measure.sweep import sweep
from hasten.optimization import delivery
from hasten.optimization.judge import Ending, Ladder, Shipment, Verdicts
from hasten.optimization.measured.choice import Choice, decide, settled_by_sealed_data
from hasten.optimization.measured.decoding import decoding_of, model_of, unused_decodings
from hasten.optimization.measured.limits import limits, profiles
from hasten.optimization.measured.loads import loads
from hasten.optimization.measured.outcomes import (
    best_of_methods,
    figures_record,
    method_of,
    methods,
    outcomes,
    rungs,
)
from hasten.optimization.measured.racing import Racing
from hasten.optimization.measured.spending import LIMITS_S
from hasten.optimization.measured.ways import starts, ways
from hasten.reporting.result import UNEVEN, Limit, Result, Row, row
from hasten.reporting.summary import UNJUDGED, untested

_LEAST_CURVE_S = 4.0
"""Least time for a batch curve, on a quiet machine: with less it isn't begun."""
_CLEARLY = 0.95
"""Largest latency of an uncertified model worth a row, as a share of the latency of what ships."""


@dataclass(frozen=True)
class Finish:
    """Turns the verdicts into a decision on what ships.

    Attributes:
        racing: Candidates of the run and their races.
        ladder: Ladder as it was frozen.
        verdicts: Verdicts of the sealed data on the ladder.
        keep: Function that writes a bundle, before figures that take long.
    """

    racing: Racing
    ladder: Ladder
    verdicts: Verdicts
    keep: Callable[[Shipment], None]

    def ending(self) -> Ending:
        """Time the chosen candidates in fresh rounds, and decide what ships."""
        racing, order = self.racing, self.racing.job.order
        passed = last_certified(self.verdicts)
        winner = passed[0] if passed else self.ladder.exact
        loose = self._fastest_uncertified(winner)
        best = best_of_methods(racing) if racing.ready.trained else {}
        if passed:
            self._certified(*passed)
        racing.job.deadline.enter("figures")
        final = self._fresh_figures([self.ladder.exact, winner], [loose, *best.values()])
        choice = decide(
            self.ladder,
            self.verdicts,
            final,
            baseline=racing.trials.baseline.key,
            loose=loose,
            compared=self._samples,
            accept_uncertified=order.accept_uncertified,
            as_it_was=racing.as_it_was,
            label=lambda key: racing.candidate(key).label,
            untested=UNJUDGED if racing.ready.made_up else self._untested(),
            model=lambda key: model_of(racing, key),
        )
        choice = self._of_the_host(choice)
        racing.note_of_threads(final.threads)
        method = method_of(racing.candidate(choice.winner)) if best else ""
        best |= {method: choice.winner} if method else {}
        shown = self._shown(choice, loose)
        racing.job.notes += [
            UNEVEN.format(racing.candidate(key).label)
            for _, key, entrant in shown
            if final.stands(entrant) and final.statistic_of(entrant) != final.statistic
        ]
        racing.job.notes += unused_decodings(racing, choice.winner, self.verdicts)
        decoding = decoding_of(racing, choice.winner)
        self.keep(shipment(racing, choice))
        decided_s = self._decided(final, choice)
        racing.job.notes += self._one_at_a_time(choice)
        racing.job.deadline.enter("further")
        steps, reached, by_candidate = self._limits(final, shown)
        curve = self._curve(choice.winner)
        loaded = loads(racing, choice.winner)
        whole = ways(racing, choice.winner)
        started = starts(racing, shipment(racing, choice))
        racing.job.notes += _over_limit(racing)
        result = Result(
            bundle=order.out,
            status=choice.status,
            why=choice.why,
            judgement=choice.judgement or _first_failing(self.verdicts),
            population=order.population,
            rows=self._rows(final, choice, loose),
            spread=final.spread,
            threads=final.threads,
            tried={
                t.candidate.label: racing.trials.outcome(t) for t in racing.trials.done.values()
            },
            notes=(*racing.ready.parts.notes, *racing.job.notes),
            seconds=racing.job.deadline.elapsed_s,
            objective=final.statistic,
            outcomes=outcomes(racing, self.ladder, by_candidate),
            ladder=rungs(racing, self.verdicts),
            asked=delivery.asked(racing.job, racing.ready),
            limits=reached,
            loads=tuple(in_words(test)[0] for test in loaded),
            methods=methods(racing, final, self.verdicts, best),
            budget_ns=None if order.budget_s is None else 1e9 * order.budget_s,
            method=method,
            steps=racing.ready.steps_each,
            inexact=choice.inexact,
            default_threads=racing.asked_threads,
            shipped_threads=racing.bench.target.threads,
            on_all=self._on_all(final, choice),
            decided_s=decided_s,
            decoded="" if decoding is None else decoding.shipped,
            whole=None if decoding is None else decoding.ratio,
        )
        roles = {role: entrant for role, _, entrant in shown}
        records = {
            **figures_record(racing, final, roles),
            **self._records(choice, steps, reached, curve, loaded),
            **({} if whole is None else {WAYS: to_record(whole)}),
            **({} if started is None else {COLD: to_record(started)}),
        }
        return Ending(shipment(racing, choice), result, records)

    def _certified(self, winner: str, judgement: Judgement) -> None:
        """Write a bundle of what is certified, marked unfinished, and tell it before it is timed again.

        That is still a part of the stage before, so that it takes no time from the fresh rounds.
        """
        job, label, words = (
            self.racing.job,
            self.racing.candidate(winner).label,
            judgement.in_words(),
        )
        choice = Choice(winner, self.ladder.exact, "certified", untimed_yet(words), judgement)
        with contextlib.suppress(CandidateError):  # its files are gone, which the fresh rounds tell
            self.keep(shipment(self.racing, choice))
        said = f"certified after {job.deadline.elapsed_s:.0f} s: {label}: {words}"
        job.tell("certify", "certified", 1, 1, news=f"{said}; it is timed again before it ships")

    def _of_the_host(self, choice: Choice) -> Choice:
        """Say so where what ships is the original on the host, though the run is for a device."""
        racing = self.racing
        if racing.on_device(racing.candidate(choice.winner)):
            return choice
        device = racing.bench.target.device
        why = f"nothing ships for {device}: the bundle holds the original, for this host; {choice.why}"
        racing.job.notes.append(why)
        return replace(choice, why=why)

    def _one_at_a_time(self, choice: Choice) -> list[str]:
        """Return a note where what ships takes no batches, though the model does."""
        racing, model = self.racing, self.racing.ready.model
        artifact = racing.artifact(racing.candidate(choice.winner))
        if not share_batch_axis(model.inputs, model.outputs) or batch_sizes(artifact) is None:
            return []
        return [
            f"{racing.candidate(choice.winner).label} takes one sample per request, although the "
            "model takes batches: a server can't batch its requests"
        ]

    def _decided(self, final: Standings, choice: Choice) -> float:
        """Tell what ships, before further measurements; return after how many seconds it is decided.

        Its speed is told where it is that of the result's first line: on the threads that people have.
        """
        job, winner = self.racing.job, self.racing.candidate(choice.winner)
        decided_s = job.deadline.elapsed_s
        entrant = BASELINE if winner == self.racing.trials.baseline else choice.winner
        ratio = self._on_all(final, choice)
        if ratio is None and final.threads == self.racing.asked_threads and entrant != BASELINE:
            ratio = _ratio_of(final, entrant)
        speed = f", {1 / ratio.estimate:.2f}x" if ratio and entrant != BASELINE else ""
        said = f"decided after {decided_s:.0f} s: {winner.label} ships, {choice.status}{speed}"
        rounds = max(1, final.counted)
        job.tell("figures", "decided", rounds, rounds, news=said)
        return decided_s

    @property
    def _samples(self) -> int:
        """Number of samples on which the exact candidate was compared with the original."""
        parts = self.racing.ready.parts
        return len(parts.search) + len(parts.sealed)

    def _untested(self) -> str:
        """Say why no inexact candidate was tested on the sealed data, where none was."""
        tried = [t for t in self.racing.trials.done.values() if not t.candidate.least]
        inexact = [t for t in tried if not t.candidate.exact]
        return untested(len(inexact), sum(t.measurement is not None for t in inexact))

    def _fastest_uncertified(self, winner: str) -> str | None:
        """Return the fastest uncertified trial under the limit, if it clearly beats the winner."""
        trials, settled = self.racing.trials, settled_by_sealed_data(self.verdicts)
        able = [
            t
            for t in trials.measured()
            if not t.exact
            and t.candidate.key not in settled
            and trials.drop(t) < self.racing.ready.promise.max_drop
        ]
        if not able:
            return None
        fastest = min(able, key=lambda t: trials.ratio(t).estimate)
        own = trials.done.get(model_of(self.racing, winner))
        bar = 1.0 if own is None or own.measurement is None else trials.ratio(own).estimate
        return fastest.candidate.key if trials.ratio(fastest).estimate < bar * _CLEARLY else None

    def _records(
        self,
        choice: Choice,
        steps: Mapping[str, tuple[LayerTime, ...]],
        reached: Sequence[Limit],
        curve: Sequence[CurvePoint],
        loaded: Sequence[LoadTest],
    ) -> dict[str, Any]:
        """Return the raw records of the further measurements, by file name."""
        records: dict[str, Any] = {}
        if curve:
            records[CURVE] = curve_record(curve)
        if loaded:
            records["load.json"] = [load_record(test) for test in loaded]
        if "fastest exact" in steps:
            exact_steps = steps["fastest exact"]
            same = choice.winner == choice.exact
            both = {
                "exact": exact_steps,
                "winner": exact_steps if same else steps.get("winner", ()),
            }
            records["profile.json"] = to_record(both)
        if reached:
            records["limit.json"] = [
                {"name": at.role, "floor_ns": at.floor_ns, "ratio": at.ratio, "binds": at.binds}
                for at in reached
            ]
        return records

    def _limits(
        self, final: Standings, shown: Sequence[tuple[str, str, str]]
    ) -> tuple[Mapping[str, tuple[LayerTime, ...]], tuple[Limit, ...], Mapping[str, Limit]]:
        """Profile the winner and the exact model; compare latencies with the machine's limit."""
        if not self.racing.limited:
            return {}, (), {}
        if self.racing.job.deadline.left_s() < LIMITS_S * self.racing.slow:
            self.racing.job.notes.append(
                "the time limit left no time for the profiles and the distance from the "
                "machine's limit"
            )
            return {}, (), {}
        self.racing.job.tell("limit", "profiling, and comparing with what the machine can do", 0, 1)
        wanted = {role: key for role, key, _ in shown if role in ("fastest exact", "winner")}
        steps = profiles(self.racing, wanted)
        return steps, *limits(
            self.racing, final, {role: (key, who) for role, key, who in shown}, steps
        )

    def _fresh_figures(self, ships: Sequence[str], shown: Sequence[str | None]) -> Standings:
        """Time the candidates of the table again: the fastest of many looks faster than it is.

        Args:
            ships: Keys of those of which one ships.
            shown: Keys of others in the table, which are left out first where there is little time.
        """
        keys = dict.fromkeys(
            key for key in (*ships, *shown) if key not in (None, self.racing.trials.baseline.key)
        )
        wanted = [self.racing.candidate(key) for key in keys if key]
        needed = [one for one in wanted if one.key in ships]
        threads = self.racing.bench.target.threads
        final = self.racing.fresh(self.racing.timed_again(needed, wanted))
        self.racing.use_threads(threads)  # what was certified ships, whichever threads were timed
        return final

    def _on_all(self, final: Standings, choice: Choice) -> Ratio | None:
        """Compare what ships, as it ships, with the default engine on all threads that it takes.

        Returns:
            Ratio of their latencies; None where the fresh rounds tell it, or where it wasn't measured.
        """
        racing = self.racing
        threads, original = racing.bench.target.threads, racing.trials.baseline.key
        if final.threads == racing.asked_threads:
            return None
        if choice.winner == original and threads == racing.asked_threads:
            return None  # it is what people have
        if racing.as_it_was is not None:
            return _ratio_of(racing.as_it_was, choice.winner)
        raced = (self.ladder.exact, *self.ladder.rungs)[-1]
        if model_of(racing, choice.winner) != model_of(racing, raced):
            return None
        return _ratio_of(racing.threads_raced(), "one" if threads == 1 else "all")

    def _rows(self, final: Standings, choice: Choice, loose: str | None) -> tuple[Row, ...]:
        """Return the rows of the table; a candidate without fresh rounds has none."""
        rows = []
        for role, key, entrant in self._shown(choice, loose):
            accuracy = choice.why if role == "winner" else "exact"
            if role == "fastest exact" and key != self.racing.trials.baseline.key:
                accuracy = f"exact: {unchanged_in_words(self._samples)}"
            if role == "fastest uncertified":
                tried = self.racing.trials.outcome(self.racing.trials.done[key])
                accuracy = f"not certified; in the search: {tried}"
            if final.stands(entrant):
                rows.append(
                    row(
                        role,
                        self.racing.candidate(key).label,
                        final.rounds[entrant],
                        final.rounds[BASELINE],
                        size_bytes=self.racing.artifact(self.racing.candidate(key)).size_bytes,
                        accuracy=accuracy,
                        statistic=final.statistic_of(entrant),
                        processes=final.several,
                        refused=final.busy.get(entrant, {}),
                        refused_baseline=final.busy.get(BASELINE, {}),
                        by_time=final.by_time,
                    )
                )
        return tuple(rows)

    def _curve(self, key: str) -> list[CurvePoint]:
        """Measure the winner by batch, threads and sessions; failures become notes."""
        racing, longest_s = self.racing, self.racing.effort.curve_s
        left_s = min(longest_s, racing.job.deadline.left_s())
        if left_s < min(longest_s, _LEAST_CURVE_S * racing.slow) or left_s <= 0:
            if left_s < longest_s:
                racing.job.notes.append("batch curve: left out, because the time limit was reached")
            return []
        candidate = racing.candidate(key)
        points, missing = sweep(
            racing.bench_of_single,
            candidate.engine,
            racing.artifact(candidate),
            racing.ready.single,
            budget_s=left_s,
            seed=racing.job.order.seed,
            listen=lambda done, total: racing.job.tell("curve", "batch curve", done, total),
        )
        racing.job.notes += missing
        return points

    def _shown(self, choice: Choice, loose: str | None) -> list[tuple[str, str, str]]:
        """Return each row's role, its candidate's key, and its name in the fresh rounds."""
        baseline = self.racing.trials.baseline.key
        wanted = [("fastest exact", choice.exact)]
        if choice.winner != choice.exact:
            wanted.append(("winner", choice.winner))
        if loose is not None and loose != choice.winner:
            wanted.append(("fastest uncertified", loose))
        rows = [(role, key, BASELINE if key == baseline else key) for role, key in wanted]
        return [("default engine", baseline, AGAIN), *rows]


def shipment(racing: Racing, choice: Choice) -> Shipment:
    """Return the contents of the bundle for a choice."""
    winner = _part(racing, choice.winner)
    exact = winner if choice.winner == choice.exact else _part(racing, choice.exact)
    target = racing.bench.target
    threads = target.threads
    if not racing.on_device(racing.candidate(choice.winner)):
        target = Target.host().with_threads(threads)
    least = racing.candidate(choice.winner).least
    return Shipment(
        choice.status, choice.why, winner, exact, target, threads, choice.judgement, least
    )


def write_interim(racing: Racing, trial: Trial) -> None:
    """Write the best candidate so far as a bundle that is marked unfinished.

    Raises:
        InputError: the place holds something that no bundle may replace, or the disk is full.
    """
    exact = racing.trials.baseline.key
    choice = Choice(trial.candidate.key, exact, "uncertified", UNCERTIFIED_YET)
    delivery.write_interim(racing.job, racing.ready, shipment(racing, choice))


def _ratio_of(standings: Standings, who: str) -> Ratio | None:
    return standings.ratio(who) if standings.stands(who) else None


def _over_limit(racing: Racing) -> list[str]:
    """Return a note where what a run can't leave out took longer than the time limit."""
    deadline = racing.job.deadline
    if deadline.limit_s is None or not deadline.broken:
        return []
    return [
        f"the time limit of {deadline.limit_s:g} s was too short for the steps that every run "
        "needs (reading the model and the data, opening the original, timing it, writing the "
        "bundle): these took "
        f"{deadline.elapsed_s:.0f} s"
    ]


def _part(racing: Racing, key: str) -> Part:
    candidate = racing.candidate(key)
    return delivery.part_of(candidate, racing.artifact(candidate))


def _first_failing(judged: Verdicts) -> Judgement | None:
    """Return the judgement that ended the ladder; None where none did."""
    failing = (e for _, e in judged if isinstance(e, Judgement) and e.verdict != "certified")
    return next(failing, None)
