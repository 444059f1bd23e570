"""HTTP as any client may speak it, well or badly, against a real server over real sockets."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import gzip
import json
import os
import select
import socket
import sys
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httptools
import numpy as np
import pytest
from tests.support.models import solid
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S, until

from hasten.serving import server as server_module
from hasten.serving.http import connection
from hasten.serving.http.connection import Connection
from hasten.serving.loop_budget import TURN_BYTES, LoopBudget
from hasten.serving.state import Limits
from hasten.serving.wire import http_bodies
from hasten.testing import models

MIB = 1 << 20
ROW = np.arange(4, dtype=np.float32)
JSON_REQUEST = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": ROW.tolist()}]
}
LIMITS = Limits(
    header_bytes=8192,
    body_bytes=1 << 20,
    bodies_bytes=2 << 20,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    """Serves `solid`, x: [batch, 4] -> y, and the same as `a b/c`."""
    folder = tmp_path_factory.mktemp("http")
    bundle = bundle_of(folder, solid(folder))
    two = bundle_of(folder, models.two_inputs(folder))
    with ServerThread(
        place_of(bundle),
        place_of(bundle, version="2"),
        place_of(bundle, "a b/c"),
        place_of(two),
        limits=LIMITS,
    ) as one:
        yield one


@pytest.fixture
def sweeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers look for slow and quiet clients twenty times as often."""
    monkeypatch.setattr(server_module, "_SWEEP_S", 0.05)


@pytest.fixture
def hurried(tmp_path: Path, sweeping: None) -> Iterator[ServerThread]:
    """A server to which a request must come whole in 0.2 s."""
    limits = dataclasses.replace(LIMITS, receive_ns=200_000_000)
    with ServerThread(place_of(bundle_of(tmp_path, solid(tmp_path))), limits=limits) as one:
        yield one


