"""Tell clients apart, and bound what one of them takes while others are there."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import unquote

_WANTED_NS = 5_000_000_000
"""Time for which a client that was refused counts as one that is there."""
_MOST_WANTING = 1024
_NETWORK_BITS = 64
"""Bits of an IPv6 address that tell clients apart: a host chooses the others itself."""


@lru_cache(4096)
def client_at(address: str) -> str:
    """Return what requests from one address are counted under; "" if nothing is known of it.

    Args:
        address: IP address.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _NETWORK_BITS), strict=False))


@lru_cache(4096)
def client_at_peer(peer: str) -> str:
    """Return the same as `client_at` for a peer as gRPC writes it: ipv4:192.0.2.1:50000."""
    _, _, place = unquote(peer).partition(":")
    return client_at(place.rpartition(":")[0].strip("[]"))


def client_named(name: str) -> str:
    """Return what requests of a client are counted under that is known by a token or a certificate."""
    return f"client {name}"


class Shares:
    """Share of the server that each client takes, so that a greedy one doesn't starve the rest.

    A client that is alone may take all. While others are connected, nobody takes more than is still free: one
    greedy client keeps half, two keep a third each, and a newcomer finds room.

    Source: Choudhury and Hahne, Dynamic queue length thresholds for shared-memory packet switches, 1998.

    Args:
        total: Amount in all.
        least: Amount that a client may take as long as that is free, whatever others have.
        clock_ns: Monotonic clock, in nanoseconds.

    Attributes:
        total: Amount in all.
        taken: Amount that all clients have taken together.
    """

    def __init__(
        self, total: int, least: int = 0, clock_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self.total, self.taken = total, 0
        self._least, self._clock_ns = least, clock_ns
        self._of: dict[str, int] = {}
        self._wanting: dict[str, int] = {}
        """Client that was refused for lack of room -> time until which it counts as there."""

    def of(self, client: str) -> int:
        """Return how much a client has taken."""
        return self._of.get(client, 0)

    def greediest(self) -> str:
        """Return the client that has taken most; "" if none has taken anything."""
        return max(self._of, key=self._of.__getitem__, default="")

    def may_take(self, client: str, size: int) -> bool:
        """Whether a client may take more; one for which there is no room counts as there for a while."""
        free, own = self.total - self.taken, self._of.get(client, 0) + size
        if size > free:
            self._want(client)
            return False
        return own <= max(free, self._least) or not self.others(client)

    def took(self, client: str, size: int) -> bool:
        """Count what a client takes if it may; return whether it does."""
        own = self._of.get(client, 0) + size
        if own > self.total - self.taken and not self.may_take(client, size):
            return False
        self.taken += size
        self._of[client] = own
        return True

    def take(self, client: str, size: int) -> None:
        """Count what a client takes."""
        self.taken += size
        self._of[client] = self._of.get(client, 0) + size

    def give(self, client: str, size: int) -> None:
        """Count what a client no longer has."""
        self.taken -= size
        left = self._of.get(client, 0) - size
        if left:
            self._of[client] = left
        else:
            self._of.pop(client, None)

    def others(self, client: str) -> bool:
        """Whether other clients are there."""
        if len(self._of) > (client in self._of):
            return True
        if not self._wanting:
            return False
        now_ns = self._clock_ns()
        self._wanting = {one: end_ns for one, end_ns in self._wanting.items() if end_ns > now_ns}
        return len(self._wanting) > (client in self._wanting)

    def _want(self, client: str) -> None:
        if len(self._wanting) < _MOST_WANTING or client in self._wanting:
            self._wanting[client] = self._clock_ns() + _WANTED_NS
        else:
            self.others(client)  # forgets those whose time is over
