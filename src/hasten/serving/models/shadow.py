"""Asks the exact model what the fast one was asked, now and then, and counts where they disagree."""

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
"""How long a sample waits for a moment without live requests."""
_MOST_WAITING = 4
"""What comes while so many wait isn't looked at: a sample is as good as another."""


class Shadow:
    """A thread that asks the exact model, with what time the processor has left.

    Args:
        exact: Answers; blocks.
        loop: Where what was found is counted.
        statistics: Counts it.
        idle: Whether no live request waits or runs.
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
        """Compare an answer once there is time."""
        with contextlib.suppress(queue.Full):
            self._jobs.put_nowait((inputs, outputs))

    def close(self) -> None:
        """End once what is looked at is."""
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
            except Exception:  # it is about watching: what it watches goes on
                log.exception("an answer couldn't be compared with the exact model's")
                continue
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(self._count, len(rows), int(rows.sum()))

    def _waited(self) -> bool:
        """Wait until no live request would be held up; False where that doesn't come to be."""
        for _ in range(_LOOKS):
            if self._idle():
                return True
            time.sleep(_PAUSE_S)
        return False

    def _count(self, looked: int, disagreed: int) -> None:
        self._statistics.shadowed += looked
        self._statistics.disagreed += disagreed
