"""A client that takes all that it can get, beside one that wants an answer."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.support import pausing
from tests.support.models import solid
from tests.support.pausing import Pausing, pausing_installed
from tests.support.servers import ServerProcess, ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S, until

from hasten.serving.fairness import Shares, client_at, client_at_peer
from hasten.serving.grpc.admission import Admission
from hasten.serving.http.connection import Connection
from hasten.serving.models.latencies import Latencies
from hasten.serving.models.scheduling import BatchRun, Pending, Scheduler
from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.state import Limits, ServerState

GREEDY, OTHER = "127.0.0.2", "127.0.0.3"
MIB = 1 << 20
FOREVER_NS = 3_600_000_000_000


# -- who is who


def test_clients_are_told_by_address_and_in_ipv6_by_network() -> None:
    assert client_at("192.0.2.7") == client_at("::ffff:192.0.2.7") == "192.0.2.7"
    assert client_at("2001:db8::1") == client_at("2001:db8::ffff:1") == "2001:db8::/64"
    assert client_at("2001:db8:0:1::1") != client_at("2001:db8::1")
    assert client_at("fe80::1%eth0") == "fe80::/64"
    assert client_at("") == client_at("/run/socket") == ""
    assert client_at_peer("ipv4:192.0.2.7:50000") == "192.0.2.7"
    assert client_at_peer("ipv6:%5B2001:db8::1%5D:50000") == "2001:db8::/64"
    assert client_at_peer("unix:/run/socket") == ""


# -- shares


def fill(shares: Shares, client: str) -> int:
    while shares.may_take(client, 1):
        shares.take(client, 1)
    return shares.of(client)


def test_a_client_that_is_alone_takes_all() -> None:
    assert fill(Shares(100), "a") == 100


def test_greedy_clients_leave_as_much_free_as_each_of_them_takes() -> None:
    shares = Shares(100)
    shares.take("small", 1)
    assert fill(shares, "a") == 50
    assert fill(shares, "b") == 25
    shares.give("a", 20)
    assert fill(shares, "b") == 35
    assert fill(shares, "c") == 17
    for client in ("a", "b", "c", "small"):
        shares.give(client, shares.of(client))
    assert shares.taken == 0
    assert fill(shares, "b") == 100


def test_who_found_no_room_is_there_for_a_while() -> None:
    now_ns = [0]
    shares = Shares(100, clock_ns=lambda: now_ns[0])
    assert fill(shares, "a") == 100
    assert not shares.may_take("b", 1)
    shares.give("a", 60)
    assert fill(shares, "a") == 50
    now_ns[0] = 5_000_000_001
    assert fill(shares, "a") == 100


def test_a_client_may_have_as_much_as_one_body_takes() -> None:
    shares = Shares(100, least=50)
    shares.take("small", 1)
    assert fill(shares, "a") == 50
    assert fill(shares, "b") == 49


class Call:
    waiting_ns: int | None = None
    peer = ""

    def __init__(self, client: str) -> None:
        self.client = client

    def overdue(self, now_ns: int) -> bool:
        return False

    def drain(self, why: ProtocolError) -> None:
        """Go on: what was asked is at work."""

    end = drain


def test_a_client_has_half_of_the_calls_while_others_are_there() -> None:
    calls = Admission(20, 0)
    first = [Call("greedy") for _ in range(20)]
    for call in first:
        calls.enter(call, 0)
    with pytest.raises(ProtocolError, match="overloaded: 20 calls are in progress; retry later"):
        calls.enter(Call("other"), 0)
    for call in first[:11]:
        calls.leave(call)
        calls.leave(call)
    calls.enter(Call("greedy"), 0)
    with pytest.raises(ProtocolError) as caught:
        calls.enter(Call("greedy"), 0)
    assert str(caught.value) == (
        "overloaded: 10 of the 20 calls that may be in progress are this client's, and other "
        "clients are waiting; retry later"
    )
    for _ in range(5):
        calls.enter(Call("other"), 0)


# -- the queue of a model


def queued(client: str, priority: int = 2, *, named: bool = False, at_ns: int = 0) -> Pending:
    return Pending(1, "x", priority, float("inf"), at_ns, client=client, named=named)


def test_requests_of_a_model_take_turns_by_client() -> None:
    queue: Scheduler[Pending] = Scheduler(Latencies({1: 10.0}), 1000.0)
    first = queued("greedy")
    run = queue.take_alone(first, 0)
    assert run is not None
    queue.begun(run, 0)
    admitted = 0
    with contextlib.suppress(ProtocolError):
        while admitted < 1000:
            queue.offer(queued("greedy"), 0)
            admitted += 1
    assert 90 <= admitted <= 101
    for _ in range(3):  # has more to come, and isn't refused because of the other's
        queue.offer(queued("other"), 0)
    queue.ended(1, 10.0, 10)
    order = []
    for _ in range(8):
        chosen = queue.next(10)
        assert isinstance(chosen, BatchRun)
        order.append(chosen.items[0].client)
    assert order == ["greedy", "other"] * 3 + ["greedy"] * 2


def test_no_client_gets_turns_by_mixing_priorities() -> None:
    """High turns at one priority don't put others behind at the next."""
    queue: Scheduler[Pending] = Scheduler(Latencies({1: 10.0}), float("inf"))
    for _ in range(50):
        queue.offer(queued("greedy"), 0)
    urgent = queued("greedy")
    urgent.priority = 1
    queue.offer(urgent, 0)
    raised = queued("greedy")
    queue.offer(raised, 0)
    queue.promote(raised, urgent)
    for expected in (urgent, raised):
        chosen = queue.next(0)
        assert isinstance(chosen, BatchRun)
        assert chosen.items == [expected]
    other = queued("other")
    queue.offer(other, 0)
    heads = [queue.next(0) for _ in range(2)]
    assert other in [run.items[0] for run in heads if isinstance(run, BatchRun)]


