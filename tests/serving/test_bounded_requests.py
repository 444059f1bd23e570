"""Small requests that announce, repeat or hide much: what a real server's process takes for them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import parser, save
from tests.support.models import identity, solid
from tests.support.servers import ServerProcess, ServerThread, bundle_of, place_of
from tests.support.waiting import until

from hasten.core.tensors import TensorSpec
from hasten.engines.onnxruntime.session import OnnxRuntimeSession
from hasten.serving.fairness import Shares
from hasten.serving.grpc.reading_ahead import Together
from hasten.serving.grpc.unread import Debt, Place, Unread
from hasten.serving.models.answer_sizes import size_of
from hasten.serving.owed_answers import Holding, OwedAnswers
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.messages import message
from hasten.serving.settings import ModelPlace
from hasten.serving.state import Limits
from hasten.serving.wire.classes import classes_of
from hasten.serving.wire.http_bodies import decompressed, read_body
from hasten.serving.wire.shared_memory import SharedMemory

MIB = 1 << 20
SIZE = 16 * MIB
MOST_MIB = 112
"""More memory than a body and some copies of it take, and less than each of the attacks once took."""
X: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
SAID = (
    "a request's names, shapes and parameters take more than the limit of 1,048,576 bytes: leave "
    "some out"
)


def wide(folder: Path, columns: int = 4 << 20) -> Path:
    """Tiles x: [batch, 4] to y: [batch, columns], by default 16 MiB a row."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        wide (float[batch, 4] x) => (float[batch, {columns}] y) <int64[2] times = {{1, {columns // 4}}}>
        {{ y = Tile(x, times) }}"""
    save(parser.parse_model(text), folder / "wide.onnx")
    return folder / "wide.onnx"


class Bounded:
    """A server of `solid`, x: [batch, 4] -> y, and the memory of its process."""

    def __init__(self, process: ServerProcess) -> None:
        self._process = process
        self._before_mib = process.memory_mib("VmRSS")

    @property
    def taken_mib(self) -> int:
        """Most memory that the server has taken since its start."""
        return self._process.memory_mib("VmHWM") - self._before_mib

    def post(self, body: bytes, **headers: str) -> tuple[int, str]:
        client = http.client.HTTPConnection("127.0.0.1", self._process.http_port, timeout=120)
        try:
            client.request("POST", "/v2/models/solid/infer", body, headers)
            answer = client.getresponse()
            return answer.status, json.loads(answer.read()).get("error", "")
        finally:
            client.close()

    def call(self, method: str, request: bytes, packing: str = "NoCompression") -> tuple[str, str]:
        """Status and details of a request over gRPC; the details are "" where it is answered."""
        import grpc

        options = [("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(f"127.0.0.1:{self._process.grpc_port}", options) as channel:
            called = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            try:
                called(request, timeout=120, compression=getattr(grpc.Compression, packing))
            except grpc.RpcError as error:
                return error.code().name, str(error.details())
        return "OK", ""


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bounded]:
    folder = tmp_path_factory.mktemp("bounded")
    with ServerProcess(bundle_of(folder, solid(folder)), "--grpc", "0") as process:
        yield Bounded(process)


def filled(begin: bytes, unit: bytes, end: bytes, size: int = SIZE) -> bytes:
    return begin + unit * ((size - len(begin) - len(end)) // len(unit)) + end


INPUT = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],'


@pytest.mark.parametrize(
    ("begin", "unit", "end", "error"),
    [
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[', b"1,", b"1]}]}", SAID),
        (INPUT + b'"parameters":{"a":[', b"[],", b"0]}}]}", SAID),
        (b'{"inputs":[],"parameters":{"a":[', b"{},", b"0]}}", SAID),
        (b'{"inputs":[', b'{"name":""},', b'{"name":""}]}', SAID),
        (b'{"inputs":[],"outputs":[', b'{"name":"y"},', b'{"name":"y"}]}', SAID),
        (b'{"inputs":[{"name":"', rb"\u0001", b'"}]}', SAID),
        (b'{"id":"', b"a", b'","inputs":[]}', SAID),
        (INPUT + b'"data":[', b"0,", b"0]}]}", "input 'x': [1, 4] has 4 elements; got 8,388,575"),
        (INPUT + b'"data":[', b"[],", b"0]}]}", "input 'x': [1, 4] has 4 elements; got 5,592,383"),
    ],
)
def test_json_takes_no_memory_for_each_part_of_what_is_refused(
    bounded: Bounded, begin: bytes, unit: bytes, end: bytes, error: str
) -> None:
    body = filled(begin, unit, end)

    status, said = bounded.post(body)

    assert status in (400, 413)
    assert said == error
    status, said = bounded.post(gzip.compress(body), **{"Content-Encoding": "gzip"})
    assert (status, said.partition(": ")[2]) == (413, "send it without Content-Encoding")
    assert bounded.taken_mib < MOST_MIB


def test_json_of_an_inference_has_a_bound_of_its_own(bounded: Bounded) -> None:
    assert bounded.post(b'{"zzz":"' + b" " * SIZE + b'"}') == (
        413,
        "the JSON of a request takes at most 16,777,216 bytes; got 16,777,226: send tensors as bytes after "
        "it (binary_data_size) or over gRPC, or several requests, or start the server with --max-body 65MiB",
    )


OPEN = '{"inputs":[{"name":"x","datatype":"%s","shape":%s,"data":[%s]}]}'


@pytest.mark.parametrize(
    ("datatype", "units", "shape"),
    [
        ("FP32", ("0,", "1e99"), [-1]),
        ("FP32", ("0,", "null"), [-1]),
        ("INT32", ("0,", "1.5"), [-1]),
        ("INT8", ("0,", "300"), [-1]),
        ("BOOL", ("0,", "2"), [-1]),
        ("FP32", ("[0],", "0"), [-1, 1]),
        ("FP32", ("[0],", "[null]"), [-1, 1]),
        ("FP32", ("[],", "[]"), [-1, 1]),
        ("FP32", ("[],", "[]"), [-1, 0]),
        ("FP32", ("[[[[0]]]],", "[[[[0]]]]"), [-1, 1, 1, 1, 1, 1]),
    ],
)
def test_no_object_is_made_for_each_part_of_a_long_list_of_numbers(
    datatype: str, units: tuple[str, str], shape: list[int]
) -> None:
    count = 600_000
    shape = [count + 1, *shape[1:]]
    body = (OPEN % (datatype, shape, units[0] * count + units[1])).encode()

    tracemalloc.start()
    with pytest.raises(ProtocolError) as caught:
        read_body(body, None, "m", "", SharedMemory(), 64 * MIB)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert str(caught.value) == (
        f"input 'x': its data is not a list of {datatype}, flat or nested like {shape}"
    )
    assert most_bytes < 10 * len(body) + 8 * MIB


def test_a_long_list_of_true_and_false_is_read() -> None:
    body = (OPEN % ("BOOL", [100_000, 2], "[true,false]," * 99_999 + "[0, 1]")).encode()
    array = read_body(body, None, "m", "", SharedMemory(), 64 * MIB).inputs["x"]
    assert array.dtype == np.bool_
    assert array[0].tolist() == [True, False]
    assert array[-1].tolist() == [False, True]


def field(number: int, content: bytes) -> bytes:
    """A field of a message, as protobuf writes it."""
    length, size = b"", len(content)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def asking(*fields: bytes, model: bytes = b"solid") -> bytes:
    tensor = field(1, b"x") + field(2, b"FP32") + b"".join(fields)
    return field(1, model) + field(5, tensor)


SHAPE = field(3, b"\1\4")
AXES = "a tensor has at most 32 axes, but an input has a shape of {} bytes"
UNTOLD = "the request is not a ModelInferRequest: it has too many fields, or they can't be parsed"
FEW = "a request has at most 4,096 inputs, outputs and parameters"


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (asking(field(3, b"\1" * SIZE)), AXES.format("16,777,221")),
        (asking(field(3, b"\1" * 400)), AXES.format("403")),
        (asking(b"\x18\1" * 2000), AXES.format("4,000")),
        (asking(b"\x18\1" * (SIZE // 2)), UNTOLD),
        (asking(SHAPE) + field(6, field(1, b"y") + field(2, field(1, b"a")) * 5000), FEW),
        (asking(SHAPE, model=b"\1" * SIZE), SAID),
        (asking(SHAPE, b"\x2a\0" * (SIZE // 2)), FEW),
        (b"\x78\1" + b"\x2a\0" * (SIZE // 2), FEW),
        (b"\x78\1" * (SIZE // 2), UNTOLD),
        (b"\x7b\x7c" + field(6, field(2, field(1, b"a")) * 9000), UNTOLD),
        (
            asking(SHAPE, field(5, field(3, b"\1" * SIZE))),
            "input 'x': FP32[1, 4] has 4 elements, but its contents of 16,777,221 bytes have more",
        ),
        (
            asking(SHAPE, field(5, b"\x42\0" * (SIZE // 2))),
            "input 'x': FP32[1, 4] has 4 elements, but its contents of 16,777,216 bytes have more",
        ),
        (
            asking(SHAPE, field(5, b"\xff" * 2000)),
            "input 'x': FP32[1, 4] has 4 elements, but its contents of 2,000 bytes have more",
        ),
    ],
)
def test_a_message_takes_no_memory_for_each_part_of_what_is_refused(
    bounded: Bounded, request_: bytes, error: str
) -> None:
    called = bounded.call("ModelInfer", request_ + field(3, b" " * 40_000))
    assert called == ("INVALID_ARGUMENT", error)
    assert bounded.taken_mib < MOST_MIB


def test_no_other_method_takes_a_long_message(bounded: Bounded) -> None:
    assert bounded.call("ModelReady", field(1, b"\1" * SIZE)) == ("INVALID_ARGUMENT", SAID)
    assert bounded.taken_mib < MOST_MIB


def test_a_question_about_health_is_answered_without_its_message(tmp_path: Path) -> None:
    with ServerProcess(bundle_of(tmp_path, solid(tmp_path)), "--grpc", "0") as process:
        fresh = Bounded(process)
        assert fresh.call("ServerLive", bytes(60 * MIB)) == ("OK", "")
        assert fresh.taken_mib < MOST_MIB // 2


@pytest.mark.parametrize("packing", ["Gzip", "Deflate"])
@pytest.mark.parametrize("method", ["ModelReady", "ModelInfer"])
def test_nothing_is_decompressed_by_the_library_of_grpc(
    bounded: Bounded, method: str, packing: str
) -> None:
    packed = bounded.call(method, bytes(60 * MIB), packing)
    assert packed == ("UNIMPLEMENTED", f"Compression algorithm '{packing.lower()}' is disabled.")
    assert bounded.taken_mib < MOST_MIB


def test_numbers_are_nested_about_as_deeply_as_the_shape() -> None:
    head = INPUT + b'"data":[[[[[[[1,2,3,4]]]]]]]}]}'
    with pytest.raises(ProtocolError) as caught:
        read_body(head, None, "solid", "", SharedMemory(), MIB)
    assert str(caught.value) == "input 'x': its data is nested deeper than [1, 4]"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (["a"] * 3, "input 'raw': its data has more texts than the 2 elements of its shape"),
        (["a"], "input 'raw': its shape has 2 elements; got 1"),
        (
            [["a"], ["b"]],
            "input 'raw': its data must be a flat list of texts: Expected `str`, got `array` - at `$[0]`",
        ),
    ],
)
def test_texts_are_as_many_as_the_shape_says(data: list[Any], error: str) -> None:
    tensor = {"name": "raw", "datatype": "BYTES", "shape": [2], "data": data}
    with pytest.raises(ProtocolError) as caught:
        read_body(json.dumps({"inputs": [tensor]}).encode(), None, "m", "", SharedMemory(), MIB)
    assert str(caught.value) == error


def test_texts_may_hold_quotes_backslashes_and_commas() -> None:
    texts = ['"', "\\", '\\"', ",", "", '["a", "b"]', "\\\\"]
    tensor = {"name": "raw", "datatype": "BYTES", "shape": [len(texts)], "data": texts}
    body = json.dumps({"inputs": [tensor]}).encode()
    query = read_body(body, None, "m", "", SharedMemory(), MIB)
    assert [each.decode() for each in query.inputs["raw"]] == texts


def test_few_scores_are_named() -> None:
    with pytest.raises(ProtocolError) as caught:
        classes_of(np.zeros((2, 40_000), np.float32), 33_000, True)
    assert str(caught.value) == (
        "classification names at most 65,536 scores of an output; got 2 rows of 33,000: ask for fewer, "
        "or for the output itself"
    )


def test_a_body_that_decompresses_to_far_more_than_it_is_is_refused() -> None:
    small, large = gzip.compress(bytes(4 * MIB)), gzip.compress(bytes(5 * MIB))
    assert len(decompressed(small, "gzip", 64 * MIB)) == 4 * MIB
    with pytest.raises(ProtocolError) as caught:
        decompressed(large, "gzip", 64 * MIB)
    assert caught.value.kind is Kind.TOO_LARGE
    assert str(caught.value) == (
        f"the body of {len(large):,} bytes decompresses to more than 4,194,304: send it without "
        "Content-Encoding"
    )


@pytest.mark.parametrize("length", [True, False])
def test_compressed_numbers_are_not_parsed_for_long(bounded: Bounded, length: bool) -> None:
    """Neither where the JSON is all, nor where its length is stated."""
    body = (OPEN % ("FP32", [1 << 19, 1, 1], "0," * ((1 << 19) - 1) + "0")).encode()
    packed = gzip.compress(body)
    headers = {"Content-Encoding": "gzip"}
    if length:
        headers["Inference-Header-Content-Length"] = str(len(body))
    assert len(packed) < 4096
    assert bounded.post(packed, **headers) == (
        413,
        f"the JSON of a compressed body of {len(packed):,} bytes takes at most 1,048,576; got "
        f"{len(body):,}: send it without Content-Encoding",
    )


def test_compressed_numbers_of_a_picture_are_read(tmp_path: Path) -> None:
    """A compressor leaves a third of them; a body that isn't compressed may say so."""
    numbers = np.random.default_rng(0).random(32_000)
    body = (OPEN % ("FP32", [32, 1000], ",".join(f"{one:.40f}" for one in numbers))).encode()
    assert len(body) > MIB
    with ServerThread(place_of(bundle_of(tmp_path, identity(tmp_path), "identity"))) as server:
        for encoding, sent in (("gzip", gzip.compress(body)), ("identity", body)):
            client = http.client.HTTPConnection(server.host, timeout=120)
            with contextlib.closing(client):
                headers = {"Content-Encoding": encoding}
                client.request("POST", "/v2/models/identity/infer", sent, headers)
                answer = client.getresponse()
                text = answer.read()
                assert answer.status == 200, text


