"""Measurement of a curve: all points take turns, so that what slows the host hits all alike."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hasten.core.records import from_record
from hasten.core.workers import Worker
from hasten.engines.artifacts import batch_sizes
from hasten.engines.base import Artifact, Engine
from hasten.errors import CandidateError
from hasten.inputs.data.spool import Spool
from hasten.measure.closed_loop import Block
from hasten.measure.curve import CurvePoint
from hasten.measure.latency import Pace
from hasten.measure.probe import scales, usable_threads
from hasten.measure.sharing import Sharing, on_share, sharings
from hasten.measure.workbench import Bench

BUDGET_S = 15.0
ROUNDS = 8
PACE = Pace(at_least=2, at_most=500)
_LARGEST = 32
_LEAST_ROUNDS = 3
"""Rounds that a batch must leave time for, or it is left out; two of them must count."""
_BYTES = 64 << 20
"""Largest number of bytes of one request and its answer."""
_MOST_REQUESTS = 64


@dataclass
class _Way:
    """A division of the threads, and the process that has its sessions open, if there is one."""

    share: Sharing
    worker: Worker | None = None

    def __str__(self) -> str:
        return str(self.share)


@dataclass
class _Point:
    way: _Way
    batch: int
    request_ns: int = 0
    rounds: dict[int, Block] = field(default_factory=dict)
    refused: int = 0


def sweep(
    bench: Bench,
    engine: Engine,
    artifact: Artifact,
    samples: Spool,
    *,
    budget_s: float = BUDGET_S,
    rounds: int = ROUNDS,
    pace: Pace = PACE,
    seed: int = 0,
    listen: Callable[[int, int], None] = lambda done, total: None,
    probe: Callable[[int], bool] = scales,
    usable: Callable[[int], int] = usable_threads,
    clock_s: Callable[[], float] = time.monotonic,
) -> tuple[list[CurvePoint], list[str]]:
    """Measure latency and throughput by batch, and by threads times sessions.

    Batches are 1, 2, 4, ... as far as the model's batch axis is open, the time lasts, and a request
    with its answer takes at most 64 MiB. Sessions share one process, and each has a thread that
    sends the next request once the last is answered, as in a server. The result is about speed
    alone, and not part of a certificate.

    Args:
        bench: Bench that runs the workers, whose threads and memory are shared among them.
        engine: Engine that runs the artifact.
        artifact: Artifact to measure.
        samples: Samples that requests are stacked from.
        budget_s: Time for the sweep, in seconds; a slow model may take one request more.
        rounds: Largest number of turns of each point.
        pace: Lengths and limits of a turn.
        seed: Seed of the orders.
        listen: Callback that receives the number of the round and of all rounds.
        probe: Predicate: does the host give this many threads their cores now? A turn on several
            threads counts only then.
        usable: Function from a number of threads to the number worth trying.
        clock_s: Monotonic clock, in seconds.

    Returns:
        The points, and why others are missing.
    """
    end_s, threads = clock_s() + budget_s, usable(bench.target.threads)
    ways = [_Way(share) for share in sharings(threads, engine.threads)]
    shared = dataclasses.replace(bench, memory_bytes=bench.memory_bytes // len(ways))
    taking = _Sweep(shared, engine, artifact, samples, pace, clock_s, end_s)
    try:
        taking.look(ways)
        taking.take(rounds, random.Random(seed), listen, probe)
    finally:
        for way in ways:
            if way.worker is not None:
                way.worker.kill()
    points = taking.points()
    said = ["a batch repeats one sample, and each shape gets its turn"] if samples.ragged else []
    missing = [f"{why} ({'; '.join(names)})" for why, names in taking.missing.items()]
    if threads < bench.target.threads:
        missing.insert(0, f"one thread only: the host did not run {bench.target.threads} at once")
    return points, [f"batch curve: {why}" for why in (*said, *missing)]


@dataclass
class _Sweep:
    bench: Bench
    engine: Engine
    artifact: Artifact
    samples: Spool
    pace: Pace
    clock_s: Callable[[], float]
    end_s: float
    found: list[_Point] = field(default_factory=list)
    missing: dict[str, list[str]] = field(default_factory=dict)

    # -- look: open the sessions, and find the batches that there is time and memory for

    def look(self, ways: list[_Way]) -> None:
        """Try each way with batch after batch, smaller ones first."""
        half_s = (self.end_s - self.clock_s()) / 2
        latest_s, each_s = self.clock_s() + half_s, 0.0
        opened = []
        for way in ways:
            began_s = self.clock_s()
            if began_s + each_s * way.share.sessions > latest_s:
                self._miss("opening so many would take too long", f"{way}")
                continue
            try:
                self._worker(way)
            except CandidateError as error:
                self._miss(self._reason(error), f"{way}")
                continue
            each_s = (self.clock_s() - began_s) / way.share.sessions
            opened.append(way)
        for batch in self._batches():
            for way in list(opened):
                if not self._looked(way, batch):
                    opened.remove(way)  # larger batches would fail too

    def _batches(self) -> Iterator[int]:
        only = (1,) if self.bench.varying else batch_sizes(self.artifact)
        yield from only or [1 << power for power in range(_LARGEST.bit_length())]

    def _looked(self, way: _Way, batch: int) -> bool:
        """Send one request; return whether twice the batch may be tried too."""
        before = [p.request_ns for p in self.found if p.way is way]
        first = self.found[0].request_ns if self.found else 0
        if not self._fits(2 * before[-1] if before else first, looks=2):
            self._miss(f"no time for batches from {batch} on", f"{way}")
            return False
        point = _Point(way, batch)
        try:
            bytes_ = self._ask(way, "look", batch=batch)
            block = self._drive(point, warmup_ns=0, block_ns=0, at_least=1)
        except CandidateError as error:
            self._miss(self._reason(error), f"{way}, batch {batch}")
            return False
        point.request_ns = min(block.latency_ns)
        if self.found and not self._fits(point.request_ns):
            self._miss(f"no time for batches from {batch} on", f"{way}")
            return False
        self.found.append(point)
        if 2 * bytes_ > _BYTES and batch < _LARGEST:
            self._miss(f"over {_BYTES >> 20} MiB a request from batch {2 * batch} on", f"{way}")
        return bool(2 * bytes_ <= _BYTES)

    def _reason(self, error: CandidateError) -> str:
        """Return why something isn't measured: a candidate that is killed as the time limit is reached doesn't hang."""
        return "the time limit was reached" if self.bench.deadline.late else f"{error}"

    def _fits(self, request_ns: int, looks: int = 0) -> bool:
        """Whether the rounds still fit in the time if one more point with such requests joins."""
        turns_ns = [self._turn_ns(p.request_ns) for p in self.found] + [self._turn_ns(request_ns)]
        need_ns = looks * request_ns + _LEAST_ROUNDS * sum(turns_ns)
        return self.clock_s() + need_ns / 1e9 <= self.end_s

    def _turn_ns(self, request_ns: int) -> int:
        warmup_ns = self._warmup_ns(request_ns)
        return warmup_ns + max(self.pace.block_ns, self.pace.at_least * request_ns)

    def _warmup_ns(self, request_ns: int) -> int:
        """Return the warm-up; a request as long as ten of them needs none: cold hardly counts."""
        return self.pace.warmup_ns if request_ns < 10 * self.pace.warmup_ns else 0

    # -- take: rounds in random order

    def take(
        self,
        count: int,
        order: random.Random,
        listen: Callable[[int, int], None],
        probe: Callable[[int], bool],
    ) -> None:
        """Give every point its turns, as many as there is time for."""
        threads = max((p.way.share.busy for p in self.found), default=1)
        for number in range(count):
            listen(number, count)
            turns = order.sample(self.found, len(self.found))
            calm, late = probe(threads), True
            for point in turns:
                if self.clock_s() + self._turn_ns(point.request_ns) / 1e9 > self.end_s:
                    continue
                late = False
                before, block = calm, self._turn(point, number)
                calm = probe(threads)
                if block is not None and (point.way.share.busy == 1 or (before and calm)):
                    point.rounds[number] = block
                elif block is not None:
                    point.refused += 1
            if late:
                return

    def _turn(self, point: _Point, number: int) -> Block | None:
        try:
            return self._drive(
                point,
                first=number * 61,  # other samples in each round, but the same for all points
                warmup_ns=self._warmup_ns(point.request_ns),
                block_ns=self.pace.block_ns,
                at_least=self.pace.at_least,
            )
        except CandidateError as error:
            self.found.remove(point)
            self._miss(self._reason(error), f"{point.way}, batch {point.batch}")
            return None

    def points(self) -> list[CurvePoint]:
        """Return the points that were measured in at least two turns that count."""
        for point in self.found:
            if len(point.rounds) < 2:
                why = (
                    "the host did not run its threads at once"
                    if point.refused
                    else "there was no time to measure it twice"
                )
                self._miss(why, f"{point.way}, batch {point.batch}")
        return [
            CurvePoint(p.batch, p.way.share.threads, p.way.share.sessions, p.rounds)
            for p in sorted(self.found, key=lambda p: (p.way.share.sessions, -p.way.share.threads))
            if len(p.rounds) >= 2
        ]

    # -- ask

    def _drive(self, point: _Point, *, first: int = 0, **pace: int) -> Block:
        asked_ns = pace["warmup_ns"] + pace["block_ns"]
        enough = math.ceil(asked_ns / max(1, point.request_ns)) + pace["at_least"]
        record = self._ask(
            point.way,
            "drive",
            batch=point.batch,
            first=first,
            requests=min(_MOST_REQUESTS, enough * point.way.share.sessions),
            at_most=self.pace.at_most,
            **pace,
        )
        return from_record(Block, record)

    def _ask(self, way: _Way, do: str, **command: Any) -> Any:
        worker = self._worker(way)
        try:
            limit_s = self.bench.deadline.step_s(self.pace.limit_s)
            return worker.ask(do, limit_s=limit_s, samples=self.samples.folder, **command)
        finally:
            worker.sleep()

    def _worker(self, way: _Way) -> Worker:
        """Return the process of a division; a new one where the last command ended the old."""
        if way.worker is None or not way.worker.alive:
            if way.worker is not None:
                way.worker.kill()
            share, target = way.share, self.bench.target
            bench = dataclasses.replace(self.bench, target=target.with_threads(share.threads))
            engine = on_share(self.engine, share, target.threads)
            way.worker = bench.open_built(engine, self.artifact, share.sessions).worker
            way.worker.sleep()
        return way.worker

    def _miss(self, why: str, what: str) -> None:
        self.missing.setdefault(why, []).append(what)
