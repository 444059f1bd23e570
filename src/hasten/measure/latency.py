"""Rounds: every entrant's block of requests in turn, in random order, one awake at a time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hasten.errors import CandidateError
from hasten.measure.intervals import Statistic
from hasten.measure.probe import scales
from hasten.measure.process import Worker


@dataclass(frozen=True)
class Pace:
    """How long each turn takes.

    Attributes:
        warmup_ns: Untimed, at the head of each block: caches and clocks settle in 12 ms.
        block_ns: Timed.
        at_least: Fewest timed requests in a block.
        at_most: Most timed requests in a block.
        limit_s: After so long without an answer a worker is killed.
    """

    warmup_ns: int = 12_000_000
    block_ns: int = 30_000_000
    at_least: int = 3
    at_most: int = 2000
    limit_s: float = 60.0


def pace_for(objective: Statistic, limit_s: float) -> Pace:
    """Return how long turns take where this is compared.

    A p99 takes what 299 independent requests are worth, and of a thousand that is likely there;
    more of a very fast model's in one round would tell more of that round alone.
    """
    if objective == "p99":
        return Pace(at_least=12, at_most=200, limit_s=limit_s)
    return Pace(limit_s=limit_s)


@dataclass(frozen=True)
class Round:
    """One turn of every entrant.

    Attributes:
        number: Counted from 0 within a race.
        latency_ns: Entrant -> its block's latencies in order.
        failed: Entrant -> why it fell out.
        counts: Whether the host gave the threads their cores, before and after.
    """

    number: int
    latency_ns: dict[str, tuple[int, ...]]
    failed: dict[str, str]
    counts: bool


def rounds(
    entrants: Mapping[str, Worker],
    samples: Path,
    *,
    threads: int,
    pace: Pace,
    seed: int,
    first: int = 0,
    probe: Callable[[int], bool] = scales,
) -> Iterator[Round]:
    """Yield rounds without end; `entrants` is read anew for each, so that it can shrink.

    Args:
        entrants: Name -> worker with an open session; all are put to sleep between turns.
        samples: A spool's folder; requests rotate through it.
        threads: How many threads an engine has; `probe` must find the host able to run them.
        pace: Lengths and limits.
        seed: Of the orders.
        first: Number of the first round (a resumed race goes on counting).
        probe: Whether so many threads get their cores now.
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
                latency_ns[name] = _block(entrants[name], samples, number, pace)
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
                samples=str(samples),
                first=number * 61,  # another stretch of the samples in each round, the same for all
                warmup_ns=pace.warmup_ns,
                block_ns=pace.block_ns,
                at_least=pace.at_least,
                at_most=pace.at_most,
            )
        )
    finally:
        worker.sleep()