@pytest.mark.parametrize(
    "deep", ["[" * 900 + "]" * 900, '{"a":' * 900 + "1" + "}" * 900, "[[1],[]]"]
)
def test_a_parameter_is_no_list_or_object(bounded: Bounded, deep: str) -> None:
    kind = "array" if deep.startswith("[") else "object"
    said = (
        "parameters are an object, and each is a number, a text, true or false: "
        f"Expected `bool | int | float | str | null`, got `{kind}` - at `$[...]`"
    )
    for body in (
        f'{{"inputs":[],"parameters":{{"a":{deep}}}}}',
        f'{{"inputs":[{json.dumps(X)[:-1]},"parameters":{{"a":{deep}}}}}]}}',
    ):
        assert bounded.post(body.encode()) == (
            400,
            f"the request doesn't follow the protocol: {said}",
        )


@pytest.mark.parametrize(
    ("path", "name", "wanted"),
    [
        ("/v2/repository/index", "ready", "true or false"),
        ("/v2/logging", "log_info", "true or false"),
        ("/v2/logging", "log_verbose_level", "a whole number of at least 0"),
    ],
)
def test_what_is_nested_deeply_is_not_written_into_a_message(
    tmp_path: Path, path: str, name: str, wanted: str
) -> None:
    with ServerThread(place_of(bundle_of(tmp_path, solid(tmp_path))), control=True) as server:

        def post(body: str) -> tuple[int, str]:
            client = http.client.HTTPConnection(server.host, timeout=120)
            with contextlib.closing(client):
                client.request("POST", path, body, {"Content-Type": "application/json"})
                answer = client.getresponse()
                return answer.status, json.loads(answer.read())["error"]

        for deep, kind in (("[" * 1000 + "]" * 1000, "a list"), ('{"a": {}}', "an object")):
            said = f"{name} must be {wanted}; got {kind}"
            assert post(f'{{"{name}": {deep}}}') == (400, said)
        long = "x" * 65_536
        assert post(f'{{"{name}": "{long[:90]}"}}') == (
            400,
            f"{name} must be {wanted}; got {long[:40]!r}",
        )
        said = "a request that isn't an inference has at most 65,536 bytes of JSON; got "
        assert post(f'{{"{name}": "{long}"}}')[1].startswith(said)


