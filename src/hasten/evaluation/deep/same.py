"""A session raced against itself after warm-ups of different lengths, beside the device's clocks."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from hasten.core.tensors import Array
from hasten.engines.cuda.gauge import Reading
from hasten.measure.intervals import Ratio, paired_ratio

Request = dict[str, Array]


@dataclass(frozen=True)
class RaceLengths:
    """Lengths of the race.

    Attributes:
        warmups_s: Untimed time before each race, in seconds.
        idle_s: Pause before each warm-up, in which the device's clocks fall, in seconds.
        rounds: Number of rounds, in each of which the session takes two turns.
        block_s: Length of a turn, in seconds.
    """

    warmups_s: tuple[float, ...] = (0.0, 0.5, 3.0)
    idle_s: float = 2.0
    rounds: int = 12
    block_s: float = 0.05


@dataclass(frozen=True)
class Warmed:
    """The race after one warm-up.

    Attributes:
        warmup_s: Length of the warm-up, in seconds.
        ratio: Latency of the session divided by its own.
        p50_ns: Median latency, in nanoseconds.
        before: State of the device before the warm-up; None where it can't be read.
        warm: State after the warm-up.
        after: State after the race.
    """

    warmup_s: float
    ratio: Ratio
    p50_ns: float
    before: Reading | None
    warm: Reading | None
    after: Reading | None

    def __str__(self) -> str:
        low, high = self.ratio.low, self.ratio.high
        return (
            f"after {self.warmup_s:g} s: {self.ratio.estimate:.4f} ({low:.4f} to {high:.4f}), "
            f"p50 {self.p50_ns / 1e3:.1f} µs; clocks before it {state(self.before)}; "
            f"after it {state(self.warm)}; at the end {state(self.after)}"
        )


def state(reading: Reading | None) -> str:
    """Return a device's state for people: "1980 of 1980 MHz, 43 °C, 120 W, held back by nothing"."""
    if reading is None:
        return "unknown"
    parts = [
        "" if reading.clock_mhz is None else f"{reading.clock_mhz} of {reading.highest_mhz} MHz",
        "" if reading.temperature_c is None else f"{reading.temperature_c} °C",
        "" if reading.power_w is None else f"{reading.power_w:.0f} W",
        _held_back(reading.held_back),
    ]
    return ", ".join(part for part in parts if part)


def _held_back(reasons: tuple[str, ...] | None) -> str:
    return "" if reasons is None else f"held back by {' and '.join(reasons) or 'nothing'}"


def against_itself(
    run: Callable[[Request], Any],
    requests: Sequence[Request],
    read: Callable[[], Reading | None],
    pace: RaceLengths,
    *,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Warmed]:
    """Race a session against itself, once for each warm-up.

    Args:
        run: Function that answers one request, and blocks meanwhile.
        requests: Requests to rotate through.
        read: Function that reads the device's state.
        pace: Lengths of the race.
        clock_ns: Monotonic clock, in nanoseconds.
        sleep: Function that waits, for a number of seconds.
    """
    turns, found = cycle(requests), []
    run(next(turns))  # what the first request makes isn't part of any warm-up
    for warmup_s in pace.warmups_s:
        sleep(pace.idle_s)
        before = read()
        for _ in _until(warmup_s, clock_ns):
            run(next(turns))
        warm = read()
        blocks: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})
        for number in range(pace.rounds):
            for side in random.Random(number).sample((0, 1), 2):
                blocks[side][number] = _timed(run, turns, pace.block_s, clock_ns)
        ratio = paired_ratio(blocks[0], blocks[1])
        every = [ns for side in blocks for block in side.values() for ns in block]
        found.append(Warmed(warmup_s, ratio, statistics.median(every), before, warm, read()))
    return found


def _timed(
    run: Callable[[Request], Any],
    turns: Iterator[Request],
    length_s: float,
    clock_ns: Callable[[], int],
) -> list[int]:
    """Return the latency of each request of one turn, in nanoseconds; of at least one."""
    latencies = list[int]()
    begin = end = clock_ns()
    while not latencies or end - begin < length_s * 1e9:
        request = next(turns)
        start = clock_ns()
        run(request)
        end = clock_ns()
        latencies.append(max(end - start, 1))
    return latencies


def _until(length_s: float, clock_ns: Callable[[], int]) -> Iterator[None]:
    end = clock_ns() + length_s * 1e9
    while clock_ns() < end:
        yield None
