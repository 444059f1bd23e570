"""Bandwidth of each cache and of memory, by timing numpy's own copies and reads."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from hasten.core.target import Target
from hasten.core.tensors import Array

_SYSTEM = Path("/sys/devices/system/cpu")
_LINE_BYTES = 64
_STEP = _LINE_BYTES // 4
"""Numbers of 4 bytes in a cache line."""
_UNKNOWN_BYTES = 1 << 18
"""Size that fits the nearest cache of any core that runs an engine."""
_LEAST_MEMORY_BYTES = 1 << 26
_BEYOND = 8
"""Size of a copy in multiples of all caches: each of its two arrays is four times that (STREAM)."""
_CALL_BYTES = 1 << 24
"""Bytes that one call moves, enough to make Python's own microsecond negligible."""
_BLOCK_NS = 12_000_000

Call: TypeAlias = Callable[[], object]


@dataclass(frozen=True)
class Level:
    """A cache, or memory, and its bandwidth for all threads together.

    Attributes:
        name: "L1", "L2", ..., "memory".
        size_bytes: Capacity of all instances that the threads can fill; None for memory, and for
            caches whose sizes the system doesn't report.
        copied_bytes_per_s: Rate of the faster of a copy and an addition of a number, counting bytes
            read and bytes written. It doesn't count lines that a processor reads before it writes
            them (STREAM's convention).
        read_bytes_per_s: Rate of reading every value.
    """

    name: str
    size_bytes: int | None
    copied_bytes_per_s: float
    read_bytes_per_s: float

    @property
    def bytes_per_s(self) -> float:
        """Return the faster of the rates of copying and reading."""
        return max(self.copied_bytes_per_s, self.read_bytes_per_s)

    def better(self, other: Level) -> Level:
        """Return this level with the better of its own rates and those of `other`."""
        return Level(
            self.name,
            self.size_bytes,
            max(self.copied_bytes_per_s, other.copied_bytes_per_s),
            max(self.read_bytes_per_s, other.read_bytes_per_s),
        )


@dataclass(frozen=True)
class CacheLevel:
    """One level of the caches that a target's processors reach.

    Attributes:
        name: "L1", "L2", ...
        size_bytes: Capacity of one instance.
        instances: Number of instances that the threads can use.
    """

    name: str
    size_bytes: int
    instances: int

    @property
    def total_bytes(self) -> int:
        """Return the capacity of all instances that the threads can use."""
        return self.size_bytes * self.instances


def caches(target: Target, system: Path = _SYSTEM) -> tuple[CacheLevel, ...]:
    """Return the data caches, nearest first; none where the system reports none.

    Args:
        target: Device with its processors and threads; at most one private cache counts per thread.
        system: Path at which sysfs describes the processors.

    Source: Linux, Documentation/ABI/testing/sysfs-devices-system-cpu, "cache/index*".
    """
    found: dict[int, dict[str, int]] = {}
    for cpu in target.cpus:
        for index in (system / f"cpu{cpu}" / "cache").glob("index*"):
            level, size = _text(index / "level"), _size_bytes(_text(index / "size"))
            if level.isdecimal() and size and _text(index / "type") != "Instruction":
                shared = _text(index / "shared_cpu_list") or str(cpu)
                found.setdefault(int(level), {})[shared] = size
    return tuple(
        CacheLevel(f"L{level}", min(sizes.values()), min(len(sizes), target.threads))
        for level, sizes in sorted(found.items())
    )


