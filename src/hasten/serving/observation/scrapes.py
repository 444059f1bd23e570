"""Share the text of the metrics, so that the work that scrapes make doesn't depend on their number."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from hasten.serving.observation import metrics
from hasten.serving.state import ServerState

_KEPT_NS = 1_000_000_000
"""Time for which a text is the answer to all who ask."""
_MOST_ACCEPTED = 1024
"""Characters of an Accept header that are read; Prometheus sends 330."""


class Scrapes:
    """Texts of the metrics, of which all who ask within a moment get the same; used on the event loop's thread only.

    Args:
        state: State of the server.
        clock_ns: Monotonic clock, in nanoseconds.
    """

    def __init__(self, state: ServerState, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._state, self._clock_ns = state, clock_ns
        self._thread = ThreadPoolExecutor(1, "hasten-metrics")
        self._making: dict[str, asyncio.Task[tuple[bytes, str]]] = {}
        self._made_ns: dict[str, int] = {}

    async def text(self, accepted: str) -> tuple[bytes, str]:
        """Return the text of the metrics and its content type; one that is being made, or was a moment ago.

        Args:
            accepted: Value of the request's Accept header.
        """
        form = metrics.form_of(accepted[:_MOST_ACCEPTED])
        making = self._making.get(form)
        if making is None or (making.done() and self._clock_ns() - self._made_ns[form] >= _KEPT_NS):
            making = asyncio.get_running_loop().create_task(self._make(form))
            self._making[form] = making
        return await asyncio.shield(making)  # others wait for it, too

    async def _make(self, form: str) -> tuple[bytes, str]:
        loop, families = asyncio.get_running_loop(), metrics.collected(self._state)
        try:
            # On a thread, so that requests are answered while thousands of lines are written.
            return await loop.run_in_executor(self._thread, metrics.written, families, form)
        finally:
            self._made_ns[form] = self._clock_ns()

    def close(self) -> None:
        """Make no further text; one that is being made ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)
