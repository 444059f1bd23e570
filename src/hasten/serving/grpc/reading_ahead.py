"""Bound how many requests are read ahead by the size that their answers have, or will have."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import Tensors, TensorSpec

MOST_REQUESTS = 128
"""Largest number of requests of one stream that are processed at once; further ones aren't read yet."""
MOST_BYTES = 8 << 20
"""Size of the unsent answers of one stream, made or foreseen, from which further requests aren't read yet."""
MOST_UNREAD_BYTES = 24 << 20
"""Size of the answers to single calls that a client hasn't read, made or foreseen, from which its further calls wait."""
_UNKNOWN_BYTES = 1 << 20
"""Size at which an answer counts while nothing tells it."""


class Ahead:
    """Requests that were read but whose answers aren't sent yet.

    Attributes:
        requests: Number of these requests.
        size_bytes: Size of their answers, as far as it is known or foreseen.
    """

    __slots__ = ("_largest", "requests", "size_bytes")

    def __init__(self) -> None:
        self.requests, self.size_bytes = 0, 0
        self._largest: dict[str, int] = {}
        """Size of the largest answer so far, by the name of the model."""

    @property
    def full(self) -> bool:
        """Whether no further request may be read yet."""
        return self.requests >= MOST_REQUESTS or self.size_bytes >= MOST_BYTES

    def foreseen(self, model: str) -> int:
        """Return the size that a model's answer is expected to have where only the model can tell.

        That is the size of its largest answer so far.
        """
        return self._largest.get(model, _UNKNOWN_BYTES)

    def answered(self, model: str, size_bytes: int) -> None:
        """Note how large an answer is."""
        if size_bytes > self._largest.get(model, -1):
            self._largest[model] = size_bytes


class Unread:
    """Sizes of the answers to single calls that clients haven't read yet; used on the event loop's thread only.

    The library takes every answer at once, and keeps it until the client reads it, however long that takes.

    Args:
        most: Size for one client, in bytes, from which its further calls wait; one answer may always be there.
    """

    def __init__(self, most: int = MOST_UNREAD_BYTES) -> None:
        self._most = most
        self._of: dict[str, int] = {}
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    def of(self, client: str) -> int:
        """Return the size of a client's unread answers, in bytes."""
        return self._of.get(client, 0)

    def took(self, client: str, size: int) -> bool:
        """Count an answer that a client will have, unless it has to wait; return whether it is counted."""
        if client in self._waiting or not self._fits(client, size):
            return False
        self.change(client, size)
        return True

    async def take(self, client: str, size: int) -> None:
        """Count an answer that a client will have, once it has read enough of others; calls wait in turn."""
        let_in: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append((size, let_in))
        try:
            await let_in
        except asyncio.CancelledError:
            if let_in.cancelled():  # others are let in past it
                if client in self._waiting:
                    self._let_in(client)
            else:  # it was let in at the same moment
                self.change(client, -size)
            raise

    def change(self, client: str, by: int) -> None:
        """Count more of a client's answers, or, with a negative number, less."""
        left = self._of.get(client, 0) + by
        if left:
            self._of[client] = left
        else:
            self._of.pop(client, None)
        if by < 0 and client in self._waiting:
            self._let_in(client)

    def _fits(self, client: str, size: int) -> bool:
        own = self._of.get(client, 0)
        return not own or own + size <= self._most

    def _let_in(self, client: str) -> None:
        """Let in the calls for which there is room now, and forget a client of which none waits."""
        waiting = self._waiting[client]
        while waiting and (waiting[0][1].cancelled() or self._fits(client, waiting[0][0])):
            size, let_in = waiting.popleft()
            if not let_in.cancelled():
                self._of[client] = self._of.get(client, 0) + size
                let_in.set_result(None)
        if not waiting:
            del self._waiting[client]


class Debt:
    """Answer to a single call, made or foreseen, that its client is to read.

    It doesn't refer to the call, which refers to it.

    Args:
        unread: Answers that it is counted among.
        client: Client that is to read it.
        size: Its size, in bytes.
    """

    __slots__ = ("_client", "_size", "_unread")

    def __init__(self, unread: Unread, client: str, size: int) -> None:
        self._unread, self._client, self._size = unread, client, size

    def change(self, size: int) -> None:
        """Note the size that it really has."""
        if size != self._size:
            self._unread.change(self._client, size - self._size)
            self._size = size

    def ended(self, context: Any) -> None:
        """Count it no longer, since the client has read it, or is gone."""
        self.change(0)


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
