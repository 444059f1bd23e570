"""Candidates timed in turns beside the baseline: the screening, the races, and their artifacts."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hasten.core.progress import StageName
from hasten.core.workers import Worker
from hasten.engines.base import Artifact, Engine
from hasten.engines.installed import serves
from hasten.errors import CandidateError, InputError
from hasten.measure.candidate import Candidate, Trial
from hasten.measure.deadline import Deadline
from hasten.measure.intervals import Ratio
from hasten.measure.latency import Pace
from hasten.measure.probe import disturbance, on_one_thread, probe_of, usable_threads
from hasten.measure.race import (
    AGAIN,
    BASELINE,
    NotEstablished,
    Rules,
    Standings,
    journaled,
    race,
)
from hasten.measure.workbench import Workbench
from hasten.optimization.choose import Standing, entrants, faster
from hasten.optimization.job import Job
from hasten.optimization.measured.affording import FEWEST_ROUNDS, Affording
from hasten.optimization.measured.screening import SCREEN_NOISE, Screening
from hasten.optimization.ready import Ready
from hasten.optimization.trials import DOUBT

FIELD = 6
"""Entrants of the race besides the twins, few enough to keep a run's memory under 3 GiB."""
_TWINS = (BASELINE, AGAIN)
_OPENED_AT_ONCE = 2
_TRIAL_LIMIT_S = 300.0
_ALL_THREADS = "as it is"
"""Name of the race against the default engine on all of its threads."""
_PART_OF_A_TURN = 3
"""Divisor of a turn's length in the hundreds of fresh rounds that a p99 takes."""


