"""Answers that one client reads slowly on many connections: what they take, and who waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import grpc
import pytest
from tests.serving.test_owed_answers import (
    INFER,
    MOST_MIB,
    ROW,
    SMALL,
    Served,
    bundles_of,
    is_ended,
    read_to_end,
)
from tests.support.certificates import certified
from tests.support.servers import ServerProcess
from tests.support.waiting import until

from hasten.serving.owed_answers import OwedAnswers


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with ServerProcess(*bundles_of(tmp_path), "--grpc", "0") as process:
        yield Served(process, False)


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Served]:
    """The same over TLS, and without gRPC."""
    certificate = certified(tmp_path, "server")
    files = ("--tls-cert", certificate, "--tls-key", certificate.with_suffix(".key"))
    with ServerProcess(*bundles_of(tmp_path), *files) as process:
        yield Served(process, True)


def until_ended(served: Served, crowd: Sequence[socket.socket], count: int, data: bytes) -> None:
    """Read each connection slowly until so many are ended; check what that takes, and how many are."""

    def enough() -> bool:
        return served.taken_mib >= MOST_MIB or len(ended(crowd, data)) >= count

    read_slowly(dict.fromkeys(crowd, 1 << 13), enough)
    assert served.taken_mib < MOST_MIB
    assert len(ended(crowd, data)) < 10  # others got their turns without that any more were ended


def read_slowly(sizes: dict[socket.socket, int], enough: Callable[[], bool]) -> None:
    """Read at most so much of each connection, ten times in each second, until there was enough of it."""
    end_s = time.monotonic() + 120
    while not enough():
        assert time.monotonic() < end_s
        for one, size in sizes.items():
            one.setblocking(False)
            with contextlib.suppress(OSError):  # nothing is there, or no more comes
                one.recv(size)
        time.sleep(0.1)


def ended(crowd: Iterable[socket.socket], data: bytes = b"G") -> set[socket.socket]:
    """Return the connections that the server has ended, whatever they have still to read.

    Args:
        crowd: The connections.
        data: What is sent on them to find out.
    """
    return {one for one in crowd if is_ended(one, data)}


@pytest.mark.seconds
@pytest.mark.parametrize("way", ["served", "secured"])
def test_answers_over_http_that_one_client_reads_slowly_take_little_memory(
    way: str, request: pytest.FixtureRequest
) -> None:
    served: Served = request.getfixturevalue(way)
    with contextlib.ExitStack() as opened:
        crowd = [opened.enter_context(served.asks("eight")) for _ in range(40)]
        until_ended(served, crowd, 3, b"G")


@pytest.mark.seconds
def test_the_slowest_connection_gives_way_to_a_request_that_waits(served: Served) -> None:
    with contextlib.ExitStack() as opened:
        crowd = [opened.enter_context(served.asks("eight")) for _ in range(6)]
        sizes = dict.fromkeys(crowd, 1 << 14)
        sizes[crowd[3]] = 1 << 12
        begun_s = time.monotonic()
        read_slowly(sizes, lambda: time.monotonic() > begun_s + 1)
        last = opened.enter_context(served.asks("eight"))
        read_slowly(sizes, lambda: bool(select.select([last], [], [], 0)[0]))
        until(lambda: bool(ended(crowd)))  # a moment after the server has ended one
        assert ended(crowd) == {crowd[3]}
        assert b" 200 " in read_to_end(last)


class Line:
    """Requests of one client that wait, and the connections that are ended, on a clock that a test sets."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.now_s = self.loop.time()
        self.loop.time = lambda: self.now_s  # type: ignore[method-assign]
        self.sizes: dict[str, int] = {}
        self.read: dict[str, int] = {}
        self.per_s: dict[str, int] = {}
        self.ended: list[str] = []
        self.begun = 0
        self.owed = OwedAnswers(self.look, 1000.0)

    def holds(self, connection: str, size: int, per_s: int) -> None:
        """Let a connection hold so much, of which so much is read in each second."""
        self.sizes[connection], self.read[connection], self.per_s[connection] = size, 0, per_s
        self.owed.count("one", connection, size)

    def end(self, connection: str) -> None:
        self.ended.append(connection)
        self.owed.count("one", connection, -self.sizes[connection])

    def look(self, client: str) -> None:
        for connection, read in self.read.items():
            self.owed.looked(client, connection, read, partial(self.end, connection))

    def asks(self, size: int, most: int) -> None:
        def go() -> None:
            self.begun += 1

        self.owed.wait("one", size, most, go, lambda failure: None)

    async def passes(self, seconds: int) -> None:
        for _ in range(4 * seconds):
            self.now_s += 0.25
            for connection, per_s in self.per_s.items():
                self.read[connection] += per_s // 4
            for _ in range(5):  # the loop's own timers, and what they call
                await asyncio.sleep(0)