ROW = asking(SHAPE, model=b"wide") + field(7, np.ones(4, np.float32).tobytes())
BINARY = json.dumps({"inputs": [X], "parameters": {"binary_data_output": True}}).encode()


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    """A server of `wide`, whose bodies and answers have room for two answers."""
    folder = tmp_path_factory.mktemp("answering")
    place = place_of(bundle_of(folder, wide(folder)))
    with ServerThread(place, grpc=True, limits=Limits(bodies_bytes=40 * MIB)) as server:
        yield server


@contextlib.contextmanager
def inferring(server: ServerThread) -> Iterator[http.client.HTTPResponse]:
    """Ask for a large answer, and read no more than its head."""
    client = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=120)
    with contextlib.closing(client):
        client.request("POST", "/v2/models/wide/infer", BINARY)
        with client.getresponse() as answer:
            yield answer


def is_held(server: ServerThread, least: int, most: int) -> bool:
    return least <= server.call(lambda: server.server.state.body_bytes) <= most


def test_answers_that_nobody_reads_are_counted_and_the_next_waits_for_room(
    answering: ServerThread,
) -> None:
    with inferring(answering) as first, inferring(answering) as second:
        assert (first.status, second.status) == (200, 200)
        assert is_held(answering, 24 * MIB, 40 * MIB)
        with inferring(answering) as third:
            assert (third.status, json.loads(third.read())["error"]) == (
                503,
                "overloaded: requests with 41,943,040 bytes are in progress; retry later",
            )
    until(lambda: is_held(answering, 0, 0))
    with inferring(answering) as again:
        assert again.status == 200


