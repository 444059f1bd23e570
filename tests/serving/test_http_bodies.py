"""What Triton and hasten were found to answer differently, by `make test-triton`."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import models
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S

from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.messages import message
from hasten.serving.protocol.requests import Query
from hasten.serving.wire.classes import classes_of
from hasten.serving.wire.grpc_messages import query_of, read_request
from hasten.serving.wire.http_bodies import chosen_encoding, read_body
from hasten.serving.wire.shared_memory import SharedMemory

X = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
REGION = {"shared_memory_region": "r", "shared_memory_byte_size": 12}


def read(tail: bytes = b"", **body: Any) -> Query:
    head = json.dumps({"inputs": [X], **body}).encode()
    return read_body(head + tail, len(head), "m", "", SharedMemory(), 1 << 16)


def refusal(tail: bytes = b"", **body: Any) -> str:
    with pytest.raises(ProtocolError) as caught:
        read(tail, **body)
    assert caught.value.kind is Kind.INVALID
    return str(caught.value)


@pytest.mark.parametrize(
    ("scores", "classes"),
    [
        (np.array([5, -7, 2**40]), ["1099511627776:2", "5:0", "-7:1"]),
        (
            np.array([-(2**63), 2**63 - 1, 0]),
            ["9223372036854775807:1", "0:2", "-9223372036854775808:0"],
        ),
        (np.array([0, 200, 3], np.uint8), ["200:1", "3:2", "0:0"]),
        (np.array([0.5, -2, 0.1], np.float32), ["0.500000:0", "0.100000:2", "-2.000000:1"]),
        (np.array([1, 1, 2]), ["2:2", "1:0", "1:1"]),
    ],
)
def test_classes_are_in_order_and_whole_numbers_stay_whole(scores: Any, classes: list[str]) -> None:
    assert [each.decode() for each in classes_of(scores[None], 3, True)[0]] == classes


def test_what_are_no_numbers_has_no_classes() -> None:
    with pytest.raises(ProtocolError, match=r"^classification needs numbers; the output is BOOL$"):
        classes_of(np.array([True, False]), 1, False)


def test_true_among_numbers_is_no_number() -> None:
    said = refusal(inputs=[{**X, "data": [1, True, 3]}])
    assert said == "input 'x': its data has a value that is not FP32"


def test_null_is_nothing() -> None:
    query = read(inputs=[{**X, "parameters": None}], id=None, outputs=None, parameters=None)
    assert (query.id, query.outputs, query.binary, query.priority) == ("", (), False, 0)


def test_binary_data_is_true_or_false() -> None:
    said = refusal(parameters={"binary_data_output": 1})
    assert said == "the parameter 'binary_data_output' must be true or false; got 1"
    said = refusal(outputs=[{"name": "y", "parameters": {"binary_data": "true"}}])
    assert said == "the parameter 'binary_data' must be true or false; got 'true'"


@pytest.mark.parametrize(
    "tensor",
    [
        {**X, "parameters": {"binary_data_size": 12}},
        {**X, "parameters": REGION},
        {**X, "data": None, "parameters": {**REGION, "binary_data_size": 12}},
    ],
)
def test_an_input_comes_in_one_way(tensor: dict[str, Any]) -> None:
    given = {name: value for name, value in tensor.items() if value is not None}
    said = "input 'x' is given twice: use one of data, binary_data_size and shared memory"
    assert refusal(b"\0" * 12, inputs=[given]) == said


@pytest.mark.parametrize(
    ("more", "parameters", "said"),
    [
        (
            {"int64_contents": [1]},
            {},
            "input 'x': FP32 must be sent in fp32_contents only, but other contents are filled too",
        ),
        (
            {},
            {"shared_memory_region": "r"},
            "input 'x': it has both contents and a shared memory region",
        ),
    ],
)
def test_over_grpc_too(more: dict[str, Any], parameters: dict[str, str], said: str) -> None:
    tensor = message("ModelInferRequest.InferInputTensor")(
        name="x", datatype="FP32", shape=[1, 3], contents={"fp32_contents": [1, 2, 3], **more}
    )
    for name, value in parameters.items():
        tensor.parameters[name].string_param = value
    request = message("ModelInferRequest")(model_name="m", inputs=[tensor])
    with pytest.raises(ProtocolError) as caught:
        query_of(read_request(request.SerializeToString()), SharedMemory(), 1 << 16)
    assert (caught.value.kind, str(caught.value)) == (Kind.INVALID, said)


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("gzip, deflate", "gzip"),
        ("gzip;q=0.5, deflate;q=0.9", "deflate"),
        ("gzip; q=0.2, deflate", "deflate"),
        ("gzip;q=0, br", None),
        ("gzip;q=0.000, deflate;q=0.001", "deflate"),
        ("*", None),
    ],
)
def test_what_a_client_likes_best_is_sent(accepted: str, chosen: str | None) -> None:
    assert chosen_encoding(accepted) == chosen


def test_an_answer_that_cant_be_written_is_an_error_and_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise TypeError("broken")

    bundle = bundle_of(tmp_path, models.identity(tmp_path, sizes="3"))
    monkeypatch.setattr("hasten.serving.http.exchange.write_answer", broken)
    with ServerThread(place_of(bundle, "m")) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE_S)
        for _ in range(2):  # the connection goes on
            connection.request("POST", "/v2/models/m/infer", json.dumps({"inputs": [X]}))
            response = connection.getresponse()
            assert response.status == 500
            said = json.loads(response.read())
            assert said == {"error": "the server failed; its log has the reason"}
        connection.close()
