"""Bytes on a connection of HTTP: requests of all routes, whole and broken, one or several after another."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import socket
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httptools
import numpy as np
from fuzz.mutation import changed_bytes, changed_record, grown
from fuzz.served import LONGEST, Served
from fuzz.surface import MOST_BYTES, Fault
from fuzz.surfaces.images import many_pixels
from PIL import Image

_HOST = ("Host", "localhost")
_KNOWN = (200, 400, 403, 404, 405, 408, 413, 431, 499, 500, 503, 504)
"""Statuses that may come; 500 where an engine can't compute what was asked, or the answer can't be written."""
_OWN_FAULT = b"the server failed"
_PATIENCE_S = 60.0
_GLANCE_S = 0.002
"""Time for which an answer is looked for where none has to come."""
_PATHS = (
    *(
        "v2",
        "v2/health/ready",
        "v2/models/tiny",
        "v2/models/two_inputs/versions/1",
        "v2/models/tiny/config",
    ),
    *(
        "v2/models/tiny/stats",
        "v2/models/stats",
        "v2/models/tiny/monitor",
        "v2/logging",
        "metrics",
        "",
    ),
    *(
        "openapi.json",
        "v2/trace/setting",
        "v2/systemsharedmemory/status",
        "v2/cudasharedmemory/status",
    ),
)
_HEADERS = (
    *(("Content-Encoding", "gzip"), ("Content-Encoding", "deflate"), ("Content-Encoding", "zstd")),
    *(("Transfer-Encoding", "chunked"), ("Expect", "100-continue"), ("Connection", "close")),
    *(("Content-Length", "0"), ("Content-Length", "99999999"), ("Content-Length", "-1")),
    *(
        ("Upgrade", "h2c"),
        ("Accept-Encoding", "gzip;q=0.1, deflate"),
        ("Origin", "http://a.example"),
    ),
    *(
        ("Inference-Header-Content-Length", "7"),
        ("Host", "a.example"),
        ("Sec-Fetch-Site", "cross-site"),
    ),
    *(
        ("Content-Type", "image/jpeg"),
        ("Content-Type", "text/plain"),
        ("Content-Type", "audio/wav"),
    ),
    *(("Authorization", "Bearer x"), ("traceparent", "00-0-0-0"), ("X-Long", "x" * 20_000)),
)
_WORDS = (
    "FP32",
    "INT64",
    "BYTES",
    "BOOL",
    "BF16",
    "x",
    "y",
    "features",
    "ids",
    "raw",
    "data",
    "shape",
)
Headers = Sequence[tuple[str, str]]


def request(path: str, body: bytes = b"", headers: Headers = (), method: str = "") -> bytes:
    """Return the bytes of a request."""
    length = [("Content-Length", str(len(body)))] if body or method == "POST" else []
    lines = [f"{k}: {v}" for k, v in (_HOST, *headers, *length)]
    method = method or ("POST" if body else "GET")
    return "\r\n".join([f"{method} /{path} HTTP/1.1", *lines, "", ""]).encode() + body


def asking(*inputs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the JSON of an inference."""
    return {"inputs": list(inputs), **fields}


def tensor(
    name: str, datatype: str, shape: list[int], data: Any = None, **more: Any
) -> dict[str, Any]:
    """Return the JSON of a tensor."""
    return {
        "name": name,
        "datatype": datatype,
        "shape": shape,
        **({"data": data} if data else {}),
        **more,
    }


def zeros(count: int, unit: str = "0") -> bytes:
    """Return an inference of the model `long` with so many zeros."""
    data = f"[{','.join([unit] * count)}]".encode()
    return json.dumps(asking(tensor("x", "FP32", [1, count], "*"))).encode().replace(b'"*"', data)


def heads(count: int, classes: int) -> bytes:
    """Return a request for the highest scores of so many outputs of the model `heads`."""
    named = {"parameters": {"classification": classes}}
    outputs = [{"name": f"y{at}", **named} for at in range(count)]
    asked = asking(tensor("x", "FP32", [1, 4], [1.5, 2, 3, 4]), outputs=outputs)
    return request("v2/models/heads/infer", json.dumps(asked).encode())


def binary(record: dict[str, Any], *arrays: Any) -> bytes:
    """Return an inference whose tensors come as bytes behind its JSON."""
    for each, array in zip(record["inputs"], arrays, strict=True):
        each["parameters"] = {"binary_data_size": array.nbytes}
    head = json.dumps(record).encode()
    length = [("Inference-Header-Content-Length", str(len(head)))]
    body = head + b"".join(array.tobytes() for array in arrays)
    return request("v2/models/two_inputs/infer", body, length)


