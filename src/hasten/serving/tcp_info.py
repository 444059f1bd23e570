"""Ask the system about a connection of TCP by the number of its file."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterator

_TOLD = struct.Struct("@52xI64xQ")
"""Milliseconds since the client sent something, and bytes that it has received, in what Linux says of a connection
(struct tcp_info)."""


@contextlib.contextmanager
def borrowed(number: int) -> Iterator[socket.socket | None]:
    """Lend a copy of an open socket; None for any other file, whose locks a copy would end."""
    one = None
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.fstat(number).st_mode):
            own = os.dup(number)
            try:
                one = socket.socket(fileno=own)
            except OSError:
                os.close(own)
    try:
        yield one
    finally:
        if one is not None:
            one.close()


def told(one: socket.socket) -> tuple[int, int | None]:
    """Return the milliseconds since the client sent something, and the bytes that it has received.

    The bytes are None where the system doesn't say it, or where there are none.
    """
    with contextlib.suppress(OSError, struct.error, AttributeError):
        data = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TOLD.size)
        quiet_ms, received = _TOLD.unpack(data)
        return quiet_ms, received or None
    return 0, None


def received_bytes(number: int) -> int | None:
    """Return the bytes that a connection's client has received; None where the system doesn't say it."""
    with borrowed(number) as one:
        return None if one is None else told(one)[1]
