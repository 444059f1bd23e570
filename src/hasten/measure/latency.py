"""Rounds: each entrant times a block of requests in turn, in random order, one awake at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from hasten.core.workers import Worker
from hasten.errors import CandidateError
from hasten.measure.intervals import Statistic
from hasten.measure.probe import scales


@dataclass(frozen=True)
class Pace:
    """Lengths of the turns.

    Attributes:
        warmup_ns: Untimed time at the beginning of each block, in nanoseconds; caches and clocks
            settle in 12 ms.
        block_ns: Timed time of each block, in nanoseconds.
        at_least: Fewest timed requests in a block.
        at_most: Largest number of timed requests in a block.
        limit_s: Time without an answer after which a worker is killed, in seconds.
    """

    warmup_ns: int = 12_000_000
    block_ns: int = 30_000_000
    at_least: int = 3
    at_most: int = 2000
    limit_s: float = 60.0


def pace_for(objective: Statistic, limit_s: float) -> Pace:
    """Return the lengths of the turns for an objective.

    A p99 takes many rounds. More requests of a very fast model in one round would only tell more
    about that round.
    """
    if objective == "p99":
        return Pace(at_least=12, at_most=200, limit_s=limit_s)
    return Pace(limit_s=limit_s)


@dataclass(frozen=True)
class Round:
    """One turn of every entrant.

    Attributes:
        number: Number of the round, counted from 0 within a race.
        latency_ns: Entrant -> latencies of its block, in nanoseconds, in order.
        failed: Entrant -> reason why it failed.
        counts: Whether the host gave the threads their cores, before and after the round.
    """

    number: int
    latency_ns: dict[str, tuple[int, ...]]
    failed: dict[str, str]
    counts: bool


def rounds(
    entrants: Mapping[str, Worker],
    samples: Path,
    *,
    own_samples: Mapping[str, Path] = MappingProxyType({}),
    threads: int,
    pace: Pace,
    seed: int,
    first: int = 0,
    probe: Callable[[int], bool] = scales,
) -> Iterator[Round]:
    """Yield rounds without end; `entrants` is read again for each, so that it can shrink.

    Args:
        entrants: Name -> worker with an open session; all are put to sleep between turns.
        samples: Folder of a spool; requests rotate through it.
        own_samples: Entrant -> folder of a spool with the same samples in the form that it takes.
        threads: Number of threads of an engine, which `probe` must find the host able to run.
        pace: Lengths and limits of the turns.
        seed: Seed of the orders.
        first: Number of the first round (a resumed race goes on counting).
        probe: Predicate: does the host give this many threads their cores now?
    """
    for worker in entrants.values():
        worker.sleep()
    number = first
    while True:
        order = list(entrants)
        random.Random(f"{seed}/{number}").shuffle(order)
        before = probe(threads)
        latency_ns, failed = {}, {}
        for name in order:
            try:
                latency_ns[name] = _block(
                    entrants[name], own_samples.get(name, samples), number, pace
                )
            except CandidateError as error:
                failed[name] = str(error)
        yield Round(number, latency_ns, failed, before and probe(threads))
        number += 1


def _block(worker: Worker, samples: Path, number: int, pace: Pace) -> tuple[int, ...]:
    try:
        return tuple(
            worker.ask(
                "time",
                limit_s=pace.limit_s,
                samples=samples,
                first=number * 61,  # other samples in each round, but the same for all entrants
                warmup_ns=pace.warmup_ns,
                block_ns=pace.block_ns,
                at_least=pace.at_least,
                at_most=pace.at_most,
            )
        )
    finally:
        worker.sleep()
