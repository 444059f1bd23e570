"""The bytes of requests, and how answers are judged."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.tensors import Tensors
from hasten.evaluation.loadtest import grpc_messages, http_messages
from hasten.evaluation.loadtest.address import Access, parse_address
from hasten.evaluation.loadtest.metadata import Described, Metadata
from hasten.evaluation.loadtest.traffic import Fate

X = Described("x", "FP32", (-1, 2))
N = Described("n", "INT64", (-1,))
Y = Described("y", "FP32", (-1, 3))
TENSORS: Tensors = {"x": np.array([[1, 2], [3, 4]], np.float32), "n": np.array([-5, 6], np.int64)}
ADDRESS = parse_address("http://localhost:8000/base/")


def asked(binary: bool, timeout_us: int | None = None) -> tuple[list[str], bytes]:
    path = http_messages.model_path(ADDRESS, "a b/c", "2")
    request = http_messages.infer(
        ADDRESS, Access("secret"), path, [X, N], [Y], TENSORS, binary=binary, timeout_us=timeout_us
    )
    head, _, body = request.partition(b"\r\n\r\n")
    return head.decode().split("\r\n"), body


def test_a_binary_request_is_a_header_in_json_and_the_raw_tensors() -> None:
    head, body = asked(binary=True, timeout_us=20_000)
    length = int(head[-1].removeprefix("Inference-Header-Content-Length: "))
    assert head[:-1] == [
        "POST /base/v2/models/a%20b%2Fc/versions/2/infer HTTP/1.1",
        "Host: localhost:8000",
        "Authorization: Bearer secret",
        "Content-Type: application/octet-stream",
        f"Content-Length: {len(body)}",
    ]
    assert json.loads(body[:length]) == {
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": [2, 2],
                "parameters": {"binary_data_size": 16},
            },
            {
                "name": "n",
                "datatype": "INT64",
                "shape": [2],
                "parameters": {"binary_data_size": 16},
            },
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        "parameters": {"timeout": 20_000},
    }
    assert body[length:] == TENSORS["x"].tobytes() + TENSORS["n"].tobytes()


def test_a_json_request_has_its_numbers_in_the_json() -> None:
    head, body = asked(binary=False)
    assert head[-2:] == ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    assert json.loads(body) == {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]},
            {"name": "n", "datatype": "INT64", "shape": [2], "data": [-5, 6]},
        ],
        "outputs": [{"name": "y"}],
    }


def judged(outputs: list[dict[str, Any]], raw: bytes | None = None) -> tuple[Fate, str]:
    body = json.dumps({"outputs": outputs}).encode()
    length = None if raw is None else str(len(body)).encode()
    return http_messages.judge(200, body + (raw or b""), length, ["y"])


def y(**more: Any) -> dict[str, Any]:
    return {"name": "y", "datatype": "FP32", "shape": [2, 3], **more}


def raw(size_bytes: Any) -> dict[str, Any]:
    return {"parameters": {"binary_data_size": size_bytes}}


RIGHT: list[tuple[list[dict[str, Any]], bytes | None]] = [
    ([y(**raw(24))], bytes(24)),
    ([y(data=[0.0] * 6)], None),
    ([y(data=[[1, 2, 3], [4, 5, 6]])], None),
    ([y(**raw(24)), {"name": "z", "datatype": "BF16", "shape": [], **raw(2)}], bytes(26)),
    ([y(datatype="BYTES", shape=[2], **raw(11))], b"\2\0\0\0ab\1\0\0\0c"),
    ([y(shape=[0, 3], **raw(0))], b""),
]


@pytest.mark.parametrize(("outputs", "tail"), RIGHT)
def test_an_answer_with_every_output_whole_is_right(
    outputs: list[dict[str, Any]], tail: bytes | None
) -> None:
    assert judged(outputs, tail) == (Fate("ok", "200"), "")


@pytest.mark.parametrize(
    ("outputs", "tail", "message"),
    [
        ([y(**raw(24))], bytes(23), "output 'y': 24 bytes are announced, but 23 came"),
        ([y(**raw(20))], bytes(20), "output 'y': [2, 3] of FP32 are 24 bytes, but 20 came"),
        ([y(**raw(24))], bytes(25), "1 bytes came after the last output"),
        ([y(**raw("24"))], bytes(24), "output 'y': '24' bytes are announced, but 24 came"),
        ([y(data=[1, 2, 3])], None, "output 'y': [2, 3] are 6 elements, but 3 came"),
        ([y()], None, "output 'y': [2, 3] are 6 elements, but 0 came"),
        ([y(shape=[-2, -3], **raw(24))], bytes(24), "a size in [-2, -3] is negative"),
        (
            [y(datatype="FP8", **raw(6))],
            bytes(6),
            "output 'y': there is no datatype 'FP8'; there are BOOL, UINT8, UINT16, "
            "UINT32, UINT64, INT8, INT16, INT32, INT64, FP16, FP32, FP64, BF16, BYTES",
        ),
        ([], None, "the output 'y' is missing; none came"),
        (
            [y(datatype="BYTES", shape=[2], **raw(6))],
            b"\2\0\0\0ab",
            "output 'y': [2] of BYTES are announced, but 1 of them came",
        ),
        (
            [y(datatype="BYTES", shape=[1], **raw(5))],
            b"\2\0\0\0a",
            "a tensor of BYTES is cut short",
        ),
    ],
)
def test_an_answer_that_isnt_whole_is_broken(
    outputs: list[dict[str, Any]], tail: bytes | None, message: str
) -> None:
    assert judged(outputs, tail) == (Fate("broken", "200"), message)


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"", None),
        (b"[]", None),
        (b'{"outputs": [{"name": 1}]}', None),
        (b"\xff\xfe", None),
        (b'{"outputs": []}', b"99"),
        (b'{"outputs": []}', b"-1"),
        (b'{"outputs": []}', b"9" * 5000),
        (
            b'{"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": ' + b"[" * 5000,
            None,
        ),
    ],
)
def test_garbage_is_broken_and_raises_nothing(body: bytes, length: bytes | None) -> None:
    fate, message = http_messages.judge(200, body, length, ["y"])
    assert fate == Fate("broken", "200")
    assert message


@pytest.mark.parametrize("length", [b"0", b"-1", b"x", b"", b"999999", b"9" * 5000])
def test_a_length_of_the_json_that_cant_be_is_named(length: bytes) -> None:
    body = json.dumps({"outputs": [y(data=[0.0] * 6)]}).encode()
    assert http_messages.judge(200, body, length, ["y"]) == (
        Fate("broken", "200"),
        f"Inference-Header-Content-Length is {length[:40].decode()!r}, but the body has "
        f"{len(body)} bytes",
    )


@given(st.binary(max_size=60), st.none() | st.binary(max_size=4))
def test_no_bytes_at_all_make_judging_fail(body: bytes, length: bytes | None) -> None:
    assert http_messages.judge(200, body, length, ["y"])[0].kind == "broken"
    http_messages.judge(503, body, length, ["y"])


@pytest.mark.parametrize(
    ("status", "fate"),
    [
        (503, Fate("refused", "503")),
        (504, Fate("late", "504")),
        (400, Fate("error", "400")),
        (500, Fate("error", "500")),
        (201, Fate("error", "201")),
        (302, Fate("error", "302")),
    ],
)
def test_any_status_but_200_is_a_failure_with_the_servers_message(status: int, fate: Fate) -> None:
    assert http_messages.judge(status, b'{"error": "why"}', None, ["y"]) == (fate, "why")
    assert http_messages.judge(status, b"<h1>plain</h1>", None, ["y"]) == (fate, "<h1>plain</h1>")


def test_metadata_is_read_and_anything_else_is_refused() -> None:
    body = json.dumps(
        {
            "name": "m",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        }
    ).encode()
    assert http_messages.metadata_of(body) == Metadata((X,), (Y,))
    with pytest.raises(ValueError, match="missing required field `inputs`"):
        http_messages.metadata_of(b"{}")
    with pytest.raises(ValueError, match="malformed"):
        http_messages.metadata_of(b"<html>")


# gRPC: against the messages of another implementation.


@pytest.fixture
def pb() -> Any:
    return pytest.importorskip("tritonclient.grpc.service_pb2")


@pytest.mark.parametrize("timeout_us", [None, 20_000])
def test_a_grpc_request_reads_as_one(pb: Any, timeout_us: int | None) -> None:
    data = grpc_messages.infer("m", "2", [X, N], [Y], TENSORS, timeout_us=timeout_us)
    read = pb.ModelInferRequest.FromString(data)
    assert (read.model_name, read.model_version) == ("m", "2")
    assert [(one.name, one.datatype, list(one.shape)) for one in read.inputs] == [
        ("x", "FP32", [2, 2]),
        ("n", "INT64", [2]),
    ]
    assert [one.name for one in read.outputs] == ["y"]
    assert list(read.raw_input_contents) == [TENSORS["x"].tobytes(), TENSORS["n"].tobytes()]
    told = {name: value.int64_param for name, value in read.parameters.items()}
    assert told == ({} if timeout_us is None else {"timeout": timeout_us})
    assert read.SerializeToString(deterministic=True)


def test_grpc_metadata_is_read(pb: Any) -> None:
    tensor = pb.ModelMetadataResponse.TensorMetadata
    told = pb.ModelMetadataResponse(
        name="m",
        versions=["1"],
        inputs=[tensor(name="x", datatype="FP32", shape=[-1, 2])],
        outputs=[tensor(name="y", datatype="FP32", shape=[-1, 3])],
    )
    assert grpc_messages.metadata_of(told.SerializeToString()) == Metadata((X,), (Y,))
    request = pb.ModelMetadataRequest.FromString(grpc_messages.metadata_request("m", ""))
    assert (request.name, request.version) == ("m", "")


def grpc_judged(pb: Any, raws: list[bytes], **more: Any) -> tuple[Fate, str]:
    tensor = {"name": "y", "datatype": "FP32", "shape": [2, 3], **more}
    answer = pb.ModelInferResponse(outputs=[tensor], raw_output_contents=raws)
    return grpc_messages.judge(answer.SerializeToString(), ["y"])


def test_a_grpc_answer_with_every_output_whole_is_right(pb: Any) -> None:
    right = (Fate("ok", "OK"), "")
    assert grpc_judged(pb, [bytes(24)]) == right
    assert grpc_judged(pb, [], contents={"fp32_contents": [0.5] * 6}) == right
    ints = {"datatype": "INT64", "contents": {"int64_contents": [-1, 2, 300, 4, 5, 6]}}
    assert grpc_judged(pb, [], **ints) == right
    texts = {"datatype": "BYTES", "shape": [2], "contents": {"bytes_contents": [b"", b"c"]}}
    assert grpc_judged(pb, [], **texts) == right


def test_a_grpc_answer_that_isnt_whole_is_broken(pb: Any) -> None:
    broken = Fate("broken", "OK")
    assert grpc_judged(pb, [bytes(23)]) == (
        broken,
        "output 'y': [2, 3] of FP32 are 24 bytes, but 23 came",
    )
    assert grpc_judged(pb, [bytes(24)] * 2) == (broken, "1 output announced, but 2 came")
    few = grpc_judged(pb, [], contents={"fp32_contents": [0.5] * 5})
    assert few == (broken, "output 'y': [2, 3] are 6 elements, but 5 came")
    assert grpc_judged(pb, [bytes(24)], name="z") == (
        broken,
        "the output 'y' is missing; z came",
    )


@given(st.binary(max_size=60))
def test_no_bytes_at_all_make_a_grpc_answer_fail(answer: bytes) -> None:
    assert grpc_messages.judge(answer, ["y"])[0].kind == "broken"
