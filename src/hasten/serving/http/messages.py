"""Requests and answers of HTTP, but for inference."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from http import HTTPStatus

import orjson

from hasten.serving.protocol.errors import Kind, ProtocolError

JSON = b"application/json"


@dataclass(slots=True)
class PlainRequest:
    """What isn't an inference.

    Attributes:
        method: "GET", "POST", ...
        path: Percent-decoded parts, without empty ones.
        body: Decompressed.
        headers: Lower-case names.
    """

    method: str
    path: tuple[str, ...]
    body: bytes
    headers: dict[bytes, bytes]


@dataclass(slots=True)
class Response:
    """What is sent back.

    Attributes:
        status: Of HTTP.
        body: Its bytes.
        content_type: Of the body.
        headers: Further ones.
    """

    status: int = 200
    body: bytes = b""
    content_type: bytes = JSON
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


def failure_response(failure: ProtocolError) -> Response:
    """Return an error in the protocol's form."""
    headers = []
    if failure.retry_s is not None:
        headers.append((b"Retry-After", b"%d" % max(1, math.ceil(failure.retry_s))))
    if failure.kind is Kind.UNAUTHENTICATED:
        headers.append((b"WWW-Authenticate", b"Bearer"))
    return Response(failure.kind.http, orjson.dumps({"error": str(failure)}), headers=headers)


def own_fault() -> ProtocolError:
    """What the client is told where the server's own code broke."""
    return ProtocolError(Kind.INTERNAL, "the server failed; its log has the reason")


def head_of(response: Response, keep_alive: bool) -> tuple[bytes, list[bytes]]:
    """Return an answer's head, and its body as pieces."""
    lines = [
        b"HTTP/1.1 %d %s" % (response.status, _phrase(response.status)),
        b"Content-Type: " + response.content_type,
        b"Content-Length: %d" % len(response.body),
        *(name + b": " + value for name, value in response.headers),
    ]
    if not keep_alive:
        lines.append(b"Connection: close")
    return b"\r\n".join((*lines, b"", b"")), [response.body]


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b"Client Closed Request"
