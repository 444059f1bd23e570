"""Sessions of one process under a closed loop, in which each answer is followed by a request."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import InputError

Request: TypeAlias = dict[str, Array]


@dataclass(frozen=True)
class Block:
    """One turn of a closed loop.

    Attributes:
        latency_ns: Latency of each request, in nanoseconds, by session and then in order.
        elapsed_ns: Time from the first request's start to the last answer, in nanoseconds.
    """

    latency_ns: tuple[int, ...]
    elapsed_ns: int


def drive(
    runs: Sequence[Callable[[Request], Any]],
    requests: Sequence[Request],
    *,
    warmup_ns: int,
    block_ns: int,
    at_least: int,
    at_most: int,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> Block:
    """Keep every session busy, by a thread of its own, until the time is up.

    Args:
        runs: Function of each session, which answers a request and blocks meanwhile.
        requests: Requests to rotate through; each session begins at a different one.
        warmup_ns: Untimed time of each session at the beginning, in nanoseconds; 0 for none.
        block_ns: Length of the timed block, in nanoseconds.
        at_least: Fewest timed requests of each session.
        at_most: Number of answers with which any session ends the block for all.
        clock_ns: Monotonic clock, in nanoseconds.

    Raises:
        InputError: there are no requests.
    """
    if not requests:
        raise InputError("nothing to time: got no requests")
    loop = _Loop(len(runs), requests, warmup_ns, block_ns, at_least, at_most, clock_ns)
    lanes = all_of(lambda number: loop.ask(number, runs[number]), len(runs))
    spans = list(itertools.chain.from_iterable(lanes))
    begin, end = min(start for start, _ in spans), max(end for _, end in spans)
    return Block(tuple(end - start for start, end in spans), end - begin)


@dataclass
class _Loop:
    """State that the sessions of one block share."""

    sessions: int
    requests: Sequence[Request]
    warmup_ns: int
    block_ns: int
    at_least: int
    at_most: int
    clock_ns: Callable[[], int]

    def __post_init__(self) -> None:
        self.gate, self.over = threading.Barrier(self.sessions), threading.Event()

    def ask(self, number: int, run: Callable[[Request], Any]) -> list[tuple[int, int]]:
        """Send requests to one session; return the start and end of each timed request."""
        try:
            turns = itertools.cycle(self.requests)
            for _ in range(number * len(self.requests) // self.sessions):
                next(turns)
            begin = self.clock_ns()
            while self.clock_ns() - begin < self.warmup_ns:
                run(next(turns))
            self.gate.wait()
            return self._timed(run, turns)
        except BaseException:
            self.over.set()
            self.gate.abort()
            raise

    def _timed(
        self, run: Callable[[Request], Any], turns: Iterator[Request]
    ) -> list[tuple[int, int]]:
        clock_ns, over, spans = self.clock_ns, self.over, list[tuple[int, int]]()
        begin = end = clock_ns()
        while len(spans) < self.at_least or not (over.is_set() or end - begin >= self.block_ns):
            request = next(turns)
            start = clock_ns()
            run(request)
            end = clock_ns()
            spans.append((start, end))
            if len(spans) >= self.at_most:
                over.set()
        return spans


def all_of(lane: Callable[[int], Any], count: int) -> list[Any]:
    """Run lanes in parallel; raise the first real error, not the broken barriers that it causes."""
    with ThreadPoolExecutor(count) as pool:
        lanes = [pool.submit(lane, number) for number in range(count)]
    errors = [error for one in lanes if (error := one.exception()) is not None]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError))
    return [one.result() for one in lanes]


def stacked(samples: Tensors, alone: Request, inputs: Sequence[TensorSpec]) -> Request:
    """Make one request of several samples.

    Args:
        samples: Several samples, as arrays of shape `(k, ...)`.
        alone: First of the samples, as a request of its own.
        inputs: Inputs of the model; only those whose first axis is open are stacked.
    """
    grows = {spec.name for spec in inputs if spec.shape and isinstance(spec.shape[0], str)}
    return {
        name: np.asarray(samples[name], order="C")
        if name in grows and samples[name].ndim == array.ndim
        else array
        for name, array in alone.items()
    }
