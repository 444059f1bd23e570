"""Answers that one client leaves unread on many connections: what they take, and who waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onnx import parser, save
from tests.serving.test_bounded_requests import asking, field
from tests.support.certificates import certified
from tests.support.growing import grown
from tests.support.models import solid
from tests.support.servers import ServerProcess, ServerThread, bundle_of, place_of
from tests.support.waiting import until

from hasten.serving.http import connection
from hasten.serving.owed_answers import COUNTED_BYTES, OwedAnswers
from hasten.serving.protocol.errors import ProtocolError

MIB = 1 << 20
NUMBERS = np.ones(4, np.float32).tobytes()
ROW = asking(field(3, b"\1\4"), model=b"two") + field(7, NUMBERS)
SMALL = asking(field(3, b"\1\4")) + field(7, NUMBERS)
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
MOST_MIB = 110
"""More memory than 48 MiB of answers take with a few more; without a bound they take more than 180 MiB."""


def request(model: str, more: str = "") -> bytes:
    """Return a request over HTTP for an answer as bytes, with further headers."""
    x = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    body = json.dumps({"inputs": [x], "parameters": {"binary_data_output": True}})
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    )
    return f"{head}\r\n{more}\r\n{body}".encode()


class Served:
    """A server and the memory of its process.

    Its models are `solid`, and `two` and `eight`, which take no batches and answer as many MiB.
    """

    def __init__(self, process: ServerProcess, secured: bool) -> None:
        self.process, self._secured = process, secured
        with self.asks("eight") as one:  # the engine's own memory
            assert b" 200 " in read_to_end(one)
        self._before_mib = process.memory_mib("VmRSS")

    @property
    def taken_mib(self) -> int:
        """Most memory that the server has taken since its first answer."""
        return self.process.memory_mib("VmHWM") - self._before_mib

    def asks(self, model: str, more: str = "") -> socket.socket:
        """Ask on a connection of its own, on which the system receives little that isn't read.

        Args:
            model: Name of the model.
            more: Further headers.
        """
        one = socket.socket()
        one.settimeout(120)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        one.connect(("127.0.0.1", self.process.http_port))
        if self._secured:
            one = ssl._create_unverified_context().wrap_socket(one)
        one.sendall(request(model, more))
        return one

    def unreading(self) -> Any:
        """Return a channel of its own that takes little of what it doesn't read."""
        few = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
        options = [*few, ("grpc.use_local_subchannel_pool", 1)]
        return grpc.insecure_channel(f"127.0.0.1:{self.process.grpc_port}", options=options)


def bundles_of(tmp_path: Path) -> list[Path]:
    bundles = [bundle_of(tmp_path, solid(tmp_path))]
    for name, mib in (("two", 2), ("eight", 8)):
        text = f"""<ir_version: 8, opset_import: ["" : 17]>
            {name} (float[1, 4] x) => (float[1, {mib << 18}] y) <int64[2] times = {{1, {mib << 16}}}>
            {{ y = Tile(x, times) }}"""
        save(parser.parse_model(text), tmp_path / f"{name}.onnx")
        bundles.append(bundle_of(tmp_path, tmp_path / f"{name}.onnx"))
    return bundles


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


def read_to_end(one: socket.socket, size: int = 8 * MIB) -> bytes:
    """Read an answer of that size; return its begin."""
    begin, count = b"", 0
    while count < size and (data := one.recv(1 << 20)):
        begin, count = begin or data, count + len(data)
    return begin


def is_ended(one: socket.socket, data: bytes = b"G") -> bool:
    """Whether the server has ended a connection; sends some data, and reads nothing."""
    try:
        one.send(data)
    except OSError:
        return True
    return False


