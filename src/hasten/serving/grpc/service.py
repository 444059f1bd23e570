"""Serve gRPC calls on the event loop that serves HTTP too.

The gRPC library hands messages over as bytes, so that a message that can't be parsed gets an error of
the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any

from hasten.errors import InputError
from hasten.serving.fairness import client_named
from hasten.serving.grpc.admission import Admission
from hasten.serving.grpc.calls import (
    MIDDLE_BYTES,
    Inference,
    Receiving,
    Stream,
    client_of,
    leaving,
    logged_fault,
    metadata_of,
)
from hasten.serving.grpc.connections import Ending, Place, place_of
from hasten.serving.grpc.methods import SCOPES, Methods
from hasten.serving.grpc.reading_ahead import Together
from hasten.serving.grpc.single import Single
from hasten.serving.grpc.trial import check_that_it_answers
from hasten.serving.grpc.unread import LIBRARY_TIMES, Unread
from hasten.serving.models.answer_sizes import least_bytes
from hasten.serving.models.served import ServedModel
from hasten.serving.owed_answers import Holding
from hasten.serving.protocol import messages
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.rights import Scope
from hasten.serving.state import ServerState
from hasten.serving.tls import Tls
from hasten.serving.wire.grpc_messages import never_answered, read_message

log = logging.getLogger("hasten.serving")

_MOST_SENT_BYTES = 2**31 - 1
_OPEN = ("ServerLive", "ServerReady")
"""Names of the methods that need no token, and that are answered whatever number of calls is under way."""
_BROWSERS = ("origin", "sec-fetch-site")
"""Metadata by which a browser says whose page makes a call."""
_RESERVED = 64
"""Number of calls that the library takes beyond those that may be under way or unread; also of connections."""
_CONNECTIONS_TIMES = 2
"""Connections that the library takes, as a multiple of those that may stay: a client that it refused once would wait
for a second, by its own library, before it tries again."""
_PATIENCE_NS = 1_000_000_000
"""Time for which a call must have waited for its client to be ended where there is no place left."""
_FAREWELL_S = 0.25
"""Time for calls to end when the server closes."""
_MOST_STREAMS = 128
"""Largest number of calls at once on one connection."""
_HANDSHAKE_MS = 10_000
_IDLE_MS = 60_000
"""Time after which a connection without calls is closed; its client opens another when it asks."""
_SWEEP_S, _CROWDED_SWEEP_S = 1.0, 0.1
_AT_ONCE_NS = 1_000_000_000
"""Time after which an answer counts as one that wasn't read at once."""
_LIBRARY_LOG = "grpc._cython.cygrpc"
_UNCOMPRESSED = 1
"""Bits of the compression algorithms that are enabled: only that of no compression."""
_MISSING = "serving over gRPC needs grpcio and protobuf: pip install 'hasten[serve]'"