@dataclass(frozen=True)
class _WorkingSet:
    """Working set that one level holds and the nearer ones can't, and who measures it.

    Attributes:
        name: Name of the level.
        size_bytes: Capacity of the level; None where it has no end, or none that is known.
        set_bytes: Size of the working set, for all threads that measure together.
        threads: Number of threads that measure together.
        instances: Number of times that their rate counts.
    """

    name: str
    size_bytes: int | None
    set_bytes: int
    threads: int
    instances: int = 1

    @property
    def share_bytes(self) -> int:
        """Return the part of one thread."""
        return max(self.set_bytes // self.threads, 4 * _LINE_BYTES)

    def taken(self, memory: Sequence[Array]) -> Level:
        """Take short blocks of copies, additions and reads, in the memory of each thread."""
        copied, added, read = (
            self.instances
            * bytes_per_s([kind(self.share_bytes, one) for one in memory[: self.threads]])
            for kind in (copy_of, sum_of, read_of)
        )
        return Level(self.name, self.size_bytes, max(copied, added), read)


class Bandwidth:
    """Measures the bandwidth of every cache that a target's threads reach, and of memory.

    A level is a working set that the nearer levels can't hold. All caches but the last belong to a
    core, so the first thread measures them and the result counts once per instance. All threads at once
    measure the last cache and memory. Each thread has memory for its largest working set, and all its
    measurements use it: to get that memory from the system takes longer than to measure it.

    Args:
        target: Device with its threads and the memory that it may use.
        system: Path at which sysfs describes the processors.
    """

    def __init__(self, target: Target, system: Path = _SYSTEM) -> None:
        self._sets = _working_sets(target, system)
        first = max(room_of(one.share_bytes) for one in self._sets)
        other = max(room_of(one.share_bytes) for one in self._sets if one.threads == target.threads)
        rooms = [first, *[other] * (target.threads - 1)]
        # Ones, not zeros: pages of zeros may all share one physical page.
        self._memory = [np.ones(room, np.int32) for room in rooms]

    def turn(self) -> tuple[Level, ...]:
        """Take short blocks of copies, additions and reads at every level, nearest first."""
        return tuple(one.taken(self._memory) for one in self._sets)


def _working_sets(target: Target, system: Path) -> list[_WorkingSet]:
    known, threads = caches(target, system), target.threads
    sets, nearer_bytes = [], 0
    for cache in known:
        if cache is known[-1]:
            # At most half of it, since others use it too, and more than the nearer ones if it fits.
            half = cache.total_bytes // 2
            set_bytes = min(half, max(half // 2, 2 * nearer_bytes))
            sets.append(_WorkingSet(cache.name, cache.total_bytes, set_bytes, threads))
        else:
            near = (cache.size_bytes // 2, 1, cache.instances)
            sets.append(_WorkingSet(cache.name, cache.total_bytes, *near))
        nearer_bytes = cache.total_bytes
    if not known:
        sets.append(_WorkingSet("cache", None, _UNKNOWN_BYTES, 1, threads))
    all_bytes = sum(cache.total_bytes for cache in known)
    far_bytes = min(max(_BEYOND * all_bytes, _LEAST_MEMORY_BYTES), target.memory_bytes // 16)
    return [*sets, _WorkingSet("memory", None, far_bytes, threads)]


def room_of(set_bytes: int) -> int:
    """Return how many numbers of 4 bytes a working set takes, for any of the calls below."""
    return max(sum(_layout(set_bytes)), 2 * sum(_layout(set_bytes // 2)))


def copy_of(set_bytes: int, memory: Array) -> tuple[Call, int]:
    """Return a call that copies one half of a working set to the other, and the bytes it moves.

    The copy is the C library's, which bypasses the caches from some size on.

    Args:
        set_bytes: Size of the working set.
        memory: Memory to work in: int32[room_of(set_bytes)] or more, none of them zero.
    """
    to, source = _halves(set_bytes, memory)
    return functools.partial(np.copyto, to, source), to.nbytes + source.nbytes


def sum_of(set_bytes: int, memory: Array) -> tuple[Call, int]:
    """Return a call that copies and adds a number, by a compiler's code, and the bytes it moves.

    Args:
        set_bytes: Size of the working set.
        memory: Memory to work in: int32[room_of(set_bytes)] or more, none of them zero.
    """
    to, source = _halves(set_bytes, memory)
    return functools.partial(np.add, source, np.int32(1), out=to), to.nbytes + source.nbytes


def read_of(set_bytes: int, memory: Array) -> tuple[Call, int]:
    """Return a call that finds the largest values of a working set, and the bytes it reads.

    Args:
        set_bytes: Size of the working set.
        memory: Memory to work in: int32[room_of(set_bytes)] or more, none of them zero.
    """
    source = _rows(set_bytes, memory)
    largest = np.empty(len(source), source.dtype)
    return functools.partial(np.maximum.reduce, source, axis=1, out=largest), source.nbytes


def _halves(set_bytes: int, memory: Array) -> tuple[Array, Array]:
    half = set_bytes // 2
    return _rows(half, memory), _rows(half, memory[sum(_layout(half)) :])


def _rows(row_bytes: int, memory: Array) -> Array:
    """Return overlapping rows at the beginning of memory, each starting one cache line after the last.

    Walking them covers the same memory again and again within one call of numpy.
    """
    length, more = _layout(row_bytes)
    shape = (more // _STEP + 1, length)
    return np.lib.stride_tricks.as_strided(memory[: length + more], shape, (_LINE_BYTES, 4))


def _layout(row_bytes: int) -> tuple[int, int]:
    """Return how many numbers a row has, and how many the rows that follow it need in addition."""
    length = max(row_bytes // 4, _STEP)
    return length, _STEP * (max(1, _CALL_BYTES // (4 * length)) - 1)


def bytes_per_s(work: list[tuple[Call, int]], block_ns: int = _BLOCK_NS) -> float:
    """Return the rate of a block of calls, each on a thread of its own, all at once.

    Args:
        work: Call for each thread, and the bytes that it moves. numpy releases the interpreter's
            lock inside.
        block_ns: Intended length of the block, in nanoseconds, after a call that isn't timed.
    """
    start = threading.Barrier(len(work))

    def block(call: Call) -> tuple[int, int, int]:
        call()
        begin = time.perf_counter_ns()
        call()
        calls = max(1, round(block_ns / max(1, time.perf_counter_ns() - begin)))
        start.wait()
        begin = time.perf_counter_ns()
        for _ in range(calls):
            call()
        return begin, time.perf_counter_ns(), calls

    with ThreadPoolExecutor(len(work)) as threads:
        done = list(threads.map(block, [call for call, _ in work]))
    moved = sum(calls * size for (_, _, calls), (_, size) in zip(done, work, strict=True))
    elapsed_ns = max(end for _, end, _ in done) - min(begin for begin, _, _ in done)
    return moved * 1e9 / elapsed_ns


def _size_bytes(text: str) -> int:
    """Parse a size such as "512K"; return 0 for anything else."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1)
    return int(number) * unit if number.isdecimal() else 0


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
