"""Bound the single calls that are with their models by the size of their answers, until their clients have read these."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from hasten.serving.fairness import Shares
from hasten.serving.grpc.reading_ahead import UNKNOWN_BYTES
from hasten.serving.owed_answers import (
    MOST_OWED_BYTES,
    Holding,
    OwedAnswers,
    Turn,
    take_back,
)
from hasten.serving.protocol.errors import ProtocolError

LIBRARY_TIMES = 2
"""Memory that the library takes for an answer, as a multiple of its size."""
MOST_UNREAD_BYTES = 24 << 20
"""Size of the answers to single calls of one connection, unread or foreseen, from which its further calls wait."""


class _Call(Holding, Protocol):
    """Interface of a call that can be taken back.

    Attributes:
        client: Client that it is counted under.
    """

    client: str


class Place:
    """Place of a call in the line of its connection, which it keeps until it has begun.

    Args:
        size: Size, in bytes, that its answer is foreseen to have.
        client: Client that it is counted under.
        batch: Size, in bytes, of a whole batch of such answers.

    Attributes:
        size: Size, in bytes, that its answer is foreseen to have.
        client: Client that it is counted under.
        batch: Size, in bytes, of a whole batch of such answers.
        first: Whether it waits in front of all that the client waits for, once its connection has room.
        let_in: Result is there once the answer is counted, and the call may begin.
        turn: Place among all that the client waits for, once its own connection has room; None without one.
    """

    __slots__ = ("batch", "client", "first", "let_in", "size", "turn")

    def __init__(self, size: int, client: str, batch: int) -> None:
        self.size, self.client, self.batch, self.first = size, client, batch, False
        self.let_in: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.turn: Turn | None = None


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
        owed: Answers of each client over all its connections.
        most: Size for one connection, in bytes, from which its further calls wait; one answer may always be there.
    """

    def __init__(
        self,
        clock_ns: Callable[[], int],
        bodies: Shares,
        owed: OwedAnswers,
        most: int = MOST_UNREAD_BYTES,
    ) -> None:
        self._clock_ns, self._bodies, self._owed, self._most = clock_ns, bodies, owed, most
        self._readers: dict[str, _Reader] = {}
        self._sizes: dict[str, int] = {}
        self._begun: dict[str, dict[_Call, None]] = {}
        """Calls that are with their models and can be taken back, in their order, by connection."""

    def enter(self, connection: str, call: _Call) -> None:
        """Note that a call of a connection is with its model, and can be taken back."""
        self._begun.setdefault(connection, {})[call] = None

    def leave(self, connection: str, call: _Call) -> None:
        """Note that a call of a connection is no longer with its model."""
        calls = self._begun[connection]
        del calls[call]
        if not calls:
            del self._begun[connection]

    def hold(self, connection: str) -> None:
        """Take back calls of a connection, one of whose answers is larger than was foreseen; see `take_back`."""
        begun = self._begun.get(connection, ())
        take_back(begun, lambda: self._readers[connection].size <= self._most)

    def hold_of(self, client: str, model: str, size: int) -> None:
        """Take back requests of a client on all its connections, one of which got an answer of that size."""
        self._owed.answered(model, size)
        self._owed.hold(client, model)

    def begun_by(self, client: str) -> list[Holding]:
        """Return the calls of a client that are with their models, and can be taken back."""
        return [call for calls in self._begun.values() for call in calls if call.client == client]

    def foreseen(self, model: str) -> int:
        """Return the size that a model's answer is expected to have where only the model can tell.

        That is the size of its last answer, or half of what was expected before that, if this is more.
        """
        return self._sizes.get(model, UNKNOWN_BYTES)

    def expected(self, model: str) -> int:
        """Return the same once an answer was larger than was foreseen, over HTTP or in a stream too."""
        return max(self.foreseen(model), self._owed.foreseen(model))

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

    def took(self, connection: str, size: int, client: str, batch: int = 0) -> bool:
        """Count an answer that a connection will have, unless it has to wait; return whether it is counted.

        Args:
            connection: The connection.
            size: Size of the answer, in bytes.
            client: Client that it is counted under.
            batch: Size, in bytes, of a whole batch of such answers.
        """
        reader = self._readers.get(connection)
        if reader is not None and (
            reader.waiting or (reader.size and reader.size + size > self._most)
        ):
            return False
        if not self._owed.has_room(client, *_memory(size, batch)):
            return False
        if reader is None:
            reader = self._readers[connection] = _Reader()
        self._take(connection, reader, size, client)
        return True

    def owes(self, connection: str) -> None:
        """Count an answer of unknown size that a connection will have, whatever it has already."""
        self._take(connection, self._readers.setdefault(connection, _Reader()), 0, "")

    def has_line(self, connection: str, client: str) -> bool:
        """Whether calls of a connection, or requests of its client, wait."""
        reader = self._readers.get(connection)
        return self._owed.has_line(client) or (reader is not None and bool(reader.waiting))

    def queue(self, connection: str, place: Place, *, first: bool = False) -> None:
        """Let a call wait behind the others of its connection, or in front of them."""
        reader = self._readers.get(connection)
        if reader is None:
            reader = self._readers[connection] = _Reader()
            reader.since_ns = self._clock_ns()
        place.first = first
        if first:
            if reader.waiting:
                self._give_turn_up(reader.waiting[0])
            reader.waiting.appendleft(place)
        else:
            reader.waiting.append(place)
            self._let_in(connection, reader)

    async def wait(self, connection: str, place: Place) -> None:
        """Wait until the client has read enough, and the calls in front have begun; the answer is counted then."""
        reader = self._readers[connection]
        await place.let_in
        while reader.waiting[0] is not place:  # others were taken back at the same moment
            place.let_in = asyncio.get_running_loop().create_future()
            self.change(connection, place.size, 0, place.client, made=True)
            await place.let_in

    def gave_up(self, connection: str, place: Place) -> None:
        """Let the calls behind one go on that ends before its answer is owed."""
        let_in = place.let_in
        if let_in.done() and not let_in.cancelled() and let_in.exception() is None:
            self.change(connection, place.size, 0, place.client, made=True)
        self._give_turn_up(place)
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

    def change(self, connection: str, before: int, size: int, client: str, *, made: bool) -> None:
        """Count another size of an answer to a client, which was foreseen if it is made now."""
        reader = self._readers[connection]
        reader.size += size - before
        self._owed.count(client, connection, LIBRARY_TIMES * (size - before))
        reader.computing -= made
        reader.since_ns = self._clock_ns()
        self._let_in(connection, reader)

    def _take(self, connection: str, reader: _Reader, size: int, client: str) -> None:
        reader.size += size
        reader.computing += 1
        self._owed.count(client, connection, LIBRARY_TIMES * size)

    def _let_in(self, connection: str, reader: _Reader) -> None:
        """Let in the first call in the line if there is room, and forget a connection that has nothing."""
        if reader.waiting:
            place = reader.waiting[0]
            if place.let_in.done() or place.turn is not None or not self._has_room(reader, place):
                return
            room = _memory(place.size, place.batch)
            if self._owed.has_room(place.client, *room):
                self._begin(connection, reader, place)
                return
            go, end = partial(self._in_turn, connection, place), partial(self._refuse, place)
            place.turn = self._owed.wait(place.client, *room, go, end, first=place.first)
        elif not reader.size and not reader.computing and self._readers.get(connection) is reader:
            del self._readers[connection]

    def _has_room(self, reader: _Reader, place: Place) -> bool:
        return not reader.size or reader.size + place.size <= self._most

    def _begin(self, connection: str, reader: _Reader, place: Place) -> None:
        self._take(connection, reader, place.size, place.client)
        place.let_in.set_result(None)

    def _in_turn(self, connection: str, place: Place) -> None:
        """Let a call in whose client has room, if its connection still has."""
        place.turn = None
        reader = self._readers[connection]
        if not place.let_in.done() and self._has_room(reader, place):
            self._begin(connection, reader, place)

    def _refuse(self, place: Place, failure: ProtocolError) -> None:
        """End a call that has waited for too long until its client reads on other connections."""
        place.turn = None
        if not place.let_in.done():
            place.let_in.set_exception(failure)

    def _give_turn_up(self, place: Place) -> None:
        if place.turn is not None:
            self._owed.leave(place.turn)
            place.turn = None


def _memory(size: int, batch: int) -> tuple[int, int]:
    """Return the memory of an answer, and that from which it waits beside others of its client."""
    return LIBRARY_TIMES * size, MOST_OWED_BYTES + LIBRARY_TIMES * batch


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
        self._unread.change(self._connection, self.size, size, self._client, made=False)
        self.size = size

    def made(self, size: int) -> None:
        """Note the size that it really has; 0 for an error."""
        if size or self._made:
            self._unread.keep(self._connection, self._client, size or -self.size)
        self._unread.change(self._connection, self.size, size, self._client, made=not self._made)
        self.size, self._made = size, True

    def ended(self, call: object) -> None:
        """Count it no longer, since the client has read it, or is gone."""
        if self.size or not self._made:
            self.made(0)
