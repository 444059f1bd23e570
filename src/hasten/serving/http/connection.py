"""Speak HTTP/1.1 on a socket: parse requests and send answers. This is the server's hot path.

httptools parses straight into the handler: there is no task, no queue and no second parser between
the socket and the model. A long body is received into its own memory, where its tensors then stay.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NamedTuple

import httptools
import numpy as np

from hasten.serving.fairness import client_at, client_named
from hasten.serving.http.exchange import Exchange
from hasten.serving.http.messages import (
    PlainRequest,
    Response,
    failure_response,
    head_of,
)
from hasten.serving.http.requests import PlainRoutes, Received, Slot, parts_of, remember
from hasten.serving.http.waiting import Waiting
from hasten.serving.models.answer_sizes import batch_bytes, foreseen_bytes
from hasten.serving.models.deciding import RawTicket
from hasten.serving.models.sequences import StepTicket
from hasten.serving.models.served import ServedModel, Ticket
from hasten.serving.owed_answers import COUNTED_BYTES, MOST_OWED_BYTES
from hasten.serving.protocol.errors import Kind, ProtocolError, own_fault, without_frames
from hasten.serving.protocol.origins import ONE_HOST
from hasten.serving.protocol.requests import Query
from hasten.serving.protocol.rights import Rights, Scope
from hasten.serving.state import ServerState
from hasten.serving.tcp_info import received_bytes
from hasten.serving.tls import names_in
from hasten.serving.wire.checks import check_unpacked_json, long_json
from hasten.serving.wire.http_bodies import (
    decompressed,
    raw_query,
    read_body,
    rows_query,
    sample_query,
)

log = logging.getLogger("hasten.serving")

_DIRECT_BYTES = 64 << 10
"""Size above which a body is received into its own memory, except the part that arrived with its
headers."""
_HEAD_BYTES = 8 << 10
"""Bytes that are received at once outside of a body: each waiting request takes many times its own."""
_ALIGNMENT = 64
_SMALL_BYTES = 64 << 10
"""Size up to which an answer is sent in one piece."""
_LINGER_S = 1.0
"""Time for which a refused client may still be sending, so that it can read the reason."""
_PROGRESS_BYTES = 4096
"""Least bytes of a body between two checks of a client that is sending it, and of an answer within `send_ns`."""
_QUIET_CHECKS = 5
"""Checks without a request, or without progress of its body, after which a client gives way."""
_HEAD_CHECKS = 2
"""Checks without the whole head of a request, or of the first one, after which a client gives way."""
_AT_ONCE = 16
"""Largest number of requests of a client that are answered before others are heard, where it sends many together."""
_STUCK_NS = 1_000_000_000
"""Time without progress of an unread answer after which its connection is ended, if requests of its client wait."""
_SURPRISING = 4
"""An answer is a surprise if it is larger than was foreseen by more than this part of that. A client could make each
answer a little larger than the one before, and a surprise takes a look at all its requests."""
_JSON_TIMES = 4
"""Memory of an answer as JSON as a multiple of its tensors, about."""
_UNCOUNTED = range(COUNTED_BYTES // _JSON_TIMES + 1)
"""Sizes of tensors whose answer isn't counted in any form."""
_LONGEST_NUMBER = 20
_PROBES = (b"/v2/health/live", b"/v2/health/ready")
"""Paths that tell anyone whether the server is up: load balancers ask for them by names of their own."""
_TENSORS = (b"application/json", b"application/x-www-form-urlencoded")
"""Usual content types of JSON; the second is what curl sends where none is stated."""
_SAMPLES = (b"text/plain", b"application/octet-stream")
"""Content types of a body that is one sample, whatever it holds."""
_ROWS = (None, *_TENSORS, *_SAMPLES)
"""Content types under which a row's JSON comes."""
_OPEN = (*_PROBES, b"")
"""Paths, without a slash at the end, where a request that has no body needs no token."""
_BROWSERS = frozenset((b"origin", b"sec-fetch-site"))
"""Headers by which a browser says whose page sends a request."""
_ONCE = {
    b"host": ONE_HOST,
    **{
        name.lower().encode(): f"a request has one {name} header: send it once"
        for name in ("Authorization", "Origin", "Sec-Fetch-Site")
    },
}
"""Headers by which rights are given -> refusal of a request with two; a proxy may go by the first."""
_OTHER = frozenset((b"content-encoding", b"inference-header-content-length"))
"""Headers of a body that isn't JSON as it came."""
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b%b}"
"""Answer to a row, with its size, what is before the decision, and the decision."""


class _Asked(NamedTuple):
    """Request whose body isn't compressed; see `Received`."""

    exchange: Exchange
    method: bytes
    url: bytes
    headers: dict[bytes, bytes]
    body: Any
    arrived_ns: int


