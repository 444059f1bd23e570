"""Connections over gRPC that are ended: idle ones where there are too many, and those whose clients read nothing."""

from __future__ import annotations

import contextlib
import fcntl
import queue
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.serving.test_bounded_requests import (
    ROW,
    said_by,
    two_mib_and_small,
    unread_calls,
    unreading,
)
from tests.support.servers import ServerThread
from tests.support.waiting import PATIENCE_S, until

from hasten.serving.grpc import service
from hasten.serving.grpc.connections import (
    Connection,
    Ending,
    Place,
    _to_end,
    connections,
    open_files,
)
from hasten.serving.grpc.connections import place_of as placed
from hasten.serving.settings import ModelPlace
from hasten.serving.state import Limits

pytestmark = pytest.mark.seconds

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\6\4\0\0\0\0\0\0\4\0\0\0\0"
"""Begin of a connection on which the client takes no byte of an answer."""
LIVE = "/inference.GRPCInferenceService/ServerLive"
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[ModelPlace]:
    return two_mib_and_small(tmp_path_factory.mktemp("connections"))


@contextlib.contextmanager
def idle(server: ServerThread, count: int) -> Iterator[list[socket.socket]]:
    """Open so many connections that ask for nothing."""
    with contextlib.ExitStack() as opened:
        made = []
        for _ in range(count):
            one = opened.enter_context(socket.create_connection(("127.0.0.1", server.grpc_port)))
            one.sendall(PREFACE)
            made.append(one)
        yield made


def is_open(one: socket.socket) -> bool:
    one.setblocking(False)
    try:
        while data := one.recv(1 << 16):
            del data
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class Requests:
    """Requests of a stream, one after the other as they are sent."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.send = self._queue.put

    def each(self) -> Iterator[bytes]:
        while (one := self._queue.get()) is not None:
            yield one


def live(server: ServerThread, timeout_s: float = 30.0) -> bytes:
    with grpc.insecure_channel(server.grpc_url) as channel:
        return bytes(channel.unary_unary(LIVE)(b"", wait_for_ready=True, timeout=timeout_s))


def test_idle_connections_beyond_the_limit_are_ended_so_that_others_find_a_place(
    places: list[ModelPlace],
) -> None:
    limits = Limits(connections=40)
    with ServerThread(*places, grpc=True, limits=limits) as server:
        with idle(server, 40 + 64) as crowd:
            assert live(server)
            until(lambda: sum(map(is_open, crowd)) <= 40)
            assert live(server)
            assert len(connections(server.grpc_port)) >= 30  # no more are ended than have to be


def test_a_crowd_of_idle_connections_refuses_nobody_before_it_is_looked_at(
    places: list[ModelPlace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose connection is refused waits for a second before it tries again."""
    monkeypatch.setattr(service, "_SWEEP_S", 3600.0)
    with ServerThread(*places, grpc=True, limits=Limits(connections=100)) as server:
        with idle(server, 100 + 64 + 50) as crowd, grpc.insecure_channel(server.grpc_url) as one:
            until(lambda: len(connections(server.grpc_port)) == len(crowd))
            assert one.unary_unary(LIVE)(b"", wait_for_ready=False, timeout=30.0)


