"""Bound the requests that are read ahead, and the single calls under way, by the size of their answers."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from hasten.core.tensors import Tensors, TensorSpec
from hasten.serving.fairness import Shares

MOST_REQUESTS = 128
"""Largest number of requests of one stream that are processed at once; further ones aren't read yet."""
MOST_BYTES = 8 << 20
"""Size of the unsent answers of one stream, made or foreseen, from which further requests aren't read yet."""
MOST_TOGETHER_BYTES = 16 << 20
"""Size of the unsent answers of all streams of one connection from which they begin no further request."""
MOST_UNREAD_BYTES = 24 << 20
"""Size of the answers to single calls of one connection, unread or foreseen, from which its further calls wait."""
_UNKNOWN_BYTES = 1 << 20
"""Size at which an answer counts while nothing tells it."""
_SURPRISING_BYTES = MOST_BYTES // MOST_REQUESTS
"""Size up to which an answer may be larger than expected: a stream may have as many of them as requests."""
_FORGETTING = 64
"""Part of the expected size that each smaller answer takes from it."""


class Ahead:
    """Requests of a stream that were read but whose answers aren't sent yet.

    Attributes:
        requests: Number of these requests.
        size_bytes: Size of their answers, as far as it is known or foreseen.
    """

    __slots__ = ("requests", "size_bytes")

    def __init__(self) -> None:
        self.requests, self.size_bytes = 0, 0

    @property
    def full(self) -> bool:
        """Whether no further request may be read yet."""
        return self.requests >= MOST_REQUESTS or self.size_bytes >= MOST_BYTES


class Holding(Protocol):
    """Interface of a stream that can take requests back from their models."""

    def expect(self) -> None:
        """Count the answers whose sizes are guessed anew, as large as they are expected by now."""

    def hold(self) -> None:
        """Take back the requests whose answers have guessed sizes and no room, as far as no engine runs them."""


class _Streams:
    """Streams of one connection, and the sizes that they expect of the answers of models, by the models' names."""

    __slots__ = ("expected", "open")

    def __init__(self) -> None:
        self.open: set[Holding] = set()
        self.expected: dict[str, int] = {}


