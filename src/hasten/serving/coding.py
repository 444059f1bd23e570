"""Threads that unpack bodies and write long answers, by turns of clients."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_THREADS = 2
"""Few, to bound the memory in use at once."""


class Coding:
    """Threads on which clients' work is done: one piece for each client, then the next for each."""

    def __init__(self) -> None:
        self._threads, self._lock = ThreadPoolExecutor(_THREADS, "hasten-coding"), threading.Lock()
        self._waiting: dict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = {}
        """Client -> its work that waits, in order of arrival; the client whose turn is next comes first."""

    def work(
        self, client: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[R]:
        """Call a function on a thread once it is the client's turn, and return the future of what it returns.

        No coroutine waits for it here, whose frame an error would keep, with all that was worked on.

        Args:
            client: Client that the work is counted under.
            function: Function to call.
            args: Arguments of the function.
            kwargs: Further arguments of the function.

        Raises:
            RuntimeError: `close` was called.
        """
        answer: Future[R] = Future()
        with self._lock:
            self._threads.submit(self._next)
            call = partial(function, *args, **kwargs)
            self._waiting.setdefault(client, deque()).append((answer, call))
        return asyncio.wrap_future(answer)

    def _next(self) -> None:
        """Do the work whose turn it is; on a thread."""
        with self._lock:
            found = self._taken()
        if found is None:
            return
        answer, call = found
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)
        finally:
            del found, answer, call  # an error keeps this frame, and all that was worked on

    def _taken(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        """Take the work whose turn it is out of the line; None if all whose work waited went away."""
        while self._waiting:
            client, queue = next(iter(self._waiting.items()))
            found = queue.popleft()
            wanted = found[0].set_running_or_notify_cancel()
            if wanted or not queue:
                del self._waiting[client]
            if wanted:
                if queue:
                    self._waiting[client] = queue  # behind the other clients
                return found
        return None

    def close(self) -> None:
        """Begin nothing more, and cancel what waits; what is under way ends by itself."""
        with self._lock:
            self._threads.shutdown(wait=False, cancel_futures=True)
            waiting = [answer for queue in self._waiting.values() for answer, _ in queue]
            self._waiting.clear()
        for answer in waiting:
            answer.cancel()
