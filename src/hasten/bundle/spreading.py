"""Large batches over several threads, for models that compute a batch's rows apart."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hasten.core.forks import after_forks
from hasten.core.tensors import Array, Tensors
from hasten.engines.pool import SessionPool

FEW_ROWS = 64
"""Rows of a batch that is never shared out."""
_PART_NS = 250_000
"""Least time of a part. Handing one over took 20 to 60 us on two cores, and much more on busy ones."""
_STEP = 1.2
_TRY_AGAIN = 32
"""Number of batches of a kind after which the slower way is tried once more."""


class Spread:
    """Runs batches on several sessions at once, where that is faster; the answers are the same bits.

    Args:
        pool: Sessions that compute a batch's rows apart.
        ways: Largest number of threads at once, at least 1.
    """

    def __init__(self, pool: SessionPool, ways: int) -> None:
        self._pool = pool
        self.ways = ways if pool.rows_apart else 1
        self._row_ns = {False: 0.0, True: 0.0}
        """Time that a row takes in one thread and shared out; 0 until such a batch was run."""
        self._asked = 0
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        after_forks(self, Spread._anew)

    def run(self, tensors: Tensors, rows: int) -> dict[str, Array]:
        """Answer a batch.

        Args:
            tensors: Arrays by input name, all of `rows` rows.
            rows: Number of rows, more than `FEW_ROWS`.

        Raises:
            CandidateError: the engine failed, or the bundle is closed.
        """
        shared = self.ways > 1 and rows * self._row_ns[False] > 2 * _PART_NS and self._pays()
        began_ns = time.perf_counter_ns()
        if shared:
            parts = max(2, min(self.ways, int(rows * self._row_ns[False] / _PART_NS)))
            outputs = self._shared_out(tensors, rows, parts)
        else:
            outputs = self._pool.run(tensors)
        row_ns, known_ns = (time.perf_counter_ns() - began_ns) / rows, self._row_ns[shared]
        # Equal steps up and down track the median, on which rare long pauses have no effect.
        step = _STEP if row_ns > known_ns else 1 / _STEP
        self._row_ns[shared] = step * known_ns if known_ns else row_ns
        return outputs

    def _pays(self) -> bool:
        """Whether to share this batch out: the way that was faster lately, and now and then the other."""
        self._asked += 1
        alone_ns, shared_ns = self._row_ns[False], self._row_ns[True]
        return (shared_ns < alone_ns) != (self._asked % _TRY_AGAIN == 0)

    def _shared_out(self, tensors: Tensors, rows: int, parts: int) -> dict[str, Array]:
        bounds = [rows * part // parts for part in range(parts + 1)]
        pieces = [
            {name: array[begin:end] for name, array in tensors.items()}
            for begin, end in itertools.pairwise(bounds)
        ]
        asked = [self._executor().submit(self._pool.run, piece) for piece in pieces[1:]]
        try:
            answers = [self._pool.run(pieces[0])]
        finally:
            errors = [
                one.exception() for one in asked
            ]  # wait for all: they read the caller's arrays
        for error in errors:
            if error is not None:
                raise error
        answers += [one.result() for one in asked]
        return {name: np.concatenate([one[name] for one in answers]) for name in answers[0]}

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.ways - 1, "hasten-rows")
            return self._threads

    def _anew(self) -> None:
        """Forget the threads, which aren't in this process."""
        self._lock, self._threads = threading.Lock(), None

    def close(self) -> None:
        """End the threads."""
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()
