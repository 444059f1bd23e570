"""Refuse what web pages of others make a browser send: cross-site requests, and DNS rebinding.

A browser says in Origin and Sec-Fetch-Site which page a request comes from (https://www.w3.org/TR/fetch-metadata),
and in Host which name it looked up. Other clients send neither of the first two.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from hasten.serving.protocol.errors import Kind, ProtocolError

ONE_HOST = "a request has one Host header: send it once"
ANY = "*"
"""Name that stands for any name of a server."""
NAME = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE | re.ASCII)
"""Pattern of a name that a server may be given: a host's, "*.example.com" for all below it, or "*"."""
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]*)?")
_MOST_KNOWN = 256


class Origins:
    """Names of a server, by which it tells requests of its own web pages from those of others.

    A page on a server of its own can have its name looked up again, now with this server's address (DNS
    rebinding): the browser then takes both for one. So Host must be a name that nobody else can own:
    localhost, an IP address, or one of the server's.

    Args:
        names: Names that a user gives the server; pages at these names on the default port are its own, too.
        own: Further names of the server.
    """

    def __init__(self, names: Iterable[str] = (), own: Iterable[str] = ()) -> None:
        self._given = [each.lower() for each in names]
        self._all = [*self._given, *(each.lower() for each in own), "localhost", "*.localhost"]
        self._leads_here = lru_cache(_MOST_KNOWN)(self._looked_up)

    def refusal(self, method: bytes, headers: Mapping[bytes, bytes]) -> ProtocolError | None:
        """Return the error for a request that a foreign web page may have made; None for any other.

        Args:
            method: HTTP method of the request.
            headers: Values of its headers by lower-case name.
        """
        host = headers.get(b"host")
        if host is not None and not self._leads_here(host):
            return ProtocolError(
                Kind.FORBIDDEN,
                f"{host.decode('latin-1')!r:.100} isn't a name of this server: use localhost or "
                "its IP "
                "address, or start it with --allow-host NAME",
            )
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if origin is None and site is None:
            return None
        page = b"" if origin is None else origin.lower().partition(b"://")[2]
        if _is_named(page.decode("latin-1"), [each for each in self._given if each != ANY]):
            return None
        same = host is not None and page == host.lower()  # over gRPC no host is told
        if site in (b"same-origin", b"none") or (site is None and same):
            return None
        if method in (b"GET", b"HEAD") and headers.get(b"sec-fetch-dest") == b"document":
            return None  # a link on a page, which doesn't get to see what it leads to
        whose = "another site" if origin is None else f"{origin.decode('latin-1')!r:.100}"
        return ProtocolError(
            Kind.FORBIDDEN,
            f"a web page of {whose} may not use this server: start it with --allow-host NAME, "
            "where "
            "NAME is the page's host",
        )

    def _looked_up(self, host: bytes) -> bool:
        """Whether a Host leads here only where it is meant to."""
        found = _AUTHORITY.fullmatch(host.decode("latin-1").lower())
        if found is None:
            return ANY in self._all
        name = found[1].strip("[]").removesuffix(".")
        return _is_address(name) or _is_named(name, self._all)


def _is_named(host: str, names: Iterable[str]) -> bool:
    return any(
        each in (ANY, host) or (each.startswith("*.") and host.endswith(each[1:])) for each in names
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on a host's name or address."""
    if host.lower() == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback
