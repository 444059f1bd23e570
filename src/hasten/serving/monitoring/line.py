"""Let labels wait in a line of their own, so that nothing else of the server waits until they are scored."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from hasten.serving.fairness import Shares
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.turns import Turns

P = ParamSpec("P")
R = TypeVar("R")

MOST_WAITING = 64
"""Requests of labels that wait or are worked on; further ones are refused."""
_EACH_BYTES = 1024
"""Size of the labels that take as long as what each request takes besides, such as the write to a file."""


class Line:
    """Thread that works on requests of labels one after another, by turns of their clients.

    It is used on the event loop's thread only.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "hasten-labels")
        self._shares = Shares(MOST_WAITING)
        self._turns, self._orders, self._lock = Turns(), itertools.count(), threading.Lock()
        self._waiting: list[tuple[int, int, Future[Any], Callable[[], Any]]] = []
        """Heap of the requests, by the client's turn and the order of arrival."""

    async def work(
        self,
        client: str,
        size_bytes: int,
        function: Callable[P, R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Call a function on the thread, and return what it returns.

        Args:
            client: Client that the request is counted under: none fills the line while others want to wait.
            size_bytes: Size of the labels, by which clients get equal shares of the thread.
            function: Function to call.
            args: Arguments of the function.
            kwargs: Further arguments of the function.

        Raises:
            ProtocolError: too many requests wait.
        """
        if not self._shares.took(client, 1):
            raise ProtocolError(
                Kind.OVERLOADED,
                f"overloaded: requests of labels wait, of which the server holds {MOST_WAITING}; "
                "retry later",
                retry_s=1.0,
            )
        answer: Future[R] = Future()
        with self._lock:
            self._thread.submit(self._next)
            turn = self._turns.next(client, _EACH_BYTES + size_bytes)
            call: Callable[[], R] = partial(function, *args, **kwargs)
            heapq.heappush(self._waiting, (turn, next(self._orders), answer, call))
        working = asyncio.wrap_future(answer)
        working.add_done_callback(lambda _: self._shares.give(client, 1))
        try:
            return await asyncio.shield(working)
        finally:
            del answer, working  # an error keeps this frame, and they would keep the error

    def _next(self) -> None:
        """Work on the request whose turn it is; on the thread."""
        with self._lock:
            if not self._waiting:  # the line was closed
                return
            turn, _, answer, call = heapq.heappop(self._waiting)
            self._turns.begun(turn)
            answer.set_running_or_notify_cancel()
        try:
            answer.set_result(call())
        except Exception as error:
            answer.set_exception(error)
        finally:
            del answer, call  # the error's frames would keep the labels until a garbage collection

    def close(self) -> None:
        """Drop what waits; what is worked on ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for _, _, answer, _ in waiting:
            answer.cancel()
