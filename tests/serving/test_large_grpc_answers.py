"""Answers over gRPC that are too large to be copied on the event loop: refused there, and answered over HTTP."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onnx import parser, save
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S, until

from hasten.core.tensors import Array
from hasten.serving.protocol.messages import SERVICE, message
from hasten.serving.settings import ModelPlace
from hasten.serving.state import Limits

pytestmark = pytest.mark.seconds
WIDE = 1 << 20
"""Numbers of one row's answer, which has 4 MiB."""
MOST = 16
"""Rows whose answer is as large as one over gRPC may be."""
OPTIONS = [("grpc.max_receive_message_length", -1)]
HERE = f"have at most {MOST << 22:,} here"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    """A server of `wide`: x [batch, 4] to y [batch, WIDE], and of `told`, whose size only its input's value tells."""
    folder = tmp_path_factory.mktemp("large")
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        wide (float[batch, 4] x) => (float[batch, {WIDE}] y) <int64[2] times = {{1, {WIDE // 4}}}>
        {{ y = Tile(x, times) }}"""
    save(parser.parse_model(text), folder / "wide.onnx")
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        told (int64[1] rows) => (float[n, {WIDE}] y) <int64[1] wide = {{{WIDE}}}>
        {{ shape = Concat<axis = 0>(rows, wide) y = ConstantOfShape(shape) }}"""
    save(parser.parse_model(text), folder / "told.onnx")
    told = bundle_of(folder, folder / "told.onnx", requests=[{"rows": np.array([1])}])
    with ServerThread(
        place_of(bundle_of(folder, folder / "wide.onnx")), place_of(told), grpc=True
    ) as one:
        yield one


def inputs_of(model: str, rows: int) -> tuple[str, str, Array]:
    if model == "told":
        return "rows", "INT64", np.array([rows])
    return "x", "FP32", np.tile(np.array([[0.25, -1, 3, 2]], np.float32), (rows, 1))


def asking(model: str, rows: int, classes: int = 0) -> bytes:
    name, datatype, array = inputs_of(model, rows)
    request = message("ModelInferRequest")(model_name=model)
    request.inputs.add(name=name, datatype=datatype, shape=array.shape)
    request.raw_input_contents.append(array.tobytes())
    if classes:
        request.outputs.add(name="y").parameters["classification"].int64_param = classes
    data: bytes = request.SerializeToString()
    assert len(data) < 64_000
    return data


def called(server: ServerThread, data: bytes) -> Any:
    with grpc.insecure_channel(server.grpc_url, OPTIONS) as channel:
        answer = channel.unary_unary(f"/{SERVICE}/ModelInfer")(data, timeout=PATIENCE_S)
    return message("ModelInferResponse").FromString(answer)


def refused_call(server: ServerThread, data: bytes) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        called(server, data)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return str(caught.value.details())


def refused_in_a_stream(server: ServerThread, data: bytes) -> str:
    """Refuse one request of a stream, in which others are answered."""
    with grpc.insecure_channel(server.grpc_url, OPTIONS) as channel:
        call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        asked = iter([asking("wide", 1), data, asking("wide", 1)])
        answers = list(call(asked, timeout=PATIENCE_S))
    found = [message("ModelStreamInferResponse").FromString(each) for each in answers]
    (failed,) = [each.error_message for each in found if each.error_message]
    assert sum(len(each.infer_response.raw_output_contents) for each in found) == 2
    return str(failed)


def runs(server: ServerThread) -> int:
    """How many batches the model `wide` ran."""
    model = server.server.state.repository.find("wide")
    return server.call(lambda: model.statistics._executions)


@pytest.mark.parametrize("model", ["wide", "told"])
def test_the_largest_answer_that_is_allowed_arrives_whole(server: ServerThread, model: str) -> None:
    answer = called(server, asking(model, MOST))
    assert list(answer.outputs[0].shape) == [MOST, WIDE]
    y = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(MOST, WIDE)
    row = inputs_of(model, 1)[2] if model == "wide" else np.zeros(4)
    assert np.array_equal(y.reshape(-1, 4), np.broadcast_to(row, (y.size // 4, 4)))


@pytest.mark.parametrize("way", [refused_call, refused_in_a_stream])
@pytest.mark.parametrize("model", ["wide", "told"])
def test_a_larger_answer_is_refused_with_the_ways_to_get_it(
    server: ServerThread, model: str, way: Any
) -> None:
    for rows in (MOST + 1, 2 * MOST):
        said = way(server, asking(model, rows))
        assert f"the outputs have {rows << 22:,} bytes" in said
        assert HERE in said
        assert "over HTTP" in said
        assert f"--max-body {4 * rows}MiB" in said
    until(lambda: server.call(lambda: server.server.state.body_bytes) == 0)


def test_a_model_is_not_asked_for_an_answer_that_is_foreseen_to_be_too_large(
    server: ServerThread,
) -> None:
    model = server.server.state.repository.find("wide")
    before = runs(server), server.call(lambda: dict(model.statistics.refusals))
    refused_call(server, asking("wide", MOST + 1))
    assert runs(server) == before[0]
    after = server.call(lambda: dict(model.statistics.refusals))
    assert after["TOO_LARGE"] == before[1].get("TOO_LARGE", 0) + 1


def test_few_scores_of_large_outputs_are_answered(server: ServerThread) -> None:
    rows = MOST + 4
    answer = called(server, asking("wide", rows, classes=1))
    assert list(answer.outputs[0].shape) == [rows, 1]
    assert answer.raw_output_contents[0].count(b"3.000000:2") == rows


def test_larger_answers_come_over_http(server: ServerThread) -> None:
    rows = MOST + 4
    name, datatype, array = inputs_of("wide", rows)
    asked = {"name": name, "datatype": datatype, "shape": array.shape, "data": array.tolist()}
    body = {"inputs": [asked], "parameters": {"binary_data_output": True}}
    client = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
    client.request("POST", "/v2/models/wide/infer", json.dumps(body))
    answer = client.getresponse()
    assert answer.status == 200
    assert len(answer.read()) > rows << 22
    client.close()


def test_the_option_that_the_refusal_names_allows_larger_answers(
    server: ServerThread, tmp_path: Any
) -> None:
    places = server._settings.models
    with ServerThread(*places, grpc=True, limits=Limits(body_bytes=(MOST + 1) << 22)) as larger:
        for model in ("wide", "told"):
            answer = called(larger, asking(model, MOST + 1))
            assert len(answer.raw_output_contents[0]) == (MOST + 1) << 22
            assert f"{(MOST + 1) << 22:,} here" in refused_call(larger, asking(model, MOST + 2))


def test_small_bodies_do_not_make_answers_smaller(server: ServerThread) -> None:
    places = server._settings.models
    with ServerThread(*places, grpc=True, limits=Limits(body_bytes=1 << 20)) as smaller:
        answer = called(smaller, asking("wide", 2))
    assert len(answer.raw_output_contents[0]) == 2 << 22


def rows_of(folder: Path, numbers: int) -> ModelPlace:
    """The bundle of a model whose only row is answered with so many numbers."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        one (float[1, 4] x) => (float[1, {numbers}] y, float[1, 4] z) <int64[2] times = {{1, {numbers // 4}}}>
        {{ y = Tile(x, times) z = Relu(x) }}"""
    save(parser.parse_model(text), folder / "one.onnx")
    return place_of(bundle_of(folder, folder / "one.onnx"))


@pytest.mark.parametrize(
    ("more", "body_mib", "said"), [(0, 16, False), (4, 16, True), (4, 65, False)]
)
def test_a_server_says_at_its_start_which_models_it_never_answers_whole_over_grpc(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, more: int, body_mib: int, said: bool
) -> None:
    place = rows_of(tmp_path, MOST * WIDE - 4 + more)
    with ServerThread(place, grpc=True, limits=Limits(body_bytes=body_mib << 20)) as one:
        warned = [each for each in caplog.records if "over gRPC" in each.getMessage()]
        request = message("ModelInferRequest")()
        request.ParseFromString(asking("one", 1))
        if not said:
            assert len(called(one, request.SerializeToString()).outputs) == 2
            assert warned == []
            return
        refused = refused_call(one, request.SerializeToString())
        request.outputs.add(name="z")
        assert len(called(one, request.SerializeToString()).outputs) == 1
    (line,) = warned
    size = 4 * (MOST * WIDE + 4)
    assert line.model == "one"  # type: ignore[attr-defined]
    assert line.getMessage() == (
        f"over gRPC, requests for all outputs are refused: these have at least {size:,} bytes, but those of an answer "
        f"at most {MOST << 22:,}: ask for fewer outputs, ask over HTTP, or give the server the option --max-body 65MiB"
    )
    assert f"{size:,} bytes" in refused
    assert "--max-body 65MiB" in refused


@pytest.mark.parametrize("grpc_", [True, False])
def test_nothing_is_said_of_models_that_may_be_answered(
    server: ServerThread, tmp_path: Path, caplog: pytest.LogCaptureFixture, grpc_: bool
) -> None:
    places = server._settings.models if grpc_ else [rows_of(tmp_path, MOST * WIDE)]
    with ServerThread(*places, grpc=grpc_):
        assert [each for each in caplog.records if "over gRPC" in each.getMessage()] == []