def picture() -> bytes:
    """Return a small JPEG."""
    file = io.BytesIO()
    Image.fromarray(np.full((24, 40, 3), (200, 30, 30), np.uint8)).save(file, "JPEG")
    return file.getvalue()


class Http(Served):
    """Requests over HTTP."""

    name = "http"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._changes: tuple[tuple[Callable[[bytes, random.Random], bytes], int], ...] = (
            (changed_bytes, 2),
            (grown, 1),
            (changed_head, 3),
            (changed_json, 5),
            (grown_json, 3),
            (compressed, 2),
            (chunked, 1),
            (pictured, 1),
        )

    def seeds(self) -> list[bytes]:
        x = tensor("x", "FP32", [1, 4], [1.5, 2, 3, 4])
        features = tensor("features", "FP32", [1, 8], list(range(8)))
        ids = tensor("ids", "INT64", [1, 3], [1, 2, 3])
        classes = {"outputs": [{"name": "y", "parameters": {"classification": 2}}], "id": "a"}
        more = {"parameters": {"timeout": 9_000_000, "priority": 1, "binary_data_output": True}}
        posted = [
            ("tiny", asking(x)),
            ("tiny", asking(x, **classes)),
            ("tiny", asking(x, **more)),
            ("two_inputs", asking(features, ids, outputs=[{"name": "score"}])),
            ("colour", asking(tensor("raw", "BYTES", [1], ["text"]))),
            ("tiny", asking(tensor("x", "FP32", [8, 4], [[1, 2, 3, 4]] * 8))),
        ]
        bodies = [
            request(f"v2/models/{name}/infer", json.dumps(each).encode()) for name, each in posted
        ]
        many = {"outputs": [{"name": "y", "parameters": {"classification": 5000}}]}
        for asked in (asking(x), asking(x, **classes), asking(x, **many)):
            body = json.dumps(asked).encode()
            bodies.append(request("v2/models/wide/infer", body, [("Accept-Encoding", "gzip")]))
        open_ = {"inputs": [tensor("features", "FP32", [2, 8]), tensor("ids", "INT64", [2, 3])]}
        arrays = (np.ones((2, 8), np.float32), np.ones((2, 3), np.int64))
        image = request("v2/models/colour/infer", picture(), [("Content-Type", "image/jpeg")])
        packed = [("Content-Encoding", "gzip")]
        long = request("v2/models/long/infer", gzip.compress(zeros(LONGEST), mtime=0), packed)
        bare = request(
            "v2/models/tiny/infer",
            np.ones(8, np.float32).tobytes(),
            [("Inference-Header-Content-Length", "0")],
        )
        index = request("v2/repository/index", b'{"ready": true}')
        logging = request("v2/logging", b'{"log_verbose_level": 1}')
        return [
            *bodies,
            *(binary(open_, *arrays), image, bare, index, logging, bodies[0] + bodies[3], long),
            heads(3, 100),
            *(request(path) for path in _PATHS),
        ]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        changes, weights = zip(*self._changes, strict=True)
        made = seed
        for change in rng.choices(changes, weights, k=rng.choice((1, 1, 1, 2))):
            made = change(made, rng)
        if rng.random() < 0.05:
            made = seed + made
        return made[:MOST_BYTES]

    def check(self, data: bytes) -> str:
        methods, whole = requests_in(data)
        words: list[str] = []
        with socket.create_connection(
            ("127.0.0.1", self.running.server.http_port), _PATIENCE_S
        ) as connection:
            # Closed at once, without a rest of the connection that holds its port.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            answers = Answers(connection)
            # A request may be refused, and its connection closed, before it is read whole.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(data)
            for method in methods:
                found = answers.next(method, _PATIENCE_S)
                if found is None:
                    if not words:
                        raise Fault("the connection was closed without an answer")
                    break
                words.append(judged(*found))
            else:
                if not whole and (found := answers.next("", _GLANCE_S)) is not None:
                    words.append(judged(*found))
        return " ".join(words[:3]) or "waited for"