class Client:
    """A socket, and what came out of it."""

    def __init__(self, server: ServerThread, receive_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(120)
        self.socket.connect(("127.0.0.1", server.http_port))
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer: status, headers, body."""
        status_line = self._file.readline()
        if not status_line:
            raise EOFError
        headers = {}
        while (line := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = self._file.read(int(headers.get("content-length", 0)))
        return int(status_line.split()[1]), headers, body

    def is_answered(self) -> bool:
        """Whether an answer has begun to come, which is not read."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def at_end(self) -> bool:
        """Whether the server has hung up, and nothing is left to read."""
        with contextlib.suppress(ConnectionResetError):
            return self._file.read(1) == b""
        return True

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.socket.close()


def request(
    path: str = "/v2/models/solid/infer",
    body: bytes = b"",
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: here", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def ask(server: ServerThread, *args: Any, **more: Any) -> tuple[int, dict[str, str], bytes]:
    with Client(server) as client:
        client.send(request(*args, **more))
        return client.answer()


def asked(server: ServerThread, value: Any, **more: Any) -> tuple[int, Any]:
    status, _, body = ask(server, body=json.dumps(value).encode(), **more)
    return status, json.loads(body)


def held(server: ServerThread) -> tuple[int, int]:
    """How many connections are open, and how many bytes of bodies are under way."""
    state = server.server.state
    return len(state.connections), state.body_bytes


def with_input(**fields: Any) -> dict[str, Any]:
    return {"inputs": [{**JSON_REQUEST["inputs"][0], **fields}]}


def test_json_gets_json(server: ServerThread) -> None:
    status, answer = asked(server, {"id": "7", **JSON_REQUEST})
    assert status == 200
    assert answer == {
        "model_name": "solid",
        "model_version": "2",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": ROW.tolist()}],
    }


def test_nested_data_is_as_good_as_flat(server: ServerThread) -> None:
    status, answer = asked(server, with_input(shape=[2, 4], data=[[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert status == 200
    assert answer["outputs"][0]["data"] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({}, "the request doesn't follow the protocol: Object missing required field `inputs`"),
        ([], "the request doesn't follow the protocol: Expected `object`, got `array`"),
        (
            with_input(data=[1, 2, 3]),
            "input 'x': [1, 4] has 4 elements; got 3",
        ),
        (
            with_input(data=[[1, 2], [3, 4]]),
            "input 'x': data must be flat or [1, 4]; got [2, 2]",
        ),
        (with_input(data=[[1, 2], [3]]), "input 'x': its data is nested unevenly"),
        (
            with_input(data=["1", "2", "3", "4"]),
            "input 'x': its data has a value that is not FP32",
        ),
        (with_input(data=None), "input 'x': its data is not a list"),
        (
            with_input(datatype="FP64"),
            "input 'x': the model takes FP32[batch, 4]; got FP64[1, 4]",
        ),
        (
            with_input(shape=[4]),
            "input 'x': the model takes FP32[batch, 4]; got FP32[4]",
        ),
        (
            with_input(datatype="FLOAT"),
            "there is no datatype 'FLOAT'; there are BOOL, UINT8, UINT16, UINT32, UINT64, INT8, INT16, "
            "INT32, INT64, FP16, FP32, FP64, BF16, BYTES",
        ),
        (with_input(shape=[-1, 4]), "input 'x': (-1, 4) is not a possible tensor shape"),
        (
            with_input(datatype="INT32", data=[1.5, 2, 3, 4]),
            "input 'x': the model takes FP32[batch, 4]; got INT32[1, 4]",
        ),
        (
            with_input(datatype="UINT8", data=[256, 2, 3, 4]),
            "input 'x': the model takes FP32[batch, 4]; got UINT8[1, 4]",
        ),
        (with_input(datatype="BF16"), "input 'x': the model takes FP32[batch, 4]; got BF16[1, 4]"),
        (with_input(name="z"), "the model 'solid' takes the inputs x; got z"),
        ({"inputs": []}, "the model 'solid' takes the inputs x; got none"),
        (
            {"inputs": JSON_REQUEST["inputs"] * 2},
            "input 'x' is given twice",
        ),
        (
            {**JSON_REQUEST, "outputs": [{"name": "z"}]},
            "the model 'solid' has no output 'z'; it has y",
        ),
        (
            with_input(shape=[33, 4], data=[0] * 132),
            "a request to 'solid' has at most 32 rows; got 33: send several requests",
        ),
        (with_input(shape=[0, 4], data=[]), "input 'x' has no rows; send at least 1"),
        (
            {**JSON_REQUEST, "parameters": {"timeout": "soon"}},
            "the parameter 'timeout' must be a whole number of at least 0; got 'soon'",
        ),
        (
            with_input(parameters={"binary_data_size": 16}),
            "input 'x' announces 16 bytes, but 0 are left",
        ),
        (
            with_input(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 16}),
            "input 'x' is given twice: use one of data, binary_data_size and shared memory",
        ),
    ],
)
def test_a_wrong_request_gets_one_clear_line(server: ServerThread, value: Any, error: str) -> None:
    status, answer = asked(server, value)
    assert status == 400
    assert answer["error"].partition(" - at `$")[0] == error


def test_several_inputs_of_unlike_batch_sizes_are_refused(server: ServerThread) -> None:
    value = {
        "inputs": [
            {"name": "features", "datatype": "FP32", "shape": [2, 8], "data": [0.5] * 16},
            {"name": "ids", "datatype": "INT64", "shape": [1, 3], "data": [1, 2, 3]},
        ]
    }
    status, answer = asked(server, value, path="/v2/models/two_inputs/infer")
    assert (status, answer["error"]) == (400, "the inputs have different batch sizes: 2 and 1")


def test_a_tensor_that_would_be_too_large_is_refused_before_memory_is_taken(
    server: ServerThread,
) -> None:
    status, answer = asked(server, with_input(shape=[2**31 - 1, 2**31 - 1], data=[0]))
    assert status == 413
    assert answer["error"] == (
        "input 'x' would take 18,446,744,056,529,682,436 bytes; a request's tensors take at most "
        "1,048,576"
    )


def test_binary_tensors_come_and_go_behind_the_json(server: ServerThread) -> None:
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [1, 4],
                    "parameters": {"binary_data_size": 16},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    status, headers, body = ask(
        server,
        body=head + ROW.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert status == 200
    length = int(headers["inference-header-content-length"])
    assert json.loads(body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert body[length:] == ROW.tobytes()


def test_requests_that_look_alike_get_answers_of_their_own(server: ServerThread) -> None:
    """What follows from a request's JSON is kept; the tensors, the versions and the errors aren't."""

    def whole(rows: Any, **more: Any) -> bytes:
        tensor = {
            "name": "x",
            "datatype": "FP32",
            "shape": list(rows.shape),
            "parameters": {"binary_data_size": rows.nbytes},
        }
        value = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        if "id" in more:
            value = {"id": more["id"], **value}
        head = json.dumps(value).encode()
        path = more.pop("path", "/v2/models/solid/infer")
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return request(path, head + rows.tobytes() + more.get("tail", b""), headers=headers)

    with Client(server) as client:
        for number, name in enumerate(["", "", "7", "8", "seven", '"', "\\\\", "é", "9", ""]):
            for shape, path, version in (
                ((1, 4), "/v2/models/solid/infer", "2"),
                ((2, 4), "/v2/models/solid/infer", "2"),
                ((1, 4), "/v2/models/solid/versions/1/infer", "1"),
            ):
                rows = np.full(shape, number, np.float32)
                given = {"id": name} if name else {}
                client.send(whole(rows, path=path, **given))
                status, headers, body = client.answer()
                length = int(headers["inference-header-content-length"])
                said = json.loads(body[:length])
                assert (status, said["model_version"]) == (200, version)
                assert said.get("id", "") == name
                assert said["outputs"][0]["shape"] == list(shape)
                assert body[length:] == rows.tobytes()
            client.send(whole(rows, tail=b"more"))
            status, _, body = client.answer()
            assert (status, json.loads(body)["error"][:16]) == (400, "4 bytes are left")


def test_json_that_looks_alike_gets_answers_of_its_own(server: ServerThread) -> None:
    with Client(server) as client:
        for number, name in enumerate(["", "", "7", "8", "seven", '"', "é", "9", ""]):
            for rows in (np.full((1, 4), number + 0.5), np.full((2, 4), -number)):
                for data in (rows.ravel().tolist(), rows.tolist()):
                    value = with_input(shape=list(rows.shape), data=data) | {"id": name}
                    client.send(request(body=json.dumps(value).encode()))
                    status, _, body = client.answer()
                    said = json.loads(body)
                    assert (status, said.get("id", "")) == (200, name)
                    assert said["outputs"][0]["shape"] == list(rows.shape)
                    assert said["outputs"][0]["data"] == rows.ravel().tolist()
            value = with_input(data=[1, 2, 3, None]) | {"id": name}
            client.send(request(body=json.dumps(value).encode()))
            status, _, body = client.answer()
            error = "input 'x': its data has a value that is not FP32"
            assert (status, json.loads(body)["error"]) == (400, error)


def test_bytes_after_the_tensors_are_refused(server: ServerThread) -> None:
    head = json.dumps(with_input(data=[1, 2, 3, 4])).encode()
    status, _, body = ask(
        server, body=head + b"12", headers={"Inference-Header-Content-Length": str(len(head))}
    )
    error = "2 bytes are left in the body after its inputs' tensors"
    assert (status, json.loads(body)["error"]) == (400, error)


def test_a_body_without_json_is_the_only_input(server: ServerThread) -> None:
    two = np.concatenate([ROW, ROW + 4])
    status, headers, body = ask(
        server, body=two.tobytes(), headers={"Inference-Header-Content-Length": "0"}
    )
    assert status == 200
    assert body[int(headers["inference-header-content-length"]) :] == two.tobytes()
    status, _, body = ask(server, body=b"12345", headers={"Inference-Header-Content-Length": "0"})
    assert json.loads(body)["error"] == "input 'x': FP32[0, 4] has 0 bytes; got 5"
    status, _, body = ask(
        server,
        "/v2/models/two_inputs/infer",
        body=b"12345",
        headers={"Inference-Header-Content-Length": "0"},
    )
    assert json.loads(body)["error"] == (
        "a body without JSON contains one input, but the model 'two_inputs' takes 2"
    )


@pytest.mark.parametrize("length", ["-1", "x", "99999"])
def test_a_wrong_length_of_the_json_is_refused(server: ServerThread, length: str) -> None:
    status, _, body = ask(server, body=b"{}", headers={"Inference-Header-Content-Length": length})
    assert status == 400
    assert "Inference-Header-Content-Length is " in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_bodies_may_be_compressed_both_ways(
    server: ServerThread, encoding: str, compress: Any
) -> None:
    status, headers, body = ask(
        server,
        body=compress(json.dumps(with_input(shape=[32, 4], data=[0.123] * 128)).encode()),
        headers={"Content-Encoding": encoding, "Accept-Encoding": encoding},
    )
    assert status == 200
    assert headers["content-encoding"] == encoding
    plain = gzip.decompress(body) if encoding == "gzip" else zlib.decompress(body)
    assert json.loads(plain)["outputs"][0]["data"] == [0.123] * 128


def test_others_are_answered_while_a_body_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacking, answered = threading.Event(), threading.Event()

    def held_up(*given: Any) -> Any:
        unpacking.set()
        assert answered.wait(PATIENCE_S)
        return http_bodies.decompressed(*given)

    monkeypatch.setattr(connection, "decompressed", held_up)
    bundle = bundle_of(tmp_path, solid(tmp_path))
    with ServerThread(place_of(bundle)) as server, Client(server) as slow, Client(server) as quick:
        packed = zlib.compress(b" " * 1000)
        slow.send(request(body=packed, headers={"Content-Encoding": "deflate"}))
        assert unpacking.wait(PATIENCE_S)
        quick.send(request(body=json.dumps(JSON_REQUEST).encode()))
        assert quick.answer()[0] == 200
        until(lambda: sum(not one.idle for one in server.server.state.connections) == 1)
        answered.set()
        assert slow.answer()[0] == 400


@contextlib.contextmanager
def turns_of(server: ServerThread, monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[Any]:
    """The turn of the loop in which each call of a method of connections happens."""
    turns: list[int] = []
    turn, called = 0, getattr(Connection, name)

    def next_turn() -> None:
        nonlocal turn
        turn += 1
        if turn < 2**40:
            asyncio.get_running_loop().call_soon(next_turn)

    def seen(*given: Any) -> Any:
        turns.append(turn)
        return called(*given)

    monkeypatch.setattr(Connection, name, seen)
    server.call(next_turn)
    try:
        yield turns
    finally:
        turn = 2**40


@pytest.mark.parametrize("packed", [True, False])
def test_a_turn_of_the_loop_parses_one_long_body(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """Those of several clients are all there in one turn: unpacked, or with their last bytes."""
    ready, go = list[bool](), threading.Event()

    def held_up(*given: Any) -> Any:
        assert go.wait(PATIENCE_S)
        data = http_bodies.decompressed(*given)
        ready.append(True)
        return data

    body = json.dumps(JSON_REQUEST).encode() + b" " * 100_000
    headers = {"Content-Encoding": "gzip"} if packed else {}
    sent = request(body=gzip.compress(body) if packed else body, headers=headers)
    kept = 0 if packed else 1
    monkeypatch.setattr(connection, "decompressed", held_up)

    def at_once(clients: list[Client]) -> None:
        go.set()
        for client in clients:
            client.send(sent[len(sent) - kept :])
        until(lambda: not packed or len(ready) == 8)

    with contextlib.ExitStack() as stack:
        turns = stack.enter_context(turns_of(server, monkeypatch, "_infer"))
        clients = [stack.enter_context(Client(server)) for _ in range(8)]
        for client in clients:
            client.send(sent[: len(sent) - kept])
        least = 8 * (len(sent) - kept - 1000)
        until(lambda: held(server)[1] >= (least if not packed else 8))
        until(lambda: sum(not one.idle for one in list(server.server.state.connections)) >= 8)
        server.call(lambda: at_once(clients))
        assert [client.answer()[0] for client in clients] == [200] * 8
    assert len(turns) == len(set(turns)) == 8


def test_clients_take_turns_with_long_bodies_and_who_left_takes_none() -> None:
    budget, done, turn = LoopBudget(), list[tuple[str, int]](), 0

    async def work(client: str, size: int) -> None:
        await budget.take(client, size)
        done.append((client, turn))

    async def all_at_once() -> None:
        nonlocal turn
        tasks = [
            asyncio.create_task(work(client, size))
            for client, size in (
                *[("greedy", MIB)] * 3,
                ("gone", MIB),
                ("other", MIB),
                *[("small", TURN_BYTES // 4)] * 5,
            )
        ]
        await asyncio.sleep(0)
        tasks[3].cancel()
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            turn += 1
        assert budget.took(MIB)
        assert not budget.took(1)

    asyncio.run(all_at_once())
    assert [client for client, _ in done[:6]] == [
        "greedy",
        "greedy",
        "other",
        "small",
        "greedy",
        "small",
    ]
    turns = [turn for client, turn in done if client != "small"]
    assert len(turns) == len(set(turns)) == 4


def test_who_leaves_while_a_body_is_unpacked_leaves_nothing(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, solid(tmp_path))
    packed = zlib.compress(b" " * (100 << 20), 1)
    with ServerThread(place_of(bundle), limits=Limits(body_bytes=512 << 20)) as server:
        for _ in range(8):
            with Client(server) as client:
                client.send(request(body=packed, headers={"Content-Encoding": "deflate"}))
                until(lambda: server.server.state.body_bytes > 0 or client.is_answered())
        until(lambda: held(server) == (0, 0))
        # What nobody waits for isn't unpacked: two threads had at most one body each.
        until(lambda: not server.call(lambda: server.server.state.coding._waiting))
        status, _, _ = ask(
            server,
            body=zlib.compress(json.dumps(JSON_REQUEST).encode()),
            headers={"Content-Encoding": "deflate"},
        )
        assert status == 200
        until(lambda: held(server) == (0, 0))


def test_an_output_is_sent_once(server: ServerThread) -> None:
    binary = {"name": "y", "parameters": {"binary_data": True}}
    for outputs in ([binary, {"name": "y"}], [{"name": "y"}] * 1000):
        status, answer = asked(server, {**JSON_REQUEST, "outputs": outputs})
        assert (status, answer["error"]) == (400, "output 'y' is asked for twice: ask for it once")


def test_a_body_that_grows_without_end_is_refused(server: ServerThread) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    status, _, body = ask(server, body=bomb, headers={"Content-Encoding": "gzip"})
    error = "the decompressed body exceeds the limit of 1,048,576 bytes"
    assert (status, json.loads(body)["error"]) == (413, error)
    status, _, body = ask(server, body=b"no gzip", headers={"Content-Encoding": "gzip"})
    assert (status, json.loads(body)["error"][:23]) == (400, "the body is not gzip: E")


def test_a_chunked_body_is_a_body(server: ServerThread) -> None:
    data = json.dumps(JSON_REQUEST).encode()
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:10], data[10:70], data[70:])
    )
    with Client(server) as client:
        client.send(
            b"POST /v2/models/solid/infer HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
            + chunks
            + b"0\r\n\r\n"
        )
        assert client.answer()[0] == 200


@pytest.mark.parametrize("size", [100_000, 50_000], ids=["long", "short"])
def test_tiny_chunks_take_no_more_memory_than_is_counted(server: ServerThread, size: int) -> None:
    data = json.dumps(JSON_REQUEST).encode().ljust(size)
    chunks = b"".join(b"2\r\n%b\r\n" % data[at : at + 2] for at in range(0, size, 2))
    with Client(server) as client:
        tracemalloc.start()
        try:
            client.send(
                b"POST /v2/models/solid/infer HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            before = tracemalloc.get_traced_memory()[0]
            client.send(chunks)
            until(lambda: held(server)[1] == size)
            taken = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        client.send(b"0\r\n\r\n")
        status, _, body = client.answer()
    assert status == 200
    assert "outputs" in json.loads(body)
    assert taken < 3 * size  # and what other threads do meanwhile


def test_chunks_without_end_are_refused(server: ServerThread) -> None:
    with Client(server) as client:
        client.send(
            b"POST /v2/models/solid/infer HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                client.send(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
        status, _, body = client.answer()
    assert status == 413
    assert json.loads(body)["error"] == "the body exceeds the limit of 1,048,576 bytes"


def test_a_long_body_lands_in_memory_of_its_own(server: ServerThread) -> None:
    """Over 64 KiB it isn't parsed: the tensor lies where it was received."""
    rows = np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)
    padding = " " * 200_000  # in the JSON, so that the body is long
    head = (
        json.dumps(
            {
                "inputs": [
                    {
                        "name": "x",
                        "datatype": "FP32",
                        "shape": [32, 4],
                        "parameters": {"binary_data_size": rows.nbytes},
                    }
                ],
                "parameters": {"binary_data_output": True},
            }
        )
        + padding
    ).encode()
    whole = request(
        body=head + rows.tobytes(), headers={"Inference-Header-Content-Length": str(len(head))}
    )
    with Client(server) as client:
        for _ in range(3):  # with what follows on the same connection
            for begin in range(0, len(whole), 30_000):
                client.send(whole[begin : begin + 30_000])
            status, headers, body = client.answer()
            assert status == 200
            assert body[int(headers["inference-header-content-length"]) :] == rows.tobytes()
            client.send(request("/v2", method="GET"))
            assert client.answer()[0] == 200


def test_requests_may_follow_each_other_without_waiting(server: ServerThread) -> None:
    with Client(server) as client:
        client.send(
            b"".join(
                request(body=json.dumps({"id": str(n), **JSON_REQUEST}).encode())
                for n in range(2000)
            )
        )
        answers = [json.loads(client.answer()[2])["id"] for _ in range(2000)]
    assert answers == [str(n) for n in range(2000)]


def test_a_client_that_asks_first_is_told_to_go_on(server: ServerThread) -> None:
    body = json.dumps(JSON_REQUEST).encode()
    with Client(server) as client:
        client.send(
            b"POST /v2/models/solid/infer HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        assert client.answer()[0] == 100
        client.send(body)
        assert client.answer()[0] == 200


def test_a_client_that_asks_behind_another_request_is_told_to_go_on_after_its_answer(
    server: ServerThread,
) -> None:
    body = json.dumps(JSON_REQUEST).encode()
    head = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
    with Client(server) as client:
        begun = b"POST /v2/models/solid/infer HTTP/1.1\r\nHost: here\r\n" + head
        client.send(request(body=body) * 20 + begun)
        assert [client.answer()[0] for _ in range(21)] == [200] * 20 + [100]
        client.send(body)
        assert client.answer()[0] == 200


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(server: ServerThread) -> None:
    with Client(server) as client:
        client.send(
            b"POST /v2/models/solid/infer HTTP/1.1\r\nHost: here\r\nContent-Length: 1048577\r\n\r\n"
        )
        status, headers, body = client.answer()
        assert client.at_end()
    assert (status, headers["connection"]) == (413, "close")
    assert json.loads(body)["error"] == "the body exceeds the limit of 1,048,576 bytes"


def test_all_bodies_together_are_bounded_by_what_came_of_them(server: ServerThread) -> None:
    whole = request(headers={}, body=b"")[:-2].replace(b": 0", b": 1048576") + b"\r\n"
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for _ in range(3)]
        for client in clients:
            client.send(whole)
        time.sleep(0.1)  # announced alone, they take no memory
        assert ask(server, body=json.dumps(JSON_REQUEST).encode())[0] == 200
        for client in clients[:2]:
            client.send(bytes(1048575))
        until(lambda: held(server)[1] >= 2 * 1048575)
        clients[2].send(bytes(1000))
        status, headers, body = clients[2].answer()
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(body)["error"] == (
            "overloaded: requests with 2,097,152 bytes are in progress; retry later"
        )
    until(lambda: server.call(lambda: held(server))[1] == 0)
    assert ask(server, body=json.dumps(JSON_REQUEST).encode())[0] == 200


def test_an_offer_of_another_protocol_is_no_reason_not_to_answer(server: ServerThread) -> None:
    """As Java's client makes it with each first request."""
    offer = {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": "h2c",
        "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    }
    with Client(server) as client:
        for _ in range(2):
            client.send(request(body=json.dumps(JSON_REQUEST).encode(), headers=offer))
            status, _, body = client.answer()
            assert status == 200
            assert json.loads(body)["outputs"][0]["data"] == ROW.tolist()
        client.send(b"CONNECT here:80 HTTP/1.1\r\nHost: here\r\n\r\n")
        status, _, body = client.answer()
    assert (status, json.loads(body)["error"]) == (
        405,
        "this is not a proxy: CONNECT isn't supported",
    )


def test_an_offer_of_another_protocol_is_refused_as_any_request_is(
    server: ServerThread, caplog: pytest.LogCaptureFixture
) -> None:
    offer = {"Connection": "Upgrade", "Upgrade": "h2c"}
    with Client(server) as client:
        client.send(request(headers=offer)[:-2].replace(b": 0", b": 1048577") + b"\r\n")
        status, _, body = client.answer()
        assert client.at_end()
    assert (status, json.loads(body)["error"]) == (
        413,
        "the body exceeds the limit of 1,048,576 bytes",
    )
    assert not caplog.records


def test_a_client_that_takes_no_answers_gets_no_more_of_them(tmp_path: Path) -> None:
    """Requests pile up at the client: the server doesn't hold their answers."""
    bundle = bundle_of(tmp_path, solid(tmp_path))
    with ServerThread(place_of(bundle)) as patient, Client(patient) as client:
        client.socket.settimeout(0.5)
        one = request("/", method="GET")
        with contextlib.suppress(TimeoutError):
            for _ in range(200):
                client.send(one * 500)

        def unsent() -> int:
            (connection,) = patient.server.state.connections
            assert isinstance(connection, Connection)
            return connection._transport.get_write_buffer_size()

        assert patient.call(unsent) < 4 << 20


PATIENT = Limits(send_ns=3_600_000_000_000)


def unsent(server: ServerThread) -> list[int]:
    """Bytes of answers that aren't sent, on each connection."""

    def sizes() -> list[int]:
        connections: Any = server.server.state.connections
        return [one._transport.get_write_buffer_size() for one in connections]

    return server.call(sizes)


def test_many_offers_of_another_protocol_are_copied_once_each(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    parser = httptools.HttpRequestParser

    class Counted:
        """A parser of the same kind that notes how many bytes it was given."""

        def __init__(self, protocol: Any) -> None:
            self._parser = parser(protocol)

        def feed_data(self, data: Any) -> None:
            given.append(0 if isinstance(data, memoryview) else len(data))
            self._parser.feed_data(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._parser, name)

    monkeypatch.setattr(httptools, "HttpRequestParser", Counted)
    one = request("/v2", method="GET", headers={"Connection": "Upgrade", "Upgrade": "h2c"})
    with Client(server) as client:
        client.send(one * 500)
        for _ in range(500):
            assert client.answer()[0] == 200
    assert 0 < sum(given) < len(one * 500)


def held_up(server: ServerThread) -> int:
    """Number of connections with a request that isn't answered yet."""
    connections: Any = server.server.state.connections
    return sum(one._busy or len(one._backlog) > 0 for one in connections)


def take_little(server: ServerThread) -> None:
    """Let the system hold little of what clients haven't received."""
    connections: Any = server.server.state.connections
    for one in connections:
        given = one._transport.get_extra_info("socket").fileno()
        with socket.socket(fileno=os.dup(given)) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


@contextlib.contextmanager
def reading_nothing(
    tmp_path: Path, limits: Limits = PATIENT
) -> Iterator[tuple[ServerThread, Client, int]]:
    """A server, its only client, and the number of requests whose answers that one hasn't read.

    The last ones stay with the server: the system takes no more of them.
    """
    place = place_of(bundle_of(tmp_path, solid(tmp_path)))
    with ServerThread(place, limits=limits) as server, Client(server, 4096) as client:
        until(lambda: unsent(server) == [0])
        server.call(lambda: take_little(server))
        count, before = 0, [0]
        while before == [0] or unsent(server) != before:
            client.send(request("/v2/models/solid/stats", method="GET") * 16)  # for 10 KiB
            count += 16
            server.call(lambda: None)  # they were received by then
            until(lambda: any(unsent(server)) or server.call(lambda: held_up(server)) == 0)
            before = unsent(server)
            time.sleep(0.1)  # the system may take some of it yet
        assert max(unsent(server)) <= 64 << 10
        yield server, client, count


def hurry(server: ServerThread) -> None:
    """Let the server wait for 0.2 s for a client that doesn't read its answers."""
    state = server.server.state
    state.limits = dataclasses.replace(state.limits, send_ns=200_000_000)


@pytest.mark.parametrize("sent", [b"", b"GET /v2 HTTP/1.1\r\n", b"\0garbage\r\n\r\n"])
def test_a_client_that_leaves_little_of_its_answers_is_hung_up_on(
    tmp_path: Path, sweeping: None, sent: bytes
) -> None:
    """Also where it has begun another request, and where it is told of an error."""
    with reading_nothing(tmp_path) as (server, client, _):
        client.send(sent)
        server.call(lambda: hurry(server))
        until(lambda: unsent(server) == [])


def test_a_client_that_leaves_little_of_its_answers_makes_room(
    tmp_path: Path, sweeping: None
) -> None:
    limits = dataclasses.replace(PATIENT, connections=1)
    with reading_nothing(tmp_path, limits) as (server, _, _):
        until(lambda: unsent(server) == [])
        assert ask(server, "/v2", method="GET")[0] == 200


def test_a_client_that_reads_late_gets_all_its_answers(tmp_path: Path, sweeping: None) -> None:
    with reading_nothing(tmp_path) as (server, client, count):
        (connection,) = server.server.state.connections
        until(lambda: connection.quiet >= 8)
        for _ in range(count):
            status, _, body = client.answer()
            assert (status, json.loads(body)["model_stats"][0]["name"]) == (200, "solid")
        assert unsent(server) == [0]


def test_an_error_waits_for_the_answer_before_it(server: ServerThread) -> None:
    with Client(server) as client:
        client.send(request(body=json.dumps(JSON_REQUEST).encode()) + b"\0garbage\r\n\r\n")
        assert client.answer()[0] == 200
        assert client.answer()[0] == 400
        assert client.at_end()


def test_two_servers_in_one_process_dont_mix_requests(server: ServerThread, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, solid(tmp_path))

    def ask_on(one: ServerThread, number: int) -> None:
        rows = np.full((1, 4), number, np.float32)
        with Client(one) as client:
            for _ in range(300):
                headers = {"Inference-Header-Content-Length": "0"}
                client.send(request(body=rows.tobytes(), headers=headers))
                status, _, body = client.answer()
                assert status == 200
                assert body.endswith(rows.tobytes())

    with ServerThread(place_of(bundle)) as other:
        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            calls = [
                threads.submit(ask_on, one, number)
                for number, one in enumerate((server, other, server, other))
            ]
            for call in calls:
                call.result()


def test_headers_without_end_are_refused(server: ServerThread) -> None:
    with Client(server) as client:
        with contextlib.suppress(ConnectionError):
            client.send(b"GET /v2 HTTP/1.1\r\n")
            for number in range(100):
                client.send(b"X-%d: %s\r\n" % (number, b"a" * 1000))
        status, _, body = client.answer()
    assert status == 431
    assert json.loads(body)["error"] == "the request's headers exceed 8,192 bytes"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"\0" * 100,
        b"HELO here\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_garbage_gets_an_error_and_hurts_nobody(server: ServerThread, garbage: bytes) -> None:
    with Client(server) as client:
        client.send(garbage)
        status, headers, body = client.answer()
        assert (status, headers["connection"]) == (400, "close")
        assert "error" in json.loads(body)
        assert client.at_end()
    assert ask(server, body=json.dumps(JSON_REQUEST).encode())[0] == 200


def test_a_slow_client_is_told_and_hung_up_on(hurried: ServerThread) -> None:
    with Client(hurried) as client:
        client.send(b"POST /v2/models/solid/infer HTTP/1.1\r\nHost: here\r\nContent-Le")
        status, _, body = client.answer()
        assert client.at_end()
    assert status == 408
    assert json.loads(body)["error"] == "the request didn't arrive in full within the time limit"


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"POST /v2/models/solid/infer HTTP/1.1\r\nHost: he",
        b"POST /v2/models/solid/infer HTTP/1.1\r\nHost: here\r\nContent-Length: 99999\r\n\r\n{",
        request("/v2", method="GET") + b"GET /v2 HTTP/1.1\r\n",
    ],
)
def test_requests_that_never_come_whole_make_room_where_nearly_all_places_are_taken(
    tmp_path: Path, sweeping: None, begun: bytes
) -> None:
    limits = dataclasses.replace(LIMITS, connections=10, receive_ns=3_600_000_000_000)
    with (
        ServerThread(place_of(bundle_of(tmp_path, solid(tmp_path))), limits=limits) as server,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(Client(server)) for _ in range(10)]
        for client in clients:
            client.send(begun)
        # The last of the ten may be there later than the first question.
        until(lambda: ask(server, "/v2", method="GET")[0] == 200)
        until(lambda: server.call(lambda: held(server))[0] <= 9)


def test_connections_that_rest_make_room_where_nearly_all_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test says when the server looks, so that those that are used never rest for long."""
    monkeypatch.setattr(server_module, "_SWEEP_S", 3600.0)
    limits = dataclasses.replace(LIMITS, connections=4)
    with (
        ServerThread(place_of(bundle_of(tmp_path, solid(tmp_path))), limits=limits) as server,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(Client(server)) for _ in range(4)]

        def work(clients: list[Client]) -> None:
            for client in clients:
                client.send(request("/v2", method="GET"))
                assert client.answer()[0] == 200

        def there_is_room() -> bool:
            work(clients[2:])
            server.call(server.server._sweep)
            return server.call(lambda: held(server))[0] == 3

        work(clients)
        until(there_is_room)
        closed, _, _ = select.select([client.socket for client in clients[:2]], [], [], 120)
        assert closed
        assert closed[0].recv(100) == b""
        work(clients[2:])


def test_handshakes_that_never_end_make_room_where_nearly_all_places_are_taken(
    tmp_path: Path, certificate: Path, sweeping: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the supervisor hands on connections on which nothing is sent."""
    monkeypatch.setattr(server_module, "_HANDSHAKE_S", 3600.0)
    monkeypatch.setattr(server_module, "_CROWDED_HANDSHAKE_S", 0.2)
    place, key = place_of(bundle_of(tmp_path, solid(tmp_path))), certificate.with_name("key.pem")
    limits = dataclasses.replace(LIMITS, connections=10)
    with (
        ServerThread(place, limits=limits, certificate=certificate, key=key) as server,
        contextlib.ExitStack() as stack,
    ):

        async def take(accepted: socket.socket) -> None:
            taking.append(asyncio.create_task(server.server.take(accepted, None)))

        taking: list[asyncio.Task[None]] = []
        for _ in range(10):
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            theirs.setblocking(False)
            server.call(functools.partial(take, theirs))
        until(lambda: sum(each.done() for each in taking) == 1)


def test_an_idle_connection_is_left_alone(hurried: ServerThread) -> None:
    connections = hurried.server.state.connections
    with Client(hurried) as client:
        client.send(request("/v2", method="GET"))
        assert client.answer()[0] == 200
        # For twice as long as a request may take.
        until(lambda: hurried.call(lambda: min(one.quiet for one in connections)) >= 8)
        client.send(request("/v2", method="GET"))
        assert client.answer()[0] == 200


@pytest.mark.parametrize("sent", [b"POST /v2/models/solid/inf", request(body=bytes(99))[:-50]])
def test_a_client_that_goes_away_in_the_middle_leaves_nothing(
    server: ServerThread, sent: bytes
) -> None:
    before = server.call(lambda: len(server.server.state.connections))
    with Client(server) as client:
        client.send(sent)
        client.socket.shutdown(socket.SHUT_WR)
        assert client.at_end()

    def nothing_is_left() -> bool:
        connections, held_bytes = server.call(lambda: held(server))
        return connections <= before and held_bytes == 0

    until(nothing_is_left)


def test_names_are_percent_decoded_and_versions_live_side_by_side(server: ServerThread) -> None:
    body = json.dumps(JSON_REQUEST).encode()
    status, _, answer = ask(server, "/v2/models/a%20b%2Fc/infer", body)
    assert (status, json.loads(answer)["model_name"]) == (200, "a b/c")
    for version in ("1", "2"):
        status, _, answer = ask(server, f"/v2/models/solid/versions/{version}/infer", body)
        assert (status, json.loads(answer)["model_version"]) == (200, version)
    status, _, answer = ask(server, "/v2/models/solid/versions/3/infer", body)
    error = "the model 'solid' has no version '3'; it has 1, 2"
    assert (status, json.loads(answer)["error"]) == (404, error)
    status, _, answer = ask(server, "/v2/models/other/infer", body)
    error = "unknown model 'other'; see v2/repository/index"
    assert (status, json.loads(answer)["error"]) == (404, error)


@pytest.mark.parametrize(
    "path",
    ["/%" * 3500, "/v2/models/" + "%" * 7000 + "/infer", "/a" * 3500],
)
def test_a_path_of_countless_parts_or_escapes_holds_up_nobody(
    server: ServerThread, path: str
) -> None:
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    before = server.call(sys.getprofile)
    server.call(lambda: sys.setprofile(count))
    try:
        with Client(server) as client:
            client.send(f"POST {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
            status, _, body = client.answer()
    finally:
        server.call(lambda: sys.setprofile(before))
    assert status == 404
    assert len(json.loads(body)["error"]) < 300
    assert steps < 1000


def test_classes_come_instead_of_scores(server: ServerThread) -> None:
    status, answer = asked(
        server, {**JSON_REQUEST, "outputs": [{"name": "y", "parameters": {"classification": 2}}]}
    )
    assert status == 200
    assert answer["outputs"] == [
        {
            "name": "y",
            "datatype": "BYTES",
            "shape": [1, 2],
            "data": ["3.000000:3", "2.000000:2"],
        }
    ]


def test_what_json_has_no_number_for_is_an_error_there_and_none_in_bytes(
    server: ServerThread,
) -> None:
    body = np.array([1, 2, 3, np.inf], np.float32).tobytes()
    status, headers, answer = ask(
        server, body=body, headers={"Inference-Header-Content-Length": "0"}
    )
    assert (status, answer[int(headers["inference-header-content-length"]) :]) == (200, body)
    tensor = {**JSON_REQUEST["inputs"][0], "parameters": {"binary_data_size": 16}}
    del tensor["data"]
    head = json.dumps({"inputs": [tensor]}).encode()
    status, _, answer = ask(
        server, body=head + body, headers={"Inference-Header-Content-Length": str(len(head))}
    )
    assert status == 500
    assert json.loads(answer)["error"] == (
        "output 'y' has infinite or NaN values, which JSON can't represent: ask for it with "
        "binary_data"
    )


def test_a_wrong_method_is_told_the_right_one(server: ServerThread) -> None:
    for path, method, allowed in (
        ("/v2/models/solid/infer", "GET", "POST"),
        ("/v2", "POST", "GET"),
        ("/v2/repository/index", "DELETE", "POST"),
        ("/v2/logging", "PUT", "GET, POST"),
    ):
        status, headers, body = ask(server, path, method=method)
        assert (status, headers["allow"]) == (405, allowed)
        assert json.loads(body)["error"] == (
            f"{path} takes {allowed.replace(', ', ' or ')}; got {method}"
        )


def test_head_is_get_without_a_body(server: ServerThread) -> None:
    with Client(server) as client:
        client.send(request("/v2", method="HEAD", headers={"Connection": "close"}))
        head = b"".join(iter(lambda: client.socket.recv(4096), b""))
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"\r\n\r\n")


def test_a_head_that_is_refused_gets_no_body_either(server: ServerThread) -> None:
    with Client(server) as client:
        client.send(b"HEAD /v2 HTTP/1.1\r\nHost: here\r\nHost: there\r\n\r\n")
        got = b"".join(iter(lambda: client.socket.recv(4096), b""))
    assert got.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert got.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("size", [0, 300, 5000])
def test_a_client_that_sends_many_requests_at_once_lets_others_in_between(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    one = request("/v2/models/solid/config", method="GET", headers={"A": "a" * size})
    with turns_of(server, monkeypatch, "send") as turns, Client(server) as client:
        client.send(one)
        assert client.answer()[0] == 200
        server.call(lambda: client.send(one * 200))  # all are there when the loop looks
        answers = [client.answer() for _ in range(200)]
    assert [status for status, _, _ in answers] == [200] * 200
    # One that waited since the turn before goes first.
    assert max(turns.count(each) for each in turns) <= connection._AT_ONCE + 1


def test_few_requests_wait_on_a_connection_whatever_was_sent(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each that waits takes far more memory than its bytes."""
    waiting, begin = list[int](), Connection._begin

    def seen(self: Connection, *given: Any) -> None:
        waiting.append(len(self._backlog))
        begin(self, *given)

    monkeypatch.setattr(Connection, "_begin", seen)
    one = b"GET /v2 HTTP/1.1\r\nHost: here\r\n\r\n"
    with Client(server) as client:
        client.send(one)
        assert client.answer()[0] == 200
        server.call(lambda: client.send(one * 2000))
        assert [client.answer()[0] for _ in range(2000)] == [200] * 2000
    assert 0 < max(waiting) <= connection._HEAD_BYTES / len(one)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://here/v2", 200),
        ("HTTPS://here:80/v2?a=b", 200),
        ("http://127.0.0.1/v2", 200),
        ("http://here", 200),
        ("http://here?a=b", 200),
        ("http://here/v3", 404),
        ("http://rebound.example/v2", 403),
        ("http://rebound.example?/here", 403),
        ("http://user@here/v2", 403),
        ("http://here@rebound.example/v2", 403),
        ("ftp://here/v2", 404),
    ],
)
@pytest.mark.parametrize("upgrade", ["", "Connection: upgrade\r\nUpgrade: h2c\r\n"])
def test_the_name_in_a_target_counts_instead_of_the_host(
    server: ServerThread, target: str, status: int, upgrade: str
) -> None:
    other = "rebound.example" if status == 200 else "here"
    with Client(server) as client:
        client.send(f"GET {target} HTTP/1.1\r\nHost: {other}\r\n{upgrade}\r\n".encode())
        assert client.answer()[0] == status
    with Client(server) as client:
        client.send(f"GET {target} HTTP/1.1\r\n{upgrade}\r\n".encode())
        assert client.answer()[0] == 400
    with Client(server) as client:
        client.send(f"GET {target} HTTP/1.0\r\n{upgrade}\r\n".encode())
        assert client.answer()[0] == status


def test_an_inference_may_name_the_server_in_its_target(server: ServerThread) -> None:
    sent = request(body=json.dumps(JSON_REQUEST).encode())
    with Client(server) as client:
        client.send(sent.replace(b"/v2", b"http://here/v2", 1) + sent)
        first, second = client.answer(), client.answer()
    assert first[0] == 200
    assert first == second


@pytest.mark.parametrize(
    ("lines", "got"),
    [
        ("Transfer-Encoding: gzip, chunked", "gzip, chunked"),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", "gzip, chunked"),
        ("Transfer-Encoding: identity, chunked", "identity, chunked"),
    ],
)
def test_a_coding_of_the_transfer_that_isnt_undone_is_refused(
    server: ServerThread, lines: str, got: str
) -> None:
    with Client(server) as client:
        client.send(
            f"POST /v2/models/solid/infer HTTP/1.1\r\nHost: here\r\n{lines}\r\n\r\n".encode()
            + b"2\r\n{}\r\n0\r\n\r\n"
        )
        status, _, body = client.answer()
        assert (status, json.loads(body)["error"]) == (
            400,
            f"the only Transfer-Encoding here is chunked; got {got!r}: compress a body by Content-Encoding",
        )
        assert client.at_end()


def test_http_1_0_is_answered_and_closed(server: ServerThread) -> None:
    with Client(server) as client:
        client.send(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        assert client.answer()[0] == 200
        assert client.at_end()


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (
            b"GET /v2/health/live HTTP/2.0\r\nHost: here\r\n\r\n",
            "this server speaks HTTP/1.1 and HTTP/1.0; got HTTP/2.0",
        ),
        (
            b"GET /v2/health/live HTTP/0.9\r\n\r\n",
            "this server speaks HTTP/1.1 and HTTP/1.0; got HTTP/0.9",
        ),
        (
            b"POST /v2/models/solid/infer HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.0 has no Transfer-Encoding: send Content-Length, or HTTP/1.1",
        ),
        (
            b"POST /v2/models/solid/infer HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: h2c\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.0 has no Transfer-Encoding: send Content-Length, or HTTP/1.1",
        ),
    ],
)
def test_what_the_version_doesnt_allow_is_refused(
    server: ServerThread, sent: bytes, error: str
) -> None:
    with Client(server) as client:
        client.send(sent)
        status, _, body = client.answer()
        assert client.at_end()
    assert (status, json.loads(body)["error"]) == (400, error)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    """Serves `solid` to those who bring the token "correct-horse-battery"."""
    folder = tmp_path_factory.mktemp("closed")
    token = folder / "token"
    token.write_text("correct-horse-battery\n")
    bundle = bundle_of(folder, solid(folder))
    with ServerThread(place_of(bundle), token_file=token, limits=LIMITS) as one:
        yield one


@pytest.mark.parametrize(
    "path", ["/", "/v2/health/live", "/v2/health/ready/", "/v2/models/solid/infer"]
)
@pytest.mark.parametrize("size", ["Content-Length: 1048576", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("offer", ["", "Connection: upgrade\r\nUpgrade: h2c\r\n"])
def test_no_body_is_taken_from_who_brings_no_token(
    closed: ServerThread, path: str, size: str, offer: str
) -> None:
    with Client(closed) as client:
        with contextlib.suppress(ConnectionError):
            client.send(f"POST {path} HTTP/1.1\r\nHost: here\r\n{offer}{size}\r\n\r\n".encode())
            client.send(b"80000\r\n" + bytes(1 << 19))
        status, _, body = client.answer()
        assert closed.call(lambda: held(closed))[1] == 0
    assert (status, json.loads(body)["error"]) == (
        401,
        "this server requires a token: send Authorization: Bearer TOKEN",
    )


def test_the_case_of_the_tokens_scheme_doesnt_matter(closed: ServerThread) -> None:
    for given, status in (
        ("bearer correct-horse-battery", 200),
        ("BEARER  correct-horse-battery", 200),
        ("bearer Correct-horse-battery", 401),
        ("bearercorrect-horse-battery", 401),
        ("bearer", 401),
        ("Basic correct-horse-battery", 401),
    ):
        assert ask(closed, "/v2", method="GET", headers={"Authorization": given})[0] == status


def test_a_token_is_asked_for_everywhere_but_at_health(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("correct-horse-battery\n")
    bundle = bundle_of(tmp_path, solid(tmp_path))
    with ServerThread(place_of(bundle), token_file=token) as server:
        assert ask(server, "/v2/health/ready", method="GET")[0] == 200
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "correct"}):
            status, headers, body = ask(server, "/v2", method="GET", headers=given)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert json.loads(body)["error"] == (
                "this server requires a token: send Authorization: Bearer TOKEN"
            )
        right = {"Authorization": "Bearer correct-horse-battery"}
        assert ask(server, "/v2", method="GET", headers=right)[0] == 200
        body = json.dumps(JSON_REQUEST).encode()
        assert ask(server, body=body)[0] == 401
        assert ask(server, body=body, headers=right)[0] == 200
