"""Handshakes of TLS over HTTP: each step takes a turn of the event loop, whatever else their connections do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import pytest
from tests.serving.test_tls_records import KeyChanger
from tests.support.certificates import certified
from tests.support.models import solid
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S, until

from hasten.serving import handshakes
from hasten.serving import server as server_module
from hasten.serving.handshakes import ConnectionPace
from hasten.serving.http.requests import Slot
from hasten.serving.loop_budget import LoopBudget
from hasten.serving.tls import read_tls
from hasten.serving.tls_records import SecuredByRecords

KEY_UPDATE = 24
"""Message of TLS 1.3 that announces new keys (RFC 8446, 4.6.3)."""
ASKED = b"GET /v2/health/live HTTP/1.1\r\nHost: here\r\n\r\n"


class Client:
    """A client of TLS whose flights are sent when a test says so."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        connection.settimeout(PATIENCE_S)
        self.socket, self._come, self._gone = connection, ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._come, self._gone, server_hostname="127.0.0.1")
        self.shaken = False

    def flight(self, last: bytes = ASKED) -> bytes:
        """Return what the client sends next; a request right after the handshake's end."""
        while not self.shaken:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                if self._gone.pending:
                    return self._gone.read()
                self._come.write(self._received())
            else:
                self.shaken = True
                self._tls.write(last)
        return self._gone.read()

    def answer(self) -> http.client.HTTPResponse:
        """Return the answer to the request."""
        said = b""
        while True:
            try:
                said += self._tls.read(1 << 16)
            except ssl.SSLWantReadError:
                self._come.write(self._received())
            if b"\r\n\r\n" in said:
                response = http.client.HTTPResponse(cast(Any, Said(said)))
                response.begin()
                return response

    def _received(self) -> bytes:
        data = self.socket.recv(1 << 16)
        assert data, "the server has closed the connection"
        return data


class Said:
    """What a server said, as `http.client` reads it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _: str) -> BytesIO:
        return BytesIO(self._data)


class Secured:
    """A server of TLS that takes connections as from the supervisor, and counts the turns of its loop.

    Attributes:
        read: Turn of the loop, connection and type of each message of TLS that the server has read.
        turn: Number of the loop's turn.
    """

    def __init__(self, server: ServerThread, listener: socket.socket) -> None:
        self.server, self._listener = server, listener
        self.read: list[tuple[int, int, int]] = []
        self.turn = 0
        tls = server.server._tls.value
        assert tls is not None
        self.context = tls.context
        self.context._msg_callback = self._note  # type: ignore[attr-defined]
        server.call(self._count)

    def _note(self, one: Any, way: str, _: Any, kind: int, message: int, __: bytes) -> None:
        if way == "read" and kind == 22:
            self.read.append((self.turn, id(one), message))  # it shall not keep it

    def crowded(self, *kinds: int) -> int:
        """Return the most connections of which one turn has read messages, or such of these types."""
        turns: dict[int, set[int]] = {}
        for turn, one, kind in self.read:
            if not kinds or kind in kinds:
                turns.setdefault(turn, set()).add(one)
        return max(map(len, turns.values()))

    def _count(self) -> None:
        self.turn += 1
        asyncio.get_running_loop().call_soon(self._count)

    def connected(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a connection on which nothing was sent."""
        ours = socket.create_connection(self._listener.getsockname())
        theirs, _ = self._listener.accept()
        theirs.setblocking(False)
        return ours, theirs

    def take(self, *accepted: socket.socket, slot: Slot | None = None) -> None:
        """Let the server serve connections."""

        async def take() -> None:
            self._taking = [
                asyncio.create_task(self.server.server.take(one, slot)) for one in accepted
            ]

        self.server.call(take)

    def at_once(self, work: Callable[[], object]) -> None:
        """Do work while the loop hears nobody."""
        self.server.call(lambda: time.sleep(0.01))  # else some might not have come to wait
        self.server.call(lambda: (work(), None)[1])


@contextlib.contextmanager
def secured(folder: Path, certificate: Path, **settings: Any) -> Iterator[Secured]:
    place, key = place_of(bundle_of(folder, solid(folder))), certificate.with_name("key.pem")
    with (
        ServerThread(place, certificate=certificate, key=key, **settings) as server,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        yield Secured(server, listener)


def trusting(certificate: Path, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate))
    context.maximum_version = version
    return context


