"""The steps of a run: try, race, freeze, certify. Each is taken up from the journal where it stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from hasten.certificate.betting import BettingPrior
from hasten.certificate.certification import judge_ladder, prior_of, sealed_scores
from hasten.certificate.verdict import Judgement
from hasten.core.progress import Listener, Progress
from hasten.core.records import digest, from_record, to_record
from hasten.engines.base import Artifact
from hasten.errors import CandidateError, InputError
from hasten.measure.candidate import Candidate, Single, Trial
from hasten.measure.ceilings import measure
from hasten.measure.intervals import Ratio
from hasten.measure.journal import Journal
from hasten.measure.latency import Pace
from hasten.measure.probe import usable_threads
from hasten.measure.process import Worker
from hasten.measure.race import AGAIN, BASELINE, NotEstablished, Standings, race
from hasten.measure.roofline import Floor, floor
from hasten.measure.work import work
from hasten.measure.workbench import OpenWorker, Workbench
from hasten.optimization.choose import Standing, faster, fastest_exact, ladder, undecided
from hasten.optimization.search.exploration import Exploration
from hasten.optimization.search.mixing import SCREEN_NOISE
from hasten.optimization.search.order import Order
from hasten.optimization.search.trials import Trials
from hasten.optimization.workspace import Parts

FIELD = 6
"""Entrants of the race beside the twins: what keeps a run's memory under 3 GiB."""
RACE_ROUNDS = 24
FINAL_ROUNDS = 40
SETTLED = 0.03
"""The A/A spread that the final figures wait for, on a noisy host for up to four times the rounds."""
RACE_SETTLED = 0.1
"""The same of the race, which only has to tell who is faster."""
_P99_WIDER = 3.0
"""How many times wider both are where p99s are compared."""


