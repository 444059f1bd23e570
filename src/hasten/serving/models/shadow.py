"""Ask the exact model a random share of what was answered, too, and hand both answers to the monitor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from hasten.core.tensors import Tensors
from hasten.errors import InputError, named
from hasten.serving.models.statistics import Statistics
from hasten.serving.models.thread_priority import lower_priority
from hasten.serving.monitoring.watch import Watch

log = logging.getLogger("hasten.serving")

_LOOKS, _PAUSE_S = 100, 0.01
"""Number and length of the waits for a moment without live requests, before a sample is skipped."""
_MOST_WAITING = 64
"""Largest number of samples that wait to be compared; further ones are skipped."""
_MOST_BYTES = 64 << 20
"""Largest size of all that wait together."""


class _Job(NamedTuple):
    """An answered sample that waits to be compared; its arrays are nobody else's."""

    inputs: Tensors
    outputs: Tensors
    key: bytes
    """Key of the answer whose label is awaited; b"" for none."""
    size_bytes: int
    sample: bytes | None


class Shadow:
    """Thread of lowest priority that compares answers with the exact model's.

    Args:
        exact: Function that answers inputs with the exact model, or a sample that it prepares for it; blocks.
        loop: Event loop on whose thread the results are counted.
        statistics: Statistics that the results are added to.
        idle: Function that tells whether no live request waits or runs.
        watch: Monitor that counts the answers.
    """

    def __init__(
        self,
        exact: Callable[[Tensors, bytes | None], Tensors],
        loop: asyncio.AbstractEventLoop,
        statistics: Statistics,
        idle: Callable[[], bool],
        watch: Watch,
    ) -> None:
        self._exact, self._loop, self._statistics, self._idle = exact, loop, statistics, idle
        self._watch = watch
        self._jobs: queue.Queue[_Job | None] = queue.Queue(_MOST_WAITING + 1)
        self._came = self._went = 0
        """Bytes that were queued, and that were done with: each is written by one thread alone."""
        self._over = False
        threading.Thread(target=self._work, name="hasten-shadow", daemon=True).start()

    def look(
        self,
        inputs: Tensors,
        outputs: Tensors,
        name: str,
        rows: int,
        row: int,
        sample: bytes | None = None,
        client: str = "",
    ) -> None:
        """Queue an answer for comparison, unless too much waits; on the event loop's thread.

        Whether it is dropped depends on what waits, and not on the answer.

        Args:
            inputs: Inputs of a request; its row is copied, since a client may change shared memory.
            outputs: Answer that went out.
            name: Id of the request; "" for none.
            rows: Number of rows that a row is taken out of; 0 to compare the whole answer.
            row: Row to compare.
            sample: Sample that the row was made from, where the exact model takes it prepared otherwise.
            client: Name of the client, where the server can tell several; else "".
        """
        if self._over:
            return
        if rows:
            inputs = {key: array[row : row + 1] for key, array in inputs.items()}
            outputs = {key: array[row : row + 1] for key, array in outputs.items()}
        size = sum(array.nbytes for each in (inputs, outputs) for array in each.values())
        size += len(sample or b"")
        waiting = self._came - self._went
        if self._jobs.qsize() >= _MOST_WAITING or waiting + size > _MOST_BYTES:
            self._watch.skip(b"")
            return
        try:
            inputs = {key: array.copy() for key, array in inputs.items()}
            outputs = {key: array.copy() for key, array in outputs.items()}
        except MemoryError:  # the other requests of the batch wait for their answers
            self._watch.skip(b"")
            return
        # Only now: to drop what is expected may score others' labels, for which the loop must not wait.
        labels, key = self._watch.labels, b""
        if labels is not None and name:
            key = labels.expect(client, name, max(1, rows), row)
        self._came += size
        self._jobs.put_nowait(_Job(inputs, outputs, key, size, sample))

    def close(self) -> None:
        """Drop the queued answers, and end the thread once the current comparison is done."""
        self._over = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
        self._jobs.put(None)

    def _work(self) -> None:
        lower_priority()
        while (job := self._jobs.get()) is not None:
            try:
                self._compare(job)
            except Exception as error:  # a failed comparison must not stop the serving
                self._watch.fail(job.key, named(error))
            self._went += job.size_bytes

    def _compare(self, job: _Job) -> None:
        if not self._waited():
            self._watch.skip(job.key)
            return
        try:
            exact = self._exact(job.inputs, job.sample)
        except InputError:
            if job.sample is None:
                raise
            self._watch.skip(job.key)  # it may be decoded smaller, but takes too much memory whole
            return
        changed = self._watch.audit(job.inputs, job.outputs, exact, job.key)
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._count, changed)

    def _waited(self) -> bool:
        """Wait for a moment without live requests; return False if none comes in time."""
        for _ in range(_LOOKS):
            if self._idle():
                return True
            if self._over:
                return False
            time.sleep(_PAUSE_S)
        return False

    def _count(self, changed: bool) -> None:
        self._statistics.disagreed += changed
        self._statistics.shadowed += 1