def parts(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the lines of the first request's head, and what comes behind it."""
    head, _, body = data.partition(b"\r\n\r\n")
    return head.split(b"\r\n"), body


def joined(lines: list[bytes], body: bytes, *, fitting: bool) -> bytes:
    """Return a request; with the length that fits its body, if asked for."""
    if fitting:
        lines = [line for line in lines if not line.lower().startswith(b"content-length")]
        if body:
            lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def changed_head(data: bytes, rng: random.Random) -> bytes:
    """Change the method, the path or the headers."""
    lines, body = parts(data)
    kind = rng.randrange(6)
    words = lines[0].split(b" ")
    if kind == 0:
        words[0] = rng.choice(
            (b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"x" * 300)
        )
    elif kind == 1 and len(words) > 1:
        path = f"/{rng.choice(_PATHS)}".encode()
        odd = (
            b"//",
            b"/%00",
            b"/%2e%2e/",
            b"/" + b"a/" * 9000,
            b"/" + b"%/" * 9000,
            b"*",
            b"http://a.example/v2",
            b"/v2?" + b"a" * 4000,
        )
        words[1] = rng.choice((path, path + b"/", changed_bytes(words[1], rng), rng.choice(odd)))
    elif kind == 2:
        words[-1] = rng.choice((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1\r\n", b"HTTP/1.9", b""))
    elif kind == 3:
        lines.append(": ".join(rng.choice(_HEADERS)).encode())
    elif kind == 4:
        at = rng.randrange(len(lines))
        lines[at:at] = [lines[at]] * rng.choice((1, 2, 300))
    else:
        at = rng.randrange(len(lines))
        lines[at] = changed_bytes(lines[at], rng)
    if kind < 3:
        lines[0] = b" ".join(words)
    return joined(lines, body, fitting=False)


def changed_json(data: bytes, rng: random.Random) -> bytes:
    """Change the JSON of a body, before the tensors that may come behind it; lengths mostly fit."""
    lines, body = parts(data)
    stated = [line for line in lines if line.lower().startswith(b"inference-header-content-length")]
    said = stated[0].split(b":")[-1].strip() if stated else b""
    length = int(said) if said.isdigit() and len(said) < 9 else len(body)
    head, rest = body[:length], body[length:]
    try:
        head = json.dumps(changed_record(json.loads(head), rng, _WORDS)).encode()
    except (ValueError, RecursionError):
        return joined(lines, changed_bytes(body, rng), fitting=True)
    if stated and rng.random() < 0.9:
        lines = [line for line in lines if line not in stated]
        lines.append(b"Inference-Header-Content-Length: %d" % len(head))
    if rest and rng.random() < 0.3:
        rest = changed_bytes(rest, rng)
    return joined(lines, head + rest, fitting=rng.random() < 0.95)


def grown_json(data: bytes, rng: random.Random) -> bytes:
    """Make a body large: a part of it comes thousands of times."""
    lines, body = parts(data)
    room = MOST_BYTES - sum(map(len, lines)) - 200
    if rng.random() < 0.5 or not body.startswith(b"{"):
        return joined(lines, grown(body, rng, room), fitting=True)
    marks = [at for at, byte in enumerate(body) if byte in b"[{,:"]
    at = rng.choice(marks) + 1
    part = rng.choice(
        (
            b"[",
            b"{}",
            b"[],",
            b"1,",
            b'"a":',
            b'{"a":',
            b'"",',
            b"1e9,",
            b'"\\u0001",',
            b" ",
            b'{"name":"x"},',
        )
    )
    return joined(
        lines, body[:at] + part * ((room - len(body)) // len(part)) + body[at:], fitting=True
    )


def compressed(data: bytes, rng: random.Random) -> bytes:
    """Compress a body, which may be made large before, and damaged behind."""
    lines, body = parts(data)
    if rng.random() < 0.6:
        body = grown(body, rng, rng.choice((MOST_BYTES, 1 << 22, 1 << 24)))
    name, pack = rng.choice(
        ((b"gzip", gzip.compress), (b"deflate", zlib.compress), (b"zstd", zstd))
    )
    packed = pack(body)
    if rng.random() < 0.2:
        packed = changed_bytes(packed, rng)
    if rng.random() < 0.1:
        packed *= rng.choice((2, 50))
    name = rng.choice((name, name, name, b"gzip, gzip", b"identity"))
    return joined([*lines, b"Content-Encoding: " + name], packed, fitting=True)


def zstd(data: bytes) -> bytes:
    """Compress by zstd."""
    from tests.support.packed_files import quickly

    return quickly(data)


def pictured(data: bytes, rng: random.Random) -> bytes:
    """Ask for a decision on a picture of many pixels."""
    return request("v2/models/colour/infer", many_pixels(rng), [("Content-Type", "image/png")])


def chunked(data: bytes, rng: random.Random) -> bytes:
    """Send a body in chunks, which may be tiny, or whose sizes may be wrong."""
    lines, body = parts(data)
    lines = [line for line in lines if not line.lower().startswith(b"content-length")]
    if rng.random() < 0.3:
        body = grown(body, rng, MOST_BYTES // 6)  # of which each byte takes 6 as a chunk
    size = rng.choice((1, 7, 1000))
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    written = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    if rng.random() < 0.4:
        written = changed_bytes(written, rng)
    return joined([*lines, b"Transfer-Encoding: chunked"], written, fitting=False)


class _Counted:
    """What a parser calls: the methods of whole requests."""

    def __init__(self) -> None:
        self.methods: list[str] = []
        self.parser: Any = None
        self.under_way = False

    def on_message_begin(self) -> None:
        self.under_way = True

    def on_message_complete(self) -> None:
        self.methods.append(self.parser.get_method().decode())
        self.under_way = False


def requests_in(data: bytes) -> tuple[list[str], bool]:
    """Return the methods of the requests that must be answered, and whether nothing is behind them.

    A first request that isn't HTTP must be answered too. What offers an upgrade is left open.
    """
    counted = _Counted()
    counted.parser = httptools.HttpRequestParser(counted)
    try:
        counted.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        return counted.methods[:-1], False
    except httptools.HttpParserError:
        return counted.methods or ["?"], False
    return counted.methods, not counted.under_way


class Answers:
    """The answers on a connection, one after another."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._data, self._end = connection, b"", False

    def next(self, method: str, patience_s: float) -> tuple[int, dict[str, str], bytes] | None:
        """Return the next answer: status, headers and body; None if there is none.

        Raises:
            Fault: none comes in time, or what comes isn't HTTP.
        """
        end_s = time.monotonic() + patience_s
        while b"\r\n\r\n" not in self._data:
            if not self._more(end_s, patience_s > 1):
                if self._data:
                    raise Fault(f"the answer ends in its head: {self._data[:200]!r}")
                return None
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if words[0] != "HTTP/1.1" or not words[1].isdigit():
            raise Fault(f"the answer isn't HTTP/1.1: {first[:200]!r}")
        status = int(words[1])
        if status == 100:
            return self.next(method, patience_s)
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", "-1"))
        if size < 0:
            raise Fault(f"the answer states no length: {head[:300]!r}")
        size = 0 if method == "HEAD" else size
        while len(self._data) < size:
            if not self._more(time.monotonic() + _PATIENCE_S, True):
                if method in ("", "?") and not self._data:
                    break  # of a request that isn't HTTP, the server may have read HEAD
                raise Fault(f"the answer ends after {len(self._data)} of {size} bytes")
        body, self._data = self._data[:size], self._data[size:]
        return status, headers, body

    def _more(self, end_s: float, must: bool) -> bool:
        if self._end:
            return False
        self._connection.settimeout(max(0.0005, end_s - time.monotonic()))
        try:
            piece = self._connection.recv(1 << 16)
        except TimeoutError:
            if must:
                raise Fault(f"no answer came within {_PATIENCE_S:g} s") from None
            return False
        except ConnectionResetError:
            piece = b""
        self._end = not piece
        self._data += piece
        return bool(piece)


def judged(status: int, headers: dict[str, str], body: bytes) -> str:
    """Return the status of an answer in a word.

    Raises:
        Fault: it isn't an answer of the protocol.
    """
    if status not in _KNOWN or _OWN_FAULT in body:
        raise Fault(f"status {status}: {body[:300]!r}")
    if not body or headers.get("content-encoding"):
        return str(status)
    kind = headers.get("content-type", "")
    length = headers.get("inference-header-content-length")
    if "json" in kind or length:
        text = body[: int(length)] if length else body
        try:
            record = json.loads(text)
        except ValueError as error:
            raise Fault(f"the answer isn't JSON ({error}): {text[:300]!r}") from error
        if length:
            sizes = [
                each.get("parameters", {}).get("binary_data_size", 0) for each in record["outputs"]
            ]
            if sum(sizes) != len(body) - len(text):
                raise Fault(f"the answer's tensors have {len(body) - len(text)} bytes, not {sizes}")
    if status >= 400:
        said = record.get("error") if "json" in kind else None
        if not isinstance(said, str) or not said or "\n" in said or len(said) > 2000:
            raise Fault(f"status {status} has no clear error: {body[:300]!r}")
    return str(status)
