"""Let handshakes of TLS begin one after another, so that others are heard in between.

A handshake takes up to some milliseconds of the event loop's thread, and 127 bytes of a client begin one.
"""

from __future__ import annotations

import asyncio
import socket

from hasten.serving.fairness import client_at
from hasten.serving.loop_budget import TURN_BYTES, LoopBudget

_HANDSHAKE = b"\x16"
"""Type of a TLS record that holds a part of a handshake (RFC 8446, 5.1)."""
_HEAD_BYTES, _BEGIN_BYTES = 5, 4
"""Sizes of what is before a record's and a message's content; both end in the content's size."""
_LONGEST_BYTES = 32 << 10
"""Size from which a client's first message isn't waited for: others send less than 4 KiB."""


class Handshakes:
    """Turns of handshakes, one in each turn of the event loop; used on the loop's thread only."""

    def __init__(self) -> None:
        self._turns = LoopBudget()

    async def turn(self, accepted: socket.socket, most_s: float) -> None:
        """Wait until a client's first message is there, and then for its turn.

        Args:
            accepted: Connection on which nothing was read.
            most_s: Longest wait for the message, in seconds.

        Raises:
            TimeoutError: the message didn't come in time.
            OSError: the client is gone.
        """
        peer = accepted.getpeername()
        client = client_at(peer[0]) if isinstance(peer, tuple) else ""
        async with asyncio.timeout(most_s):
            await _first_message(accepted)
        await self._turns.take(client, TURN_BYTES)


async def _first_message(accepted: socket.socket) -> None:
    """Wait until a client's first message is there, or no more of it can come."""
    message, wanted = FirstMessage(), 1
    try:
        while True:
            await _readable(accepted)
            data = accepted.recv(_LONGEST_BYTES, socket.MSG_PEEK)
            if len(data) < wanted:  # the client has ended its side
                return
            wanted = message.wanted(data)
            if not len(data) < wanted <= _LONGEST_BYTES:
                return
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
    finally:
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def _readable(accepted: socket.socket) -> None:
    """Wait until as much can be read as the socket waits for."""
    loop = asyncio.get_running_loop()
    there: asyncio.Future[None] = loop.create_future()

    def read() -> None:
        if not there.done():
            there.set_result(None)

    loop.add_reader(accepted, read)
    try:
        await there
    finally:
        loop.remove_reader(accepted)


class FirstMessage:
    """A client's first message of TLS, as far as it is there; each record is looked at once.

    A message may have a record for each of its bytes, which come one after another.
    """

    def __init__(self) -> None:
        self._place, self._message = 0, bytearray()

    def wanted(self, data: bytes) -> int:
        """Return how many bytes the message takes with its records, as far as these are there.

        Args:
            data: All bytes that came from the client so far; they may be anything.

        Returns:
            Bytes up to which to wait for the message, or to tell how long it is; no more than there are if it is
            whole, or if this isn't TLS.
        """
        message = self._message
        while len(message) < _BEGIN_BYTES + int.from_bytes(message[1:_BEGIN_BYTES], "big"):
            head = data[self._place : self._place + _HEAD_BYTES]
            if head[:1] not in (b"", _HANDSHAKE):
                break
            begin = self._place + _HEAD_BYTES
            if len(head) < _HEAD_BYTES:
                return begin
            end = begin + int.from_bytes(head[3:], "big")
            if end == begin or end > len(data):
                return end
            message += data[begin:end]
            self._place = end
        return self._place