def test_answers_of_a_stream_are_counted_until_they_are_sent(answering: ServerThread) -> None:
    import grpc

    with grpc.insecure_channel(answering.grpc_url) as channel:
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        answers = stream(iter([ROW, ROW]))
        until(lambda: is_held(answering, 16 * MIB, 17 * MIB))  # the second isn't read yet
        answers.cancel()
        until(lambda: is_held(answering, 0, 0))


@pytest.mark.parametrize("before", [0, 500], ids=["at once", "after small ones"])
def test_no_more_of_a_stream_is_read_while_8_mib_of_answers_wait(
    tmp_path: Path, before: int
) -> None:
    """The client reads the small answers, and then none until the server has had time to read all it would."""
    import grpc

    large = wide(tmp_path, 1 << 18)
    places = [place_of(bundle_of(tmp_path, large)), place_of(bundle_of(tmp_path, solid(tmp_path)))]
    small = asking(SHAPE, model=b"solid") + field(7, np.ones(4, np.float32).tobytes())
    read = threading.Event()

    def requests() -> Iterator[bytes]:
        yield from [small] * before
        read.wait(120)
        yield from [ROW] * 128

    with (
        ServerThread(*places, grpc=True) as server,
        grpc.insecure_channel(server.grpc_url) as channel,
    ):
        answers = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
            requests()
        )
        for _ in range(before):
            next(answers)
        read.set()
        until(lambda: server.call(lambda: server.server.state.body_bytes) >= 7 * MIB)
        asked = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(200):
            asked(small)
            assert is_held(server, 0, 9 * MIB)
        assert sum(len(answer) > MIB for answer in answers) == 128
        until(lambda: is_held(server, 0, 0))