@pytest.mark.seconds
@pytest.mark.parametrize("way", ["served", "secured"])
def test_answers_over_http_that_one_client_leaves_unread_take_little_memory(
    way: str, request: pytest.FixtureRequest
) -> None:
    served: Served = request.getfixturevalue(way)
    with contextlib.ExitStack() as opened:
        crowd = [opened.enter_context(served.asks("eight")) for _ in range(40)]
        small = opened.enter_context(served.asks("solid"))
        assert b" 200 " in small.recv(4096)  # what is small doesn't wait
        last = opened.enter_context(served.asks("eight"))
        assert b" 200 " in read_to_end(last)  # in its turn, since those in front were ended
        assert served.taken_mib < MOST_MIB
        until(lambda: sum(map(is_ended, crowd)) > 20)


@pytest.mark.seconds
def test_a_long_answer_over_tls_comes_whole_whatever_follows(secured: Served) -> None:
    with secured.asks("eight") as one:
        one.sendall(request("solid"))
        begin = read_to_end(one)
        assert b" 200 " in begin
        rest = one.recv(4096)
        while b" 200 " not in rest:  # the end of the first answer may come before
            data = one.recv(4096)
            assert data
            rest += data
    with secured.asks("eight", "Connection: close\r\n") as one:
        size = 0
        while data := one.recv(1 << 20):
            size += len(data)
        assert size > 8 * MIB


@pytest.mark.seconds
@pytest.mark.parametrize("way", ["served", "secured"])
def test_a_connection_that_is_read_stays_and_holds_nobody_up(
    way: str, request: pytest.FixtureRequest
) -> None:
    served: Served = request.getfixturevalue(way)
    with contextlib.ExitStack() as opened:
        reading = opened.enter_context(served.asks("eight"))
        crowd = [opened.enter_context(served.asks("eight")) for _ in range(20)]
        size, end_s = 0, time.monotonic() + 60
        while sum(map(is_ended, crowd)) < 10:  # slowly, but 8 KiB in each quarter of a second
            assert time.monotonic() < end_s
            size += len(reading.recv(1 << 13))
            time.sleep(0.1)
        while size < 8 * MIB:
            data = reading.recv(1 << 16)
            assert data
            size += len(data)


@pytest.mark.seconds
@pytest.mark.parametrize("method", [INFER, STREAM])
def test_answers_over_grpc_that_one_client_leaves_unread_take_little_memory(
    served: Served, method: str
) -> None:
    with contextlib.ExitStack() as opened:
        crowd = []
        for _ in range(25):
            channel = opened.enter_context(served.unreading())
            crowd.append([channel.stream_stream(method)(iter([ROW])) for _ in range(4)])
        last = opened.enter_context(served.unreading())
        assert len(last.unary_unary(INFER)(SMALL, timeout=60)) < 4096
        assert len(last.unary_unary(INFER)(ROW, timeout=60)) > MIB
        assert served.taken_mib < MOST_MIB
        assert crowd


def test_requests_wait_in_their_order_until_a_client_has_read_enough() -> None:
    async def work() -> None:
        looks: list[str] = []
        owed, order = OwedAnswers(looks.append, 30.0), list[str]()

        def ask(name: str, size: int) -> None:
            def go() -> None:
                order.append(name)
                owed.count("one", name, size)

            owed.wait("one", size, 10, go, lambda failure: None)

        owed.count("one", "first", 100)  # one answer may always be there
        assert not owed.has_room("one", 1, 10)
        assert owed.has_room("other", 100, 10)
        ask("second", 6)
        ask("third", 6)
        turn = owed.wait("one", 1, 10, lambda: order.append("gone"), lambda failure: None)
        owed.leave(turn)
        await asyncio.sleep(0)
        assert (looks, order) == (["one"], [])
        owed.count("one", "first", -100)
        await asyncio.sleep(0)
        assert order == ["second"]
        owed.count("one", "second", -6)
        await asyncio.sleep(0)
        assert order == ["second", "third"]
        owed.count("one", "third", -6)
        assert owed._clients == {}

    asyncio.run(work())


