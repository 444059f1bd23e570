"""Let labels wait in a line of their own, so that nothing else of the server waits until they are scored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from hasten.serving.fairness import Shares
from hasten.serving.protocol.errors import Kind, ProtocolError

P = ParamSpec("P")
R = TypeVar("R")

MOST_WAITING = 64
"""Requests of labels that wait or are worked on; further ones are refused."""


class Line:
    """Thread that works on requests of labels one after another; used on the event loop's thread only."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "hasten-labels")
        self._waiting = Shares(MOST_WAITING)

    async def work(
        self, client: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call a function on the thread, and return what it returns.

        Args:
            client: Client that the request is counted under: none fills the line while others want to wait.
            function: Function to call.
            args: Arguments of the function.
            kwargs: Further arguments of the function.

        Raises:
            ProtocolError: too many requests wait.
        """
        if not self._waiting.took(client, 1):
            raise ProtocolError(
                Kind.OVERLOADED,
                f"overloaded: requests of labels wait, of which the server holds {MOST_WAITING}; "
                "retry later",
                retry_s=1.0,
            )
        working = asyncio.wrap_future(self._thread.submit(function, *args, **kwargs))
        working.add_done_callback(lambda _: self._waiting.give(client, 1))
        return await asyncio.shield(working)

    def close(self) -> None:
        """Drop what waits; what is worked on ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)