class Connection(asyncio.BufferedProtocol):
    """Connection of one client.

    Args:
        state: State of the server.
        routes: Handler of all requests that aren't inferences.
        slot: Record of the connection's state; None if there is no supervisor.
        clock_ns: Monotonic clock, in nanoseconds.

    Attributes:
        state: State of the server.
        clock_ns: Monotonic clock, in nanoseconds.
        client: Client that the connection is counted under.
        owes: Memory of the answer, foreseen or unread, that `state.owed` counts.
        begun_ns: Time when a model got the request, if it can be taken back; else 0.
        quiet: Number of consecutive checks, up to the latest, at which the server waited for the
            client: for a request, or for more of one than a trickle.
    """

    _paths: dict[bytes, tuple[str, str] | None] = {}

    def __init__(
        self,
        state: ServerState,
        routes: PlainRoutes,
        slot: Slot | None = None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.state, self._routes, self._slot, self.clock_ns = state, routes, slot, clock_ns
        self._number = id(self)
        self._host: bytes | None = None
        """Name of this server in the request before, where a browser's was checked and not refused."""
        self._names: list[str] | None = None
        """Names in the client's certificate; None if it has none."""
        self.client = self._address = ""
        self._name, self._given = "", b""
        """Name of the client whose requests are under way, where the server can tell several, else ""; and what it
        gave to be known by."""
        self.quiet = 0
        self._extra = False
        """Whether there were too many connections when this one was opened: it may ask for health only."""
        self._leaving = False
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._view, self._heads = state.received, state.received[:_HEAD_BYTES]
        self._head_bytes = 0
        self._url = self._method = b""
        self._headers: dict[bytes, bytes] = {}
        self._pieces: bytes | bytearray = b""
        """Pieces of a body that isn't received into its own memory; bytes if there is one."""
        self._body: Any = None
        """Memory that a long body is received into; None for a short one."""
        self._filled = self._size = self._reserved = 0
        self._seen = 0
        """Bytes of the body that were there at the latest check."""
        self._in_body = False
        self._keep_alive = True
        self._busy = False
        self._expected = False
        """Whether the client waits to be asked for the body that comes next."""
        self._at_once = 0
        """Requests that were received whole since the loop last heard others."""
        self._more = False
        """Whether the last bytes filled the buffer, so that the loop reads on before it hears others."""
        self._ticket: Ticket | RawTicket | StepTicket | None = None
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._unpacking: asyncio.Task[None] | None = None
        self._backlog: deque[Received] = deque()
        self._hung_up = self._lost = False
        self._began_ns: int | None = None
        """Time when the request that is being received began; None between requests."""
        self._paused = False
        """Whether so much isn't sent that no further request is read or answered."""
        self._unread = 0
        """Bytes of the answer that aren't sent, as `state` counts them."""
        self._written = 0
        """Bytes of all answers so far."""
        self.owes = 0
        self.begun_ns = 0
        self._guessed = False
        """Whether only the model can tell how large the answer is, if the request can be taken back."""
        self._again: _Asked | None = None
        """Request that can be taken back, to begin it again."""
        self._waiting: Waiting | None = None
        """Request that waits until its client has read other answers; None while none does."""
        self._read_last: tuple[int, int] | None = None
        """Bytes that were read, and the time, when a look at an unread answer last found enough of them."""
        self._sent = self._owed = self._read_ns = 0
        """Bytes that were sent and that weren't, and the time, at the check at which the client had last read enough."""
        self._encrypted = False
        self._still = False
        """Whether the client has read neither `_PROGRESS_BYTES` nor all that there was, up to the latest check."""
        self._opened_ns: int | None = clock_ns()
        """Time when the connection was opened; None once it has received a request."""
        self._upgrading = False
        self._refusal: ProtocolError | None = None
        """Error to send once the pending answers are sent; None if there is none."""

    # -- the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection with the server."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "writelines")
        self._transport = transport  # type: ignore[assignment]
        state = self.state
        certificate = transport.get_extra_info("peercert")
        self._names = names_in(certificate) if certificate else None
        self._encrypted = transport.get_extra_info("sslcontext") is not None
        peer = transport.get_extra_info("peername")
        self._address = client_at(peer[0]) if isinstance(peer, tuple) else ""
        self.client = state.client_of(self._address)
        state.connections.add(self)
        state.crowd.take(self.client, 1)
        self._extra = len(state.connections) > state.limits.connections
        self.state.repository.clients.heard(self._number, self.clock_ns())

    def connection_lost(self, error: Exception | None) -> None:
        """Give up the requests of a client that went away."""
        self._lost = True
        self.state.connections.discard(self)
        self.state.crowd.give(self.client, 1)
        if self._ticket is not None:
            self._ticket.cancel()
            self._ticket = None
        if self._unpacking is not None:
            self._unpacking.cancel()
            self._unpacking = None  # a cancelled task keeps its frames, and they keep this
        if self._waiting is not None:
            self._waiting.leave()
            self._waiting = None  # it refers back to this object, too
        self._again, self.begun_ns = None, 0
        self.state.bodies.give(self.client, self._held)
        if self._exchange is not None:
            self._exchange.give_up()
            self._exchange = None
        self._reserved = 0
        self._release_unread()
        self.owe(0)
        self._backlog.clear()
        # The parser refers back to this object: without this, only the garbage collector frees both.
        self._body, self._pieces, self._parser = None, b"", None  # type: ignore[assignment]
        if self._slot is not None:
            self._slot.closed()

    def pause_writing(self) -> None:
        """Stop reading and answering while the client doesn't read its answers."""
        self._paused, self._unread = True, self._transport.get_write_buffer_size()
        self.state.bodies.take(self.client, self._unread)
        self.owe(max(self.owes, self._unread))  # what is sent in part is kept as a whole
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Continue once the client reads its answers again."""
        self._paused = False
        self._release_unread()
        self.owe(0)
        if self._backlog and not self._busy:
            self._next_soon()
        elif not self._backlog and not self._hung_up:
            self._transport.resume_reading()

    def _release_unread(self) -> None:
        self.state.bodies.give(self.client, self._unread)
        self._unread, self._read_last = 0, None

    def owe(self, size: int) -> None:
        """Count an answer, foreseen or unread, with that much memory."""
        self.owes, change = size, size - self.owes
        self.state.owed.count(self.client, self, change)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the memory to receive into: the body itself, if it is a long one."""
        if self._in_body and self._body is not None:
            return self._body[self._filled :]  # type: ignore[no-any-return]
        return self._view if self._in_body else self._heads

    def buffer_updated(self, count: int) -> None:
        """Handle `count` received bytes."""
        clients = self.state.repository.clients
        if clients.source != self._number:
            clients.heard(self._number, self.clock_ns())
        if self._hung_up or self._refusal is not None:
            return
        if not self._more:
            self._at_once = 0
        self._more = False
        if self._in_body and self._body is not None:
            self._filled += count
            try:
                self._reserve(count)
            except ProtocolError as failure:
                self._refuse(failure)
                return
            if self._filled == self._size:
                self._parser = httptools.HttpRequestParser(self)  # for the bytes after this body
                self.on_message_complete()
            return
        self._more = count == len(self._view if self._in_body else self._heads)
        if not self._in_body:
            self._head_bytes += count
        self._feed(self._view[:count])

    def _feed(self, data: memoryview) -> None:
        """Parse received bytes, and refuse those that can't be parsed."""
        try:
            while data:
                try:
                    self._parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as error:
                    data = data[error.args[0] :]  # no copy, since a client may send many at once
                    head = self._without_upgrade()
                if not head:
                    break
                self._parser.feed_data(head)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, ProtocolError):
                log.exception("the server's own code failed on a request", exc_info=cause)
                cause = own_fault(cause)
            self._refuse(without_frames(cause))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._refuse(ProtocolError(Kind.INVALID, f"this is not HTTP/1.1: {error}"))
        else:
            if not self._in_body and self._head_bytes > self.state.limits.header_bytes:
                self._refuse(self._long_head())

    def _without_upgrade(self) -> bytes:
        """Return the head of a request that offers an upgrade as if it didn't, as RFC 9110, 7.8 allows.

        It is b"" if the request was refused.
        """
        self._upgrading = False
        if self._method == b"CONNECT":
            self._refuse(
                ProtocolError(Kind.NO_METHOD, "this is not a proxy: CONNECT isn't supported")
            )
            return b""
        gone = (b"upgrade", b"connection", b"http2-settings")
        version = self._parser.get_http_version()
        lines = [b"%s %s HTTP/%s" % (self._method, self._url, version.encode())]
        lines += [b"%s: %s" % each for each in self._headers.items() if each[0] not in gone]
        self._parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([*lines, b"", b""])

    def eof_received(self) -> bool:
        """Close the connection: a client that ends its side has gone away."""
        return False

    def _long_head(self) -> ProtocolError:
        most = self.state.limits.header_bytes
        return ProtocolError(Kind.HEADERS, f"the request's headers exceed {most:,} bytes")

    # -- the parser

    def on_message_begin(self) -> None:
        """Begin a request at its first byte."""
        self._url, self._headers, self._pieces = b"", {}, b""
        self._body, self._filled, self._size = None, 0, 0
        self._began_ns, self.quiet = self.clock_ns(), 0
        if self._slot is not None and not self._busy:
            self._slot.working()

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers after a chunked body are only counted."""
        if self._in_body:
            self._head_bytes += len(name) + len(value)
            if self._head_bytes > self.state.limits.header_bytes:
                raise self._long_head()
            return
        name = name.lower()
        if name in _ONCE and name in self._headers:
            raise ProtocolError(Kind.INVALID, _ONCE[name])
        if name == b"transfer-encoding" and name in self._headers:
            value = self._headers[name] + b", " + value
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        """Decide whether to receive the request's body, before memory is allocated for it.

        Raises:
            ProtocolError: the request is refused.
        """
        if self._head_bytes > self.state.limits.header_bytes + len(self._view):
            raise self._long_head()
        self._method = self._parser.get_method()
        version = self._parser.get_http_version()
        if version != "1.1":
            self._check_version(version)
        if self._parser.should_upgrade() or self._method == b"CONNECT":
            self._upgrading = True
            return
        if self._url[:1] != b"/":
            self._take_authority(version)
        self._head_bytes = 0
        self._in_body = True
        self._keep_alive = version == "1.1" and self._parser.should_keep_alive()
        headers = self._headers
        host = headers.get(b"host")
        if host is None or host != self._host or not _BROWSERS.isdisjoint(headers):
            self._check_origin(host)
        if self.state.rights is not None:
            self._check_rights(self.state.rights)
        if self._extra:
            self._check_crowd()
        coding = headers.get(b"transfer-encoding")
        if coding is not None and coding.strip().lower() != b"chunked":
            raise ProtocolError(
                Kind.INVALID,
                f"the only Transfer-Encoding here is chunked; got {coding.decode('latin-1')!r:.60}: "
                "compress a body by Content-Encoding",
            )
        stated = headers.get(b"content-length")
        if stated is not None:
            if not stated.isdigit() or len(stated) >= _LONGEST_NUMBER:
                raise ProtocolError(Kind.INVALID, f"Content-Length is not a size: {stated[:40]!r}")
            size = int(stated)
            if size > _DIRECT_BYTES:  # a shorter one is checked as it comes
                self._check_room(size)
                self._body = _memory(size, headers.get(b"inference-header-content-length", b""))
                self._size = size
        if b"expect" in headers and headers[b"expect"].lower() == b"100-continue":
            self._expected = True
            self._go_on()

    def _go_on(self) -> None:
        """Ask for a body whose client waits to be asked, once earlier requests are answered."""
        if self._expected and not self._busy and not self._backlog:
            self._expected = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _take_authority(self, version: str) -> None:
        """Take a target with a scheme and a name apart: the name counts as Host (RFC 9112, 3.2.2)."""
        scheme, there, rest = self._url.partition(b"://")
        if not there or scheme.lower() not in (b"http", b"https"):
            return
        size = min(len(rest.partition(mark)[0]) for mark in (b"/", b"?"))
        if b"host" in self._headers or version == "1.0":
            self._headers[b"host"] = rest[:size]
        path = rest[size:]
        self._url = path if path.startswith(b"/") else b"/" + path

    def _check_version(self, version: str) -> None:
        if version != "1.0":
            raise ProtocolError(
                Kind.INVALID, f"this server speaks HTTP/1.1 and HTTP/1.0; got HTTP/{version}"
            )
        if b"transfer-encoding" in self._headers:
            raise ProtocolError(
                Kind.INVALID, "HTTP/1.0 has no Transfer-Encoding: send Content-Length, or HTTP/1.1"
            )

    def _check_origin(self, host: bytes | None) -> None:
        """Check that no web page of others makes a browser send this; see `Origins`.

        With a token nothing more is asked: a page doesn't know it, unless a door sends it. A browser sends a
        certificate for every page, though. HTTP/1.0, which no browser speaks, needs no Host.
        """
        headers, state = self._headers, self.state
        if host is None and self._parser.get_http_version() != "1.0":
            raise ProtocolError(Kind.INVALID, ONE_HOST)
        if state.rights is None or state.behind_door or self._names is not None:
            refusal = state.origins.refusal(self._method, headers)
            self._host = host if refusal is None else None
            if refusal is not None and self._url.partition(b"?")[0] not in _PROBES:
                try:
                    raise refusal
                finally:
                    del refusal  # it keeps this frame

    def _check_rights(self, rights: Rights) -> None:
        """Check that the client may send this; anyone may send what has no body to `_OPEN`."""
        headers = self._headers
        bare = b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"
        if not bare or self._url.partition(b"?")[0].rstrip(b"/") not in _OPEN:
            given = headers.get(b"authorization", b"")
            name = rights.check(self._scope(), given, self._names)
            if name != self._name:
                self._ask_as(name, given)
            self._given = given

    def _ask_as(self, name: str, given: bytes) -> None:
        """Take the next requests for those of another client, or of one by its new name, and count all under that.

        Raises:
            ProtocolError: requests of another client are still under way.
        """
        if given != self._given and (self._busy or self._backlog):
            raise ProtocolError(
                Kind.INVALID,
                "requests of different clients can't be in progress on one connection: wait for the answers "
                "before a request with another token",
            )
        owes = self.owes
        self.owe(0)
        state, before, self._name = self.state, self.client, name
        self.client = state.client_of(client_named(name) if name else self._address)
        for shares, size in ((state.crowd, 1), (state.bodies, self._unread + self._held)):
            shares.give(before, size)
            shares.take(self.client, size)
        self.owe(owes)

    @property
    def _held(self) -> int:
        """Counted bytes of the requests that are received or answered."""
        answered = 0 if self._exchange is None else self._exchange.reserved
        return self._reserved + answered + sum(each.reserved for each in self._backlog)

    def _scope(self) -> Scope | None:
        if self._method == b"POST" and self._path(self._url) is not None:
            return Scope.INFER
        return self._routes.scope(*_asked(self._method, self._url))

    def _path(self, url: bytes) -> tuple[str, str] | None:
        """Return the model and version in the path of an inference; None for any other path."""
        paths = Connection._paths
        return paths[url] if url in paths else remember(paths, url)

    def _check_crowd(self) -> None:
        """Check that a connection beyond the allowed number asks for health, or may take another's place.

        Raises:
            ProtocolError: there are too many connections.
        """
        if self._url.partition(b"?")[0] in _PROBES:
            return
        if not self.state.admits(self):
            raise ProtocolError(
                Kind.OVERLOADED, "too many connections are open: close some, or retry", 1.0
            )
        self._extra = False

    def _reserve(self, size: int) -> None:
        """Count received bytes of a body; announced bytes don't count, since they take no memory.

        Raises:
            ProtocolError: the body is too large, or all bodies together are.
        """
        state, reserved = self.state, self._reserved + size
        if reserved > state.limits.body_bytes or not state.bodies.took(self.client, size):
            self._check_room(size)
            state.bodies.take(self.client, size)
        self._reserved = reserved

    def _check_room(self, size: int) -> None:
        limits = self.state.limits
        if self._reserved + size > limits.body_bytes:
            raise ProtocolError(
                Kind.TOO_LARGE, f"the body exceeds the limit of {limits.body_bytes:,} bytes"
            )
        self.state.check_room(self.client, size)

    def on_body(self, piece: bytes) -> None:
        """Take a piece of the body."""
        self._reserve(len(piece))
        if self._body is not None:
            end = self._filled + len(piece)
            self._body[self._filled : end] = piece
            self._filled = end
            return
        if not self._pieces:
            self._pieces = piece
            return
        if type(self._pieces) is bytes:  # a list of tiny pieces would take many times their bytes
            self._pieces = bytearray(self._pieces)
        self._pieces += piece

    def on_message_complete(self) -> None:
        """Answer a request that was received in full, or queue it."""
        if self._body is not None and self._filled < self._size:
            return  # the rest of the body is received without the parser
        if self._upgrading:
            return
        self._in_body, self._began_ns, self._opened_ns = False, None, None
        self._head_bytes, self._expected = 0, False
        body: Any = self._body
        if body is None:
            body = self._pieces
            if type(body) is bytearray:
                body = bytes(body) if len(body) <= _DIRECT_BYTES else memoryview(body)
        self._body, self._pieces = None, b""
        waits = self._busy or self._paused or self._backlog
        self._at_once += 1
        if not waits and self._at_once > _AT_ONCE:
            self._next_soon()
            waits = True
        if not waits and type(body) is bytes and self._answered_row(body):
            return
        reserved, self._reserved = self._reserved, 0
        request = self._method, self._url, self._headers, body, self._keep_alive, reserved
        if waits:
            self._backlog.append(Received(*request))
            self._transport.pause_reading()
            return
        self._begin(*request)

    # -- a request

    def _begin(
        self,
        method: bytes,
        url: bytes,
        headers: dict[bytes, bytes],
        body: Any,
        keep_alive: bool,
        reserved: int,
    ) -> None:
        """Begin to answer a request; see `Received`."""
        self._busy = True
        if self._slot is not None:
            self._slot.working()
        keep_alive = keep_alive and not self._leaving
        exchange = Exchange(self, headers, keep_alive, reserved, method == b"HEAD")
        self._exchange = exchange
        arrived_ns = self.clock_ns()
        if b"content-encoding" in headers or (
            len(body) > _DIRECT_BYTES and not self.state.parsing.took(_json_bytes(headers, body))
        ):
            work = self._unpack(exchange, method, url, headers, body, arrived_ns)
            self._unpacking = asyncio.get_running_loop().create_task(work)
            return
        self._answer(exchange, method, url, headers, body, arrived_ns)

    async def _unpack(
        self,
        exchange: Exchange,
        method: bytes,
        url: bytes,
        headers: dict[bytes, bytes],
        packed: Any,
        arrived_ns: int,
    ) -> None:
        """Answer a request with a compressed body, which a thread decompresses, or with one that waits for its turn."""
        try:
            body = await self._plain(exchange, headers, packed)
            await self.state.parsing.take(self.client, _json_bytes(headers, body))
            self._unpacking = None
        except ProtocolError as failure:
            exchange.respond(failure_response(failure))
        except Exception as error:
            log.exception("the server's own code failed on a request")
            exchange.respond(failure_response(own_fault(error)))
        else:
            self._answer(exchange, method, url, headers, body, arrived_ns)

    def _answer(
        self,
        exchange: Exchange,
        method: bytes,
        url: bytes,
        headers: dict[bytes, bytes],
        body: Any,
        arrived_ns: int,
        in_turn: bool = False,
    ) -> None:
        """Answer a request whose body isn't compressed; `in_turn` says that it has waited for room for its answer."""
        try:
            path = self._path(url)
            if path is not None and method == b"POST":
                query, model = self._query(exchange, path, headers, body, arrived_ns)
                plan = query.plan
                if plan is None or plan.answer_bytes not in _UNCOUNTED:
                    size = self._owing(model, query)
                    if size > COUNTED_BYTES or self._guessed or query.sequence is not None:
                        asked = _Asked(exchange, method, url, headers, body, arrived_ns)
                        if not self._let_in(asked, model, query, size, in_turn):
                            return
                self._infer(exchange, model, query, headers, body)
            else:
                request = PlainRequest(
                    *_asked(method, url), bytes(body), headers, self.client, self._name
                )
                self._other(exchange, request)
        except ProtocolError as failure:
            exchange.respond(failure_response(failure))
        except Exception as error:
            log.exception("the server's own code failed on a request")
            exchange.respond(failure_response(own_fault(error)))

    def _owing(self, model: ServedModel, query: Query) -> int:
        """Return the memory that the answer to a request is foreseen to take."""
        size = foreseen_bytes(model, query)
        self._guessed = size is None
        if size is None:
            return self.state.owed.foreseen(model.name)
        binary = all(each.binary for each in query.outputs) if query.outputs else query.binary
        return size if binary else _JSON_TIMES * size

    def _let_in(
        self, asked: _Asked, model: ServedModel, query: Query, size: int, in_turn: bool
    ) -> bool:
        """Count an answer, and return whether its request may begin; else it waits until its client has read others.

        Args:
            asked: Request.
            model: Model of the request.
            query: The request, as it was read.
            size: Memory of the answer, in bytes.
            in_turn: Whether the request has waited.
        """
        owed, steps = self.state.owed, query.sequence is not None and model.sequences is not None
        is_large = size > COUNTED_BYTES
        if not in_turn and (
            is_large or (steps and owed.has_line(self.client))
        ):  # no step overtakes
            most = MOST_OWED_BYTES + (0 if self._guessed else batch_bytes(model, query, size))
            if not owed.has_room(self.client, size, most):
                self._wait(asked, size, most)
                return False
        if is_large:
            self.owe(size)
        if self._guessed or steps:
            self._again, self.begun_ns = asked, query.parsed_ns
        return True

    def _wait(self, asked: _Asked, size: int, most: int, *, first: bool = False) -> None:
        """Let a request wait until its client has read other answers; see `Waiting`."""
        begin = partial(self._answer, *asked, True)
        self._waiting = Waiting(self.state.owed, asked.exchange, begin, self.clock_ns)
        self._waiting.queue(self.client, size, most, first=first)

    def made(self, size: int) -> None:
        """Count an answer; take others back if only the model could tell its size, and it is a surprise."""
        if self._guessed and size > max(COUNTED_BYTES, self.owes + self.owes // _SURPRISING):
            self.owe(size)
            self.state.owed.hold(self.client, self.asked)

    @property
    def asked(self) -> str:
        """Name of the model that the request is for."""
        model = None if self._exchange is None else self._exchange.model
        return "" if model is None else model.name

    def expect(self) -> None:
        """Count the answer as large as it is expected by now, if its size is guessed; see `Holding`."""
        ticket, asked = self._ticket, self._again
        if asked is None or not self._guessed or ticket is None or ticket.over:
            return
        assert asked.exchange.model is not None
        size = self.state.owed.foreseen(asked.exchange.model.name)
        if size > max(COUNTED_BYTES, self.owes):
            self.owe(size)

    def hold(self) -> None:
        """Take the request back, unless an engine runs it, and let it wait for room; see `Holding`."""
        ticket, asked = self._ticket, self._again
        if asked is None or ticket is None or not ticket.withdraw():
            return
        self._ticket = self._again = None
        self.begun_ns = 0
        self._wait(asked, self.owes, MOST_OWED_BYTES, first=True)
        self.owe(0)

    def _query(
        self,
        exchange: Exchange,
        path: tuple[str, str],
        headers: dict[bytes, bytes],
        body: Any,
        arrived_ns: int,
    ) -> tuple[Query, ServedModel]:
        """Read an inference request; return it with its model."""
        state = self.state
        model = state.repository.find(*path)
        exchange.model = model
        trace = headers.get(b"traceparent", b"").decode("latin-1")
        stated = headers.get(b"inference-header-content-length")
        sent_bytes = len(body)
        if b"content-encoding" in headers and exchange.reserved > sent_bytes:
            sent_bytes = exchange.reserved - sent_bytes
        try:
            query = self._read(model, path, stated, headers.get(b"content-type"), body, sent_bytes)
        except ProtocolError as failure:
            model.unread(failure, arrived_ns, trace)
            raise
        query.source, query.client, query.name = self._number, self.client, self._name
        query.arrived_ns, query.parsed_ns = arrived_ns, self.clock_ns()
        query.trace = trace
        if b"content-encoding" in headers:
            query.sent_bytes = sent_bytes
        exchange.query = query
        return query, model

    def _infer(
        self,
        exchange: Exchange,
        model: ServedModel,
        query: Query,
        headers: dict[bytes, bytes],
        body: Any,
    ) -> None:
        """Hand a request to its model."""
        stated = headers.get(b"inference-header-content-length")
        ticket = model.accept(query, exchange.deliver)
        if not ticket.over:
            self._ticket = ticket
        if query.plan is None and stated != b"0" and type(ticket) is Ticket:
            try:
                model.plan(query, body, None if stated is None else int(stated), ticket)
            except Exception:  # the request may be answered already, so it can't fail any more
                log.exception("the plan of a request couldn't be kept")

    def _answered_row(self, body: bytes) -> bool:
        """Answer the JSON of one row at once; False to take the usual way, which states every error."""
        headers = self._headers
        if not _OTHER.isdisjoint(headers):
            return False
        state, path = self.state, Connection._paths.get(self._url)
        stays = self._keep_alive and not self._leaving and not state.draining
        if path is None or self._method != b"POST" or not stays:
            return False
        try:
            quick = state.repository.find(*path).quick_rows
        except ProtocolError:
            return False
        if quick is None or headers.get(b"content-type") not in (
            _SAMPLES if quick.ambiguous else _ROWS
        ):
            return False
        # A decision is too short to gain by compression; few clients refuse it as it is.
        if b"q=0" in headers.get(b"accept-encoding", b""):
            return False
        data = quick.answer(body, self.clock_ns())
        if data is None:
            return False
        state.bodies.give(self.client, self._reserved)
        self._reserved = 0
        before = quick.before
        answer = _ANSWER % (len(before) + len(data) + 1, before, data)
        self._written += len(answer)
        self._transport.write(answer)
        if self._slot is not None:  # the system has the answer only at the end of the loop's turn
            asyncio.get_running_loop().call_soon(self._answered)
        quick.told()
        return True

    def _read(
        self,
        model: ServedModel,
        path: tuple[str, str],
        stated: bytes | None,
        kind: bytes | None,
        body: Any,
        sent_bytes: int,
    ) -> Query:
        state = self.state
        if kind is not None and kind not in _TENSORS and stated is None:
            sample = sample_query(body, *path, kind, model.takes_raw)
            if sample is not None:
                return sample
        if stated == b"0":
            return raw_query(body, *path, model.inputs)
        if stated is not None and not (stated.isdigit() and len(stated) < _LONGEST_NUMBER):
            raise ProtocolError(
                Kind.INVALID, f"Inference-Header-Content-Length is not a size: {stated[:40]!r}"
            )
        length = None if stated is None else int(stated)
        size = len(body) if length is None else length
        if size > state.limits.json_bytes:
            raise long_json(size, state.limits.json_bytes)
        if sent_bytes < len(body):
            check_unpacked_json(size, sent_bytes)
        if length is None and model.most_rows_bytes:
            rows = rows_query(body, *path, model.most_rows_bytes)
            if rows is not None:
                return rows
        return model.planned(body, length) or read_body(
            body, length, *path, state.memory, state.limits.body_bytes, model.check_input
        )

    async def _plain(self, exchange: Exchange, headers: dict[bytes, bytes], body: Any) -> Any:
        """Decompress a body, and count its memory."""
        encoding = headers.get(b"content-encoding", b"").decode("latin-1").strip().lower()
        if encoding in ("", "identity"):
            return body
        state = self.state
        data = await state.coding.work(
            self.client, decompressed, body, encoding, state.limits.body_bytes
        )
        state.check_room(self.client, len(data))
        exchange.reserved += len(data)
        state.bodies.take(self.client, len(data))
        return data

    def _other(self, exchange: Exchange, request: PlainRequest) -> None:
        answer = self._routes.handle(request)
        if isinstance(answer, Response):
            exchange.respond(answer)
            return
        self._task = asyncio.get_running_loop().create_task(self._later(exchange, answer))

    async def _later(self, exchange: Exchange, answer: Coroutine[Any, Any, Response]) -> None:
        try:
            response = await answer
        except ProtocolError as failure:
            response = failure_response(failure)
        except Exception as error:
            log.exception("the server's own code failed on a request")
            response = failure_response(own_fault(error))
        self._task = None
        exchange.respond(response)

    # -- the answer

    def send(
        self, head: bytes, pieces: Sequence[Any], size: int, reserved: int, keep_alive: bool
    ) -> None:
        """Send an answer, and continue with requests that arrived meanwhile; see `Sender`."""
        if self._lost:
            return
        self._ticket = self._exchange = None
        self._again = self._waiting = None
        self.begun_ns = 0
        self.state.bodies.give(self.client, reserved)
        if self._hung_up:
            return
        slot = self._slot
        if self.owes:
            self.owe(size)
        if size <= _SMALL_BYTES:
            data = b"".join((head, *pieces))
            self._written += len(data)
            self._transport.write(data)
        else:
            if slot is not None:
                slot.sending()
            self._written += len(head) + size
            self._transport.writelines((head, *pieces))
        if self.owes and not self._paused:
            self.owe(0)
        self._busy = False
        if slot is not None:  # the system has the answer only at the end of the loop's turn
            asyncio.get_running_loop().call_soon(self._answered)
        if not keep_alive or self._leaving:
            self._transport.close()
        elif self._backlog:
            if not self._paused:
                self._next_soon()
        elif self._refusal is not None:
            self._refuse(self._refusal)
        elif self._expected:
            self._go_on()

    def _answered(self) -> None:
        if self._slot is not None and not self._busy and self._began_ns is None:
            self._slot.answered()

    def _next_soon(self) -> None:
        """Schedule the next request of the backlog for the loop's next turn."""
        self._busy = True
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        if self._lost or self._hung_up:
            return
        if len(self._backlog) == 1 and self._refusal is None:
            self._transport.resume_reading()
        self._begin(*self._backlog.popleft())

    def _refuse(self, failure: ProtocolError) -> None:
        """Send an error and close, since the rest of the stream can't be parsed."""
        if self._hung_up:
            return
        self.state.bodies.give(self.client, self._reserved)
        self._reserved = 0
        self._body, self._pieces, self._began_ns = None, b"", None
        if self._busy or self._backlog:  # earlier requests are answered first
            self._refusal = without_frames(failure)
            self._transport.pause_reading()
            return
        if self._slot is not None:
            self._slot.sending()
        head, pieces = head_of(failure_response(failure), keep_alive=False)
        said = (head,) if self._parser.get_method() == b"HEAD" else (head, *pieces)
        self._written += sum(map(len, said))
        self._transport.writelines(said)
        self._hung_up = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
        asyncio.get_running_loop().call_later(_LINGER_S, self._transport.close)

    # -- the server's checks

    def overdue(self, now_ns: int) -> bool:
        """Whether the client is too slow in sending a request, or in reading its answer."""
        limits, unsent = self.state.limits, self._transport.get_write_buffer_size()
        sent = self._written - unsent
        # Of an encrypted connection only a part of what isn't sent is counted, unless it is paused.
        owed = self._owed if self._paused or not self._encrypted else 0
        self._still = owed > 0 and sent - self._sent < min(_PROGRESS_BYTES, owed)
        if not self._still:
            self._sent, self._owed, self._read_ns = sent, unsent, now_ns
        elif now_ns - self._read_ns > limits.send_ns:
            return True
        if self._paused:
            return False
        began_ns = self._began_ns if self._opened_ns is None else self._opened_ns
        return began_ns is not None and now_ns - began_ns > limits.receive_ns

    def rest(self) -> None:
        """Count a check at which the client let the server wait; record whether it is idle."""
        waits = not self._busy and (self._still or self._owed == 0)
        arrives = self._reserved - self._seen >= _PROGRESS_BYTES
        self._seen = self._reserved
        self.quiet = self.quiet + 1 if waits and not arrives else 0
        if self._slot is not None and self.idle:
            self._slot.resting()

    def end_slow(self) -> None:
        """Close the connection of a client that is too slow."""
        if self._still:
            self._transport.abort()
            return
        self._refuse(
            ProtocolError(Kind.SLOW, "the request didn't arrive in full within the time limit")
        )

    @property
    def idle(self) -> bool:
        """Whether no request is being received, processed or answered on the connection."""
        sent = self._transport.get_write_buffer_size() == 0
        return not self._busy and self._began_ns is None and sent

    @property
    def spare(self) -> bool:
        """Whether the connection may be closed to make room for others."""
        unasked = self._opened_ns is not None or self._began_ns is not None
        return self.quiet >= (_HEAD_CHECKS if unasked and not self._in_body else _QUIET_CHECKS)

    def leave(self) -> bool:
        """Close the connection once what it asked is answered; False if it is being closed already."""
        if self._leaving or self._hung_up or self._lost:
            return False
        self._leaving = True
        unread = self._still and self._transport.get_write_buffer_size() > 0
        if unread and not self._busy and self.quiet >= _QUIET_CHECKS:
            self._transport.abort()
        elif self.idle:
            self._transport.close()
        return True

    def take_back(self) -> None:
        """Close the connection if memory is held for a body that isn't whole, or for an unread answer."""
        if self._unread:
            self._release_unread()  # the end is told in the loop's next turn: no other gives way for this room
            self._transport.abort()
        elif self._reserved and not self._hung_up:
            why = (
                "overloaded: other clients wait for the memory that the request takes; retry later"
            )
            self._refuse(ProtocolError(Kind.OVERLOADED, why, 1.0))

    def hurry(self, now_ns: int) -> int | None:
        """End the connection if its client has read nothing of an answer for a second; see `Held`."""
        if not self._unread:
            return None
        sent = self._received_bytes
        if self._read_last is None or sent < self._read_last[0]:  # the system says it from now on
            self._read_last = sent, now_ns
        before, since_ns = self._read_last
        if sent - before >= _PROGRESS_BYTES:
            self._read_last = sent, now_ns
        elif now_ns - since_ns >= _STUCK_NS:
            self.take_back()
            return None
        return sent

    @property
    def _received_bytes(self) -> int:
        """Bytes that the client has received, or else those that the system has taken, which come many at a time."""
        one = self._transport.get_extra_info("socket")
        received = None if one is None else received_bytes(one.fileno())
        if received is None:
            return self._written - self._transport.get_write_buffer_size()
        return received

    def give_way(self) -> None:
        """Close the connection to make room for others."""
        if self._began_ns is not None or self._still:
            self.end_slow()
        self._transport.close()

    def close(self) -> None:
        """Close the connection once its buffered output is sent."""
        self._transport.close()


def _asked(method: bytes, url: bytes) -> tuple[str, tuple[str, ...]]:
    """Return the method and the path's parts, as `PlainRequest` has them."""
    return "GET" if method == b"HEAD" else method.decode(), parts_of(url)


def _stated(header: bytes) -> int | None:
    """Return the size that a header states; None if it states none."""
    return int(header) if header.isdigit() and len(header) < _LONGEST_NUMBER else None


def _json_bytes(headers: dict[bytes, bytes], body: Any) -> int:
    """Return the size of a body's JSON: that of the body, unless tensors follow."""
    stated = _stated(headers.get(b"inference-header-content-length", b""))
    return len(body) if stated is None else min(stated, len(body))


def _memory(size: int, header: bytes) -> memoryview:
    """Allocate memory for a body such that the bytes after its JSON are aligned."""
    begin = _stated(header) or 0
    room = np.empty(size + 2 * _ALIGNMENT, np.uint8)
    shift = -(room.ctypes.data + begin) % _ALIGNMENT
    return memoryview(room)[shift : shift + size]  # type: ignore[arg-type]
