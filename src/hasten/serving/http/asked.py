"""Let requests over HTTP wait until their client has read other answers, even those that their models have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from hasten.serving.http.exchange import Exchange
from hasten.serving.owed_answers import COUNTED_BYTES, MOST_OWED_BYTES, Turn
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.state import ServerState

_SURPRISING = 4
"""A larger answer than was foreseen is a surprise if it is so by more than this part of that: a client could make every
answer a little larger, and the requests that wait are counted again at each surprise."""


class Asking(Protocol):
    """Interface of the connection that a request came on.

    Attributes:
        state: State of the server.
        client: Client that the connection is counted under.
        owes: Memory, in bytes, that the answer was foreseen to take; 0 if it isn't counted.
        clock_ns: Monotonic clock, in nanoseconds.
    """

    state: ServerState
    client: str
    owes: int
    clock_ns: Callable[[], int]

    @property
    def computing(self) -> bool:
        """Whether the model has the request, and hasn't answered it."""

    def owe(self, size: int) -> None:
        """Count the answer with that much memory."""

    def withdraw(self) -> bool:
        """Take the request back from its model, unless an engine runs it; return whether that was done."""


class Asked:
    """A request whose answer is counted as owed, until it is answered.

    Args:
        connection: Connection that it came on.
        exchange: The request.
        begin: Function that reads it again, and hands it to its model.
        arrived_ns: Time when it arrived.

    Attributes:
        timeout_ns: Time from its arrival in which it is to be answered; 0 for any.
    """

    __slots__ = (
        "_arrived_ns",
        "_begin",
        "_client",
        "_connection",
        "_exchange",
        "_guessed",
        "_timer",
        "_turn",
        "timeout_ns",
    )

    def __init__(
        self, connection: Asking, exchange: Exchange, begin: Callable[[], None], arrived_ns: int
    ) -> None:
        self._connection, self._exchange, self._begin = connection, exchange, begin
        self._arrived_ns, self.timeout_ns = arrived_ns, 0
        self._guessed = False
        """Whether only the model can tell the answer's size."""
        self._client: str | None = None
        """Client of whose requests it is one that can be taken back; None while it can't."""
        self._turn: Turn | None = None
        """Place among the requests that wait; None while it doesn't wait."""
        self._timer: asyncio.TimerHandle | None = None

    def begins(self, *, guessed: bool) -> None:
        """Note that the model gets the request now, and that it can be taken back; `guessed` says that its size is."""
        self._guessed, self._client = guessed, self._connection.client
        self._connection.state.owed.enter(self._client, self)

    def renamed(self) -> None:
        """Note that the client has another name."""
        if self._client is not None:
            self._leave()
            self.begins(guessed=self._guessed)

    def wait(self, size: int, most: int, *, first: bool = False) -> None:
        """Let the request wait until its client has read other answers.

        Args:
            size: Memory of its answer, in bytes.
            most: Memory of all answers, in bytes, from which it waits.
            first: Whether it waits in front of all others.
        """
        connection = self._connection
        self._exchange.query = None  # it is read again
        self._turn = connection.state.owed.wait(
            connection.client, size, most, self._go, self._refuse, first=first
        )
        if self.timeout_ns:
            self._at_deadline()

    def grew(self, size: int) -> None:
        """Count the answer, which is made, and take others back if it is much larger than was foreseen."""
        connection = self._connection
        foreseen = connection.owes
        if self._guessed and size > max(COUNTED_BYTES, foreseen + foreseen // _SURPRISING):
            connection.owe(size)
            connection.state.owed.hold(connection.client)

    def expect(self) -> None:
        """Count the answer as large as it is expected by now, if its size is guessed; see `Holding`."""
        connection, model = self._connection, self._exchange.model
        if self._guessed and connection.computing and model is not None:
            size = connection.state.owed.foreseen(model.name)
            if size > max(COUNTED_BYTES, connection.owes):
                connection.owe(size)

    def hold(self) -> None:
        """Take the request back, unless an engine runs it; see `Holding`."""
        connection = self._connection
        if self._client is None or not connection.withdraw():
            return
        self._leave()
        self.wait(connection.owes, MOST_OWED_BYTES, first=True)
        connection.owe(0)

    def ended(self, *, gone: bool = False) -> None:
        """Forget the request, which is answered, or whose client is gone."""
        if self._client is not None:
            self._leave()
        if self._turn is not None:
            self._connection.state.owed.leave(self._turn)
            self._out_of_line()
            if gone:
                self._exchange.count(
                    ProtocolError(Kind.GONE, "the client went away"), self._arrived_ns
                )

    def _leave(self) -> None:
        assert self._client is not None
        self._connection.state.owed.left(self._client, self)
        self._client = None

    def _out_of_line(self) -> None:
        self._turn = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _go(self) -> None:
        self._out_of_line()
        self._begin()

    def _refuse(self, failure: ProtocolError) -> None:
        self._out_of_line()
        self._exchange.count(failure, self._arrived_ns)
        self._exchange.refuse(failure)

    def _at_deadline(self) -> None:
        """Refuse the request at its deadline; wait again if the loop's timer, rounded to milliseconds, was early."""
        left_ns = self._arrived_ns + self.timeout_ns - self._connection.clock_ns()
        if left_ns > 0:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(left_ns / 1e9, self._at_deadline)
        elif self._turn is not None:
            self._connection.state.owed.leave(self._turn)
            late = "the deadline passed before this client had read its other answers"
            self._refuse(ProtocolError(Kind.LATE, late))
