"""Send a share of the requests to the exact model too, and count where the answers disagree."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable

from hasten.core.tensors import Tensors
from hasten.serving.models.comparison import disagreeing_rows
from hasten.serving.models.statistics import Statistics
from hasten.serving.models.thread_priority import lower_priority

log = logging.getLogger("hasten.serving")

_LOOKS, _PAUSE_S = 100, 0.01
"""Number and length of the waits for a moment without live requests, before a sample is skipped."""
_MOST_WAITING = 4
"""Most samples that wait to be compared; further ones are skipped, since any sample will do."""


class Shadow:
    """Thread of lowest priority that compares answers with the exact model's.

    Args:
        exact: Function that answers with the exact model; blocks.
        loop: Event loop on whose thread the results are counted.
        statistics: Statistics that the results are added to.
        idle: Function that tells whether no live request waits or runs.
    """

    def __init__(
        self,
        exact: Callable[[Tensors], Tensors],
        loop: asyncio.AbstractEventLoop,
        statistics: Statistics,
        idle: Callable[[], bool],
    ) -> None:
        self._exact, self._loop, self._statistics, self._idle = exact, loop, statistics, idle
        self._jobs: queue.Queue[tuple[Tensors, Tensors] | None] = queue.Queue(_MOST_WAITING)
        threading.Thread(target=self._work, name="hasten-shadow", daemon=True).start()

    def look(self, inputs: Tensors, outputs: Tensors) -> None:
        """Queue an answer for comparison, unless the queue is full."""
        with contextlib.suppress(queue.Full):
            self._jobs.put_nowait((inputs, outputs))

    def close(self) -> None:
        """Drop the queued answers, and end the thread once the current comparison is done."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
        self._jobs.put(None)

    def _work(self) -> None:
        lower_priority()
        while (job := self._jobs.get()) is not None:
            inputs, outputs = job
            if not self._waited():
                continue
            try:
                rows = disagreeing_rows(outputs, self._exact(inputs))
            except Exception:  # a failed comparison must not stop the serving
                log.exception("an answer couldn't be compared with the exact model's")
                continue
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(self._count, len(rows), int(rows.sum()))

    def _waited(self) -> bool:
        """Wait for a moment without live requests; return False if none comes in time."""
        for _ in range(_LOOKS):
            if self._idle():
                return True
            time.sleep(_PAUSE_S)
        return False

    def _count(self, looked: int, disagreed: int) -> None:
        self._statistics.shadowed += looked
        self._statistics.disagreed += disagreed