class Together:
    """Unsent answers of all streams of each connection, made or foreseen; used on the event loop's thread only.

    Args:
        most: Size for one connection, in bytes, from which its streams begin no further request.
    """

    def __init__(self, most: int = MOST_TOGETHER_BYTES) -> None:
        self._most = most
        self._sizes: dict[str, int] = {}
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._streams: dict[str, _Streams] = {}

    def enter(self, connection: str, stream: Holding) -> None:
        """Note that a stream of a connection begins."""
        self._streams.setdefault(connection, _Streams()).open.add(stream)

    def leave(self, connection: str, stream: Holding) -> None:
        """Note that a stream of a connection ended."""
        streams = self._streams[connection]
        streams.open.discard(stream)
        if not streams.open:
            del self._streams[connection]

    def foreseen(self, connection: str, model: str) -> int:
        """Return the size that a model's answer is expected to have where only the model can tell.

        That is the size of the largest answer on the connection so far, which each smaller one makes a little less.
        """
        return self._streams[connection].expected.get(model, _UNKNOWN_BYTES)

    def answered(self, connection: str, model: str, size: int) -> None:
        """Note how large an answer is that only the model could size.

        If it is larger than expected, those behind it may be too: the requests of the connection that no engine runs
        yet are held, as far as there is no room for answers of that size.
        """
        streams = self._streams[connection]
        before = streams.expected.get(model)
        if before is None:
            streams.expected[model], before = size, _UNKNOWN_BYTES
        else:
            streams.expected[model] = max(size, before - before // _FORGETTING)
        if size > max(before, _SURPRISING_BYTES):
            for stream in streams.open:
                stream.expect()
            for stream in streams.open:
                stream.hold()

    def has_room(self, connection: str, size: int) -> bool:
        """Whether a connection's streams could begin a further request if they had that much less."""
        return self._sizes.get(connection, 0) - size < self._most

    def count(self, connection: str, change: int) -> None:
        """Count that much more, or less, and wake the streams that wait for less."""
        size = self._sizes.get(connection, 0) + change
        if size:
            self._sizes[connection] = size
        else:
            self._sizes.pop(connection, None)
        if change < 0:
            for room in self._waiting.get(connection, ()):
                room.set()

    async def let_in(self, connection: str, room: asyncio.Event) -> None:
        """Wait until a connection's streams may begin a further request.

        Args:
            connection: Connection of the stream.
            room: Event of the stream that is set where there may be room.
        """
        waiting = self._waiting.setdefault(connection, set())
        waiting.add(room)
        try:
            while self._sizes.get(connection, 0) >= self._most:
                room.clear()
                await room.wait()
        finally:
            waiting.discard(room)
            if not waiting:
                self._waiting.pop(connection, None)


class _Reader:
    """Answers to single calls on one connection.

    Attributes:
        size: Size of those that are unread, or foreseen, in bytes.
        made: Size of those that are unread, in bytes.
        computing: Number of those that are foreseen.
        since_ns: Time when this changed last, or the client read something.
        client: Client that all unread ones are counted under; None if there are several, as behind a proxy.
        waiting: Sizes of the answers to further calls, which wait in their order.
    """

    __slots__ = ("client", "computing", "made", "since_ns", "size", "waiting")

    def __init__(self) -> None:
        self.size, self.made, self.computing, self.since_ns = 0, 0, 0, 0
        self.client: str | None = None
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()


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

    def foreseen(self, model: str) -> int:
        """Return the size that a model's answer is expected to have where only the model can tell.

        That is the size of its last answer, or half of what was expected before that, if this is more.
        """
        return self._sizes.get(model, _UNKNOWN_BYTES)

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

    async def take(self, connection: str, size: int) -> None:
        """Count an answer that a connection will have, once its client has read enough; calls wait in turn."""
        reader = self._readers[connection]
        let_in: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        reader.waiting.append((size, let_in))
        try:
            await let_in
        except asyncio.CancelledError:
            if let_in.cancelled():  # others are let in past it
                self._let_in(connection, reader)
            else:  # it was let in at the same moment
                self.change(connection, size, 0, made=True)
            raise

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
        """Let in the calls for which there is room now, and forget a connection that has nothing."""
        waiting = reader.waiting
        while waiting:
            size, let_in = waiting[0]
            if not let_in.cancelled():
                if reader.size and reader.size + size > self._most:
                    return
                self._take(reader, size)
                let_in.set_result(None)
            waiting.popleft()
        if not reader.size and not reader.computing and self._readers.get(connection) is reader:
            del self._readers[connection]


class Debt:
    """Answer to a single call, made or foreseen, that its client is to read.

    Args:
        unread: Answers that it is counted among.
        connection: Connection of the call.
        size: Size, in bytes, that it is foreseen to have.
        client: Client that it is counted under.
    """

    __slots__ = ("_client", "_connection", "_made", "_size", "_unread")

    def __init__(self, unread: Unread, connection: str, size: int, client: str = "") -> None:
        self._unread, self._connection, self._size = unread, connection, size
        self._made, self._client = False, client

    def made(self, size: int) -> None:
        """Note the size that it really has; 0 for an error."""
        if size or self._made:
            self._unread.keep(self._connection, self._client, size or -self._size)
        self._unread.change(self._connection, self._size, size, made=not self._made)
        self._size, self._made = size, True

    def ended(self, call: object) -> None:
        """Count it no longer, since the client has read it, or is gone."""
        if self._size or not self._made:
            self.made(0)


def size_of(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], tensors: Tensors
) -> int | None:
    """Return the size of all outputs of a model for the inputs of a request; None if their shapes don't tell it."""
    named: dict[int | str, int] = {}
    size = 0
    for output in outputs:
        if output.dtype == "object":
            return None
        if not named and not output.static:
            named = _sizes(inputs, tensors)
        dims = [dim if isinstance(dim, int) else named.get(dim, -1) for dim in output.shape]
        if -1 in dims:
            return None
        size += math.prod(dims) * np.dtype(output.dtype).itemsize
    return size


def _sizes(inputs: Sequence[TensorSpec], tensors: Tensors) -> dict[int | str, int]:
    """Return the sizes of a model's open dimensions in a request, by their names."""
    found: dict[int | str, int] = {}
    for spec in inputs:
        if (array := tensors.get(spec.name)) is not None:
            found.update(zip(spec.shape, array.shape, strict=False))
    found.pop("?", None)
    return found
