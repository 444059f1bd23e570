"""The end of a run: fresh figures for what was chosen, and the bundle that ships."""

from __future__ import annotations

import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten import bundle
from hasten.bundle import Manifest, Status
from hasten.candidate import Trial
from hasten.certificate.verdict import Judgement, Verdict
from hasten.certification import last_certified
from hasten.choose import faster
from hasten.measure.environment import environment
from hasten.pipeline.base import Pipeline
from hasten.records import digest, to_record
from hasten.report import page
from hasten.result import Result, Row, row
from hasten.run import FINAL_ROUNDS, Run
from hasten.search.race import AGAIN, BASELINE, Standings
from hasten.search.trials import ratio

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
class Delivery:
    """What a bundle needs besides the run.

    Attributes:
        out: The bundle's folder.
        population: What the certificate is about.
        pipeline: Kept in the bundle.
        keep_exact: Whether the exact model goes in too.
        accept_uncertified: Whether the fastest ships though nothing certifies.
    """

    out: Path
    population: str
    pipeline: Pipeline | None
    keep_exact: bool
    accept_uncertified: bool

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
        final = self._fresh_figures(run, [exact, winner, loose])
        choice = self._settled(run, final, exact, judged, loose)
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
        )
        evidence = {**_evidence(run, final, judged), "result.json": to_record(result)}
        html = page.render(result, environment(run.bench.target))
        self._write(run, choice, evidence, html)
        return result

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
        baseline = run.trials.baseline.key
        wanted = [("default engine", baseline, "exact"), ("fastest exact", choice.exact, "exact")]
        if choice.winner != choice.exact:
            wanted.append(("winner", choice.winner, choice.why))
        if loose is not None and loose != choice.winner:
            tried = run.trials.outcome(run.trials.done[loose])
            wanted.append(("fastest uncertified", loose, f"not certified; in the search: {tried}"))
        rows = []
        for role, key, accuracy in wanted:
            name = BASELINE if key == baseline else key
            if final.stands(name):
                rows.append(
                    row(
                        role,
                        run.candidate(key).label,
                        final.rounds[AGAIN if role == "default engine" else name],
                        final.rounds[BASELINE],
                        size_bytes=run.artifact(run.candidate(key)).size_bytes,
                        accuracy=accuracy,
                    )
                )
        return tuple(rows)

    def _write(
        self,
        run: Run,
        choice: Choice,
        evidence: dict[str, Any],
        html: bytes | None = None,
    ) -> None:
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
        bundle.write(self.out, manifest, evidence, {} if html is None else {"report.html": html})

    def _part(self, run: Run, key: str) -> bundle.Part:
        candidate = run.candidate(key)
        artifact = run.artifact(candidate)
        return bundle.part(candidate.label, candidate.passes, candidate.engine, artifact)


def _evidence(
    run: Run, final: Standings, judged: Sequence[tuple[str, Judgement | str]]
) -> dict[str, Any]:
    """Return the raw records that the figures and the certificate rest on, by file name."""
    return {
        "trials.json": [to_record(trial) for trial in run.trials.done.values()],
        "race.json": [e for e in run.journal.events("round") if e["race"].startswith("race/")],
        "figures.json": {
            "rounds": final.rounds,
            "refused": final.refused,
            "threads": final.threads,
        },
        "sealed.json": {
            "judged": [[k, to_record(e)] for k, e in judged],
            "hashes": run.parts.sealed_hashes,
            "seen": run.parts.seen_hashes,
            "groups": run.parts.group_hashes,
        },
    }


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
    fastest = min(trials, key=lambda t: ratio(t).estimate)
    own = run.trials.done.get(winner)
    floor = ratio(own).estimate if own is not None and own.measurement is not None else 1.0
    return fastest.candidate.key if ratio(fastest).estimate < floor * 0.95 else None
