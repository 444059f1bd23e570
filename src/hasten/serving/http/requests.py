"""Requests that a connection receives, and the interfaces by which it hands them on."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

from hasten.serving.http.messages import PlainRequest, Response
from hasten.serving.protocol.rights import Scope

_MOST_ROUTES = 4096
_LONGEST_ROUTE = 1024
_MOST_SLASHES, _MOST_ENCODED = 32, 1024
"""Slashes and percent signs of a path beyond which there is nothing: each takes a microsecond while nobody is answered."""


class Received(NamedTuple):
    """A request that was received in full.

    Attributes:
        method: HTTP method, such as "GET".
        url: Target of the request.
        headers: Values of the headers by lower-case name.
        body: Body as it was sent.
        keep_alive: Whether the client may send further requests on this connection.
        reserved: Counted bytes of the body.
    """

    method: bytes
    url: bytes
    headers: dict[bytes, bytes]
    body: Any
    keep_alive: bool
    reserved: int


class Slot(Protocol):
    """Interface for recording a connection's state, which outlives this process."""

    def working(self) -> None:
        """Record that a request is being processed and no part of its answer was sent."""

    def sending(self) -> None:
        """Record that a part of the answer was sent."""

    def answered(self) -> None:
        """Record that the answer was handed to the operating system, or is about to be."""

    def resting(self) -> None:
        """Record that no request is being processed, and none was for a while."""

    def closed(self) -> None:
        """Record that the connection is closed."""


class PlainRoutes(Protocol):
    """Interface of the handler of all requests that aren't inferences."""

    def scope(self, method: str, path: tuple[str, ...]) -> Scope | None:
        """Return the scope that a client needs; None for a request that gets an error anyway."""

    def handle(self, request: PlainRequest) -> Response | Coroutine[Any, Any, Response]:
        """Answer a request, at once or by a coroutine.

        Raises:
            ProtocolError: the request gets this error.
        """


def parts_of(url: bytes) -> tuple[str, ...]:
    """Return the decoded parts of a target's path; the whole path as one part if it is too long for any here."""
    path = url.partition(b"?")[0]
    if _is_too_long(path):
        return (path.decode("latin-1"),)
    return tuple(_decoded(part) for part in path.split(b"/") if part)


def _is_too_long(path: bytes) -> bool:
    return path.count(b"/") > _MOST_SLASHES or path.count(b"%") > _MOST_ENCODED


def _decoded(part: bytes) -> str:
    return unquote_to_bytes(part).decode(errors="replace")


def inference_path(url: bytes) -> tuple[str, str] | None:
    """Return the model and version in the path of an inference; None for any other path."""
    path = url.partition(b"?")[0]
    if _is_too_long(path):
        return None
    parts = path.split(b"/")
    if len(parts) not in (5, 7) or parts[:3] != [b"", b"v2", b"models"] or parts[-1] != b"infer":
        return None
    if len(parts) == 7 and parts[4] != b"versions":
        return None
    return _decoded(parts[3]), _decoded(parts[5]) if len(parts) == 7 else ""


def remember(paths: dict[bytes, tuple[str, str] | None], url: bytes) -> tuple[str, str] | None:
    """Return the same as `inference_path`, and keep it for short paths."""
    found = inference_path(url)
    if len(url) <= _LONGEST_ROUTE:
        if len(paths) >= _MOST_ROUTES:
            paths.clear()
        paths[bytes(url)] = found
    return found
