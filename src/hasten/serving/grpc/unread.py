"""Bound the single calls that are with their models by the size of their answers, until their clients have read these."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from hasten.serving.fairness import Shares
from hasten.serving.grpc.reading_ahead import UNKNOWN_BYTES

MOST_UNREAD_BYTES = 24 << 20
"""Size of the answers to single calls of one connection, unread or foreseen, from which its further calls wait."""


class Holding(Protocol):
    """Interface of a call that can take its request back from its model."""

    def expect(self) -> None:
        """Count the answer as large as it is expected by now, if its size is guessed."""

    def hold(self) -> None:
        """Take the request back, unless an engine runs it, and wait for room in front of all that wait."""


class Place:
    """Place of a call in the line of its connection, which it keeps until it has begun.

    Args:
        size: Size, in bytes, that its answer is foreseen to have.

    Attributes:
        size: The same.
        let_in: Result is there once the answer is counted, and the call may begin.
    """

    __slots__ = ("let_in", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.let_in: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _Reader:
    """Answers to single calls on one connection.

    Attributes:
        size: Size of those that are unread, or foreseen, in bytes.
        made: Size of those that are unread, in bytes.
        computing: Number of those that are foreseen.
        since_ns: Time when this changed last, or the client read something.
        client: Client that all unread ones are counted under; None if there are several, as behind a proxy.
        waiting: Further calls, which wait in their order; the first one may have been let in a moment ago.
    """

    __slots__ = ("client", "computing", "made", "since_ns", "size", "waiting")

    def __init__(self) -> None:
        self.size, self.made, self.computing, self.since_ns = 0, 0, 0, 0
        self.client: str | None = None
        self.waiting: deque[Place] = deque()


class Unread:
    """Answers to single calls that aren't read yet, by connection; used on the event loop's thread only.

    The library takes every answer at once, and keeps it until the client reads it, however long that takes.

    Args:
        clock_ns: Monotonic clock, in nanoseconds.
        bodies: Bodies and answers of all clients, among which those that are made count.
        most: Size for one connection, in bytes, from which its further calls wait; one answer may always be there.
    """

    def __init__(
        self, clock_ns: Callable[[], int], bodies: Shares, most: int = MOST_UNREAD_BYTES
    ) -> None:
        self._clock_ns, self._bodies, self._most = clock_ns, bodies, most
        self._readers: dict[str, _Reader] = {}
        self._sizes: dict[str, int] = {}
        self._begun: dict[str, dict[Holding, None]] = {}
        """Calls that are with their models and can be taken back, in their order, by connection."""

    def enter(self, connection: str, call: Holding) -> None:
        """Note that a call of a connection is with its model, and can be taken back."""
        self._begun.setdefault(connection, {})[call] = None

    def leave(self, connection: str, call: Holding) -> None:
        """Note that a call of a connection is no longer with its model."""
        calls = self._begun[connection]
        del calls[call]
        if not calls:
            del self._begun[connection]

    def hold(self, connection: str) -> None:
        """Take back the calls of a connection for whose answers there is no room, as far as no engine runs them.

        One of them has an answer that is larger than was foreseen, so that the others' may be too.
        """
        calls = list(self._begun.get(connection, ()))
        for call in calls:
            call.expect()
        # The last one first: a model may go on with the next one when one is taken back.
        for call in reversed(calls):
            if self._readers[connection].size <= self._most:
                return
            call.hold()

    def foreseen(self, model: str) -> int:
        """Return the size that a model's answer is expected to have where only the model can tell.

        That is the size of its last answer, or half of what was expected before that, if this is more.
        """
        return self._sizes.get(model, UNKNOWN_BYTES)

    def answered(self, model: str, size: int) -> None:
        """Note how large an answer is."""
        self._sizes[model] = max(size, self._sizes.get(model, 0) // 2)

    def stuck_since(self, connection: str) -> int | None:
        """Return the time since which calls of a connection wait for its client alone; None if they don't."""
        reader = self._readers.get(connection)
        return None if reader is None or reader.computing else reader.since_ns

    def progressed(self, connection: str) -> None:
        """Note that the client of a connection has read something."""
        if (reader := self._readers.get(connection)) is not None:
            reader.since_ns = self._clock_ns()

    def took(self, connection: str, size: int) -> bool:
        """Count an answer that a connection will have, unless it has to wait; return whether it is counted."""
        reader = self._readers.get(connection)
        if reader is None:
            reader = self._readers[connection] = _Reader()
        elif reader.waiting or (reader.size and reader.size + size > self._most):
            return False
        self._take(reader, size)
        return True

    def owes(self, connection: str) -> None:
        """Count an answer of unknown size that a connection will have, whatever it has already."""
        self._take(self._readers.setdefault(connection, _Reader()), 0)

    def has_line(self, connection: str) -> bool:
        """Whether calls of a connection wait."""
        reader = self._readers.get(connection)
        return reader is not None and bool(reader.waiting)

    def queue(self, connection: str, size: int, *, first: bool = False) -> Place:
        """Let a call wait behind the others of its connection, or in front of them."""
        place, waiting = Place(size), self._readers[connection].waiting
        if first:
            waiting.appendleft(place)
        else:
            waiting.append(place)
        return place

    async def wait(self, connection: str, place: Place) -> None:
        """Wait until the client has read enough, and the calls in front have begun; the answer is counted then."""
        reader = self._readers[connection]
        await place.let_in
        while reader.waiting[0] is not place:  # others were taken back at the same moment
            place.let_in = asyncio.get_running_loop().create_future()
            self.change(connection, place.size, 0, made=True)
            await place.let_in

    def gave_up(self, connection: str, place: Place) -> None:
        """Let the calls behind one go on that ends before its answer is owed."""
        if place.let_in.done() and not place.let_in.cancelled():
            self.change(connection, place.size, 0, made=True)
        self.begun(connection, place)

    def begun(self, connection: str, place: Place) -> None:
        """Let the calls behind one go on that has begun."""
        reader = self._readers[connection]
        reader.waiting.remove(place)
        self._let_in(connection, reader)

    def left_by(self, client: str, since_ns: int) -> list[str]:
        """Return the connections with unread answers of this client alone, of which it has read none since that time."""
        return [
            connection
            for connection, reader in self._readers.items()
            if reader.client == client and reader.made and reader.since_ns <= since_ns
        ]

    def keep(self, connection: str, client: str, size: int) -> None:
        """Count an answer that is made among all bodies; a negative size for one that is read."""
        reader = self._readers[connection]
        if size > 0:
            self._bodies.take(client, size)
            if not reader.made:
                reader.client = client
            elif reader.client != client:
                reader.client = None
        else:
            self._bodies.give(client, -size)
        reader.made += size

    def change(self, connection: str, before: int, size: int, *, made: bool) -> None:
        """Count another size of an answer, which was foreseen if it is made now."""
        reader = self._readers[connection]
        reader.size += size - before
        reader.computing -= made
        reader.since_ns = self._clock_ns()
        self._let_in(connection, reader)

    def _take(self, reader: _Reader, size: int) -> None:
        reader.size += size
        reader.computing += 1

    def _let_in(self, connection: str, reader: _Reader) -> None:
        """Let in the first call in the line if there is room, and forget a connection that has nothing."""
        if reader.waiting:
            place = reader.waiting[0]
            room = not reader.size or reader.size + place.size <= self._most
            if room and not place.let_in.done():
                self._take(reader, place.size)
                place.let_in.set_result(None)
        elif not reader.size and not reader.computing and self._readers.get(connection) is reader:
            del self._readers[connection]


class Debt:
    """Answer to a single call, made or foreseen, that its client is to read.

    Args:
        unread: Answers that it is counted among.
        connection: Connection of the call.
        size: Size, in bytes, that it is foreseen to have.
        client: Client that it is counted under.

    Attributes:
        size: Size, in bytes, that is counted.
    """

    __slots__ = ("_client", "_connection", "_made", "_unread", "size")

    def __init__(self, unread: Unread, connection: str, size: int, client: str = "") -> None:
        self._unread, self._connection, self.size = unread, connection, size
        self._made, self._client = False, client

    def expect(self, size: int) -> None:
        """Note another size that it is foreseen to have."""
        self._unread.change(self._connection, self.size, size, made=False)
        self.size = size

    def made(self, size: int) -> None:
        """Note the size that it really has; 0 for an error."""
        if size or self._made:
            self._unread.keep(self._connection, self._client, size or -self.size)
        self._unread.change(self._connection, self.size, size, made=not self._made)
        self.size, self._made = size, True

    def ended(self, call: object) -> None:
        """Count it no longer, since the client has read it, or is gone."""
        if self.size or not self._made:
            self.made(0)