@dataclass
class Run:
    """One run's state; what matters of it is in the journal.

    Attributes:
        bench: Where candidates are made.
        journal: What is behind.
        parts: The data.
        order: What was asked for.
        listen: Told of each step.
        on_better: Called with a trial that is the best so far, to write an interim bundle.
        pace: Lengths of the turns.
        LIMITS: Whether latencies are set against what the machine can do.
    """

    LIMITS: ClassVar[bool] = True

    bench: Workbench
    journal: Journal
    parts: Parts
    order: Order
    listen: Listener
    on_better: Callable[[Run, Trial], None]
    pace: Pace = field(default_factory=Pace)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.asked_threads = self.bench.target.threads
        self.trials = Trials(
            self.bench,
            self.journal,
            self.parts.search,
            self.order.metric,
            max_drop=self.order.max_drop,
            guard=self.order.guard,
            pace=self.pace,
            seed=self.order.seed,
            objective=self.order.objective,
            sealed_draws=len(np.unique(self.parts.sealed_units)),
        )

    def close(self) -> None:
        """End the processes that are still there."""
        self.trials.close()

    # -- try

    def try_all(self, grid: Sequence[Single]) -> None:
        """Try candidates on the search split until nothing promising is left, or the time is up."""
        self._tell("prepare", "opening the original model", 0, 1)
        self._settle_threads()
        self.trials.begin(grid)
        self.notes += [*self.trials.notes, *self._original()]
        Exploration(
            self.trials,
            self.order,
            units=self.parts.search_units,
            sealed_draws=len(np.unique(self.parts.sealed_units)),
            sealed_samples=len(self.parts.sealed),
            listen=self.listen,
            on_better=lambda trial: self.on_better(self, trial),
            least=self._least,
            notes=self.notes,
        ).explore(grid)

    @property
    def limited(self) -> bool:
        """Whether latencies are set against what this host can do: not those of a device in it."""
        return self.LIMITS and self.bench.target.kind == "host"

    def _least(self, precision: str | None) -> Floor | None:
        """The least time that this machine can take for the model, whatever runs it, in one precision or
        the fastest that it has; None where it can't be told."""
        if not self.limited:
            return None
        self.trials.opened_baseline().worker.sleep()
        try:
            layers = work(self.bench.model)
            everywhere = precision and {layer.name: precision for layer in layers}
            ceilings = measure(self.bench.target, self.bench.folder)
            return floor(layers, ceilings, everywhere or None)
        except (CandidateError, InputError):
            return None  # said at the end, where latencies are set against it

    def _original(self) -> list[str]:
        """Say how right the original is: where it is wrong, so is what agrees with it."""
        share, metric = float(self.trials.exact_scores.mean()), self.order.metric
        if not metric.needs_labels and share == 1:
            return []
        wrong = (
            ""
            if share >= 0.5
            else "; if it should be more, labels or preparation are wrong, and so is any certificate"
        )
        return [
            f"the original's own {metric.noun} is {100 * share:.1f}% on {len(self.parts.search):,} "
            f"samples of the search split{wrong}"
        ]

    def _settle_threads(self) -> None:
        """See how many threads the host runs at once, once per run; a busy one is timed with one."""
        known = self.journal.last("threads")
        asked = self.bench.target.threads
        threads = known["threads"] if known is not None else usable_threads(asked)
        if known is None:
            self.journal.append("threads", threads=threads)
        if threads < asked:
            self.notes.append(
                f"{asked} threads: not established, one thread is quoted: the host did not run "
                f"{asked} threads at once when the run began"
            )
        self.use_threads(threads)

    def use_threads(self, threads: int) -> None:
        """Give engines so many threads from here on."""
        target = self.bench.target.with_threads(threads)
        self.bench = self.trials.bench = dataclasses.replace(self.bench, target=target)

    # -- race

    def standing(self, trial: Trial, figure: Ratio) -> Standing:
        """What the choice needs to know of a trial."""
        candidate = trial.candidate
        drop, risk = self.trials.drop(trial), self.trials.risk(trial)
        return Standing(candidate.key, candidate.exact, figure, drop, risk)

    def field(self) -> list[Candidate]:
        """Who races: the exact ones that may win, the ladder of the screening, and who may be as good."""
        even = Ratio(1.0, 1.0, 1.0, 0)
        baseline = Standing(self.trials.baseline.key, True, even, 0.0, 0.0)
        trials = self.trials.measured()
        standings = [baseline, *(self.standing(t, self.trials.ratio(t)) for t in trials)]
        by_key = {t.candidate.key: t.candidate for t in self.trials.done.values()}
        exact = sorted(
            (s for s in standings[1:] if s.exact and s.ratio.estimate < 1 + SCREEN_NOISE),
            key=lambda s: s.ratio.estimate,
        )[:2]
        rungs = ladder(
            standings,
            baseline.key,
            spread=0.0,
            max_drop=self.order.max_drop,
            rungs=FIELD - len(exact),
        )
        close = undecided(standings, self.order.max_drop)
        chosen = dict.fromkeys([*(s.key for s in exact), *rungs, *close])
        return [by_key[key] for key in list(chosen)[:FIELD]]

    def race(
        self, name: str, candidates: Sequence[Candidate], rounds: int, *, dropping: bool
    ) -> Standings:
        """Race candidates against the baseline and its twin, on as many threads as the host gives."""
        for threads in dict.fromkeys((self.bench.target.threads, 1)):
            bench = dataclasses.replace(self.bench, target=self.bench.target.with_threads(threads))
            try:
                return self._race(bench, f"{name}/{threads}", candidates, rounds, dropping)
            except NotEstablished as why:
                self.notes.append(
                    f"{threads} threads: not established, one thread is quoted: {why}"
                )
                self.use_threads(1)
        raise AssertionError("one thread needs no probe")

    def _race(
        self,
        bench: Workbench,
        name: str,
        candidates: Sequence[Candidate],
        count: int,
        dropping: bool,
    ) -> Standings:
        entrants: dict[str, Worker] = {}
        self.trials.close()
        # Nothing inexact is as safe as the exact, whatever few samples say.
        risks = {
            c.key: -1.0 if c.exact else self.trials.risk(self.trials.done[c.key])
            for c in candidates
        }
        try:
            self._enter(entrants, bench, candidates)
            standings = race(
                name,
                entrants,
                self.parts.search,
                self.journal,
                threads=bench.target.threads,
                count=count,
                pace=self.pace,
                seed=self.order.seed,
                settle=self._settle(dropping=dropping),
                objective=self.order.objective,
                uneven={c.key for c in candidates if c.engine.uneven},
                risks=risks if dropping else None,
                listen=lambda s: self._tell(
                    name.partition("/")[0], f"round {s.counted + s.refused}", s.counted, count
                ),
            )
        finally:
            for worker in entrants.values():
                worker.kill()
        where = "race" if dropping else "fresh rounds"
        if not standings.established:
            taken = f"{standings.counted} {'rounds of the race' if dropping else 'fresh rounds'}"
            self.notes.append(
                f"{self.order.objective}: not established in {taken}, means are compared instead"
            )
        for key, why in standings.failed.items():
            self.notes.append(f"{self.candidate(key).label} fell out of the {where}: {why}")
        return standings

    def _settle(self, *, dropping: bool) -> float:
        """The A/A spread to wait for; of a p99 so fine a one as of the rest would take hours."""
        wider = _P99_WIDER if self.order.objective == "p99" else 1.0
        return wider * (RACE_SETTLED if dropping else SETTLED)

    def _enter(
        self, entrants: dict[str, Worker], bench: Workbench, candidates: Sequence[Candidate]
    ) -> None:
        """Open the twins and the candidates, one after another; what can't be opened stays out."""
        for who, candidate in [
            (BASELINE, self.trials.baseline),
            (AGAIN, self.trials.baseline),
            *((c.key, c) for c in candidates),
        ]:
            try:
                opened = bench.open_built(candidate.engine, self.artifact(candidate))
                entrants[who] = opened.worker
            except CandidateError as error:
                if who in (BASELINE, AGAIN):
                    raise InputError(f"the baseline failed: {error}") from error
                self.notes.append(f"{candidate.label} fell out before the race: {error}")
                continue
            entrants[who].sleep()

    # -- freeze and certify

    def freeze_ladder(self) -> tuple[str, tuple[str, ...]]:
        """Race, choose the exact model to beat and the ladder, and journal both with their hash.

        Returns:
            The exact candidate's key, and the rungs' keys, safest first. From here on they stand:
            a resumed run takes the same.
        """
        frozen = self.journal.last("ladder")
        if frozen is None:
            field = self.field()
            standings = self.race("race", field, RACE_ROUNDS, dropping=True)
            baseline = self.trials.baseline.key
            even = Ratio(1.0, 1.0, 1.0, standings.counted)
            entered = [Standing(baseline, True, even, 0.0, 0.0)] + [
                self.standing(self.trials.done[c.key], standings.ratio(c.key))
                for c in field
                if standings.stands(c.key)
            ]
            if standings.spread > RACE_SETTLED:
                self.notes.append(
                    f"in the race the same model against itself differed by {100 * standings.spread:.0f}%, "
                    "and nothing less counted as faster: run again on a quieter machine"
                )
            exact = fastest_exact(entered, baseline, standings.spread)
            rungs = ladder(entered, exact, spread=standings.spread, max_drop=self.order.max_drop)
            threads = standings.threads
            if threads < self.asked_threads:
                threads, stays = self._threads_to_ship(self.candidate((exact, *rungs)[-1]))
                exact, rungs = (exact, rungs) if stays else (baseline, ())
            choice = {"exact": exact, "rungs": list(rungs), "threads": threads}
            self.journal.append("ladder", choice=choice, sha256=digest(choice))
            frozen = self.journal.last("ladder")
        assert frozen is not None
        choice = frozen["choice"]
        if digest(choice) != frozen["sha256"]:
            raise InputError(
                f"{self.journal.path}: the frozen ladder was changed; remove the folder"
            )
        self.use_threads(choice["threads"])
        return choice["exact"], tuple(choice["rungs"])

    def _threads_to_ship(self, best: Candidate) -> tuple[int, bool]:
        """See how the host serves several threads as it is, in rounds that all count.

        What one thread is quoted for may still be faster on several, and the default engine has
        several where nobody says otherwise.

        Returns:
            On how many threads the best is faster, and whether it beats the default engine on all.
        """
        asked, baseline = self.asked_threads, self.trials.baseline
        desks = {n: self.bench.target.with_threads(n) for n in (1, asked)}
        entrants: dict[str, Worker] = {}
        self.trials.close()
        try:
            for who, candidate, threads in (
                (BASELINE, baseline, asked),
                (AGAIN, baseline, asked),
                ("one", best, 1),
                ("all", best, asked),
            ):
                bench = dataclasses.replace(self.bench, target=desks[threads])
                opened = bench.open_built(candidate.engine, self.artifact(candidate))
                entrants[who] = opened.worker
                opened.worker.sleep()
            standings = race(
                "as it is",
                entrants,
                self.parts.search,
                self.journal,
                threads=asked,
                count=RACE_ROUNDS,
                pace=self.pace,
                seed=self.order.seed,
                settle=self._settle(dropping=True),
                objective=self.order.objective,
                uneven=("one", "all") if best.engine.uneven else (),
                probe=lambda _: True,
            )
        except CandidateError:
            return 1, True  # it ran on one thread in the race
        finally:
            for worker in entrants.values():
                worker.kill()
        if not (standings.stands("one") and standings.stands("all")):
            return 1, True
        one, several = standings.ratio("one"), standings.ratio("all")
        threads, ratio_ = (asked, several) if several.estimate < one.estimate else (1, one)
        even = Ratio(1.0, 1.0, 1.0, standings.counted)
        stays = best == baseline or faster(ratio_, even, standings.spread)
        self.notes.append(
            f"as the host is, {best.label} took {ratio_.estimate:.2f} of the default engine's time on "
            f"{asked} threads ({ratio_.low:.2f} to {ratio_.high:.2f}); it runs on {threads}"
        )
        return (threads if stays else asked), stays

    def candidate(self, key: str) -> Candidate:
        """The candidate of a key that was tried."""
        if key == self.trials.baseline.key:
            return self.trials.baseline
        return self.trials.done[key].candidate

    def artifact(self, candidate: Candidate) -> Artifact:
        """What was built of a candidate; built anew where a stopped run's files are gone.

        Raises:
            CandidateError: it can't be built any more.
        """
        trial = self.trials.done.get(candidate.key)
        artifact = trial.artifact if trial is not None else None
        if artifact is None or not artifact.path.exists():
            opened = self.bench.open(candidate)
            opened.worker.kill()
            artifact = opened.artifact
        return artifact

    def certify(self, rungs: Sequence[str]) -> list[tuple[str, Judgement | str]]:
        """Read the sealed data once and test the frozen ladder on it."""
        if not rungs:
            return []
        known = self.journal.last("judged")
        if known is not None:
            return [
                (key, entry if isinstance(entry, str) else from_record(Judgement, entry))
                for key, entry in known["judged"]
            ]
        self.journal.append("sealed read", samples=len(self.parts.sealed))
        self.trials.close()
        opened: dict[str, OpenWorker] = {}
        failed: dict[str, str] = {}
        exact = self._opened_exact()
        try:
            for key in rungs:
                try:
                    candidate = self.candidate(key)
                    opened[key] = self.bench.open_built(candidate.engine, self.artifact(candidate))
                except CandidateError as error:
                    failed[key] = str(error)
            total = len(self.parts.sealed)
            original, scores = sealed_scores(
                self.bench,
                exact,
                opened,
                self.parts.sealed,
                self.order.metric,
                lambda done: self._tell("certify", "reading the sealed data, once", done, total),
            )
        finally:
            for one in (exact, *opened.values()):
                one.worker.kill()
        judged = judge_ladder(
            original,
            rungs,
            {**scores, **failed},
            self.parts.sealed_units,
            {key: self._prior(key) for key in rungs},
            metric=self.order.metric,
            guard=self.order.guard,
            max_drop=self.order.max_drop,
            confidence=self.order.confidence,
            binary=self.trials.binary,
        )
        self.journal.append("judged", judged=[[key, to_record(entry)] for key, entry in judged])
        return judged

    def _opened_exact(self) -> OpenWorker:
        baseline = self.trials.baseline
        try:
            return self.bench.open_built(baseline.engine, self.artifact(baseline))
        except CandidateError as error:
            raise InputError(f"the baseline failed: {error}") from error

    def _prior(self, key: str) -> BettingPrior:
        trial = self.trials.done[key]
        return prior_of(self.trials.drops(trial), self.parts.search_units)

    def _tell(
        self, stage: str, doing: str, done: int, total: int, outcome: str | None = None
    ) -> None:
        self.listen(Progress(stage, doing, done, total, outcome))