def specs(*shapes: tuple[int | str, ...], dtype: str = "float32") -> list[TensorSpec]:
    return [TensorSpec(f"t{n}", dtype, shape) for n, shape in enumerate(shapes)]


@pytest.mark.parametrize(
    ("outputs", "size"),
    [
        (specs((2, 3), (5,)), 4 * (2 * 3 + 5)),
        (specs(("batch", 10, "length")), 4 * 7 * 10 * 9),
        (specs(("batch", "length"), dtype="int64"), 8 * 7 * 9),
        (specs(()), 4),
        (specs(("batch", 2), ("found",)), None),
        (specs(("?", 2)), None),
        (specs(("batch",), dtype="object"), None),
    ],
)
def test_the_size_of_an_answer_is_foreseen_where_shapes_tell_it(
    outputs: list[TensorSpec], size: int | None
) -> None:
    inputs, tensors = specs(("batch", "length", "?")), {"t0": np.ones((7, 9, 3), np.float32)}
    assert size_of(inputs, outputs, tensors) == size


def no_bound() -> OwedAnswers:
    """Return the answers of clients where none has to wait for its own other connections."""
    return OwedAnswers(lambda client: None, 30.0)


class Counting:
    """A stream that counts how often it is held."""

    client, payer, unread_ns = "", "", None

    def __init__(self) -> None:
        self.times = 0

    def begun(self) -> list[Holding]:
        return []

    def expect(self) -> None:
        """Count nothing anew."""

    def hold(self) -> None:
        self.times += 1


