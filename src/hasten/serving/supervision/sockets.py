"""Connections as they are accepted: how many there may be, and how each is set up."""

from __future__ import annotations

import contextlib
import logging
import resource
import socket

from hasten.errors import InputError

log = logging.getLogger("hasten.serving")

_SPARE_FILES = 128
"""That a process needs besides its connections: models, libraries, threads' pipes."""


def allowed_connections(connections: int, ports: int) -> int:
    """Raise what this process and its children may open to what so many connections need.

    Args:
        connections: Of each port.
        ports: How many there are.

    Returns:
        As many connections as the system allows.

    Raises:
        InputError: it allows none.
    """
    need = ports * connections + _SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < need:
        connections, need = (hard - _SPARE_FILES) // ports, hard
        if connections < 1:
            raise InputError(
                f"a server takes {_SPARE_FILES} open files and one for each connection; the system "
                f"allows {hard}: raise ulimit -n"
            )
        log.warning(
            "at most %d connections are taken at once: the system allows %d open files, see ulimit -n",
            connections,
            hard,
        )
    if soft != resource.RLIM_INFINITY and soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
    return connections


def set_up(connection: socket.socket) -> None:
    """Send small answers at once, and find out about clients that are gone without a word."""
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