def test_requests_that_join_urgent_batches_take_turns_as_without_these() -> None:
    """Of each batch the first request is urgent, and the second one has a lower priority."""
    orders = []
    for urgent in (True, False):
        curve = {1: 10.0, 2: 10.0} if urgent else {1: 10.0}
        queue: Scheduler[Pending] = Scheduler(Latencies(curve), float("inf"))
        for _ in range(10):
            queue.offer(queued("early", 3), 0)
        ran = []
        for number in range(30):
            if urgent:
                queue.offer(queued("urgent", 1), 0)
            queue.offer(queued(f"late {number}", 3), 0)
            chosen = queue.next(0)
            assert isinstance(chosen, BatchRun)
            ran += [one.client for one in chosen.items]
        orders.append([client for client in ran if client != "urgent"])
    assert orders[0] == orders[1]
    assert len(orders[0]) == 30
    assert orders[0].count("early") == 7


def test_one_clients_requests_go_in_order_of_arrival() -> None:
    queue: Scheduler[Pending] = Scheduler(Latencies({1: 10.0}), float("inf"))
    items = [queued("one") for _ in range(20)]
    for item in items:
        queue.offer(item, 0)
    gone = []
    while isinstance(run := queue.next(0), BatchRun):
        gone += run.items
    assert gone == items


@pytest.mark.parametrize("priorities", [[1], [1, 2, 3], range(3000, 0, -1)])
def test_no_priority_gets_a_named_client_ahead_of_others(priorities: Sequence[int]) -> None:
    """One keeps 8 requests queued that take 10 ms each; the other asks ten times a second."""
    queue: Scheduler[Pending] = Scheduler(Latencies({1: 10e6}), 1e9)
    asked, greedy_queued = 0, 0
    answered: list[Pending] = []
    for step in range(3000):
        now_ns = step * 10_000_000
        while greedy_queued < 8:
            priority = priorities[asked % len(priorities)]
            queue.offer(queued("greedy", priority, named=True, at_ns=now_ns), now_ns)
            asked, greedy_queued = asked + 1, greedy_queued + 1
        if step % 10 == 0:
            queue.offer(queued("other", named=True, at_ns=now_ns), now_ns)
        greedy_queued -= sum(one.client == "greedy" for one in queue.hopeless(now_ns))
        run = queue.next(now_ns)
        assert isinstance(run, BatchRun)
        queue.ended(queue.begun(run, now_ns), 10e6, now_ns + 10_000_000)
        answered += run.items
        greedy_queued -= run.items[0].client == "greedy"
        if run.items[0].client == "other":
            assert now_ns - run.items[0].queued_ns <= 20_000_000
    assert sum(one.client == "other" for one in answered) == 300


