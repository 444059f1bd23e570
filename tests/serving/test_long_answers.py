"""Answers that take long to rank, to write as JSON or to compress: other clients are answered meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import importlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import parser, save
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S, until

from hasten.core.tensors import Array
from hasten.serving.coding import Coding
from hasten.serving.grpc.calls import Inference
from hasten.serving.protocol.messages import SERVICE, message
from hasten.serving.protocol.requests import Answer, Query, Region, WantedOutput
from hasten.serving.wire import classes
from hasten.serving.wire.classes import classes_of
from hasten.serving.wire.grpc_messages import is_slow
from hasten.serving.wire.http_bodies import slow_bytes, write_answer
from hasten.serving.wire.shared_memory import SharedMemory

ROW = np.array([[0.25, -1, 3, 2]], np.float32)
TIMES = 50_000
LONG = np.tile(ROW[0], TIMES)
CLASSES = {"outputs": [{"name": "y", "parameters": {"classification": 3}}]}
HEADS, WIDE = 60, 2048
"""Outputs of the model `heads`, each of which alone is quickly named, and their scores."""
X = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": ROW[0].tolist()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    """A server of `long`, which repeats x: [batch, 4] to y: [batch, 200000], and of `heads`, to many outputs."""
    folder = tmp_path_factory.mktemp("long")
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        long (float[batch, 4] x) => (float[batch, {4 * TIMES}] y) <int64[2] times = {{1, {TIMES}}}>
        {{ y = Tile(x, times) }}"""
    save(parser.parse_model(text), folder / "long.onnx")
    outputs = ", ".join(f"float[batch, {WIDE}] y{at}" for at in range(HEADS))
    nodes = " ".join(f"y{at} = Tile(x, times)" for at in range(HEADS))
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        heads (float[batch, 4] x) => ({outputs}) <int64[2] times = {{1, {WIDE // 4}}}> {{ {nodes} }}"""
    save(parser.parse_model(text), folder / "heads.onnx")
    places = [place_of(bundle_of(folder, folder / f"{name}.onnx")) for name in ("long", "heads")]
    with ServerThread(*places, grpc=True) as one:
        yield one


def post(
    server: ServerThread, body: dict[str, Any], model: str = "long", **headers: str
) -> tuple[int, bytes]:
    client = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE_S)
    try:
        client.request("POST", f"/v2/models/{model}/infer", json.dumps(body), headers)
        answer = client.getresponse()
        return answer.status, answer.read()
    finally:
        client.close()


def numbers(server: ServerThread) -> Any:
    status, body = post(server, {"inputs": [X]})
    return status, json.loads(body)["outputs"][0]["data"]


def packed(server: ServerThread) -> Any:
    body = {"inputs": [X], "parameters": {"binary_data_output": True}}
    status, body_ = post(server, body, **{"Accept-Encoding": "gzip"})
    whole = gzip.decompress(body_)
    return status, np.frombuffer(whole[-LONG.nbytes :], np.float32).tolist()


def ranked(server: ServerThread) -> Any:
    status, body = post(server, {"inputs": [X], **CLASSES})
    return status, json.loads(body)["outputs"][0]["data"]


def heads(server: ServerThread) -> Any:
    named = {"parameters": {"classification": WIDE}}
    outputs = [{"name": f"y{at}", **named} for at in range(HEADS)]
    status, body = post(server, {"inputs": [X], "outputs": outputs}, "heads")
    return status, [each["data"] for each in json.loads(body)["outputs"]]


def asking(model: str = "long", count: int = 3, outputs: Sequence[str] = ("y",)) -> bytes:
    request = message("ModelInferRequest")(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    for name in outputs:
        request.outputs.add(name=name).parameters["classification"].int64_param = count
    request.raw_input_contents.append(ROW.tobytes())
    return request.SerializeToString()  # type: ignore[no-any-return]


def texts(answer: Any, at: int = 0) -> list[str]:
    """Texts of an output of datatype BYTES, each behind its length."""
    found, data = [], answer.raw_output_contents[at]
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        found.append(data[4:end].decode())
        data = data[end:]
    return found


def called(server: ServerThread, asked: bytes) -> Any:
    with grpc.insecure_channel(server.grpc_url) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        answer, ended = call.with_call(asked, timeout=PATIENCE_S)
    assert ended.code().name == "OK"
    return message("ModelInferResponse").FromString(answer)


def ranked_over_grpc(server: ServerThread) -> Any:
    return 200, texts(called(server, asking()))


def heads_over_grpc(server: ServerThread) -> Any:
    answer = called(server, asking("heads", WIDE, [f"y{at}" for at in range(HEADS)]))
    return 200, [texts(answer, at) for at in range(HEADS)]


def ranked_in_a_stream(server: ServerThread) -> Any:
    with grpc.insecure_channel(server.grpc_url) as channel:
        call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        (answer,) = call(iter([asking()]), timeout=PATIENCE_S)
    found = message("ModelStreamInferResponse").FromString(answer)
    assert not found.error_message
    return 200, texts(found.infer_response)


MANY = 8
"""Rows whose answers together are so long that they are copied on a thread."""


def rows() -> bytes:
    request = message("ModelInferRequest")(model_name="long")
    request.inputs.add(name="x", datatype="FP32", shape=[MANY, 4])
    request.raw_input_contents.append(np.tile(ROW, (MANY, 1)).tobytes())
    return request.SerializeToString()  # type: ignore[no-any-return]


def is_whole(answer: Any) -> bool:
    return bool(answer.raw_output_contents[0] == np.tile(LONG, MANY).tobytes())


def bytes_over_grpc(server: ServerThread) -> Any:
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.grpc_url, options) as channel:
        answer = channel.unary_unary(f"/{SERVICE}/ModelInfer")(rows(), timeout=PATIENCE_S)
    return 200, is_whole(message("ModelInferResponse").FromString(answer))


def bytes_in_a_stream(server: ServerThread) -> Any:
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server.grpc_url, options) as channel:
        call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        (answer,) = call(iter([rows()]), timeout=PATIENCE_S)
    return 200, is_whole(message("ModelStreamInferResponse").FromString(answer).infer_response)


HIGHEST = ["3.000000:2", "3.000000:6", "3.000000:10"]
PLACES = sorted(range(WIDE), key=lambda place: (-ROW[0, place % 4], place))
EVERY = [[f"{ROW[0, place % 4]:f}:{place}" for place in PLACES]] * HEADS
WAYS: list[tuple[Callable[[ServerThread], Any], str, Any]] = [
    (numbers, "http.exchange", LONG.tolist()),
    (packed, "http.exchange", LONG.tolist()),
    (ranked, "http.exchange", HIGHEST),
    (ranked_over_grpc, "grpc.calls", HIGHEST),
    (ranked_in_a_stream, "grpc.calls", HIGHEST),
    (heads, "http.exchange", EVERY),
    (heads_over_grpc, "grpc.calls", EVERY),
    (bytes_over_grpc, "grpc.calls", True),
    (bytes_in_a_stream, "grpc.calls", True),
]


@pytest.mark.parametrize(
    ("way", "module", "expected"), WAYS, ids=[way.__name__ for way, *_ in WAYS]
)
def test_others_are_answered_while_a_long_answer_is_written(
    server: ServerThread,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[ServerThread], Any],
    module: str,
    expected: Any,
) -> None:
    place = f"hasten.serving.{module}.write_answer"
    real = importlib.import_module(f"hasten.serving.{module}").write_answer
    writing, answered = threading.Event(), threading.Event()

    def held_up(*given: Any) -> Any:
        writing.set()
        assert answered.wait(PATIENCE_S)
        return real(*given)

    monkeypatch.setattr(place, held_up)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(way, server)
        assert writing.wait(PATIENCE_S)
        client = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE_S)
        client.request("GET", "/v2/models/long")
        assert client.getresponse().status == 200
        client.close()
        assert server.call(lambda: server.server.state.body_bytes) > LONG.nbytes // 2
        answered.set()
        assert slow.result(PATIENCE_S) == (200, expected)
    until(lambda: server.call(lambda: server.server.state.body_bytes) == 0)