def test_a_connection_that_asks_nothing_for_long_enough_is_closed(
    places: list[ModelPlace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_IDLE_MS", 500)
    with ServerThread(*places, grpc=True) as server, idle(server, 1) as (one,):
        one.settimeout(PATIENCE_S)
        while one.recv(4096):  # what the library says before it closes
            pass


def test_connections_up_to_the_limit_stay(places: list[ModelPlace]) -> None:
    with ServerThread(*places, grpc=True, limits=Limits(connections=40)) as server:
        with idle(server, 35) as crowd:
            time.sleep(2.5)  # two looks at least
            assert all(map(is_open, crowd))


def test_a_connection_with_a_call_under_way_isnt_ended_for_lack_of_room(
    places: list[ModelPlace],
) -> None:
    with (
        ServerThread(*places, grpc=True, limits=Limits(connections=20)) as server,
        grpc.insecure_channel(server.grpc_url) as channel,
    ):
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        requests = Requests()
        answers = stream(requests.each())
        requests.send(ROW)
        assert len(next(answers)) > 1 << 20
        with idle(server, 60) as crowd:
            until(lambda: sum(map(is_open, crowd)) <= 20)
            requests.send(ROW)
            assert len(next(answers)) > 1 << 20
            requests.send(None)
            assert list(answers) == []


def test_a_connection_whose_client_reads_nothing_is_ended(places: list[ModelPlace]) -> None:
    limits = Limits(send_ns=int(2e9), receive_ns=int(60e9))
    with (
        ServerThread(*places, grpc=True, limits=limits) as server,
        unreading(server) as channel,
        unreading(server) as another,
    ):
        front: Any = server.server._grpc
        calls = unread_calls(channel, 40)
        reading = another.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        until(lambda: server.call(lambda: front._unread._readers) != {})  # they have come
        until(lambda: server.call(lambda: front._unread._readers) == {})
        assert "" not in {said_by(call) for call in calls}
        assert len(reading(ROW, timeout=60)) > 1 << 20


@pytest.mark.parametrize("asked", [1, 3])
def test_an_answer_of_an_ended_stream_counts_until_it_is_read_or_its_connection_is_ended(
    places: list[ModelPlace], asked: int, caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(send_ns=int(2e9), receive_ns=int(60e9))
    with ServerThread(*places, grpc=True, limits=limits) as server, idle(server, 1) as (one,):
        front: Any = server.server._grpc
        state = server.server.state
        one.sendall(call_of(1, STREAM, *[ROW] * asked))
        until(lambda: server.call(lambda: len(front._calls)) == 1)
        until(lambda: server.call(lambda: len(front._calls)) == 0)  # nobody reads the answers
        assert server.call(lambda: [own.size for own in state.owed._clients.values()]) == [4 << 20]
        assert server.call(lambda: front._together._sizes) == {}  # no other stream waits for it
        assert is_open(one)
        until(lambda: not is_open(one))
        until(lambda: server.call(lambda: (state.owed._clients, state.body_bytes)) == ({}, 0))
    assert caplog.records == []


@pytest.mark.parametrize("method", [INFER, STREAM])
def test_clients_that_go_away_before_they_have_read_their_answers_log_nothing(
    places: list[ModelPlace], method: str, caplog: pytest.LogCaptureFixture
) -> None:
    with ServerThread(*places, grpc=True) as server, idle(server, 3) as crowd:
        state = server.server.state
        for one in crowd:
            one.sendall(b"".join(call_of(stream, method, ROW) for stream in (1, 3, 5)))
        until(lambda: server.call(lambda: state.body_bytes) >= 9 * (2 << 20))
        for one in crowd:
            one.sendall(b"".join(reset_of(stream) for stream in (1, 3)))
        until(lambda: server.call(lambda: state.body_bytes) < 4 * (2 << 20))
        for one in crowd:
            one.close()
        until(lambda: server.call(lambda: (state.owed._clients, state.body_bytes)) == ({}, 0))
    assert caplog.records == []


def test_a_client_that_reads_slowly_isnt_ended(places: list[ModelPlace]) -> None:
    limits = Limits(send_ns=int(2e9))
    with ServerThread(*places, grpc=True, limits=limits) as server, unreading(server) as channel:
        calls = unread_calls(channel, 10)
        for call in calls:  # longer than the limit in all, and never nothing for as long
            time.sleep(0.8)
            assert len(next(call)) > 1 << 20


def of(address: str, quiet_ms: dict[int, int]) -> dict[Place, Connection]:
    return {(address, port): Connection(port, ms, 100) for port, ms in quiet_ms.items()}


def test_the_connections_of_the_client_with_the_most_are_ended_first() -> None:
    many, few = (
        of(address, {port: 10_000 + port for port in range(1, count + 1)})
        for address, count in (("192.0.2.1", 10), ("192.0.2.2", 3))
    )
    every, idle = many | few, [*list(many)[:9], *few]
    assert {*_to_end(every, idle, 7)} <= {*many}
    assert len({*_to_end(every, idle, 9)} & {*few}) == 1
    assert [port for _, port in _to_end(many, list(many)[:2], 5)] == [2, 1]


def test_a_client_that_has_just_asked_keeps_its_connection_where_others_are_quiet() -> None:
    every = of("192.0.2.1", {1: 0, 2: 5000, 3: 900}) | of("192.0.2.2", {4: 2000})
    assert [port for _, port in _to_end(every, list(every), 2)] == [2, 4]
    assert [port for _, port in _to_end(every, list(every), 9)] == [2, 4, 3, 1]


def test_time_in_which_the_server_itself_was_stopped_doesnt_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_ns, found = [0], of("192.0.2.1", {1: 0})
    ended: list[Place] = []
    ending = Ending(1, 10, int(5e9), lambda: now_ns[0])
    monkeypatch.setattr("hasten.serving.grpc.connections.connections", lambda port: found)
    monkeypatch.setattr(ending, "_end", lambda place, one: ended.append(place))
    for seconds in (0, 100, 101, 102):
        now_ns[0] = int(seconds * 1e9)
        assert ending.look([*found], []) == set()
    assert not ended
    found |= of("192.0.2.1", {1: 0})
    found["192.0.2.1", 1] = Connection(1, 0, 100_000)
    assert ending.look([*found], []) == {*found}
    for seconds in range(103, 109):
        now_ns[0] = int(seconds * 1e9)
        ending.look([*found], [])
    assert ended == [("192.0.2.1", 1)]


def test_looking_keeps_no_file_and_ends_no_lock(tmp_path: Path) -> None:
    before = len(open_files())
    with (tmp_path / "locked").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert connections(1) == {}
        other = f"import fcntl; fcntl.lockf(open({str(file.name)!r}, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        assert subprocess.run([sys.executable, "-c", other], capture_output=True).returncode != 0
    assert len(open_files()) == before


def test_answers_of_health_that_nobody_reads_keep_nobody_out(places: list[ModelPlace]) -> None:
    """A client that takes no byte of any answer holds a call of the library for each."""
    limits = Limits(connections=20, send_ns=int(2e9))
    with ServerThread(*places, grpc=True, limits=limits) as server:
        with idle(server, 8) as crowd:
            for one in crowd:
                one.sendall(b"".join(call_of(1 + 2 * number, LIVE, b"") for number in range(20)))
            time.sleep(1)
            until(lambda: sum(map(is_open, crowd)) < 8)
            assert live(server)


def call_of(
    stream: int, method: str, *messages: bytes, more: Mapping[str, bytes] | None = None
) -> bytes:
    """Return a call as HTTP/2 has it, its headers written out as they are, with further metadata."""
    fields = {
        ":method": b"POST",
        ":scheme": b"http",
        ":path": method.encode(),
        ":authority": b"localhost",
        "te": b"trailers",
        "content-type": b"application/grpc",
        **(more or {}),
    }
    block = b"".join(
        b"\x10%c%b%c%b" % (len(name), name.encode(), len(value), value)
        for name, value in fields.items()
    )
    number = stream.to_bytes(4, "big")
    headers = len(block).to_bytes(3, "big") + b"\1\4" + number + block
    data = b"".join(b"\0" + len(each).to_bytes(4, "big") + each for each in messages)
    return headers + len(data).to_bytes(3, "big") + b"\0\1" + number + data


def test_metadata_that_isnt_utf_8_logs_nothing(
    places: list[ModelPlace], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        ServerThread(*places, grpc=True) as server,
        socket.create_connection(("127.0.0.1", server.grpc_port), PATIENCE_S) as one,
    ):
        one.sendall(PREFACE[:-4] + b"\x7f\xff\xff\xff")  # takes all bytes of an answer
        one.sendall(call_of(1, LIVE, b"", more={"x-note": b"\xff" * 100}))
        answer = b""
        while b"grpc-status" not in answer:
            answer += one.recv(4096)
        assert b"grpc-status\x010" in answer
    assert caplog.records == []


def reset_of(stream: int) -> bytes:
    """Return what gives up a call."""
    return b"\0\0\4\3\0" + stream.to_bytes(4, "big") + b"\0\0\0\x08"


@pytest.mark.parametrize(
    ("peer", "place"),
    [
        ("ipv4:192.0.2.1:50000", ("192.0.2.1", 50000)),
        ("ipv6:%5B::1%5D:50000", ("::1", 50000)),
        ("ipv6:%5B::ffff:192.0.2.1%5D:7", ("192.0.2.1", 7)),
        ("ipv6:%5Bfe80::1%25eth0%5D:7", ("fe80::1", 7)),
    ],
)
def test_a_peer_is_read_as_grpc_writes_it(peer: str, place: tuple[str, int]) -> None:
    assert placed(peer) == place


def test_where_files_arent_listed_nothing_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.serving.grpc.connections._FILES", str(tmp_path / "none"))
    ending = Ending(1, 2, 3, lambda: 0)
    assert not ending.crowded
    ending.look([("192.0.2.1", 1)], [])
    assert not ending.too_many