@pytest.mark.parametrize("kind", ["TLS 1.3", "another key", "TLS 1.2", "client's certificate"])
@pytest.mark.parametrize("before", [0, 3, 60], ids="{} bytes before".format)
def test_a_turn_of_the_loop_has_one_step_of_all_handshakes(
    tmp_path: Path, certificate: Path, kind: str, before: int
) -> None:
    """488 begun ones in 62 kB held everybody up for half a second, or for 2.5 s with a key of 4,096 bits."""
    trust = trusting(certificate)
    if kind == "TLS 1.2":
        trust.maximum_version = ssl.TLSVersion.TLSv1_2
    settings = {}
    if kind == "client's certificate":
        authority = certified(tmp_path, "authority")
        own = certified(tmp_path, "own", cn="own.example", by=authority)
        trust.load_cert_chain(own, own.with_suffix(".key"))
        settings["client_ca"] = authority
    with secured(tmp_path, certificate, **settings) as server, contextlib.ExitStack() as stack:
        if kind == "another key":  # the server asks for it by HelloRetryRequest
            server.context.set_ecdh_curve("secp384r1")
        both = [server.connected() for _ in range(10)]
        clients = [Client(stack.enter_context(ours), trust) for ours, _ in both]
        flights = [client.flight() for client in clients]
        for client, flight in zip(clients, flights, strict=True):
            client.socket.sendall(flight[:before])
        server.take(*(theirs for _, theirs in both))
        rounds = [flight[before:] for flight in flights]
        while any(rounds):
            sent = list(zip(clients, rounds, strict=True))
            server.at_once(partial(send_all, sent))
            rounds = [b"" if client.shaken else client.flight() for client in clients]
        assert [client.answer().status for client in clients] == [200] * 10
    messages = len(server.read) // 10
    assert messages == {"TLS 1.3": 2, "another key": 3, "TLS 1.2": 3}.get(kind, 4)
    assert server.crowded() == 1