def test_a_client_that_makes_its_own_requests_late_costs_others_no_answers() -> None:
    """It overtakes each with five of a higher priority, so that predictions for it fail."""
    queue: Scheduler[Pending] = Scheduler(Latencies({1: 10e6}), 1e9)
    waiting: list[Pending] = []
    missed, answered = [], []

    def offer(client: str, priority: int, left_ns: float, now_ns: int) -> None:
        item = queued(client, priority, named=True, at_ns=now_ns)
        item.deadline_ns = now_ns + left_ns
        queue.offer(item, now_ns)
        waiting.append(item)

    for step in range(3000):
        now_ns = step * 10_000_000
        for item in [one for one in waiting if one.deadline_ns <= now_ns]:
            queue.judge(item, late=True)
            queue.drop(item)
            waiting.remove(item)
            missed.append(item.client)
        if step % 8 == 0:
            with contextlib.suppress(ProtocolError):
                offer("greedy", 2, 35e6, now_ns)
            for _ in range(5):
                offer("greedy", 1, float("inf"), now_ns)
        if step % 10 == 0 and step >= 1000:
            offer("other", 2, 35e6, now_ns)
        assert not queue.hopeless(now_ns)
        if isinstance(run := queue.next(now_ns), BatchRun):
            (item,) = run.items
            waiting.remove(item)
            queue.ended(queue.begun(run, now_ns), 10e6, now_ns + 10_000_000)
            if item.deadline_ns != float("inf"):
                queue.judge(item, late=now_ns + 10_000_000 > item.deadline_ns)
            answered.append(item.client)
    assert missed.count("greedy") > 20
    assert missed.count("other") == 0
    assert answered.count("other") == 200


def test_priorities_order_a_named_clients_own_requests() -> None:
    queue: Scheduler[Pending] = Scheduler(Latencies({1: 10.0}), 1000.0)
    usual, late = [queued("one", named=True) for _ in range(3)], queued("one", 9, named=True)
    others = [queued("other", named=True) for _ in range(3)]
    for item in (late, *usual, *others):
        queue.offer(item, 0)
    urgent = queued("one", 1, named=True)
    urgent.deadline_ns = 45.0  # it waits for one of the other's, not for its client's
    queue.offer(urgent, 0)
    gone = []
    while isinstance(run := queue.next(0), BatchRun):
        gone += run.items
        queue.ended(queue.begun(run, 0), 10.0, 0)
    assert [item for item in gone if item.client == "one"] == [urgent, *usual, late]
    assert [item for item in gone if item.client == "other"] == others
    assert gone.index(others[0]) <= 1
    assert queue.idle


def test_who_waits_for_an_equal_request_doesnt_wait_for_its_clients_others() -> None:
    queue: Scheduler[Pending] = Scheduler(Latencies({1: 10.0}), 1000.0)
    backlog = [queued("one", 9, named=True) for _ in range(20)]
    for item in backlog:
        queue.offer(item, 0)
    queue.promote(backlog[-1], queued("other", named=True))
    queue.promote(backlog[-2], queued("one", 1, named=True))
    queue.promote(backlog[0], queued("other", named=True))  # it goes as early anyway
    heads = [queue.next(0) for _ in range(3)]
    gone = [run.items[0] for run in heads if isinstance(run, BatchRun)]
    assert gone[2] is backlog[0]
    assert set(map(id, gone[:2])) == {id(backlog[-1]), id(backlog[-2])}
    assert queue.queued_rows == 17


class Unread:
    """Transport of a client that doesn't read 2.5 MiB of its answer, or as much as is said."""

    def __init__(self) -> None:
        self.aborted, self.client, self.unread = False, GREEDY, 5 * MIB // 2
        self.encrypted = False

    def get_extra_info(self, name: str) -> Any:
        if name == "sslcontext" and self.encrypted:
            return "a context"
        return (self.client, 50_000) if name == "peername" else None

    def get_write_buffer_size(self) -> int:
        return self.unread

    def writelines(self, pieces: list[bytes]) -> None: ...

    def pause_reading(self) -> None: ...

    def abort(self) -> None:
        self.aborted = True


def test_an_urgent_request_overtakes_its_own_clients_by_an_equal_one_of_another() -> None:
    queue: Scheduler[Pending] = Scheduler(Latencies({1: 10.0}), 10_000.0)
    others = [queued("other", named=True) for _ in range(40)]
    for item in (*(queued("one", 3, named=True) for _ in range(50)), *others):
        queue.offer(item, 0)
    queue.promote(others[-1], queued("one", 1, named=True))
    heads = [queue.next(0) for _ in range(3)]
    assert any(isinstance(run, BatchRun) and run.items == [others[-1]] for run in heads)


