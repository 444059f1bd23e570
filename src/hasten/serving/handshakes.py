"""Let connections of TLS take the event loop's turns one after another, so that others are heard in between.

A record in a handshake takes up to some milliseconds of the loop's thread, and 127 bytes of a client may ask for that.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, cast

from hasten.serving.fairness import client_at
from hasten.serving.loop_budget import TURN_BYTES, LoopBudget
from hasten.serving.tls_records import PACES, Pace

_TURN_NS = 100_000
"""Time after which a connection's turn is over: many records cost little, and an expensive one comes last in it."""


class Handshakes:
    """Turns of connections of TLS for records without data: one connection in each turn of the event loop.

    Used on the loop's thread only.
    """

    def __init__(self) -> None:
        self._turns = LoopBudget()

    async def secure(
        self,
        accepted: socket.socket,
        context: Callable[[], ssl.SSLContext],
        made: Callable[[], asyncio.BaseProtocol],
        most_s: float,
    ) -> None:
        """Shake hands with a client, and give the connection to a protocol.

        Args:
            accepted: Connection on which nothing was read; it is closed if this fails.
            context: Function that returns the context of now, whose connections read one record at a time.
            made: Function that returns the protocol once the handshake is complete.
            most_s: Longest time for all of it, in seconds.

        Raises:
            OSError: the client is gone, the handshake failed or took too long.
        """
        peer = accepted.getpeername()
        pace = ConnectionPace(self._turns, client_at(peer[0]) if isinstance(peer, tuple) else "")
        paces: list[Pace] = [pace]
        PACES.set(paces)
        loop = asyncio.get_running_loop()
        pace.raw, first = await loop.connect_accepted_socket(_First, accepted)
        try:
            async with asyncio.timeout(most_s):
                transport = await self._secured(pace, first, context, most_s)
        except BaseException:
            paces.clear()  # else it and its transport's context would keep each other in memory
            pace.raw.abort()
            raise
        protocol = made()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        pace.raw.resume_reading()

    async def _secured(
        self,
        pace: ConnectionPace,
        first: _First,
        context: Callable[[], ssl.SSLContext],
        most_s: float,
    ) -> asyncio.Transport:
        """Return the secured transport of a connection; what it needs is made in a turn, after the first bytes."""
        await first.there
        await self._turns.take(pace.client, TURN_BYTES)
        pace.first = first.data
        if pace.raw.is_closing():  # nothing would end the wait for the handshake
            raise ConnectionResetError("the client went away before the handshake")
        transport = await asyncio.get_running_loop().start_tls(
            pace.raw, first, context(), server_side=True, ssl_handshake_timeout=most_s
        )
        if transport is None or transport.is_closing() or not pace.shaken:
            raise ConnectionResetError("the client went away in the handshake")
        return transport


class ConnectionPace:
    """Turns of one connection.

    Args:
        turns: Turns of all connections.
        client: Client that the connection is counted under.

    Attributes:
        client: Client that the connection is counted under.
        raw: Transport of the encrypted bytes.
        first: Bytes that arrived before TLS began to read.
        shaken: Whether the handshake is complete.
    """

    raw: asyncio.Transport

    def __init__(self, turns: LoopBudget, client: str) -> None:
        self._turns, self.client = turns, client
        self.first = b""
        self.shaken = self._waits = False
        self._turn, self._end_ns = -1, 0

    def may_go(self) -> bool:
        """Whether the connection may handle a record now; if not, it is told to go on once it may."""
        if self._turn == self._turns.turn and time.perf_counter_ns() < self._end_ns:
            return True
        if not self._waits and self._turns.took(TURN_BYTES):
            self._begin()
            return True
        if not self.shaken:  # later the protocol itself bounds what it reads ahead
            self.raw.pause_reading()
        if not self._waits:
            self._waits = True
            self._turns.asked(self.client, TURN_BYTES).add_done_callback(self._go_on)
        return False

    def shook(self) -> None:
        """Note that the handshake is complete; nothing more is read until its protocol is told."""
        self.shaken = True
        self.raw.pause_reading()

    def _begin(self) -> None:
        """Begin a turn, which ends with that of the event loop: what isn't used of it is lost."""
        self._turn, self._end_ns = self._turns.turn, time.perf_counter_ns() + _TURN_NS

    def _go_on(self, _: asyncio.Future[None]) -> None:
        self._waits = False
        self._begin()
        if self.raw.is_closing():
            return
        if not self.shaken:
            self.raw.resume_reading()
        protocol: Any = self.raw.get_protocol()
        protocol.buffer_updated(0)  # as if bytes had arrived: those that were held back are there


class _First(asyncio.Protocol):
    """Protocol that keeps what arrives before TLS begins to read, and gets nothing until the handshake is complete.

    Attributes:
        data: Bytes that arrived.
        there: Future that is done once some have arrived, or none can.
    """

    def __init__(self) -> None:
        self.data = b""
        self.there = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport."""
        self._raw = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Keep what arrived."""
        self.data += data
        self._raw.pause_reading()
        self._end()

    def connection_lost(self, _: Exception | None) -> None:
        """End the wait, since nothing will arrive."""
        self._end()

    def _end(self) -> None:
        if not self.there.done():
            self.there.set_result(None)