def test_a_request_with_the_last_flight_arrives_whole(tmp_path: Path, certificate: Path) -> None:
    body = b'{"parameters": {"much": "%s"}}' % (b"x" * (1 << 20))
    head = (
        b"POST /v2/models/solid/infer HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    )
    asked = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with secured(tmp_path, certificate) as server, contextlib.ExitStack() as stack:
        both = [server.connected() for _ in range(5)]
        trust = trusting(certificate)
        clients = [Client(stack.enter_context(ours), trust) for ours, _ in both]
        server.take(*(theirs for _, theirs in both))
        for _ in range(2):
            flights = [client.flight(asked) for client in clients]
            for client, flight in zip(clients, flights, strict=True):
                client.socket.sendall(flight)
        answers = [client.answer() for client in clients]
        assert [answer.status for answer in answers] == [400] * 5


def test_new_keys_on_many_connections_take_one_turn_of_the_loop_each(
    tmp_path: Path, certificate: Path
) -> None:
    """But for the first of each connection: a record doesn't tell beforehand that it has no data."""
    with secured(tmp_path, certificate) as server, contextlib.ExitStack() as stack:
        clients = []
        for _ in range(8):
            ours, theirs = server.connected()
            server.take(theirs)
            clients.append(KeyChanger(stack.enter_context(ours)))
            assert clients[-1].ask().startswith(b"HTTP/1.1 200 ")
        server.at_once(lambda: [client.send_keys(20) for client in clients])
        until(lambda: [kind for *_, kind in server.read].count(KEY_UPDATE) == 160)
        for client in clients:
            assert client.ask().startswith(b"HTTP/1.1 200 ")
    later = server.read[[kind for *_, kind in server.read].index(KEY_UPDATE) + 8 :]
    server.read = [one for one in later if one[0] > later[0][0]]
    assert server.crowded(KEY_UPDATE) == 1


def test_requests_between_new_keys_are_all_answered(tmp_path: Path, certificate: Path) -> None:
    """Though each waits for a turn, and the answers aren't read meanwhile."""
    with secured(tmp_path, certificate) as server, contextlib.ExitStack() as stack:
        clients = []
        for _ in range(8):
            ours, theirs = server.connected()
            server.take(theirs)
            patience = struct.pack("ll", int(PATIENCE_S), 0)  # OpenSSL itself reads
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
            clients.append(KeyChanger(stack.enter_context(ours)))
        for _ in range(30):
            for client in clients:
                assert client.send_keys(1)
                client.send(ASKED)
        for client in clients:
            said = b""
            while said.count(b"HTTP/1.1 200 ") < 30:
                more = client.read()
                assert more, "the server has closed the connection"
                said += more


def test_connections_are_made_ready_for_tls_one_in_a_turn_once_their_first_bytes_are_there(
    tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 64 that were opened at once, this took 13 ms of a turn."""
    ready, begin = [], SecuredByRecords.begin
    with secured(tmp_path, certificate) as server, contextlib.ExitStack() as stack:

        def noted(one: SecuredByRecords, *memories: ssl.MemoryBIO) -> None:
            ready.append(server.turn)
            begin(one, *memories)

        monkeypatch.setattr(SecuredByRecords, "begin", noted)
        both = [server.connected() for _ in range(10)]
        clients = [Client(stack.enter_context(ours), trusting(certificate)) for ours, _ in both]
        server.take(*(theirs for _, theirs in both))
        server.at_once(lambda: None)
        assert not ready
        flights = [(client, client.flight()) for client in clients]
        server.at_once(partial(send_all, [(client, flight[:1]) for client, flight in flights]))
        until(lambda: len(ready) == 10)
        assert len(set(ready)) == 10
        send_all([(client, flight[1:]) for client, flight in flights])
        send_all([(client, client.flight()) for client in clients])
        assert [client.answer().status for client in clients] == [200] * 10


def test_a_new_certificate_is_for_those_who_have_sent_nothing_before(
    tmp_path: Path, certificate: Path
) -> None:
    with secured(tmp_path, certificate) as server:
        ours, theirs = server.connected()
        with ours:
            server.take(theirs)
            server.at_once(lambda: None)
            new = certified(tmp_path, "new")
            changed = read_tls(new, new.with_suffix(".key"), None)
            server.server.call(lambda: setattr(server.server.server._tls, "value", changed))
            client = Client(ours, trusting(new))
            for _ in range(2):
                ours.sendall(client.flight())
            assert client.answer().status == 200


@pytest.mark.parametrize("sent", ["nothing", "a byte", "a flight", "a flight without a turn"])
def test_a_handshake_ends_after_its_time(
    tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch, sent: str
) -> None:
    monkeypatch.setattr(server_module, "_HANDSHAKE_S", 0.2)
    places = Places()
    with secured(tmp_path, certificate) as server:
        turns = server.server.server._handshakes._turns
        if sent == "a flight without a turn":
            monkeypatch.setattr(turns, "_is_room", lambda _: False)
        ours, theirs = server.connected()
        with ours:
            server.take(theirs, slot=places)
            flight = Client(ours, trusting(certificate)).flight()
            ours.sendall({"nothing": b"", "a byte": flight[:1]}.get(sent, flight))
            with contextlib.suppress(ConnectionResetError):
                while ours.recv(1 << 16):
                    pass
        until(lambda: places.free == 1)
        assert server.server.call(lambda: server.server.server._arriving) == 0


class Raw:
    """Transport that can always be read, and a protocol whose records a test handles."""

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    resume_reading = pause_reading

    def get_protocol(self) -> Raw:
        return self

    def buffer_updated(self, size: int) -> None: ...


def test_a_turn_that_is_not_used_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else connections could collect turns while nothing is read from them, and use them at once."""
    monkeypatch.setattr(handshakes, "_TURN_NS", 60_000_000_000)

    async def work() -> None:
        turns = LoopBudget()
        one, *others = (ConnectionPace(turns, "a client") for _ in range(5))
        for pace in (one, *others):
            pace.raw = cast(asyncio.Transport, Raw())
        assert [one.may_go() for _ in range(2)] == [True, True]
        for _ in range(2):
            assert [pace.may_go() for pace in others] == [False] * 4
        for _ in range(20):
            await asyncio.sleep(0)
        assert one.may_go()
        assert [pace.may_go() for pace in others] == [False] * 4

    asyncio.run(work())


class Places:
    """Places of connections, as the supervisor has them."""

    def __init__(self) -> None:
        self.free = 0

    def closed(self) -> None:
        self.free += 1

    def working(self) -> None: ...

    sending = answered = resting = working


def send_all(flights: list[tuple[Client, bytes]]) -> None:
    for client, flight in flights:
        client.socket.sendall(flight)


def hang_up(reset: bool, connections: list[socket.socket]) -> None:
    for one in connections:
        if reset:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.close()


@pytest.mark.parametrize("flights", [-1, 0, 1, 2], ids="{} flights".format)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_who_goes_away_in_the_handshake_leaves_nothing(
    tmp_path: Path, certificate: Path, flights: int, reset: bool
) -> None:
    """And gives its place back once."""

    def left() -> list[Any]:
        return [
            one for one in gc.get_objects() if isinstance(one, SecuredByRecords | ConnectionPace)
        ]

    trust, places = trusting(certificate), Places()
    gc.collect()
    gc.disable()
    try:
        with secured(tmp_path, certificate) as server:
            both = [server.connected() for _ in range(10)]
            if flights < 0:  # before the server takes them
                hang_up(reset, [ours for ours, _ in both])
            server.take(*(theirs for _, theirs in both), slot=places)
            clients = [Client(ours, trust) for ours, _ in both if ours.fileno() >= 0]
            for _ in range(flights):
                send_all([(client, client.flight()) for client in clients])
            hang_up(reset, [client.socket for client in clients])
            until(lambda: places.free == 10)
            until(lambda: server.server.call(lambda: server.server.server._arriving) == 0)
            server._taking.clear()
            del both, clients
            if flights < 2:  # a whole connection stays until a garbage collection
                until(lambda: not left())
            ours, theirs = server.connected()
            with ours:
                server.take(theirs, slot=places)
                last = Client(ours, trust)
                for _ in range(2):
                    ours.sendall(last.flight())
                assert last.answer().status == 200
            until(lambda: places.free == 11)
            assert server.server.call(lambda: server.server.server.state.crowd.taken) == 0
    finally:
        gc.enable()