def test_where_clients_are_not_told_apart_none_waits_for_another() -> None:
    owed = OwedAnswers(lambda client: None, 30.0, fair=False)
    owed.count("", "first", 100)
    assert owed.has_room("", 100, 10)


def test_a_request_that_has_waited_for_too_long_is_told_why() -> None:
    async def work() -> list[str]:
        said: list[str] = []

        def end(failure: ProtocolError) -> None:
            said.append(str(failure))

        owed = OwedAnswers(lambda client: None, 0.0)
        owed.count("one", "first", 100)
        owed.wait("one", 1, 10, lambda: None, end)
        await asyncio.sleep(0)
        return said

    assert asyncio.run(work()) == [
        "the request waited for 0 s until this client reads other answers: read them, or ask for fewer at once; "
        "retry later"
    ]


def test_many_requests_that_have_waited_for_too_long_end_in_several_turns_of_the_loop() -> None:
    async def work() -> list[int]:
        turn, ended = 0, list[int]()
        owed = OwedAnswers(lambda client: None, 0.0)
        owed.count("one", "first", 100)
        for _ in range(150):
            owed.wait("one", 1, 10, lambda: None, lambda _: ended.append(turn))
        while len(ended) < 150:
            turn += 1
            await asyncio.sleep(0)
        return ended

    ended = asyncio.run(asyncio.wait_for(work(), 60))
    assert max(Counter(ended).values()) <= 64


def test_a_request_that_fails_as_its_turn_comes_holds_nobody_up() -> None:
    async def work() -> list[str]:
        looks: list[str] = []
        owed, order = OwedAnswers(looks.append, 0.0), list[str]()
        asyncio.get_running_loop().set_exception_handler(
            lambda _, told: order.append(str(told["exception"]))
        )

        def fail(*_: object) -> None:
            raise ValueError("gone")

        owed.count("one", "first", 100)
        owed.wait("one", 1, 10, fail, fail)
        owed.wait("one", 1, 10, fail, lambda _: order.append("refused"))
        while len(order) < 2:  # the second one at the next look
            await asyncio.sleep(0)
        return order

    assert asyncio.run(asyncio.wait_for(work(), 60)) == ["gone", "refused"]


def test_an_answer_over_http_is_expected_to_be_small_after_small_ones(tmp_path: Path) -> None:
    with ServerThread(place_of(bundle_of(tmp_path, grown(tmp_path)))) as server:
        owed = server.server.state.owed
        with contextlib.closing(http.client.HTTPConnection(server.host, timeout=120)) as client:
            for numbers in (1 << 18, *(8,) * 16):
                x = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, numbers, 0, 0]}
                body = {"inputs": [x], "parameters": {"binary_data_output": True}}
                headers = {"Host": "here"}
                client.request("POST", "/v2/models/grown/infer", json.dumps(body), headers)
                assert client.getresponse().read()
                if numbers > 8:
                    assert server.call(lambda: owed.foreseen("grown")) >= MIB
        assert server.call(lambda: owed.foreseen("grown")) <= COUNTED_BYTES


def test_a_client_is_not_cut_because_the_system_says_later_what_it_received(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the system knows of a byte, those count that it has taken, which are more."""
    says: list[int | None] = [None, 500_000, 500_000 + 8192]
    monkeypatch.setattr(connection, "received_bytes", lambda number: says.pop(0))
    (tmp_path / "eight").mkdir()
    bundle = bundles_of(tmp_path / "eight")[2]
    with ServerThread(place_of(bundle), hosts=("localhost",)) as server, socket.socket() as one:
        one.connect(("127.0.0.1", server.http_port))
        one.sendall(request("eight"))
        state = server.server.state
        until(lambda: server.call(lambda: state.bodies.taken > MIB))
        (served,) = state.connections
        reads = [server.call(partial(served.hurry, second * 1_100_000_000)) for second in range(3)]
        assert reads[0]
        assert reads[1:] == [500_000, 500_000 + 8192]
        assert read_to_end(one)