def test_the_size_of_an_answer_is_else_expected_by_those_before() -> None:
    together, unread = Together(), Unread(lambda: 0, Shares(1), no_bound())
    stream = Counting()
    together.enter("c", stream)
    assert (together.foreseen("c", "m"), unread.foreseen("m")) == (MIB, MIB)
    for size in (8 * MIB, 2 * MIB, 100):
        assert together.answered("c", "m", size) == (size == 8 * MIB)
        unread.answered("m", size)
        assert stream.times == 1
    assert 7 * MIB < together.foreseen("c", "m") < 8 * MIB
    assert together.foreseen("c", "other") == MIB
    for size in (100, 60_000):  # as many as a stream has requests find room
        together.answered("c", "small", size)
    assert stream.times == 1
    assert (unread.foreseen("m"), unread.foreseen("other")) == (2 * MIB, MIB)


def test_calls_wait_for_room_in_turn_and_are_stuck_only_while_nothing_is_computed() -> None:
    now = iter(range(1, 1000))

    async def work() -> None:
        unread = Unread(lambda: next(now), bodies := Shares(200), no_bound(), most=10)
        assert unread.took("c", 6, "")
        assert unread.took("c", 4, "")
        assert not unread.took("c", 1, "")
        assert unread.took("d", 100, "")  # one answer may always be there
        order: list[int] = []

        async def wait(size: int) -> None:
            place = Place(size, "", 0)
            unread.queue("c", place)
            try:
                await unread.wait("c", place)
            except asyncio.CancelledError:
                unread.gave_up("c", place)
                raise
            order.append(size)
            unread.begun("c", place)

        waiting = [asyncio.create_task(wait(size)) for size in (5, 1, 2)]
        await asyncio.sleep(0)
        assert unread.stuck_since("c") is None
        first, second = Debt(unread, "c", 6), Debt(unread, "c", 4)
        first.made(6)
        assert bodies.taken == 6
        assert unread.stuck_since("c") is None  # the other one is still computed
        second.made(4)
        since = unread.stuck_since("c")
        assert since is not None
        waiting[0].cancel()
        await asyncio.sleep(0)
        second.ended(None)
        second.ended(None)
        await asyncio.sleep(0)
        assert order == [1]  # one in each turn of the loop
        await asyncio.sleep(0)
        assert order == [1, 2]
        first.ended(None)
        for size in order:
            Debt(unread, "c", size).ended(None)
        Debt(unread, "d", 100).ended(None)
        assert unread.stuck_since("c") is None
        assert (unread._readers, bodies.taken) == ({}, 0)

    asyncio.run(work())


def test_a_client_has_left_only_answers_that_are_made_and_unread_and_its_own() -> None:
    unread = Unread(lambda: 5, bodies := Shares(200), no_bound(), most=100)
    assert unread.took("computing", 10, "a")
    assert unread.took("read", 10, "a")
    Debt(unread, "read", 10, "a").made(10)  # the client has answers to read
    assert unread.took("read", 10, "a")
    assert (unread.left_by("a", 5), unread.left_by("a", 4)) == (["read"], [])
    unread.keep("read", "a", -10)
    unread.change("read", 10, 0, "a", made=False)  # it has read them, and waits for another
    assert unread.left_by("a", 5) == []
    for client in ("a", "b"):
        assert unread.took("proxy", 10, client)
        Debt(unread, "proxy", 10, client).made(10)
    assert (unread.left_by("a", 5), unread.left_by("b", 5)) == ([], [])
    assert bodies.taken == 20


def two_mib_and_small(folder: Path) -> list[ModelPlace]:
    """A model whose answers have 2 MiB, and one with small answers."""
    models = wide(folder, 1 << 19), solid(folder)
    return [place_of(bundle_of(folder, model)) for model in models]


@pytest.fixture(scope="module")
def two_mib(tmp_path_factory: pytest.TempPathFactory) -> list[ModelPlace]:
    return two_mib_and_small(tmp_path_factory.mktemp("two"))


