"""Packed bundles on web servers that send ranges of them.

This is a module of its own because the standard library's clients take longer to import than a small model
takes to open.
"""

from __future__ import annotations

import contextlib
import functools
import http
import http.client
import io
import re
import time
import urllib.error
import urllib.request
from typing import Any, ClassVar

from hasten.bundle.packing.source import Source
from hasten.core.forks import after_forks
from hasten.errors import InputError, IntegrityError

_TRIES = 5
"""Number of times in a row that a link may break without a byte before it is given up."""
_FIRST_PAUSE_S, _TIMEOUT_S = 0.1, 30.0
_WHILE_S, _LEAST_BYTES = 120.0, 60_000
"""Length of a while, and the least number of bytes that a server must send in one while it is waited for."""
_PART_BYTES = 1 << 18
_SIZE = re.compile(r"[0-9]{1,18}")
_SPAN = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})")


class WebSource(Source):
    """File on a web server, in one stream where it is read in order; a broken link goes on where it broke.

    Args:
        address: Address that begins with "http://" or "https://".

    Raises:
        InputError: the server can't be reached, has no such file, or is too slow.
    """

    anywhere: ClassVar[bool] = False

    def __init__(self, address: str) -> None:
        self.name, self.size_bytes = address, None
        self._pace = _Pace(address)
        self._opener = urllib.request.build_opener(
            _SameKind, _PacedHttp(self._pace), _PacedHttps(self._pace)
        )
        self._reply: http.client.HTTPResponse | None = None
        self._parents: http.client.HTTPResponse | None = None
        self._place = 0
        self._tag: str | None = None
        try:
            with self._pace:
                self._connect(0)
        except BaseException:
            self._drop()
            raise
        after_forks(self, WebSource._anew)

    def _anew(self) -> None:
        """Leave the connection to the process that this one was forked from; a thread of that may read from it."""
        self._parents, self._reply = self._reply, None

    def read(self, offset: int, length: int) -> memoryview:
        if self.size_bytes is not None and length > self.size_bytes - offset:
            raise self._ended(offset, length, max(0, self.size_bytes - offset))
        with self._pace:
            return self._read(offset, length)

    def _read(self, offset: int, length: int) -> memoryview:
        parts: list[bytes] = []
        done = tries = 0
        while done < length:
            error: Exception | None = None
            got = b""
            try:
                if self._reply is None or self._place != offset + done:
                    self._connect(offset + done)
                assert self._reply is not None
                got = _some(self._reply, min(length - done, _PART_BYTES))
            except (OSError, http.client.HTTPException) as broken:
                error = broken
            self._place += len(got)
            done += len(got)
            if got:
                parts.append(got)
                tries = 0
                continue
            self._drop()
            tries += 1
            if tries >= _TRIES:
                raise InputError(
                    f"the connection to {self.name} broke {tries} times at byte {offset + done:,}: "
                    f"{_legible(error or 'the server closed it')}; try again later"
                ) from error
            time.sleep(_FIRST_PAUSE_S * 2 ** (tries - 1))
        return memoryview(b"".join(parts))

    def _connect(self, offset: int) -> None:
        """Ask for all bytes from one on.

        Raises:
            OSError, HTTPException: the link broke; it may be tried again.
            InputError: the server refuses.
            IntegrityError: the file isn't the one that the first bytes are of.
        """
        self._drop()
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        try:
            request = urllib.request.Request(self.name, headers=headers)
            reply = self._opener.open(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            with error:
                if error.code >= 500 and self._tag is not None:
                    raise OSError(f"the server answered {error.code}") from error
                if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                    raise self._replaced() from error
                raise InputError(
                    f"can't read {self.name}: the server answered {error.code}; give another address, "
                    "or the file itself"
                ) from error
        except (ValueError, http.client.InvalidURL) as error:
            raise InputError(f"{self.name!r:.200} isn't an address: {_legible(error)}") from error
        except (OSError, http.client.HTTPException) as error:
            if self._tag is not None:
                raise
            said = _legible(getattr(error, "reason", None) or error)
            raise InputError(f"can't reach {self.name}: {said}; try again later") from error
        self._reply = reply
        self._check_same(reply, offset)
        self._place = offset
        if offset and reply.status != 206:  # the server sends no ranges: pass over what is known
            left = offset
            while left:
                passed = len(_some(reply, min(left, _PART_BYTES)))
                if not passed:
                    raise OSError("the server closed the connection")
                left -= passed

    def _check_same(self, reply: Any, offset: int) -> None:
        """Take the file's size and tag from the first reply; compare those of later ones."""
        headers = reply.headers
        length, span = headers.get("Content-Length"), headers.get("Content-Range", "")
        size = int(length) if length and _SIZE.fullmatch(length) else None
        if reply.status == 206:
            stated = _SPAN.fullmatch(span.strip())
            if stated is None or int(stated[1]) != offset:
                raise InputError(
                    f"{self.name}: the server sent {span!r:.60}, not the range from {offset}"
                )
            size = int(stated[2])
        tag = headers.get("ETag") or headers.get("Last-Modified") or ""
        if self._tag is None:
            self._tag, self.size_bytes = tag, size
        elif tag != self._tag or (None not in (size, self.size_bytes) and size != self.size_bytes):
            raise self._replaced()

    def _replaced(self) -> IntegrityError:
        return IntegrityError(f"{self.name} was replaced while it was read: load it again")

    def _drop(self) -> None:
        if self._reply is not None:
            with contextlib.suppress(OSError):
                self._reply.close()
            self._reply = None

    def close(self) -> None:
        self._drop()


class _SameKind(urllib.request.HTTPRedirectHandler):
    """Follows a server that sends elsewhere, but never to a link that others can read along."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        to = newurl.partition(":")[0].lower()
        if to not in ("http", "https") or (req.type == "https" and to == "http"):
            fp.close()
            raise urllib.error.URLError(f"the server redirects to {newurl!r:.100}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Pace:
    """Count of what a server sends while it is waited for, over all of its connections.

    Within `with`, it is waited for; what the reader does between its calls doesn't count.

    Args:
        name: Address, to name in messages.
    """

    def __init__(self, name: str) -> None:
        self._name, self._bytes, self._waited_s, self._since_s = name, 0, 0.0, 0.0

    def __enter__(self) -> None:
        self._since_s = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._waited_s += time.monotonic() - self._since_s

    def add(self, count: int) -> None:
        """Add bytes that arrived.

        Raises:
            InputError: too few arrived in a while.
        """
        self._bytes += count
        now_s = time.monotonic()
        waited_s = self._waited_s + now_s - self._since_s
        if waited_s < _WHILE_S:
            return
        if self._bytes < _LEAST_BYTES:
            raise InputError(
                f"{self._name} is too slow: the server sent {self._bytes:,} bytes in {waited_s:.0f} s; give another "
                "address, or the file itself"
            )
        self._bytes, self._waited_s, self._since_s = 0, 0.0, now_s


class _PacedBytes(io.RawIOBase):
    """Bytes from a server, whose head is counted too."""

    def __init__(self, raw: io.RawIOBase, pace: _Pace) -> None:
        self._raw, self._pace = raw, pace

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        got: int | None = None
        try:
            got = self._raw.readinto(buffer)
        finally:
            self._pace.add(got or 0)
        return got

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PacedReply(http.client.HTTPResponse):
    def __init__(self, pace: _Pace, sock: Any, **settings: Any) -> None:
        super().__init__(sock, **settings)
        self.fp: Any = io.BufferedReader(_PacedBytes(self.fp.detach(), pace))


def _paced(kind: type[http.client.HTTPConnection], pace: _Pace) -> Any:
    """Return a function that makes connections of a kind whose replies are counted."""

    def made(*args: Any, **settings: Any) -> http.client.HTTPConnection:
        connection = kind(*args, **settings)
        connection.response_class = functools.partial(_PacedReply, pace)  # type: ignore[assignment]
        return connection

    return made


class _PacedHttp(urllib.request.HTTPHandler):
    def __init__(self, pace: _Pace) -> None:
        super().__init__()
        self._pace = pace

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_paced(http.client.HTTPConnection, self._pace), req)


class _PacedHttps(urllib.request.HTTPSHandler):
    def __init__(self, pace: _Pace) -> None:
        super().__init__()
        self._pace = pace

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_paced(http.client.HTTPSConnection, self._pace), req)


def _legible(said: object) -> str:
    """Return what an error says, some of which a stranger's server may have written, in one line."""
    words = " ".join(str(said).split())[:200]
    return "".join(sign if sign.isprintable() else "?" for sign in words)


def _some(reply: http.client.HTTPResponse, most: int) -> bytes:
    """Read some bytes of a reply; b"" where it ends, also before its time.

    They are those of one call to the system: what came before a link broke isn't lost.
    """
    try:
        return reply.read1(most)
    except http.client.IncompleteRead as broken:
        return broken.partial
