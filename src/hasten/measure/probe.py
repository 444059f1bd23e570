"""Does this host really run two threads at once, right now?"""

from __future__ import annotations

import hashlib
import threading
import time

_CHUNK = bytes(1 << 20)
_PASSES = 8
_LOOKS = 20
SCALES = 1.8
"""A round counts for several threads only when this probe scales at least so well, per pair."""


def _work() -> None:
    for _ in range(_PASSES):
        hashlib.sha256(_CHUNK).digest()  # lets go of the interpreter lock


def thread_scaling(threads: int) -> float:
    """Return how many times the work of one thread `threads` do in the same time.

    Takes some 20 ms. Perfect is `threads`; a neighbour on one of two cores makes it 1.
    """
    begin = time.perf_counter_ns()
    _work()
    alone_ns = time.perf_counter_ns() - begin
    workers = [threading.Thread(target=_work) for _ in range(threads)]
    begin = time.perf_counter_ns()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return threads * alone_ns / (time.perf_counter_ns() - begin)


def scales(threads: int) -> bool:
    """Whether the host gives `threads` threads their cores at this moment."""
    return threads == 1 or thread_scaling(threads) >= threads * SCALES / 2


def usable_threads(threads: int) -> int:
    """Return `threads` if the host gives them their cores at most looks, else 1. Takes half a second."""
    if threads == 1:
        return 1
    return threads if sum(scales(threads) for _ in range(_LOOKS)) * 2 > _LOOKS else 1
