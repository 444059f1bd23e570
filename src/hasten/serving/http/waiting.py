"""Let requests over HTTP wait until their client has read other answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from hasten.serving.http.exchange import Exchange
from hasten.serving.owed_answers import OwedAnswers, Turn
from hasten.serving.protocol.errors import Kind, ProtocolError


class Waiting:
    """A request that waits until its client has read other answers, and is read again then.

    Args:
        owed: Answers of all clients.
        exchange: The request, which was read.
        begin: Function that reads it again, and hands it to its model.
        clock_ns: Monotonic clock, in nanoseconds.
    """

    __slots__ = (
        "_arrived_ns",
        "_begin",
        "_clock_ns",
        "_deadline_ns",
        "_exchange",
        "_owed",
        "_timer",
        "_turn",
    )

    def __init__(
        self,
        owed: OwedAnswers,
        exchange: Exchange,
        begin: Callable[[], None],
        clock_ns: Callable[[], int],
    ) -> None:
        query, model = exchange.query, exchange.model
        assert query is not None
        assert model is not None
        self._owed, self._exchange, self._begin, self._clock_ns = owed, exchange, begin, clock_ns
        self._arrived_ns = query.arrived_ns
        timeout_ns = query.timeout_ns or model.settings.deadline_ns
        self._deadline_ns = query.arrived_ns + timeout_ns if timeout_ns else math.inf
        exchange.query = None  # its tensors would stay meanwhile
        self._turn: Turn | None = None
        """Place among the requests that wait; None once the request doesn't."""
        self._timer: asyncio.TimerHandle | None = None

    def queue(self, client: str, size: int, most: int, *, first: bool) -> None:
        """Let the request wait.

        Args:
            client: Client behind whose other requests it waits.
            size: Memory of its answer, in bytes.
            most: Memory of all answers, in bytes, from which it waits.
            first: Whether it waits in front of the others.
        """
        self._turn = self._owed.wait(client, size, most, self._go, self._refuse, first=first)
        if self._deadline_ns != math.inf:
            self._look_at_deadline()

    def leave(self) -> None:
        """Wait no longer: the client is gone."""
        if self._turn is not None:
            self._owed.leave(self._turn)
            self._end()
            gone = ProtocolError(Kind.GONE, "the client went away")
            self._exchange.count(gone, self._arrived_ns)

    def _end(self) -> None:
        self._turn = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go(self) -> None:
        self._end()
        self._begin()

    def _refuse(self, failure: ProtocolError) -> None:
        self._end()
        self._exchange.count(failure, self._arrived_ns)
        self._exchange.refuse(failure)

    def _look_at_deadline(self) -> None:
        """Refuse the request at its deadline; wait again if the loop's timer, rounded to milliseconds, was early."""
        left_ns = self._deadline_ns - self._clock_ns()
        if left_ns > 0:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(left_ns / 1e9, self._look_at_deadline)
        elif self._turn is not None:
            self._owed.leave(self._turn)
            late = "the deadline passed before this client had read its other answers"
            self._refuse(ProtocolError(Kind.LATE, late))
