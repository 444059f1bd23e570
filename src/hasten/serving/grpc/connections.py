"""End connections of the gRPC library, which shows them to nobody: they are found among the process's open files.

A socket that is shut down is to the library what a client is that went away, so it ends the connection's calls too.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

from hasten.serving.fairness import client_at

Place: TypeAlias = tuple[str, int]
"""Address and port of a client."""

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_FILES = Path("/proc/self/fd")
"""Folder of the process's open files. Where there is none, no connection is found."""
_ACKED = struct.Struct("@120xQ")
"""Bytes that the other side has received, in what Linux says of a connection (struct tcp_info)."""
_PROGRESS_BYTES = 4096
"""Least bytes that a client reads where it doesn't merely answer pings."""
_ROOM = 0.9
"""Share of the allowed connections that are left once others were ended for lack of room."""


def place_of(peer: str) -> Place:
    """Return the place of a client as gRPC writes it: ipv4:192.0.2.1:50000.

    Raises:
        ValueError: it isn't one of TCP.
    """
    address, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return _plain(address.strip("[]")), int(port)


def _plain(address: str) -> str:
    """Return an address as IPv4 has it, if it is one of IPv4 within IPv6."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return str(getattr(found, "ipv4_mapped", None) or found)


def open_files() -> list[int]:
    """Return the numbers of the files that the process has open; none where that isn't known."""
    with contextlib.suppress(OSError):
        return [int(file.name) for file in _FILES.iterdir()]
    return []


@contextlib.contextmanager
def connections(port: int) -> Iterator[dict[Place, socket.socket]]:
    """Find the connections that clients have to a port of this process, and hold them within the block."""
    with contextlib.ExitStack() as held:
        found: dict[Place, socket.socket] = {}
        for number in open_files():
            if (one := _socket(number)) is None:
                continue
            held.callback(one.close)
            with contextlib.suppress(OSError, ValueError):
                if one.family in _FAMILIES and one.getsockname()[1] == port:
                    address, client_port = one.getpeername()[:2]
                    found[_plain(address), client_port] = one
        yield found


def _socket(number: int) -> socket.socket | None:
    """Return a socket of a file's, if it is one; the file may be closed meanwhile, and another have its number."""
    try:
        own = os.dup(number)
    except OSError:
        return None
    try:
        return socket.socket(fileno=own)
    except OSError:
        os.close(own)
        return None


class Ending:
    """Ends connections whose clients read nothing, and idle ones where there are too many.

    Args:
        port: Port of the gRPC library.
        most: Largest number of connections.
        patience_ns: Time for which a client may read nothing of its answers, in nanoseconds.
        clock_ns: Monotonic clock, in nanoseconds.

    Attributes:
        too_many: Whether there were too many connections when they were last looked at.
    """

    def __init__(self, port: int, most: int, patience_ns: int, clock_ns: Callable[[], int]) -> None:
        self._port, self._most, self._patience_ns = port, most, patience_ns
        self._clock_ns, self.too_many = clock_ns, False
        self._read: dict[Place, tuple[int, int]] = {}
        """Bytes that a client had read, and the time when that was seen first."""

    @property
    def crowded(self) -> bool:
        """Whether there may be too many connections."""
        return len(open_files()) > self._most

    def look(self, unread: Collection[Place], busy: Collection[Place]) -> None:
        """Look at all connections, and end those that have to be; takes some milliseconds for many.

        Args:
            unread: Clients that have answers to read, and that nothing else is under way for.
            busy: Clients whose connections aren't idle.
        """
        with connections(self._port) as found:
            self._end_unread(found, unread)
            self.too_many = len(found) > self._most
            if self.too_many:
                idle = [place for place in found if place not in busy and place not in unread]
                for place in _of_the_greediest(found, idle, len(found) - int(_ROOM * self._most)):
                    _end(found[place])

    def _end_unread(self, found: Mapping[Place, socket.socket], unread: Collection[Place]) -> None:
        now_ns, before = self._clock_ns(), self._read
        self._read = {}
        for place in unread:
            if (one := found.get(place)) is None or (acked := _acked(one)) is None:
                continue
            had, since_ns = before.get(place, (-_PROGRESS_BYTES, now_ns))
            if acked >= had + _PROGRESS_BYTES:
                had, since_ns = acked, now_ns
            elif now_ns - since_ns > self._patience_ns:
                _end(one)
                continue
            self._read[place] = had, since_ns


def _of_the_greediest(
    found: Collection[Place], idle: Collection[Place], count: int
) -> Iterator[Place]:
    """Yield so many idle connections, each of the client that has the most connections at that point."""
    shares = Counter(client_at(address) for address, _ in found)
    theirs: dict[str, list[Place]] = {}
    for place in idle:
        theirs.setdefault(client_at(place[0]), []).append(place)
    for _ in range(min(count, len(idle))):
        greediest = max(theirs, key=shares.__getitem__)
        yield theirs[greediest].pop()
        shares[greediest] -= 1
        if not theirs[greediest]:
            del theirs[greediest]


def _acked(one: socket.socket) -> int | None:
    """Return the bytes that the other side has received; None where the system doesn't say."""
    with contextlib.suppress(OSError, struct.error, AttributeError):
        told = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED.size)
        return int(_ACKED.unpack(told)[0])
    return None


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
