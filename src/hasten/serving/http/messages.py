"""Define HTTP requests and responses other than inference."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from http import HTTPStatus

import orjson

from hasten.serving.protocol.errors import Kind, ProtocolError

JSON = b"application/json"


@dataclass(slots=True)
class PlainRequest:
    """HTTP request that isn't an inference.

    Attributes:
        method: HTTP method, such as "GET".
        path: Percent-decoded parts of the path, without empty ones; a path that is too long for any is one part, as it came.
        body: Decompressed body.
        headers: Values of the headers by lower-case name.
        client: Client that the request is counted under.
        name: Name of the client, where the server can tell several; else "".
    """

    method: str
    path: tuple[str, ...]
    body: bytes
    headers: dict[bytes, bytes]
    client: str = ""
    name: str = ""


@dataclass(slots=True)
class Response:
    """HTTP response.

    Attributes:
        status: HTTP status.
        body: Bytes of the body.
        content_type: Media type of the body.
        headers: Names and values of further headers.
    """

    status: int = 200
    body: bytes = b""
    content_type: bytes = JSON
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


def failure_response(failure: ProtocolError) -> Response:
    """Return the response that states an error in the protocol's form."""
    headers = []
    if failure.retry_s is not None:
        headers.append((b"Retry-After", b"%d" % max(1, math.ceil(failure.retry_s))))
    if failure.kind is Kind.UNAUTHENTICATED:
        headers.append((b"WWW-Authenticate", b"Bearer"))
    return Response(failure.kind.http, orjson.dumps({"error": str(failure)}), headers=headers)


def head_of(response: Response, keep_alive: bool) -> tuple[bytes, list[bytes]]:
    """Return a response's status line and headers, and its body as a list of pieces."""
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
