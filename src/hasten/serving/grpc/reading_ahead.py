"""Bound the requests of streams that are read ahead by the size of their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

from hasten.serving import owed_answers
from hasten.serving.loop_budget import LoopBudget

MOST_REQUESTS = 128
"""Largest number of requests of one stream that are processed at once; further ones aren't read yet."""
MOST_BYTES = 8 << 20
"""Size of the unsent answers of one stream, made or foreseen, from which further requests aren't read yet."""
MOST_TOGETHER_BYTES = 16 << 20
"""Size of the unsent answers of all streams of one connection from which they begin no further request."""
UNKNOWN_BYTES = 1 << 20
"""Size at which an answer counts while nothing tells it."""
_SURPRISING_BYTES = MOST_BYTES // MOST_REQUESTS
"""Size up to which an answer may be larger than expected: a stream may have as many of them as requests."""
_REFUSED = 64
"""Largest number of held requests that a turn of the loop refuses, for all streams together."""
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
    """Interface of a stream that can take requests back from their models.

    Attributes:
        client: Client that the stream is counted under.
        payer: Client that its answers are counted under.
    """

    client: str
    payer: str

    def begun(self) -> Iterable[owed_answers.Holding]:
        """Return the requests that are with their models and can be taken back."""

    @property
    def unread_ns(self) -> int | None:
        """Time since which an answer isn't read; None while none is written."""

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

    Attributes:
        refusing: Number of held requests that each turn of the loop refuses.
    """

    def __init__(self, most: int = MOST_TOGETHER_BYTES) -> None:
        self._most, self.refusing = most, LoopBudget(_REFUSED)
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
        return self._streams[connection].expected.get(model, UNKNOWN_BYTES)

    def begun_by(self, client: str) -> list[owed_answers.Holding]:
        """Return the requests of a client that are with their models, and can be taken back."""
        streams = [one for each in self._streams.values() for one in each.open]
        return [call for one in streams if one.payer == client for call in one.begun()]

    def answered(self, connection: str, model: str, size: int) -> bool:
        """Note how large an answer is that only the model could size; return whether that is a surprise.

        If it is larger than expected, those behind it may be too: the requests of the connection that no engine runs
        yet are held, as far as there is no room for answers of that size.
        """
        streams = self._streams[connection]
        before = streams.expected.get(model)
        if before is None:
            streams.expected[model], before = size, UNKNOWN_BYTES
        else:
            streams.expected[model] = max(size, before - before // _FORGETTING)
        if size <= max(before, _SURPRISING_BYTES):
            return False
        for stream in streams.open:
            stream.expect()
        for stream in streams.open:
            stream.hold()
        return True

    def left_by(self, client: str, since_ns: int) -> list[str]:
        """Return the connections on which an answer of a client's stream isn't read since that time."""
        return [
            connection
            for connection, streams in self._streams.items()
            if any(
                one.client == client and (one.unread_ns or since_ns + 1) <= since_ns
                for one in streams.open
            )
        ]

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
