"""Bound the requests of streams that are read ahead by the size of their answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from hasten.core.tensors import Tensors, TensorSpec

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
        return self._streams[connection].expected.get(model, UNKNOWN_BYTES)

    def answered(self, connection: str, model: str, size: int) -> None:
        """Note how large an answer is that only the model could size.

        If it is larger than expected, those behind it may be too: the requests of the connection that no engine runs
        yet are held, as far as there is no room for answers of that size.
        """
        streams = self._streams[connection]
        before = streams.expected.get(model)
        if before is None:
            streams.expected[model], before = size, UNKNOWN_BYTES
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
