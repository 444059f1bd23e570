"""The end of a run: fresh figures for what was chosen, and the bundle that ships."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hasten import bundle
from hasten.bundle import Manifest, Status
from hasten.certificate.certification import last_certified
from hasten.certificate.verdict import Judgement, Verdict
from hasten.core.invocation import Invocation
from hasten.core.progress import Progress
from hasten.core.records import digest, to_record
from hasten.engines.layers import LayerTime
from hasten.inputs.pipeline.base import Pipeline
from hasten.measure.candidate import Trial
from hasten.measure.curve import CURVE, CurvePoint, curve_record
from hasten.measure.environment import environment
from hasten.measure.race import AGAIN, BASELINE, Standings
from hasten.measure.scenario import in_words, load_record
from hasten.measure.sweep import BUDGET_S, sweep
from hasten.optimization.choose import faster
from hasten.optimization.limits import limits, profiles
from hasten.optimization.loads import loads
from hasten.optimization.outcomes import (
    asked,
    best_of_ways,
    evidence,
    ladder,
    outcomes,
    way_of,
    ways,
)
from hasten.optimization.run import FINAL_ROUNDS, Run
from hasten.passes.little import Little
from hasten.report.evidence import assembled
from hasten.report.result import UNEVEN, Limit, Result, Row, row

CURVE_S = BUDGET_S
"""How long the batch curve may take; 0 for none."""
_INTERIM = "the run has not finished: the fastest found so far, not certified; go on with --resume"


def check_place(out: Path) -> None:
    """See before any work whether a bundle can be written where it is wanted.

    Raises:
        InputError: there is something that no bundle may replace.
    """
    bundle.replaceable(out)


@dataclass(frozen=True)
class Choice:
    """What ships.

    Attributes:
        winner: Key of the candidate that the bundle serves.
        exact: Key of the exact one that it falls back on.
        status: "certified", "exact" or "uncertified".
        why: The status in words.
        judgement: The winner's, where it is certified.
    """

    winner: str
    exact: str
    status: Status
    why: str
    judgement: Judgement | None = None


@dataclass(frozen=True)
class Compared:
    """Smaller models that are compared with each other.

    Attributes:
        trained: Name -> how it came about, in words; empty where there are none with names.
        budget_s: What one request may take, in seconds; None for no limit.
    """

    trained: Mapping[str, str] = field(default_factory=dict)
    budget_s: float | None = None


@dataclass(frozen=True)
class Delivery:
    """What a bundle needs besides the run.

    Attributes:
        out: The bundle's folder.
        population: What the certificate is about.
        pipeline: Kept in the bundle.
        keep_exact: Whether the exact model goes in too.
        accept_uncertified: Whether the fastest ships though nothing certifies.
        latency_bound_s: That a server's requests are to stay under, in seconds; None for none.
        invocation: How the run was asked for.
        compared: Smaller models that the result sets side by side.
    """

    out: Path
    population: str
    pipeline: Pipeline | None
    keep_exact: bool
    accept_uncertified: bool
    latency_bound_s: float | None = None
    invocation: Invocation = field(default_factory=Invocation)
    compared: Compared = field(default_factory=Compared)

    def interim(self, run: Run, trial: Trial) -> None:
        """Write the best so far, marked uncertified; a finished bundle there stays till the end.

        Raises:
            InputError: there is something that no bundle may replace, or the disk is full.
        """
        older = bundle.replaceable(self.out)
        if older is not None and older.get("why") != _INTERIM:
            return
        exact = run.trials.baseline.key
        self._write(run, Choice(trial.candidate.key, exact, "uncertified", _INTERIM), {})

    def finish(
        self, run: Run, exact: str, judged: Sequence[tuple[str, Judgement | str]], begin: float
    ) -> Result:
        """Time what was chosen in fresh rounds, and write the bundle.

        Args:
            run: Behind it all but this.
            exact: Key of the exact candidate to fall back on.
            judged: What the sealed data said, safest first.
            begin: `time.monotonic()` as the run began.
        """
        passed = last_certified(judged)
        winner = passed[0] if passed else exact
        loose = _fastest_uncertified(run, judged, winner)
        budget_s = self.compared.budget_s
        best = best_of_ways(run, budget_s) if self.compared.trained else {}
        final = self._fresh_figures(run, [exact, winner, loose, *best.values()])
        choice = self._settled(run, final, exact, judged, loose)
        way = way_of(run.candidate(choice.winner)) if best else ""
        best |= {way: choice.winner} if way else {}
        shown = _shown(run, choice, loose)
        run.notes += [
            UNEVEN.format(run.candidate(key).label)
            for _, key, entrant in shown
            if final.stands(entrant) and final.statistic_of(entrant) != final.statistic
        ]
        steps, reached, by_candidate = self._limits(run, final, shown)
        curve = _curve(run, choice.winner)
        loaded = loads(run, choice.winner, self.latency_bound_s)
        result = Result(
            bundle=self.out,
            status=choice.status,
            why=choice.why,
            judgement=choice.judgement or _first_failing(judged),
            population=self.population,
            rows=self._rows(run, final, choice, loose),
            spread=final.spread,
            threads=final.threads,
            tried={t.candidate.label: run.trials.outcome(t) for t in run.trials.done.values()},
            notes=(*run.parts.notes, *run.notes),
            seconds=time.monotonic() - begin,
            objective=final.statistic,
            outcomes=outcomes(run, by_candidate),
            ladder=ladder(run, judged),
            asked=asked(run, self.invocation),
            limits=reached,
            loads=tuple(in_words(test)[0] for test in loaded),
            ways=ways(run, final, judged, best, self.compared.trained),
            budget_ns=None if budget_s is None else 1e9 * budget_s,
            way=way,
        )
        roles = {role: entrant for role, _, entrant in shown}
        records = {**evidence(run, final, judged, roles), "result.json": to_record(result)}
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
        self._write(run, choice, records)
        return result

    def _limits(
        self, run: Run, final: Standings, shown: Sequence[tuple[str, str, str]]
    ) -> tuple[Mapping[str, tuple[LayerTime, ...]], tuple[Limit, ...], Mapping[str, Limit]]:
        """Profile what ships and the exact model; set all against what the machine can do."""
        deadline = run.order.deadline
        if not run.limited or (deadline is not None and time.monotonic() > deadline):
            return {}, (), {}
        run.listen(Progress("limit", "what the machine can do", 0, 1))
        wanted = {role: key for role, key, _ in shown if role in ("fastest exact", "winner")}
        steps = profiles(run, wanted)
        return steps, *limits(run, final, {role: (key, who) for role, key, who in shown}, steps)

    def _fresh_figures(self, run: Run, shown: Sequence[str | None]) -> Standings:
        """Time what the table shows, anew: the fastest of many looks faster than it is."""
        keys = dict.fromkeys(key for key in shown if key not in (None, run.trials.baseline.key))
        threads = run.bench.target.threads
        final = run.race(
            "figures", [run.candidate(key) for key in keys if key], FINAL_ROUNDS, dropping=False
        )
        run.use_threads(threads)  # what was certified ships, whatever could be quoted
        return final

    def _settled(
        self,
        run: Run,
        final: Standings,
        exact: str,
        judged: Sequence[tuple[str, Judgement | str]],
        loose: str | None,
    ) -> Choice:
        """Say what ships, by what was certified and by the fresh figures."""
        passed = last_certified(judged)
        winner = passed[0] if passed else exact
        baseline = run.trials.baseline.key
        if exact != baseline and not self._beats(run, final, baseline, exact):
            winner, exact = (baseline if winner == exact else winner), baseline
        winner = self._still_fastest(run, final, exact, winner)
        if passed and passed[0] == winner:
            return Choice(winner, exact, "certified", passed[1].in_words(), passed[1])
        why = _why_exact(judged, final)
        if self.accept_uncertified and loose is not None and self._beats(run, final, exact, loose):
            why = f"shipped by --accept-uncertified: {why}"
            return Choice(loose, exact, "uncertified", why)
        return Choice(winner, exact, "exact", why)

    def _still_fastest(self, run: Run, final: Standings, exact: str, winner: str) -> str:
        """What does not beat the exact model in fresh rounds too, beyond the noise, isn't shipped."""
        if winner == exact or self._beats(run, final, exact, winner):
            return winner
        if final.stands(winner):
            run.notes.append(
                f"{run.candidate(winner).label} passed, but in fresh rounds it was not faster than the "
                "exact model beyond the noise: the exact model ships"
            )
        return exact

    def _beats(self, run: Run, final: Standings, exact: str, other: str) -> bool:
        """Whether another is faster than the exact model in the fresh rounds, beyond the noise."""
        reference = final.ratio(exact if final.stands(exact) else BASELINE)
        return final.stands(other) and faster(final.ratio(other), reference, final.spread)

    def _rows(
        self, run: Run, final: Standings, choice: Choice, loose: str | None
    ) -> tuple[Row, ...]:
        """Return the table: only what was timed in the fresh rounds stands in it."""
        rows = []
        for role, key, entrant in _shown(run, choice, loose):
            accuracy = choice.why if role == "winner" else "exact"
            if role == "fastest uncertified":
                tried = run.trials.outcome(run.trials.done[key])
                accuracy = f"not certified; in the search: {tried}"
            if final.stands(entrant):
                rows.append(
                    row(
                        role,
                        run.candidate(key).label,
                        final.rounds[entrant],
                        final.rounds[BASELINE],
                        size_bytes=run.artifact(run.candidate(key)).size_bytes,
                        accuracy=accuracy,
                        statistic=final.statistic_of(entrant),
                    )
                )
        return tuple(rows)

    def _write(
        self,
        run: Run,
        choice: Choice,
        records: dict[str, Any],
    ) -> None:
        """Write the bundle, with its report where there is a result."""
        order, target = run.order, run.bench.target
        winner = self._part(run, choice.winner)
        exact = winner if choice.winner == choice.exact else self._part(run, choice.exact)
        judgement = choice.judgement
        manifest = Manifest(
            status=choice.status,
            why=choice.why,
            winner=winner,
            exact=exact if self.keep_exact else None,
            metric=to_record(order.metric),
            certificate=None
            if judgement is None
            else {
                "judgement": to_record(judgement),
                "words": judgement.in_words(),
                "population": self.population,
                "batch_sizes": [1],
                "threads": target.threads,
            },
            source_sha256=run.bench.model.sha256,
            sealed={"samples": len(run.parts.sealed), "sha256": digest(run.parts.sealed_hashes)},
            target=target,
            environment=environment(target),
            pipeline=self.pipeline,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        extra = {}
        if "result.json" in records:
            # Here, since a plotting library comes with it that no run should wait for.
            from hasten.report import page

            # From the very records that are kept, so that it is the page that `report` makes of them.
            report = assembled(
                self.out,
                manifest,
                lambda name, _: (
                    json.dumps(to_record(records[name])).encode() if name in records else None
                ),
            )
            extra["report.html"] = page.render(report)
        bundle.write(self.out, manifest, records, extra)

    def _part(self, run: Run, key: str) -> bundle.Part:
        candidate = run.candidate(key)
        artifact = run.artifact(candidate)
        passes = [
            # Where it lay is nobody's business.
            replace(step, path=Path(step.path.name), files=()) if isinstance(step, Little) else step
            for step in candidate.passes
        ]
        return bundle.part(candidate.label, passes, candidate.engine, artifact)


def _curve(run: Run, key: str) -> list[CurvePoint]:
    """Measure what ships by batch, threads and sessions; what fails of it is a note."""
    deadline = run.order.deadline
    left_s = CURVE_S if deadline is None else min(CURVE_S, deadline - time.monotonic())
    if left_s <= 0:
        if left_s < CURVE_S:
            run.notes.append("batch curve: left out, the time limit is reached")
        return []
    candidate = run.candidate(key)
    points, missing = sweep(
        run.bench,
        candidate.engine,
        run.artifact(candidate),
        run.parts.search,
        budget_s=left_s,
        seed=run.order.seed,
        listen=lambda done, total: run.listen(Progress("curve", "batch curve", done, total)),
    )
    run.notes += missing
    return points


def _shown(run: Run, choice: Choice, loose: str | None) -> list[tuple[str, str, str]]:
    """Return each row's role, the candidate's key, and its name in the fresh rounds."""
    baseline = run.trials.baseline.key
    wanted = [("fastest exact", choice.exact)]
    if choice.winner != choice.exact:
        wanted.append(("winner", choice.winner))
    if loose is not None and loose != choice.winner:
        wanted.append(("fastest uncertified", loose))
    rows = [(role, key, BASELINE if key == baseline else key) for role, key in wanted]
    return [("default engine", baseline, AGAIN), *rows]


def _first_failing(judged: Sequence[tuple[str, Judgement | str]]) -> Judgement | None:
    """Return the judgement that ended the ladder, where one did."""
    failing = (e for _, e in judged if isinstance(e, Judgement) and e.verdict != "certified")
    return next(failing, None)


def _why_exact(judged: Sequence[tuple[str, Judgement | str]], final: Standings) -> str:
    """Say why nothing inexact ships."""
    passed = last_certified(judged)
    if passed is not None and not final.stands(passed[0]):
        return "what was certified fell out of the fresh rounds"
    if passed is not None:
        return "what was certified was not faster than the exact model in fresh rounds"
    if not judged:
        return "nothing under the limit on the search split beat the exact model beyond the noise"
    entry = judged[0][1]
    return entry.in_words() if isinstance(entry, Judgement) else f"the candidate failed: {entry}"


def _settled_by_sealed_data(judged: Sequence[tuple[str, Judgement | str]]) -> set[str]:
    """Return the keys that passed, that surely aren't accurate enough, or that failed there."""
    return {
        key
        for key, entry in judged
        if isinstance(entry, str) or entry.verdict is not Verdict.NOT_ENOUGH_DATA
    }


def _fastest_uncertified(
    run: Run, judged: Sequence[tuple[str, Judgement | str]], winner: str
) -> str | None:
    """The fastest trial under the limit on the search split that isn't certified, if it beats what ships."""
    settled = _settled_by_sealed_data(judged)
    trials = [
        t
        for t in run.trials.measured()
        if not t.candidate.exact
        and t.candidate.key not in settled
        and run.trials.drop(t) < run.order.max_drop
    ]
    if not trials:
        return None
    fastest = min(trials, key=lambda t: run.trials.ratio(t).estimate)
    own = run.trials.done.get(winner)
    floor = 1.0
    if own is not None and own.measurement is not None:
        floor = run.trials.ratio(own).estimate
    return fastest.candidate.key if run.trials.ratio(fastest).estimate < floor * 0.95 else None