def test_no_more_unread_answers_make_room_than_are_in_the_way() -> None:
    repository: Any = SimpleNamespace(clients=SimpleNamespace(heard=lambda *_: None))
    state = ServerState(repository, limits=Limits(body_bytes=MIB, bodies_bytes=8 * MIB))
    routes: Any = None
    transports: list[Any] = [Unread(), Unread(), Unread()]
    connections = [Connection(state, routes) for _ in transports]
    for one, transport in zip(connections, transports, strict=True):
        one.connection_made(transport)
        one.pause_writing()
    state.check_room(OTHER, MIB)
    assert sum(transport.aborted for transport in transports) == 1
    for one in connections:
        one.connection_lost(None)
    assert (state.bodies.taken, state.bodies.of(GREEDY), state.crowd.taken) == (0, 0, 0)


def test_a_connection_whose_answer_nobody_reads_makes_room() -> None:
    """One that reads makes none before it has read all."""
    repository: Any = SimpleNamespace(clients=SimpleNamespace(heard=lambda *_: None))
    state = ServerState(repository, limits=Limits(connections=2, send_ns=FOREVER_NS))
    routes: Any = None
    reading, still, new = Unread(), Unread(), Unread()
    reading.unread = still.unread = 60_000
    new.client = OTHER
    connections = [Connection(state, routes) for _ in range(3)]
    for one, transport in zip(connections, (reading, still, new), strict=True):
        one.connection_made(transport)  # type: ignore[arg-type]
    for now_ns in range(6):
        reading.unread -= 10_000
        for one in connections:
            assert not one.overdue(now_ns)
            one.rest()
    assert state.admits(connections[2])
    assert (reading.aborted, still.aborted) == (False, True)


@pytest.mark.parametrize(("each", "ends"), [(100_000, False), (4096, False), (10, True)])
def test_a_client_that_reads_while_further_answers_come_is_not_slow(each: int, ends: bool) -> None:
    """As much isn't sent at each check, since an answer follows for each that was read."""
    repository: Any = SimpleNamespace(clients=SimpleNamespace(heard=lambda *_: None))
    state, routes, transport = ServerState(repository, limits=Limits(send_ns=29)), None, Unread()
    transport.unread = 66_000
    connection = Connection(state, routes, clock_ns=lambda: 0)  # type: ignore[arg-type]
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection._opened_ns = None
    found = []
    for now_ns in range(40):
        found.append(connection.overdue(now_ns))
        connection._written += each
    assert any(found) == ends


def test_an_encrypted_connection_is_slow_only_if_it_is_paused() -> None:
    """Else most of what isn't sent is behind the encryption, where nobody counts it."""
    repository: Any = SimpleNamespace(clients=SimpleNamespace(heard=lambda *_: None))
    state, routes, transport = ServerState(repository, limits=Limits(send_ns=29)), None, Unread()
    transport.unread, transport.encrypted = 1095, True
    connection = Connection(state, routes, clock_ns=lambda: 0)  # type: ignore[arg-type]
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection._opened_ns = None
    assert not any(connection.overdue(now_ns) for now_ns in range(60))
    connection.pause_writing()
    assert any(connection.overdue(now_ns) for now_ns in range(60, 120))