class GrpcServer:
    """gRPC front end of a server.

    Args:
        state: State of the server.
        tls: Function that returns what encrypts the next connection; None if TLS is off.
        clock_ns: Monotonic clock, in nanoseconds.
    """

    def __init__(
        self,
        state: ServerState,
        tls: Callable[[], Tls | None] = lambda: None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._state, self._clock_ns = state, clock_ns
        self._tls = tls
        self._handed: Tls | None = None
        """Credentials by which the library encrypts connections."""
        self._methods = Methods(state)
        self._statuses: dict[Kind, Any] = {}
        self._server: Any = None
        self._unread = Unread(clock_ns, state.bodies, state.owed)
        self._sending = _Sending(clock_ns)
        self._together = Together()
        self._calls = Admission(state.limits.connections, _PATIENCE_NS)
        self._sweeping: asyncio.TimerHandle | None = None
        self._ending: Ending
        self._looking: asyncio.Task[None] | None = None
        self._taking_back: dict[str, asyncio.Task[None]] = {}
        self._cutting: set[asyncio.Task[None]] = set()

    # -- begin and end

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port.

        Args:
            host: Host name or address to listen on.
            port: Port; 0 for any free port.

        Raises:
            InputError: the port isn't available, or gRPC isn't installed or doesn't answer.
        """
        try:
            import grpc
            from google.protobuf import json_format  # noqa: F401
        except ImportError as error:
            raise InputError(_MISSING) from error
        _check_place(host, port)
        logging.getLogger(_LIBRARY_LOG).addFilter(_says_more)
        await check_that_it_answers()
        self._statuses = {kind: getattr(grpc.StatusCode, kind.grpc) for kind in Kind}
        # The library's own bound comes later than ours: a call counts there until its answer is read.
        most = 2 * self._state.limits.connections + _RESERVED
        server = grpc.aio.server(options=self._options(), maximum_concurrent_rpcs=most)
        # Handlers of streams, since those of single requests are called once a message was received.
        handlers: dict[str, Any] = {
            name: grpc.stream_unary_rpc_method_handler(
                self._health(name) if name in _OPEN else self._unary(name)
            )
            for name in messages.METHODS
            if name not in ("ModelInfer", "ModelStreamInfer")
        }
        handlers["ModelInfer"] = grpc.stream_unary_rpc_method_handler(self._inference())
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(messages.SERVICE, handlers),)
        )
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            taken = self._add_port(grpc, server, place)
        except RuntimeError as error:
            raise InputError(f"can't listen on {host}:{port} for gRPC") from error
        await server.start()
        self._server = server
        limits = self._state.limits
        self._ending = Ending(taken, limits.connections, limits.send_ns, self._clock_ns)
        self._state.end_unread = self._end_unread
        self._state.begun_calls = self._begun_by
        self._state.repository.warned = self._warning_of
        self._sweep()
        return taken

    def _warning_of(self, model: ServedModel) -> str:
        return never_answered(least_bytes(model), self._state.limits.grpc_answer_bytes)

    def _options(self) -> list[tuple[str, int]]:
        limits = self._state.limits
        return [
            # Larger messages are refused once their length is known, before memory is allocated.
            ("grpc.max_receive_message_length", limits.body_bytes + limits.header_bytes),
            ("grpc.max_send_message_length", _MOST_SENT_BYTES),
            # The library would unpack some kilobytes to a whole message while nobody else is answered.
            ("grpc.compression_enabled_algorithms_bitset", _UNCOMPRESSED),
            ("grpc.max_metadata_size", limits.header_bytes),
            ("grpc.absolute_max_metadata_size", 2 * limits.header_bytes),
            ("grpc.max_concurrent_streams", min(_MOST_STREAMS, limits.connections)),
            # Idle ones beyond the limit are ended, so that places are left for those that ask.
            (
                "grpc.max_allowed_incoming_connections",
                _CONNECTIONS_TIMES * limits.connections + _RESERVED,
            ),
            ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
            ("grpc.max_connection_idle_ms", _IDLE_MS),
            ("grpc.so_reuseport", 0),
            # Clients that vanished are detected, and clients may ping the server.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 1000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
        ]

    def _add_port(self, grpc: Any, server: Any, place: str) -> int:
        first = self._tls()
        if first is None:
            return int(server.add_insecure_port(place))

        def changed() -> Any:
            """Return what encrypts the next connection, if that is new; called by the library's threads."""
            tls = self._tls()
            if tls is None or tls is self._handed:
                return None
            self._handed = tls
            pairs = [(tls.key, tls.certificate)]
            return grpc.ssl_server_certificate_configuration(pairs, tls.client_ca)

        asks_clients = first.client_ca is not None
        credentials = grpc.dynamic_ssl_server_credentials(changed(), changed, asks_clients)
        return int(server.add_secure_port(place, credentials))

    async def drain(self) -> None:
        """Accept no new calls, and wait for running ones, up to the drain time of the limits."""
        self._calls.drain(leaving())
        if self._server is not None:
            await self._server.stop(self._state.limits.drain_ns / 1e9)

    async def close(self) -> None:
        """Refuse the calls that wait for their clients, and stop; any other is aborted soon.

        An aborted one may end as CANCELLED, which clients take for their own doing.
        """
        self._calls.drain(leaving())
        if self._server is not None:
            await self._server.stop(_FAREWELL_S)
        if self._sweeping is not None:
            self._sweeping.cancel()

    # -- steps that all calls have in common

    def _check_rights(self, context: Any, scope: Scope) -> str:
        """Check that the client may call this, if the server asks who it is.

        Returns:
            Name of the client; "" if its address tells as much.

        Raises:
            ProtocolError: the client isn't known, or may not call this.
        """
        rights = self._state.rights
        if rights is not None:
            given = metadata_of(context, "authorization")
            return rights.check(scope, given, self._names(context), "authorization")
        return ""

    def _let_in(self, context: Any, scope: Scope, call: Receiving | Stream) -> None:
        """Check that the client may call this, and count the call under its name, if the server knows that.

        Raises:
            ProtocolError: as `_check_page` and `_check_rights` raise it.
        """
        state = self._state
        if state.rights is None or state.behind_door or self._asks_clients:
            self._check_page(context)
        if state.rights is None:
            return
        if name := self._check_rights(context, scope):
            call.name, call.client = name, self._state.client_of(client_named(name))

    def _check_again(self, context: Any, scope: Scope, stream: Stream) -> None:
        """Check that the client of a stream may still ask, and count the stream under the name that it has by now.

        Raises:
            ProtocolError: as `_check_rights` raises it.
        """
        name, state = self._check_rights(context, scope), self._state
        if name != stream.name:
            stream.name = name
            client = state.client_of(client_named(name)) if name else client_of(state, context)
            self._calls.move(stream, client)

    def _check_page(self, context: Any) -> None:
        """Check that no web page of others makes a browser call this, as over HTTP; see `Origins`.

        The library takes a call of any content type if its headers accept trailers, as Firefox's do in all that a
        page asks by HTTP/2.

        Raises:
            ProtocolError: such a page does.
        """
        told: dict[bytes, bytes] = {}
        for name, value in context.invocation_metadata() or ():
            if name in _BROWSERS:
                told[name.encode()] = value.encode()
        if told and (refusal := self._state.origins.refusal(b"POST", told)) is not None:
            try:
                raise refusal
            finally:
                del refusal  # it keeps this frame

    @property
    def _asks_clients(self) -> bool:
        """Whether clients have certificates."""
        return self._handed is not None and self._handed.client_ca is not None

    def _names(self, context: Any) -> list[str] | None:
        """Return the names in the client's certificate; None if clients aren't asked for one."""
        if not self._asks_clients:
            return None
        found = context.auth_context()
        names = (*found.get("x509_common_name", ()), *found.get("peer_dns", ()))
        return [name.decode("utf-8", "replace") for name in names]

    def _enter(self, calls: Admission, call: Receiving | Stream, now_ns: int) -> None:
        """Count a call that begins, and check for slow clients from time to time.

        Raises:
            ProtocolError: too many calls are in progress.
        """
        calls.enter(call, now_ns)

    def _sweep(self) -> None:
        """End the calls and connections of clients that are too slow, or too many; again and again."""
        loop, now_ns = asyncio.get_running_loop(), self._clock_ns()
        hurries = self._ending.too_many
        self._sweeping = loop.call_later(_CROWDED_SWEEP_S if hurries else _SWEEP_S, self._sweep)
        self._end_slow()
        if self._looking is None and (self._sending.overdue(now_ns) or self._ending.crowded):
            unread = self._sending.peers(now_ns)
            busy = _places({*self._calls.peers, *self._sending.peers()}).values()
            self._looking = loop.create_task(self._look(_places(unread), {*busy}))

    def _end_slow(self) -> None:
        """End the calls of clients that are too slow, some in each turn of the loop."""
        if self._calls.sweep(self._clock_ns()):
            asyncio.get_running_loop().call_soon(self._end_slow)

    async def _look(self, unread: dict[str, Place], busy: set[Place]) -> None:
        try:
            reading = await asyncio.to_thread(self._ending.look, {*unread.values()}, busy)
            for peer, place in unread.items():
                if place in reading:
                    self._unread.progressed(peer)
        except Exception:
            log.exception("the connections of gRPC couldn't be looked at")
        finally:
            self._looking = None

    def _begun_by(self, client: str) -> list[Holding]:
        """Return a client's requests that are with their models, and can be taken back."""
        return [*self._unread.begun_by(client), *self._together.begun_by(client)]

    def _end_unread(self, client: str) -> None:
        """End the connections on which a client has left answers unread for a while, since another finds no room."""
        if client in self._taking_back:
            return
        if unread := self._left_by(client, 0):
            ending = self._end_those_left(client, unread)
            task = asyncio.get_running_loop().create_task(ending)
            self._taking_back[client] = task
            task.add_done_callback(lambda _: self._taking_back.pop(client, None))

    async def _end_those_left(self, client: str, unread: dict[str, Place]) -> None:
        try:
            left = {*self._left_by(client, _AT_ONCE_NS).values()}
            had = await asyncio.to_thread(self._ending.received, {*unread.values()})
            for peer, place in unread.items():
                if (read := had.get(place)) is not None:
                    cut = partial(self._cut, place)
                    self._state.owed.looked(client, peer, LIBRARY_TIMES * read, cut)
            await asyncio.sleep(_AT_ONCE_NS / 1e9)  # who reads slowly is told by a second look
            still = {*self._left_by(client, _AT_ONCE_NS).values()} & left
            received = {place: size for place, size in had.items() if place in still}
            await asyncio.to_thread(self._ending.end, received)
        except Exception:
            log.exception("the connections of gRPC couldn't be looked at")

    def _cut(self, place: Place) -> None:
        """End a client's connection, which it reads too slowly for its further requests."""
        work = asyncio.to_thread(self._ending.cut, place)
        task = asyncio.get_running_loop().create_task(work)
        self._cutting.add(task)
        task.add_done_callback(self._cutting.discard)

    def _left_by(self, client: str, age_ns: int) -> dict[str, Place]:
        """Return the places from which a client alone calls, and has read no answer whole for so long."""
        since_ns = self._clock_ns() - age_ns
        left = [
            *self._unread.left_by(client, since_ns),
            *self._together.left_by(client, since_ns),
        ]
        shared = self._calls.peers_of_others(client) if left else ()
        return _places(peer for peer in left if peer not in shared)

    def _refuse(self, context: Any, failure: ProtocolError) -> bytes:
        """End a call with an error."""
        # `context.abort` would raise an exception that keeps the call in memory by a cycle.
        context.set_code(self._statuses[failure.kind])
        context.set_details(str(failure))
        if failure.retry_s is not None:
            seconds = max(1, math.ceil(failure.retry_s))
            context.set_trailing_metadata((("retry-after", str(seconds)),))
        return b""

    def _unary(self, name: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
        """Return the handler of a method that isn't inference."""
        request_name = messages.METHODS[name].request
        scope = SCOPES[name]

        async def call(requests: Any, context: Any) -> bytes:
            now_ns = self._clock_ns()
            self._state.repository.clients.heard(0, now_ns)
            receiving = Receiving(self._state, context, now_ns)
            try:
                self._let_in(context, scope, receiving)
                self._enter(self._calls, receiving, now_ns)
                data = await receiving.message()
                answer = await self._methods.answer(name, read_message(request_name, data))
                return answer.SerializeToString()  # type: ignore[no-any-return]
            except ProtocolError as failure:
                return self._refuse(context, failure)
            except Exception:
                return self._refuse(context, logged_fault())
            finally:
                self._calls.leave(receiving)
                self._sending.begin(receiving.peer)

        return call

    def _health(self, name: str) -> Callable[[Any, Any], Awaitable[bytes]]:
        """Return the handler of a method that anyone may call.

        Its message says nothing, so it isn't received: it may have any length, and come slowly.
        """
        nothing = read_message(messages.METHODS[name].request, b"")

        async def call(requests: Any, context: Any) -> bytes:
            self._state.repository.clients.heard(0, self._clock_ns())
            peer = str(context.peer())
            try:
                answer = await self._methods.answer(name, nothing)
                return answer.SerializeToString()  # type: ignore[no-any-return]
            except Exception:
                return self._refuse(context, logged_fault())
            finally:
                self._sending.begin(peer)

        return call

    # -- inference

    def _inference(self) -> Callable[[Any, Any], Coroutine[Any, Any, bytes]]:
        """Return the handler of single inferences: a function, since the library looks twice at what it calls."""
        state, calls, clock_ns, scope = (
            self._state,
            self._calls,
            self._clock_ns,
            SCOPES["ModelInfer"],
        )
        loop, unread, sending = asyncio.get_running_loop(), self._unread, self._sending

        async def infer(requests: Any, context: Any) -> bytes:
            now_ns, inference = clock_ns(), None
            receiving = Single(state, context, now_ns)
            data = b""
            try:
                self._let_in(context, scope, receiving)
                self._enter(calls, receiving, now_ns)
                inference = Inference(
                    state, context, receiving, await receiving.message(), clock_ns
                )
                answer = await receiving.answer(inference, unread, loop)
                if isinstance(answer, ProtocolError):
                    return self._refuse(context, answer)
                inference.reserve_answer(answer)
                data = inference.written_again(answer) or b""
                if not data and inference.is_slow(answer):
                    data = await inference.written_apart(answer)
                elif not data:
                    data = inference.written(answer)
                size = len(data)
                unread.answered(answer.model, size)
                if size > MIDDLE_BYTES:
                    await state.handing.take(receiving.client, size)
                return data
            except ProtocolError as failure:
                return self._refuse(context, failure)
            except Exception:
                return self._refuse(context, logged_fault())
            finally:
                receiving.answered(unread, len(data))
                if inference is not None:
                    inference.end()
                calls.leave(receiving)
                sending.begin(receiving.peer)

        return infer

    async def _stream(self, requests: Any, context: Any) -> None:
        from grpc.aio import InternalError

        scope = SCOPES["ModelStreamInfer"]
        check = partial(self._check_again, context, scope)
        left = self._sending.begin
        stream = Stream(self._state, context, check, self._clock_ns, self._together, left)
        try:
            self._let_in(context, scope, stream)
            if self._state.draining:
                raise leaving()
            self._enter(self._calls, stream, self._clock_ns())
            await stream.run()
        except InternalError:  # an answer can't be sent any more, since the client is gone
            raise asyncio.CancelledError from None  # else the library would try to send the status
        except ProtocolError as failure:
            self._refuse(context, failure)
        except Exception:
            self._refuse(context, logged_fault())
        finally:
            self._calls.leave(stream)
            self._sending.begin(stream.peer)


class _Sending:
    """Calls that are answered, until their clients have read the answers."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._calls: dict[asyncio.Task[Any], tuple[str, int]] = {}
        """Task of each call -> its peer, and the time of its answer; the oldest first."""

    def begin(self, peer: str, task: asyncio.Task[Any] | None = None) -> None:
        """Note that a call is answered, the present one by default; its task ends once the client has read the answer."""
        task = task or asyncio.current_task()
        assert task is not None
        self._calls[task] = peer, self._clock_ns()
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._calls.pop(task, None)

    def overdue(self, now_ns: int) -> bool:
        """Whether there is an answer that isn't read at once."""
        return any(since_ns < now_ns - _AT_ONCE_NS for _, since_ns in self._calls.values())

    def peers(self, now_ns: int | None = None) -> set[str]:
        """Return the clients that have answers to read, with a time only those that haven't read them at once."""
        return {
            peer
            for peer, since_ns in self._calls.values()
            if now_ns is None or since_ns < now_ns - _AT_ONCE_NS
        }


def _places(peers: Iterable[str]) -> dict[str, Place]:
    """Return the place of each client as gRPC writes it, but for those that aren't of TCP."""
    found = {}
    for peer in peers:
        with contextlib.suppress(ValueError):
            found[peer] = place_of(peer)
    return found


def _says_more(record: logging.LogRecord) -> bool:
    """Whether a record of the library says more than what any client can do to its own calls.

    That is to go away before it has read its answer, and to send metadata that isn't UTF-8, which would be logged whole.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, UnicodeDecodeError) or 'Failed "execute_batch"' in str(error))


def _check_place(host: str, port: int) -> None:
    """Bind a port for a moment, since gRPC doesn't say why a port isn't available.

    Raises:
        InputError: the port isn't available; the message says why.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"can't listen on {host}:{port}: {error.strerror or error}") from error