def unreading(server: ServerThread) -> Any:
    """A client that takes little of what it doesn't read."""
    import grpc

    little = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
    options = [*little, ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(server.grpc_url, options=options)


def unread_calls(channel: Any, count: int) -> list[Any]:
    """Ask for so many answers by single calls, and read none of them."""
    infer = channel.stream_stream("/inference.GRPCInferenceService/ModelInfer")
    return [infer(iter([ROW])) for _ in range(count)]


def said_by(call: Any) -> str:
    """Return the error of a call; "" for an answer of some MiB."""
    import grpc

    try:
        return "" if sum(map(len, call)) > MIB else "a short answer"
    except grpc.RpcError as error:
        return str(error.details())


def answered_by(server: ServerThread, model: str) -> int:
    find = server.server.state.repository.find
    return server.call(lambda: find(model).statistics.totals["success"].count)


def test_single_calls_whose_answers_nobody_reads_wait_for_each_other(
    two_mib: list[ModelPlace],
) -> None:
    with ServerThread(*two_mib, grpc=True) as server:
        front: Any = server.server._grpc
        with unreading(server) as channel:
            calls = unread_calls(channel, 100)
            until(lambda: answered_by(server, "wide") >= 11)
            for _ in range(200):  # small answers don't wait
                small = asking(SHAPE, model=b"solid") + field(7, np.ones(4, np.float32).tobytes())
                channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(small)
            assert answered_by(server, "wide") <= 12
            calls.pop().cancel()
            assert [len(answer) > MIB for call in calls for answer in call] == [True] * 99
        with unreading(server) as channel:  # of a client that goes away
            unread_calls(channel, 100)
            until(lambda: answered_by(server, "wide") >= 99 + 11)
        until(lambda: server.call(lambda: front._unread._readers) == {})
        with unreading(server) as channel:
            assert len(channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(ROW)) > MIB


def test_a_client_that_reads_nothing_is_told_so_and_keeps_nobody_waiting(
    two_mib: list[ModelPlace],
) -> None:
    limits = Limits(receive_ns=int(2e9))
    with (
        ServerThread(*two_mib, grpc=True, limits=limits) as server,
        unreading(server) as channel,
        unreading(server) as another,
    ):
        front: Any = server.server._grpc
        calls = unread_calls(channel, 40)
        until(lambda: answered_by(server, "wide") >= 11)
        asked = another.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        assert len(asked(ROW, timeout=60)) > MIB
        until(lambda: server.call(lambda: len(front._calls)) == 0)
        ended = [said_by(call) for call in calls]
        assert ended.count("") in (11, 12)
        assert {*ended} == {
            "",
            "the request didn't arrive, or answers weren't read, within the time limit",
        }
        find = server.server.state.repository.find
        failed = server.call(lambda: find("wide").statistics.fail.count)
        assert failed == 40 - ended.count("")


def test_calls_that_waited_for_room_until_their_model_was_unloaded_leave_nothing(
    two_mib: list[ModelPlace],
) -> None:
    with (
        ServerThread(*two_mib, grpc=True, control=True) as server,
        unreading(server) as channel,
    ):
        calls = unread_calls(channel, 40)
        until(lambda: answered_by(server, "wide") >= 11)
        unload = "/inference.GRPCInferenceService/RepositoryModelUnload"
        channel.unary_unary(unload)(field(2, b"wide"))
        ended = [said_by(call) for call in calls]
        assert ended.count("") in (11, 12)
        until(lambda: is_held(server, 0, 0))


@pytest.fixture
def little_room(two_mib: list[ModelPlace]) -> Iterator[ServerThread]:
    """A server with room for 20 answers, which lets its clients read as slowly as they like."""
    limits = Limits(body_bytes=8 * MIB, bodies_bytes=40 * MIB, send_ns=600_000_000_000)
    with ServerThread(*two_mib, grpc=True, limits=limits) as server:
        yield server


def test_unread_answers_to_single_calls_of_many_connections_have_a_bound(
    little_room: ServerThread,
) -> None:
    import grpc

    with unreading(little_room) as last, contextlib.ExitStack() as many:
        calls = [unread_calls(many.enter_context(unreading(little_room)), 8) for _ in range(5)]
        until(lambda: is_held(little_room, 38 * MIB, 40 * MIB))
        asked = last.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError, match="overloaded"):
            asked(ROW)
        assert [len(one) for one in calls] == [8] * 5  # they end once nobody knows them
        many.close()
        until(lambda: is_held(little_room, 0, 0))
        assert len(asked(ROW)) > MIB


def test_another_client_finds_room_where_one_reads_none_of_its_answers(
    little_room: ServerThread,
) -> None:
    """Neither of the two has a token, so they are told apart by their addresses."""

    def status() -> int:
        client = http.client.HTTPConnection(
            "127.0.0.1", little_room.http_port, 120, source_address=("127.0.0.2", 0)
        )
        with contextlib.closing(client):
            client.request("POST", "/v2/models/wide/infer", BINARY)
            return client.getresponse().status

    with contextlib.ExitStack() as many:
        calls = [unread_calls(many.enter_context(unreading(little_room)), 8) for _ in range(5)]
        until(lambda: is_held(little_room, 38 * MIB, 40 * MIB))
        until(lambda: status() == 200)
        assert [len(one) for one in calls] == [8] * 5


