"""End connections of the gRPC library, which shows them to nobody: they are found among the process's open files.

A socket that is shut down is to the library what a client is that went away, so it ends the connection's calls too.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote

from hasten.serving.fairness import client_at
from hasten.serving.tcp_info import borrowed, told

Place: TypeAlias = tuple[str, int]
"""Address and port of a client."""

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_FILES = "/proc/self/fd"
"""Folder of the process's open files. Where there is none, no connection is found."""
_PROGRESS_BYTES = 4096
"""Least bytes that a client reads where it doesn't merely answer pings."""
_QUIET_MS = 1000
"""Time without a sign of the client after which its connection is ended before those of clients that ask."""
_BETWEEN_NS = 2_000_000_000
"""Longest time between two looks that counts: the server itself may have been stopped for longer."""
_ROOM = 0.9
"""Share of the allowed connections that are left once others were ended for lack of room."""


class Connection(NamedTuple):
    """A client's connection, as it was when it was found.

    Attributes:
        number: Number of its file in the process.
        quiet_ms: Time since the client sent something, in milliseconds.
        received: Bytes that the client has received; None where the system doesn't say.
    """

    number: int
    quiet_ms: int
    received: int | None


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


def open_files() -> list[str]:
    """Return the numbers of the files that the process has open.

    Raises:
        OSError: they aren't listed here, or the process may open no further one.
    """
    return os.listdir(_FILES)  # noqa: PTH208 - a quarter of the time


def connections(port: int) -> dict[Place, Connection]:
    """Return the connections that clients have to a port of this process.

    Raises:
        OSError: see `open_files`.
    """
    found: dict[Place, Connection] = {}
    for name in open_files():
        with borrowed(int(name)) as one:
            if one is not None and (place := _client_of(one, port)) is not None:
                found[place] = Connection(int(name), *told(one))
    return found


def _client_of(one: socket.socket, port: int) -> Place | None:
    """Return the client of a connection to a port of this process; None for any other socket."""
    with contextlib.suppress(OSError, ValueError):
        if one.family in _FAMILIES and one.getsockname()[1] == port:
            address, client_port = one.getpeername()[:2]
            return _plain(address), client_port
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
        self._looked_ns = clock_ns()
        self._waited: dict[Place, tuple[int, int]] = {}
        """Bytes that a client had received, and the time for which it has received no more."""

    @property
    def crowded(self) -> bool:
        """Whether there may be too many connections."""
        try:
            return len(open_files()) > self._most
        except FileNotFoundError:
            return False
        except OSError:  # the process may open no further file
            return True

    def look(self, unread: Collection[Place], busy: Collection[Place]) -> set[Place]:
        """Look at all connections, and end those that have to be; takes some milliseconds for many.

        Args:
            unread: Clients that have answers to read.
            busy: Clients whose connections aren't idle.

        Returns:
            Clients among `unread` that have read something since the look before.
        """
        try:
            found = connections(self._port)
        except OSError:
            return set()
        reading = self._end_unread(found, unread)
        self.too_many = len(found) > self._most
        if self.too_many:
            idle = [place for place in found if place not in busy and place not in unread]
            for place in _to_end(found, idle, len(found) - int(_ROOM * self._most)):
                self._end(place, found[place])
        return reading

    def received(self, places: Collection[Place]) -> dict[Place, int]:
        """Return the bytes that clients have received; without those of which the system doesn't say it."""
        try:
            found = connections(self._port)
        except OSError:
            return {}
        return {
            place: one.received
            for place, one in found.items()
            if place in places and one.received is not None
        }

    def end(self, received: Mapping[Place, int]) -> None:
        """End the connections of clients that have read nothing since they had received so many bytes."""
        with contextlib.suppress(OSError):
            for place, one in connections(self._port).items():
                had = received.get(place)
                if had is not None and (one.received or 0) < had + _PROGRESS_BYTES:
                    self._end(place, one)

    def cut(self, place: Place) -> None:
        """End a client's connection, if it is still there."""
        with contextlib.suppress(OSError):
            if (one := connections(self._port).get(place)) is not None:
                self._end(place, one)

    def _end_unread(
        self, found: Mapping[Place, Connection], unread: Collection[Place]
    ) -> set[Place]:
        now_ns, before = self._clock_ns(), self._waited
        passed_ns = min(now_ns - self._looked_ns, _BETWEEN_NS)
        self._looked_ns, self._waited, reading = now_ns, {}, set()
        for place in unread:
            one = found.get(place)
            if one is None or one.received is None:
                continue
            had, waited_ns = before.get(place, (one.received, 0))
            if one.received >= had + _PROGRESS_BYTES:
                had, waited_ns = one.received, 0
                reading.add(place)
            elif place in before:
                waited_ns += passed_ns
            if waited_ns > self._patience_ns:
                self._end(place, one)
            else:
                self._waited[place] = had, waited_ns
        return reading

    def _end(self, place: Place, found: Connection) -> None:
        """Shut a connection down, if its file is still that of the same one."""
        with borrowed(found.number) as one:
            if one is not None and _client_of(one, self._port) == place:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)


def _to_end(
    found: Mapping[Place, Connection], idle: Collection[Place], count: int
) -> Iterator[Place]:
    """Yield so many idle connections, each of the client that has the most connections at that point.

    Of a client's, the longest quiet come first; those that were quiet for less than a second come after all others.
    """
    shares = Counter(client_at(address) for address, _ in found)
    for lively in (False, True):
        theirs: dict[str, list[Place]] = {}
        for place in sorted(idle, key=lambda place: found[place].quiet_ms):
            if (found[place].quiet_ms < _QUIET_MS) == lively:
                theirs.setdefault(client_at(place[0]), []).append(place)
        while count > 0 and theirs:
            greediest = max(theirs, key=shares.__getitem__)
            yield theirs[greediest].pop()
            shares[greediest] -= 1
            count -= 1
            if not theirs[greediest]:
                del theirs[greediest]