@pytest.mark.parametrize("way", [bytes_over_grpc, bytes_in_a_stream])
def test_a_long_answer_is_copied_on_a_thread_even_if_all_else_of_it_is_known(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch, way: Callable[[ServerThread], Any]
) -> None:
    for _ in range(3):  # so that a plan is kept
        assert way(server) == (200, True)
    place, threads = importlib.import_module("hasten.serving.grpc.calls"), list[str]()
    real = place.write_answer

    def noted(*given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return real(*given)

    monkeypatch.setattr(place, "write_answer", noted)
    assert way(server) == (200, True)
    assert [name.startswith("hasten-coding") for name in threads] == [True]


def test_the_library_of_grpc_gets_few_bytes_of_answers_in_one_turn_of_the_loop(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library copies each answer on the loop's thread; those of a batch are there at the same moment."""
    model = server.server.state.repository.find("long")
    turn, handed, loop = [0], Counter[int](), server._loop
    end, submit = Inference.end, model._batching.submit
    together: list[Any] = []

    def next_turn() -> None:
        turn[0] += 1
        if not stopped.is_set():
            loop.call_soon(next_turn)

    def ended(inference: Inference) -> None:
        handed[turn[0]] += LONG.nbytes
        end(inference)

    def submitted(item: Any) -> None:
        together.append(item)
        if len(together) == MANY:  # so that all are in one batch
            for one in together:
                submit(one)

    stopped = threading.Event()
    monkeypatch.setattr(Inference, "end", ended)
    monkeypatch.setattr(model._batching, "submit", submitted)
    asked = message("ModelInferRequest")(model_name="long")
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    asked.raw_input_contents.append(ROW.tobytes())
    with grpc.insecure_channel(server.grpc_url) as channel:
        server.call(next_turn)
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        calls = [call.future(asked.SerializeToString()) for _ in range(MANY)]
        assert all(len(one.result(PATIENCE_S)) > LONG.nbytes for one in calls)
        stopped.set()
    assert sum(handed.values()) == MANY * LONG.nbytes
    assert max(handed.values()) <= 4 << 20


def waiting(server: ServerThread) -> int:
    """How many answers, or bodies, wait for a thread."""
    lines = server.server.state.coding._waiting
    return server.call(lambda: sum(map(len, lines.values())))


@pytest.mark.parametrize("how", ["HTTP", "gRPC"])
def test_a_clients_long_answer_does_not_wait_behind_all_of_anothers(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    go_on, order = threading.Event(), list[str]()

    def held_up(real: Any) -> Any:
        def write(answer: Answer, query: Query, *rest: Any) -> Any:
            order.append(query.client)
            assert go_on.wait(PATIENCE_S)
            return real(answer, query, *rest)

        return write

    for module in ("http.exchange", "grpc.calls"):
        place = importlib.import_module(f"hasten.serving.{module}")
        monkeypatch.setattr(place, "write_answer", held_up(place.write_answer))
    with ThreadPoolExecutor(9) as pool:
        asks = numbers if how == "HTTP" else ranked_over_grpc
        greedy = [pool.submit(asks, server) for _ in range(8)]
        until(lambda: waiting(server) == 6)
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", server.http_port, PATIENCE_S, ("127.0.0.2", 0))
        ) as client:
            client.request("POST", "/v2/models/long/infer", json.dumps({"inputs": [X]}))
            until(lambda: waiting(server) == 7)
            go_on.set()
            assert client.getresponse().status == 200
        assert all(each.result(PATIENCE_S)[0] == 200 for each in greedy)
    assert order.index("127.0.0.2") <= 3


def test_what_waits_for_a_thread_ends_with_the_server() -> None:
    """Else its requests would wait for ever, where the loop goes on without the server."""
    go_on = threading.Event()

    async def close() -> list[Any]:
        coding = Coding()
        all_ = [coding.work("ann", go_on.wait, PATIENCE_S) for _ in range(4)]
        coding.close()
        go_on.set()
        with pytest.raises(RuntimeError):
            coding.work("ann", go_on.wait)
        assert not coding._waiting
        return await asyncio.wait_for(asyncio.gather(*all_, return_exceptions=True), PATIENCE_S)

    ended = asyncio.run(close())
    assert all(one is True or isinstance(one, asyncio.CancelledError) for one in ended)
    assert any(isinstance(one, asyncio.CancelledError) for one in ended)


def test_nothing_is_written_for_those_who_left(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads write; what waits for them is given up, and counts no more, when its client leaves."""
    state = server.server.state
    go_on, begun = threading.Event(), threading.Semaphore(0)
    written: list[str] = []

    def held_up(real: Any, name: str) -> Any:
        def write(*given: Any) -> Any:
            written.append(name)
            begun.release()
            assert go_on.wait(PATIENCE_S)
            return real(*given)

        return write

    for module in ("http.exchange", "grpc.calls"):
        place = importlib.import_module(f"hasten.serving.{module}")
        monkeypatch.setattr(place, "write_answer", held_up(place.write_answer, module))
    body = json.dumps({"inputs": [X]})
    clients = []
    for number in range(6):
        client = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE_S)
        client.request("POST", "/v2/models/long/infer", body)
        clients.append(client)
        if number < 2:
            assert begun.acquire(timeout=PATIENCE_S)
    assert server.call(lambda: state.body_bytes) > 6 * LONG.nbytes
    with grpc.insecure_channel(server.grpc_url) as channel:
        call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter([asking()] * 8))
        until(lambda: waiting(server) == 4 + 8)
        call.cancel()
    for client in clients:
        client.close()
    until(lambda: server.call(lambda: state.body_bytes) == 0)
    go_on.set()
    assert numbers(server) == (200, LONG.tolist())
    assert written == ["http.exchange"] * 3


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u8", "?"])
def test_long_lists_of_numbers_are_written_whole(dtype: str) -> None:
    y = (np.arange(3 * 65_536 + 5) % 250).astype(dtype)
    answer = Answer("m", "1", "", {"y": y})
    pieces, _ = write_answer(answer, Query("m", "", "", {}), SharedMemory(), batched=False)
    assert json.loads(b"".join(pieces))["outputs"][0]["data"] == y.tolist()


def test_texts_that_only_shared_memory_gets_are_written_on_a_thread_too() -> None:
    region = WantedOutput("y", region=Region("place", 0, 1 << 20))
    query = Query("m", "1", "", {}, (region,))
    for count, is_long in ((100, False), (100_000, True)):
        answer = Answer("m", "1", "", {"y": np.full(count, b"text", object)})
        assert (slow_bytes(answer, query, False, False) > 0) == is_long
        assert is_slow(answer, query, False) == is_long


@pytest.mark.parametrize("outputs", [1, 40])
def test_no_long_text_is_written_in_one_step_during_which_no_other_thread_runs(
    outputs: int,
) -> None:
    y = np.arange(40 * 65_536, dtype=np.float32) / 7
    made = {f"y{at}": each for at, each in enumerate(np.split(y, outputs))}
    wanted = [WantedOutput(name, False) for name in made] + [WantedOutput("last", True)]
    answer = Answer("m", "1", "a", {**made, "last": y[:3]}, {"p": 1})
    query = Query("m", "", "a", {}, tuple(wanted))
    pieces, length = write_answer(answer, query, SharedMemory(), batched=False)
    text, rest = b"".join(pieces)[:length], b"".join(pieces)[length:]
    assert max(map(len, pieces)) < 20 * 65_536
    assert rest == y[:3].tobytes()
    said = json.loads(text)
    assert (said["model_name"], said["id"], said["parameters"]) == ("m", "a", {"p": 1})
    assert [each["name"] for each in said["outputs"]] == [*made, "last"]
    found = np.concatenate([np.array(each["data"], np.float32) for each in said["outputs"][:-1]])
    assert np.array_equal(found, y)


SCORES = st.one_of(
    arrays.arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([0, -0.0, 1, 2.5, -1])),
    arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(width=64)),
    arrays.arrays(np.int64, st.integers(1, 40)),
    arrays.arrays(np.uint8, st.integers(1, 40)),
)


@pytest.mark.parametrize("short", [0, 256])
@given(scores=SCORES, count=st.integers(1, 45))
def test_the_highest_scores_are_the_first_of_all_in_order(
    scores: Array, count: int, short: int
) -> None:
    whole = scores.dtype.kind in "iu"
    order = np.argsort(~scores if whole else -scores, kind="stable")[:count]
    with patch.object(classes, "_SHORT", short):
        named = classes_of(scores, count, batched=False)
    assert [int(each.rpartition(b":")[2]) for each in named] == order.tolist()


def test_few_of_many_scores_take_no_sort_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_: list[int] = []
    real = np.argsort

    def counted(keys: Array, *args: Any, **more: Any) -> Array:
        sorted_.append(len(keys))
        return real(keys, *args, **more)

    monkeypatch.setattr(np, "argsort", counted)
    classes_of(np.arange(100_000, dtype=np.float32), 5, batched=False)
    classes_of(np.zeros(100_000, np.float32), 5, batched=False)
    assert max(sorted_) <= 5