@contextlib.contextmanager
def slow_way(port: int) -> Iterator[int]:
    """Lend a port that passes on to another, and passes back 16 KiB in at least 5 ms."""

    def forth(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)

    def back(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                sink.sendall(data)
                time.sleep(0.005)
            sink.shutdown(socket.SHUT_RDWR)

    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)

        def accept() -> None:
            with contextlib.suppress(OSError):
                client, _ = listening.accept()
                with client:
                    server.connect(("127.0.0.1", port))
                    forward = threading.Thread(target=forth, args=(client, server), daemon=True)
                    forward.start()
                    back(server, client)

        threading.Thread(target=accept, daemon=True).start()
        yield int(listening.getsockname()[1])


def test_a_client_that_reads_slowly_keeps_its_connection_while_another_finds_no_room(
    little_room: ServerThread,
) -> None:
    import grpc

    found = threading.Event()

    def ask() -> None:
        while not found.is_set():
            client = http.client.HTTPConnection(
                "127.0.0.1", little_room.http_port, 120, source_address=("127.0.0.2", 0)
            )
            with contextlib.closing(client):
                client.request("POST", "/v2/models/wide/infer", BINARY)
                if client.getresponse().status == 200:
                    found.set()
            time.sleep(0.05)

    rows = asking(field(3, b"\4\4"), model=b"wide") + field(7, np.ones(16, np.float32).tobytes())
    options = [("grpc.max_receive_message_length", -1)]
    with contextlib.ExitStack() as many:
        port = many.enter_context(slow_way(little_room.grpc_port))
        channel = many.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", options))
        reading = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer").future(rows)
        until(lambda: is_held(little_room, 8 * MIB, 9 * MIB))
        calls = [unread_calls(many.enter_context(unreading(little_room)), 8) for _ in range(3)]
        until(lambda: is_held(little_room, 38 * MIB, 40 * MIB))
        threading.Thread(target=ask, daemon=True).start()
        assert len(reading.result(timeout=60)) > 8 * MIB
        until(found.is_set)
        assert [len(one) for one in calls] == [8] * 3


def test_a_client_that_reads_may_wait_as_long_as_the_model_takes(
    two_mib: list[ModelPlace], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, run, waits_s = Limits(receive_ns=int(1e9)), OnnxRuntimeSession.run, list[float]()

    def slow(session: OnnxRuntimeSession, inputs: Any) -> Any:
        time.sleep(waits_s.pop() if waits_s else 0)
        return run(session, inputs)

    monkeypatch.setattr(OnnxRuntimeSession, "run", slow)
    with ServerThread(*two_mib, grpc=True, limits=limits) as server, unreading(server) as channel:
        waits_s += [1.5] * 3  # longer than the limit
        asked = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        calls = [asked.future(ROW, timeout=60) for _ in range(60)]
        assert [len(call.result()) > MIB for call in calls] == [True] * 60
        assert not waits_s


def test_an_answer_of_unknown_size_counts_as_its_message(two_mib: list[ModelPlace]) -> None:
    asking_classes = message("ModelInferRequest").FromString(ROW)
    asking_classes.outputs.add(name="y").parameters["classification"].int64_param = 5
    with ServerThread(*two_mib, grpc=True) as server, unreading(server) as channel:
        front: Any = server.server._grpc
        asked = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(20):
            answer = asked(asking_classes.SerializeToString())
        assert server.call(lambda: front._unread.foreseen("wide")) == len(answer) < 200
        until(lambda: server.call(lambda: front._unread._readers) == {})


def test_an_output_is_sent_once_over_grpc_and_in_streams_too(answering: ServerThread) -> None:
    import grpc

    twice = ROW + field(6, field(1, b"y")) * 2
    error = "output 'y' is asked for twice: ask for it once"
    with grpc.insecure_channel(answering.grpc_url) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(twice)
        assert caught.value.details() == error
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        (answer,) = stream(iter([twice]))
    found = message("ModelStreamInferResponse").FromString(answer)
    assert found.error_message == error


def test_streams_of_one_connection_share_the_room_for_unsent_answers() -> None:
    async def work() -> None:
        together, rooms = Together(10), [asyncio.Event() for _ in range(3)]
        await together.let_in("c", rooms[0])
        together.count("c", 12)  # one answer may always be there
        await together.let_in("d", rooms[1])
        waiting = [asyncio.create_task(together.let_in("c", room)) for room in rooms[1:]]
        for change, done in ((4, 0), (-4, 0), (-3, 2)):
            together.count("c", change)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert sum(task.done() for task in waiting) == done
        together.count("c", -9)
        assert (together._sizes, together._waiting) == ({}, {})

    asyncio.run(work())
