"""Probes of whether a round counts: does the host run its threads, is a GPU left to itself?"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable

from hasten.core.processes import descendants
from hasten.core.target import Target
from hasten.engines.cuda.gauge import Gauge, gauge_of
from hasten.engines.cuda.runtime import cuda_runtime
from hasten.errors import InputError

_CHUNK = bytes(1 << 18)
_ALONE_NS = 8_000_000
_LOOKS = 20
_PATIENCE = 6
"""Number of looks that may refuse a round for the GPU's sake, no more than any race repeats."""
SCALES = 1.8
"""Least scaling of this probe, per pair of threads, at which a round on several threads counts."""


def _work() -> None:
    hashlib.sha256(_CHUNK).digest()  # lets go of the interpreter lock


def thread_scaling(threads: int) -> float:
    """Return the work of `threads` threads, as a multiple of one thread's work in the same time.

    The probe takes about 16 ms on any processor. A perfect result is `threads`; a neighbour on one
    of two cores makes it 1. Where there is a processor for each thread, each is bound to its own:
    some kernels leave young threads together on one processor for a quarter of a second, whatever
    the host provides, while an engine's threads are older. The start of the threads isn't timed,
    since on a quiet host it would look like a neighbour.
    """
    passes, begin = 0, time.perf_counter_ns()
    while (alone_ns := time.perf_counter_ns() - begin) < _ALONE_NS:
        _work()
        passes += 1
    return threads * alone_ns / _together_ns(threads, passes)


def _together_ns(threads: int, passes: int) -> int:
    """Return the time of threads at some work each, from the first start to the last end."""
    gate, spans = threading.Barrier(threads), []
    cpus = sorted(os.sched_getaffinity(0))

    def run(number: int) -> None:
        if len(cpus) == threads:
            with contextlib.suppress(OSError):  # a sandbox may forbid it
                os.sched_setaffinity(0, {cpus[number]})  # for this thread alone
        gate.wait()
        begin = time.perf_counter_ns()
        for _ in range(passes):
            _work()
        spans.append((begin, time.perf_counter_ns()))

    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(end for _, end in spans) - min(begin for begin, _ in spans)


def scales(threads: int) -> bool:
    """Whether the host gives `threads` threads their cores at this moment."""
    return threads == 1 or thread_scaling(threads) >= threads * SCALES / 2


def usable_threads(threads: int) -> int:
    """Return `threads` if most probes find cores for them, else 1; takes half a second."""
    if threads == 1:
        return 1
    return threads if sum(scales(threads) for _ in range(_LOOKS)) * 2 > _LOOKS else 1


class DeviceProbe:
    """Probe of the host and of its GPU: no round counts in which the GPU was slowed down or shared.

    After `_PATIENCE` looks at such a GPU its rounds count all the same, with a note, since nothing says that
    it will be better.

    Attributes:
        disturbed: Cause of the GPU's last disturbance; "" for nothing so far.

    Args:
        gauge: Gauge of the GPU.
        host: Probe of the host.
    """

    def __init__(self, gauge: Gauge, host: Callable[[int], bool] = scales) -> None:
        self._gauge, self._host = gauge, host
        self._times = 0
        self.disturbed = ""

    def __call__(self, threads: int) -> bool:
        """Whether a round counts that ends, or begins, at this moment."""
        disturbed = self._disturbed()
        self._times += bool(disturbed)
        self.disturbed = disturbed or self.disturbed
        return self._host(threads) and (not disturbed or self._times > _PATIENCE)

    def _disturbed(self) -> str:
        reading = self._gauge.reading()
        if reading is not None and reading.slowed:
            return f"it was slowed down ({', '.join(reading.slowed)})"
        others = self._gauge.busy() - {os.getpid(), *descendants(os.getpid())}
        return f"process {min(others)} also computed on it" if others else ""


def probe_of(target: Target) -> Callable[[int], bool]:
    """Return the probe for rounds on a target: of the host, and of the GPU where it is one."""
    if target.kind != "attached" or target.family != "cuda":
        return scales
    try:
        return DeviceProbe(gauge_of(cuda_runtime()))
    except InputError:
        return scales


def disturbance(probe: Callable[[int], bool]) -> str:
    """Return a note on what disturbed a GPU while rounds were looked at; "" for nothing."""
    if not isinstance(probe, DeviceProbe) or not probe.disturbed:
        return ""
    return f"the GPU was disturbed during the rounds: {probe.disturbed}"


def on_one_thread(asked: int, why: str) -> str:
    """Return a note on latencies that are for one thread instead of several.

    Args:
        asked: Number of threads that were asked for, above 1.
        why: Reason, as a clause: "the host is too busy for more".
    """
    return f"latencies are for one thread, not {asked}: {why}"