class Racing(Affording):
    """Times a run's candidates in turns, on as many threads as the host provides.

    Attributes:
        job: The run at work.
        ready: Model and data of the run.
        effort: Effort of the run, with its numbers of rounds.
        bench: Workbench that makes candidates, with the threads that engines have now.
        trials: Screening of each candidate beside the baseline.
        asked_threads: Number of threads that the target has.
        as_it_was: Fresh rounds on more threads than the host ran at once, all of them, where the
            figures had to be taken on one thread; None where they are of what ships.
    """

    as_it_was: Standings | None = None

    def __init__(self, job: Job, ready: Ready) -> None:
        order = job.order
        limit_s = order.trial_limit_s or _TRIAL_LIMIT_S
        self.job, self.ready, self.effort = job, ready, order.effort
        self.bench = dataclasses.replace(ready.bench(job.folder, limit_s), deadline=job.deadline)
        self.pace = order.effort.pace(order.objective, min(Pace.limit_s, limit_s))
        self.asked_threads = self.bench.target.threads
        self._busy = ""
        self.trials = Screening(
            self.bench,
            job.journal,
            ready.parts.search,
            ready.search_promise,
            pace=self.pace,
            seed=order.seed,
            objective=order.objective,
            sealed_draws=ready.sealed_draws,
            units=ready.parts.search_units,
            trusted=Engine.paths(order.engines or ()),
        )

    @property
    def limited(self) -> bool:
        """Whether latencies are compared with the machine's limit: only on this host."""
        return self.effort.ceilings and self.bench.target.kind == "host"

    @property
    def bench_of_single(self) -> Workbench:
        """Return the workbench on which a request is one step, even where samples are sequences."""
        return dataclasses.replace(self.bench, sequences=None)

    def settle_threads(self) -> None:
        """Find how many threads the host runs at once, once per run; a busy host gets one."""
        known = self.job.journal.last("threads")
        asked = self.bench.target.threads
        threads = known["threads"] if known is not None else usable_threads(asked)
        if known is None:
            self.job.journal.append("threads", threads=threads)
        if threads < asked:
            self._busy = f"the host did not run {asked} threads at once when the run began"
        self.use_threads(threads)

    def use_threads(self, threads: int) -> None:
        """Set the number of threads that engines have from here on."""
        target = self.bench.target.with_threads(threads)
        self.bench = self.trials.bench = dataclasses.replace(self.bench, target=target)

    def standing(self, trial: Trial, figure: Ratio) -> Standing:
        """Return what the choice needs to know about a trial."""
        candidate = trial.candidate
        drop, risk = self.trials.drop(trial), self.trials.risk(trial)
        return Standing(candidate.key, trial.exact, figure, drop, risk)

    def outdoes(self, fast: str, safe: str) -> bool:
        """Whether the faster of two candidates is the better one to test, if there is time for one alone.

        One that the search split shows to be barely accurate enough passes in about half of the cases. So its
        speed-up must be above the square of the safer one's.

        Args:
            fast: Key of the faster candidate.
            safe: Key of the safer candidate.
        """
        trials, ready = self.trials, self.ready
        one, other = trials.done[fast], trials.done[safe]

        def passes(doubt: float) -> bool:
            units, draws = ready.parts.search_units, ready.sealed_draws
            return trials.probably_certified(one, units, draws, doubt=doubt)

        gains_most = trials.ratio(one).estimate < trials.ratio(other).estimate ** 2
        return passes(DOUBT) or (gains_most and passes(0.0))

    def field(self) -> list[Candidate]:
        """Return the entrants of the race: fast exact ones, the ladder so far, and near ties."""
        even = Ratio(1.0, 1.0, 1.0, 0)
        baseline = Standing(self.trials.baseline.key, True, even, 0.0, 0.0)
        trials = self.trials.measured()
        standings = [baseline, *(self.standing(t, self.trials.ratio(t)) for t in trials)]
        by_key = {t.candidate.key: t.candidate for t in self.trials.done.values()}
        exact = sorted(
            (s for s in standings[1:] if s.exact and s.ratio.estimate < 1 + SCREEN_NOISE),
            key=lambda s: s.ratio.estimate,
        )[:2]
        max_drop = self.ready.search_promise.max_drop
        rivals = entrants(standings, baseline.key, max_drop=max_drop, most=FIELD - len(exact))
        return [by_key[key] for key in (*(s.key for s in exact), *rivals)]

    def race(self, candidates: Sequence[Candidate]) -> Standings:
        """Race candidates against the baseline and its twin, on as many threads as possible."""
        for threads in dict.fromkeys((self.bench.target.threads, 1)):
            name, bench = f"race/{threads}", self._bench_on(threads)
            try:
                standings = self._turns(
                    bench, name, candidates, self.effort.race_rounds, dropping=True
                )
                return self._noted(standings, "rounds of the race", "race")
            except NotEstablished as why:
                self._fall_back(threads, why)
        raise AssertionError("one thread needs no probe")

    def fresh(self, candidates: Sequence[Candidate]) -> Standings:
        """Time candidates again, each in several processes, on as many threads as possible.

        The first of a set of processes ends before the next begins, so that the memory of one set
        is enough. A stopped run goes on with new processes.
        """
        for threads in dict.fromkeys((self.bench.target.threads, 1)):
            name = f"figures/{threads}"
            try:
                standings = self._replicated(self._bench_on(threads), name, candidates)
                return self._noted(standings, "fresh rounds", "fresh rounds")
            except NotEstablished as why:
                self._fall_back(threads, why)
                self.as_it_was = self._journaled(name, threads, candidates, all_count=True)
        raise AssertionError("one thread needs no probe")

    def _bench_on(self, threads: int) -> Workbench:
        return dataclasses.replace(self.bench, target=self.bench.target.with_threads(threads))

    def _fall_back(self, threads: int, why: NotEstablished) -> None:
        self._busy = str(why)
        self.use_threads(1)

    def note_of_threads(self, threads: int) -> None:
        """Note that latencies are for fewer threads than asked, and why; nothing where they aren't.

        Args:
            threads: Number of threads that the published latencies are for.
        """
        if threads < self.asked_threads and self._busy:
            self.job.notes.append(on_one_thread(self.asked_threads, self._busy))

    def _journaled(
        self, name: str, threads: int, candidates: Sequence[Candidate], *, all_count: bool = False
    ) -> Standings:
        """Return the fresh rounds so far."""
        objective, journal = self.job.order.objective, self.job.journal
        standings, _ = journaled(name, threads, objective, journal, all_count=all_count)
        standings.uneven, standings.told = _uneven(candidates), True
        standings.by_time = self.effort.p99_by_time
        return standings

    def _replicated(
        self, bench: Workbench, name: str, candidates: Sequence[Candidate]
    ) -> Standings:
        """Run the fresh rounds, in one set of processes after another."""
        objective, most = self.job.order.objective, 2 * self.effort.processes
        each = max(2, -(-self.effort.fresh_rounds(objective) // self.effort.processes))
        settle, out = self.effort.settled(objective, final=True), set[str]()
        sets_in_time, set_s = self.sets_in_time(candidates)
        began, time_s = time.monotonic(), self.job.deadline.left_s()
        # Where one of those compared dies in each set of processes, no set comes to its end.
        for sets in itertools.count():
            standings = self._journaled(name, bench.target.threads, candidates)
            taken = {*standings.processes.values()}
            whole = sum(standings.counted_of(process) >= each for process in taken)
            settled = whole >= self.effort.processes and (
                standings.established and standings.width <= settle
            )
            if settled or whole >= most or sets >= most + self.effort.processes:
                return standings
            deadline = self.job.deadline
            # Two processes tell less than one, so a third may take what others only wish.
            left_s = deadline.most_s() if len(taken) == 2 else deadline.left_s()
            if sets and left_s < set_s:
                standings.cut = True
                return standings
            out |= standings.failed.keys()
            still = [one for one in candidates if one.key not in out]
            process = max(taken, default=-1) + 1
            until = began + time_s * min(1.0, (sets + 1) / sets_in_time)
            self._turns(
                bench, name, still, each, dropping=False, process=process, out=out, until=until
            )
        raise AssertionError("sets of processes are counted without an end")

    def _turns(
        self,
        bench: Workbench,
        name: str,
        candidates: Sequence[Candidate],
        count: int,
        *,
        dropping: bool,
        process: int | None = None,
        out: set[str] | None = None,
        until: float | None = None,
    ) -> Standings:
        """Open candidates, race them, and end their processes; add those that don't open to `out`."""
        entrants: dict[str, Worker] = {}
        self.trials.close()
        # No inexact candidate is as safe as an exact one, whatever a few samples show.
        trials = [self.trials.done[c.key] for c in candidates]
        risks = {t.candidate.key: -1.0 if t.exact else self.trials.risk(t) for t in trials}
        objective = self.job.order.objective
        total = count if process is None else self.effort.fresh_rounds(objective)
        short = process is not None and objective == "p99"  # it takes moments, not requests
        part = _PART_OF_A_TURN if short else 1
        last = time.monotonic()

        def listen(standings: Standings) -> None:
            nonlocal last
            now = time.monotonic()
            self.job.deadline.saw("turn", (now - last) / max(1, len(entrants)))
            last = now
            round_ = f"round {standings.counted + standings.refused}"
            stage: StageName = "race" if name.startswith("race/") else "figures"
            self.job.tell(stage, round_, standings.counted, total)

        pool, probe = ThreadPoolExecutor(_OPENED_AT_ONCE), probe_of(bench.target)
        try:
            self._enter(pool, entrants, bench, candidates, fresh=not dropping)
            last = time.monotonic()
            if out is not None:
                out |= risks.keys() - entrants.keys()
            standings = race(
                name,
                entrants,
                self.ready.parts.search,
                self.job.journal,
                Rules(
                    threads=bench.target.threads,
                    count=count,
                    pace=dataclasses.replace(self.pace, block_ns=self.pace.block_ns // part),
                    seed=self.job.order.seed,
                    settle=self.effort.settled(objective, final=not dropping),
                    objective=objective,
                    uneven=_uneven(candidates),
                    process=process,
                ),
                risks=risks if dropping else None,
                listen=listen,
                probe=probe,
                stop=self.stop(bench, until),
            )
            self._read_device(bench, entrants)
            return standings
        finally:
            self.job.notes += filter(None, [disturbance(probe)])
            for worker in entrants.values():
                worker.kill()
            pool.shutdown()  # not before: a process is ended with the thread that started it

    def _read_device(self, bench: Workbench, entrants: Mapping[str, Worker]) -> None:
        """Keep what the device's own clock says of each entrant now that it has run for a while."""
        for key, worker in entrants.items() if bench.target.kind == "attached" else ():
            trial = self.trials.done.get(key)
            with contextlib.suppress(CandidateError):
                times = bench.ask(worker, "device_times")
                worker.sleep()
                if trial is not None and times:
                    known = {**(trial.properties or {}), **times}
                    self.trials.keep(dataclasses.replace(trial, properties=known))

    def _noted(self, standings: Standings, rounds: str, where: str) -> Standings:
        """Note what the standings don't show, and who dropped out."""
        if not standings.established:
            self.job.notes.append(
                f"{self.job.order.objective} can't be estimated from {standings.counted} "
                f"{rounds}, so means are compared instead"
            )
        for key, why in standings.failed.items():
            self.job.notes.append(f"{self.candidate(key).label} failed in the {where}: {why}")
        self.job.notes += standings.cut_short(where)
        return standings

    def _enter(
        self,
        pool: ThreadPoolExecutor,
        entrants: dict[str, Worker],
        bench: Workbench,
        candidates: Sequence[Candidate],
        *,
        fresh: bool,
    ) -> None:
        """Open the twins and the candidates, two at a time; those that can't be opened stay out.

        All are put to sleep, and nothing is timed before the last one is.
        A race only finds whom to certify, so its processes are forked, which takes a fifth of the time;
        what is published comes from fresh interpreters.
        """
        wanted = [
            (BASELINE, self.trials.baseline),
            (AGAIN, self.trials.baseline),
            *((c.key, c) for c in candidates),
        ]
        began = time.monotonic()
        coming = {who: pool.submit(self._opened, bench, who, c, fresh=fresh) for who, c in wanted}
        try:
            for who, candidate in wanted:
                try:
                    entrants[who] = coming[who].result()
                except CandidateError as error:
                    if who in _TWINS:
                        raise InputError(f"the baseline failed: {error}") from error
                    self.job.notes.append(f"{candidate.label} failed before the race: {error}")
        finally:
            # Those that nobody waited for are ended with the others.
            for who, one in coming.items():
                if not one.cancel() and one.exception() is None:
                    entrants[who] = one.result()
                    entrants[who].sleep()
        took_s = (time.monotonic() - began) / len(wanted)
        self.job.deadline.saw("open" if fresh else "open forked", took_s)

    def _opened(self, bench: Workbench, who: str, candidate: Candidate, *, fresh: bool) -> Worker:
        """Open one entrant; without the twins nothing is said of speed, so no deadline cuts theirs."""
        own = dataclasses.replace(bench, deadline=Deadline()) if who in _TWINS else bench
        how: dict[str, Any] = {} if fresh else {"fresh": False}
        return own.open_built(candidate.engine, self.artifact(candidate), **how).worker

    def threads_to_ship(self, best: Candidate) -> tuple[int, bool]:
        """Find how many threads the winner should have on a busy host, in rounds that all count.

        A candidate quoted on one thread may still be faster on several. The default engine uses
        several unless it is told otherwise.

        Returns:
            Number of threads on which the candidate is faster, and whether it beats the default
            engine on all threads.
        """
        asked, baseline = self.asked_threads, self.trials.baseline
        if self.job.deadline.left_s() < 4 * (self.open_s + FEWEST_ROUNDS * self.turn_s):
            return 1, True  # it ran on one thread in the race
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
                _ALL_THREADS,
                entrants,
                self.ready.parts.search,
                self.job.journal,
                Rules(
                    threads=asked,
                    count=self.effort.race_rounds,
                    pace=self.pace,
                    seed=self.job.order.seed,
                    settle=self.effort.settled(self.job.order.objective, final=False),
                    objective=self.job.order.objective,
                    uneven=("one", "all") if best.engine.uneven else (),
                ),
                probe=lambda _: True,
                stop=self.stop(self._bench_on(1)),
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
        if not stays:
            self.job.notes.append(
                f"{best.label} doesn't ship: while the host was busy, on {threads} "
                f"thread{'' if threads == 1 else 's'}, it took {ratio_.estimate:.2f} times the "
                "latency of the "
                f"default engine on the {asked} threads that it uses by default ({ratio_.low:.2f} to "
                f"{ratio_.high:.2f}), which isn't faster by more than the noise"
            )
        return (threads if stays else asked), stays

    def threads_raced(self) -> Standings:
        """Return the rounds of `threads_to_ship` from the journal, where a resumed run has them too."""
        name, journal = _ALL_THREADS, self.job.journal
        objective = self.job.order.objective
        return journaled(name, self.asked_threads, objective, journal, all_count=True)[0]

    def on_device(self, candidate: Candidate) -> bool:
        """Whether a candidate runs on the target's device: always, where that is the host."""
        target = self.bench.target
        return target.kind == "host" or all(
            serves(engine, target) for engine in candidate.engine.runtimes
        )

    def candidate(self, key: str) -> Candidate:
        """Return the candidate with a key, among those that were tried."""
        if key == self.trials.baseline.key:
            return self.trials.baseline
        return self.trials.done[key].candidate

    def artifact(self, candidate: Candidate) -> Artifact:
        """Return the artifact of a candidate, rebuilt where a stopped run's files are gone.

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


def _uneven(candidates: Sequence[Candidate]) -> set[str]:
    """Return the keys of candidates that are compared by their mean."""
    return {one.key for one in candidates if one.engine.uneven}
