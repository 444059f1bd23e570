"""Send answers over TLS piece by piece, so that the server knows what their clients haven't read.

The protocol of TLS that belongs to the event loop encrypts all that it gets, hands it on, and doesn't say that it is unread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

from hasten.serving.http.connection import Connection

_PIECE_BYTES = 64 << 10
"""Bytes that are encrypted at once, and from which on the connection's protocol is told to wait."""


class SecuredConnection(Connection):
    """Connection of one client over TLS; see `Connection`."""

    _pieces_out: PiecesOut

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection with the server."""
        self._pieces_out = PiecesOut(transport, super().pause_writing, super().resume_writing)
        super().connection_made(cast(asyncio.BaseTransport, self._pieces_out))

    def connection_lost(self, error: Exception | None) -> None:
        """Give up the requests of a client that went away."""
        self._pieces_out.drop()
        super().connection_lost(error)

    def pause_writing(self) -> None:
        """Encrypt no more: what is encrypted isn't sent."""
        self._pieces_out.stop()

    def resume_writing(self) -> None:
        """Encrypt what comes next."""
        self._pieces_out.go_on()


class PiecesOut:
    """Transport that hands an answer to another one, piece by piece, as far as that doesn't tell it to stop.

    Args:
        transport: Transport that encrypts, as the event loop has it.
        pause: Function that is called once something waits.
        resume: Function that is called once nothing waits any more.
    """

    def __init__(
        self, transport: Any, pause: Callable[[], None], resume: Callable[[], None]
    ) -> None:
        self._transport, self._pause, self._resume = transport, pause, resume
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._stopped = self._paused = self._closing = False
        transport.set_write_buffer_limits(_PIECE_BYTES)

    def __getattr__(self, name: str) -> Any:
        """Return what the other transport has."""
        return getattr(self._transport, name)

    def get_write_buffer_size(self) -> int:
        """Return the bytes that aren't handed to the system, as far as they are known."""
        return self._waiting_bytes + int(self._transport.get_write_buffer_size())

    def write(self, data: bytes) -> None:
        """Send data behind all that wait."""
        if self._stopped or self._waiting or len(data) > _PIECE_BYTES:
            self.writelines((data,))
        else:
            self._transport.write(data)

    def writelines(self, pieces: Iterable[Any]) -> None:
        """Send pieces behind all that wait."""
        for piece in pieces:
            data = memoryview(piece)
            self._waiting.extend(
                data[begin : begin + _PIECE_BYTES] for begin in range(0, len(data), _PIECE_BYTES)
            )
            self._waiting_bytes += len(data)
        self._hand_on()

    def stop(self) -> None:
        """Hand on nothing more for now."""
        self._stopped = True
        self._tell()

    def go_on(self) -> None:
        """Hand on what waits."""
        self._stopped = False
        self._hand_on()

    def close(self) -> None:
        """Close the connection once all that waits is sent; receive nothing more."""
        if self._waiting:
            self._closing = True
            self._transport.pause_reading()
        else:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self.drop()
        self._transport.abort()

    def resume_reading(self) -> None:
        """Receive again, unless the connection is being closed."""
        if not self._closing:
            self._transport.resume_reading()

    def drop(self) -> None:
        """Forget all that waits, and tell nobody any more."""
        self._waiting.clear()
        self._waiting_bytes = 0
        self._pause = self._resume = _nothing

    def _hand_on(self) -> None:
        while self._waiting and not self._stopped:
            piece = self._waiting.popleft()
            self._waiting_bytes -= len(piece)
            self._transport.write(piece)
        if self._closing and not self._waiting:
            self._transport.close()
        else:
            self._tell()

    def _tell(self) -> None:
        """Tell the protocol whether it has to wait, if that has changed."""
        waits = self._stopped or bool(self._waiting)
        if waits != self._paused and not self._closing:
            self._paused = waits
            (self._pause if waits else self._resume)()


def _nothing() -> None:
    pass