def test_the_slowest_connections_are_ended_as_far_as_a_request_needs_it() -> None:
    async def work() -> None:
        line = Line()
        line.holds("quick", 400, 24)
        line.holds("slow", 200, 8)
        line.holds("slower", 300, 4)
        line.holds("slowest", 100, 0)
        line.asks(250, 1000)
        await line.passes(3)
        assert line.ended == []
        await line.passes(7)  # of 50 in each second, 36 are read
        assert line.ended == ["slowest"]
        await line.passes(40)
        assert line.ended == ["slowest", "slower"]
        assert line.begun == 1
        await line.passes(60)  # nobody waits any more
        assert line.ended == ["slowest", "slower"]

    asyncio.run(work())


def test_slow_connections_stay_while_the_client_reads_enough_on_others() -> None:
    async def work() -> None:
        line = Line()
        line.holds("slow", 100, 4)
        line.holds("quick", 900, 100)
        line.asks(2000, 1000)  # it waits as long as anything is held
        for _ in range(10):
            await line.passes(9)
            line.owed.count("one", "quick", -900)
            line.owed.count("one", "quick", 900)
        assert line.ended == []
        line.per_s["quick"] = 0
        await line.passes(20)
        assert line.ended

    asyncio.run(work())


def frame(kind: int, flags: int, stream: int, data: bytes) -> bytes:
    """Return a frame of HTTP/2."""
    return len(data).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + data


MORE = frame(8, 0, 0, (1).to_bytes(4, "big"))
"""Frame that allows the server one byte more."""


def calling(served: Served, requests: list[bytes]) -> socket.socket:
    """Make single calls on a connection of gRPC, on which the system receives little that isn't read."""
    names = {
        ":method": "POST",
        ":scheme": "http",
        ":path": INFER,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    head = b"".join(
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in names.items()
    )
    all_at_once = (4).to_bytes(2, "big") + (1 << 30).to_bytes(4, "big")
    sent = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", frame(4, 0, 0, all_at_once)]
    sent += [frame(8, 0, 0, (1 << 30).to_bytes(4, "big"))]
    for number, one in enumerate(requests):
        data = b"\0" + len(one).to_bytes(4, "big") + one
        sent += [frame(1, 4, 2 * number + 1, head), frame(0, 1, 2 * number + 1, data)]
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    made.connect(("127.0.0.1", served.process.grpc_port))
    made.sendall(b"".join(sent))
    return made


@pytest.mark.seconds
def test_answers_over_grpc_that_one_client_reads_slowly_take_little_memory(served: Served) -> None:
    with contextlib.ExitStack() as opened:
        crowd = [opened.enter_context(calling(served, [ROW] * 4)) for _ in range(30)]
        until_ended(served, crowd, 2, MORE)
        with grpc.insecure_channel(f"127.0.0.1:{served.process.grpc_port}") as channel:
            assert len(channel.unary_unary(INFER)(SMALL, timeout=60)) < 4096
