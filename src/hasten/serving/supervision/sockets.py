"""Limit the number of accepted connections, set each one's socket options, and turn clients away."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
import socket

from hasten.errors import InputError

log = logging.getLogger("hasten.serving")

RESERVED = 64
"""Connections of HTTP beyond the allowed ones: to ask for health, and to take a greedy client's place."""
LEAVING = 64
"""Refused connections, beyond all that may be open, whose clients may still read why."""
_SPARE_FILES = 64 + LEAVING + RESERVED
"""Open files that a process needs besides its connections: models, libraries, threads' pipes."""


def allowed_connections(connections: int, ports: int) -> int:
    """Raise the limit on open files, for this process and its children, to what connections need.

    Args:
        connections: Wanted number of connections per port.
        ports: Number of ports; that of gRPC, whose library takes twice as many connections for a moment, counts as two.

    Returns:
        Number of connections per port that the system allows, at most `connections`.

    Raises:
        InputError: the system allows no connection.
    """
    need = ports * connections + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < need:
        connections, need = (hard - _SPARE_FILES) // ports, hard
        if connections < 1:
            raise InputError(
                f"a server needs {_SPARE_FILES} open files and one for each connection; the system "
                f"allows {hard}: raise ulimit -n"
            )
        log.warning(
            "at most %d connections can be open: the system allows %d open files; see ulimit -n",
            connections,
            hard,
        )
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
    return connections


def set_up(connection: socket.socket) -> None:
    """Set the options that send small answers at once and detect clients that vanished."""
    options = (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    )
    for level, name, value in options:
        with contextlib.suppress(OSError):
            connection.setsockopt(level, name, value)


def sorry(why: str, retry_s: int = 1) -> bytes:
    """Return the answer 503 to a client that is turned away."""
    body = json.dumps({"error": why}).encode()
    return (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: %d\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (retry_s, len(body), body)
    )