@pytest.mark.parametrize(
    ("unread", "bytes_read", "answered", "ends"),
    [
        (64 * MIB, 1, 0, True),
        (64 * MIB, 4095 // 30, 0, True),
        (64 * MIB, 4096 // 30 + 1, 0, False),
        (2000, 1000 // 30, 0, True),
        (2000, 2000 // 30 + 1, 0, False),
        (2000, 1, 1, True),
    ],
)
def test_a_client_reads_a_little_of_its_answer_in_each_while(
    unread: int, bytes_read: int, answered: int, ends: bool
) -> None:
    """What it reads each second of 30, while further answers are added or not."""
    repository: Any = SimpleNamespace(clients=SimpleNamespace(heard=lambda *_: None))
    state, routes, transport = ServerState(repository, limits=Limits(send_ns=29)), None, Unread()
    transport.unread = unread
    connection = Connection(state, routes, clock_ns=lambda: 0)  # type: ignore[arg-type]
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection._opened_ns = None
    found = [connection.overdue(0)]
    for now_ns in range(1, 32):
        transport.unread = max(0, transport.unread - bytes_read) + answered
        found.append(connection.overdue(now_ns))
    assert any(found) == ends


# -- real servers


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fairness")
    return bundle_of(folder, solid(folder))


def ask(port: int, client: str, path: str = "/v2", body: bytes | None = None) -> int:
    """Ask from an address of this machine; the status."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=PATIENCE_S, source_address=(client, 0)
    )
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body)
        return connection.getresponse().status


@contextlib.contextmanager
def holding(
    port: int, count: int, sent: bytes, client: str = GREEDY
) -> Iterator[list[socket.socket]]:
    """Connections of one client, on each of which something is sent."""
    with contextlib.ExitStack() as stack:
        held = []
        for _ in range(count):
            place = ("127.0.0.1", port)
            one = socket.create_connection(place, PATIENCE_S, source_address=(client, 0))
            stack.callback(one.close)
            with contextlib.suppress(OSError):  # it may have been turned away
                one.sendall(sent)
            held.append(one)
        yield held


def answered(one: socket.socket) -> bytes:
    with contextlib.suppress(OSError):
        return one.recv(12)
    return b""


PLAIN = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_many_connections_of_one_client_make_room_for_another(bundle: Path) -> None:
    with ServerProcess(bundle, "--max-connections", "20") as server:
        port = server.http_port
        with holding(port, 20, PLAIN) as held:
            assert {answered(one) for one in held} == {b"HTTP/1.1 200"}  # alone it has them all
            assert ask(port, OTHER) == 200
            with holding(port, 80, PLAIN):
                until(lambda: ask(port, OTHER) == 200)
                assert ask(port, OTHER, "/v2/health/ready") == 200


def test_a_connection_that_makes_room_is_closed_once_its_request_is_answered(bundle: Path) -> None:
    with ServerThread(place_of(bundle)) as server:
        state = server.server.state
        with holding(server.http_port, 1, PLAIN[:-2]) as (one,):
            until(lambda: [each.idle for each in state.connections] == [False])
            (connection,) = state.connections
            assert server.call(lambda: (connection.leave(), connection.leave())) == (True, False)
            one.sendall(PLAIN[-2:])
            answer = one.makefile("rb").read()  # to its end
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.seconds
def test_where_clients_are_counted_as_one_nobody_makes_room(bundle: Path) -> None:
    with ServerProcess(bundle, "--max-connections", "20", "--no-fairness") as server:
        with holding(server.http_port, 20, PLAIN) as held:
            assert {answered(one) for one in held} == {b"HTTP/1.1 200"}
            assert ask(server.http_port, OTHER) == 503
            assert ask(server.http_port, OTHER, "/v2/health/ready") == 200


def test_large_bodies_of_one_client_make_room_for_anothers(bundle: Path) -> None:
    limits = Limits(body_bytes=MIB, bodies_bytes=8 * MIB, receive_ns=FOREVER_NS, send_ns=FOREVER_NS)
    head = (
        b"POST /v2/models/solid/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        % MIB
    )
    body = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    ).encode()
    with ServerThread(place_of(bundle), limits=limits) as server:
        state, port = server.server.state, server.http_port
        with holding(port, 8, head + bytes(MIB - 1)) as held:
            until(lambda: state.body_bytes == 8 * (MIB - 1))  # alone it takes all
            until(lambda: ask(port, OTHER, "/v2/models/solid/infer", body + b" " * 99_999) == 200)
            assert state.body_bytes >= 6 * (MIB - 1)
            over = [one for one in held if _is_over(one)]
            assert {answered(one) for one in over} == {b"HTTP/1.1 503"}
        until(lambda: state.body_bytes == 0)


def _is_over(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        return bool(one.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def test_requests_over_http_are_counted_under_their_addresses(tmp_path: Path) -> None:
    def infer(number: float, client: str) -> threading.Thread:
        tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
        body = json.dumps({"inputs": [{**tensor, "data": [number, 0, 0, 0]}]}).encode()
        thread = threading.Thread(
            target=ask, args=(server.http_port, client, "/v2/models/solid/infer", body)
        )
        thread.start()
        return thread

    pausing.RELEASE.clear()
    pausing.RAN.clear()
    request = {"x": np.array([[20, 0, 0, 0]], np.float32)}  # so long that a thread runs it
    with pausing_installed(tmp_path / "plug-in"):
        path = bundle_of(tmp_path, solid(tmp_path), engine=Pausing(), requests=[request])
        place = place_of(path, most_rows=1, sessions=1, most_wait_ns=FOREVER_NS)
        with ServerThread(place) as server:
            (model,) = server.server.state.repository.served()
            scheduler = model._batching.scheduler
            pausing.RAN.clear()
            threads = [infer(1e9, GREEDY)]
            until(lambda: len(pausing.RAN) == 1)
            for number, client in ((0.1, GREEDY), (0.2, GREEDY), (0.3, GREEDY), (0.4, OTHER)):
                threads.append(infer(number, client))
                until(lambda: scheduler.queued_rows == len(threads) - 1)
            pausing.RELEASE.set()
            for thread in threads:
                thread.join(PATIENCE_S)
    assert [round(row[0], 1) for row in pausing.RAN] == [1e9, 0.1, 0.4, 0.2, 0.3]
