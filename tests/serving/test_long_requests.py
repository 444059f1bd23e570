"""Requests that are far longer than the data of a bundle, whose work may grow with the square of their length."""

from __future__ import annotations

import gzip
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import parser, save
from tests.support.bundles import stated
from tests.support.lengths import ask
from tests.support.pausing import RAN, Pausing, pausing_installed
from tests.support.servers import ServerThread, place_of

from hasten.bundle import part, write
from hasten.core.shapes import extents
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.inputs.models import onnx
from hasten.serving.models.input_specs import InputSpec, Lengths, Parts
from hasten.serving.protocol.messages import message


def refused(most: int, known: int | None, got: int) -> str:
    why = "" if known is None else f", since the bundle was made with up to {known:,}"
    return (
        f"input 'x': dimension 1 has at most {most:,} here{why}; got {got:,}: the server's option --max-length "
        "allows more"
    )


def comparing(folder: Path, *lengths: int, varying: tuple[str, ...] = ()) -> Path:
    """Write a bundle of x: [batch, length] -> y: [batch, length], the distance of each number to all others.

    Its data has samples of these lengths. The manifest says that the sizes of some outputs depend on values.
    """
    text = """<ir_version: 8, opset_import: ["" : 17]>
        comparing (float[batch, length] x) => (float[batch, length] y)
        <int64[1] one = {1}, int64[1] two = {2}> {
            each = Unsqueeze (x, one)  other = Unsqueeze (x, two)  apart = Sub (each, other)
            far = Abs (apart)  y = ReduceSum <keepdims = 0> (far, one)
        }"""
    save(parser.parse_model(text), folder / "comparing.onnx")
    model = onnx.load(folder / "comparing.onnx")
    model = model.settled_by({"x": np.zeros(lengths[0], np.float32)})
    (folder / "built").mkdir()
    built = part("a label", (), Pausing(), Pausing().build(model, Target.host(), folder / "built"))
    shapes = extents(model.inputs, [{"x": (length,)} for length in lengths])
    path = folder / "comparing.hasten"
    write(path, stated(built, None, status="exact", shapes=shapes, varying=varying), {})
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with pausing_installed(tmp_path / "plug-in"):
        RAN.clear()
        yield tmp_path


def test_a_request_of_32_kb_that_would_take_a_quarter_of_a_gib_is_refused(folder: Path) -> None:
    with ServerThread(place_of(comparing(folder, 600)), grpc=True) as server:
        warm = len(RAN)
        assert ask(server.http_url, "comparing", 1200) == ""
        for length in (1201, 8_000):
            said = refused(1200, 600, length)
            assert ask(server.http_url, "comparing", length) == said
            made = message("ModelInferRequest")(model_name="comparing")
            made.inputs.add(name="x", datatype="FP32", shape=[1, length])
            made.raw_input_contents.append(np.zeros(length, np.float32).tobytes())
            with grpc.insecure_channel(server.grpc_url) as channel:
                call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
                with pytest.raises(grpc.RpcError) as error:
                    call(made.SerializeToString())
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert error.value.details() == said
        assert len(RAN) == warm + 1


@pytest.mark.parametrize(
    ("lengths", "given", "most"),
    [
        ((1,), None, 1024),
        ((20, 10, 600), None, 1200),
        ((20, 10, 600), 3_000, 3_000),
        ((20, 10, 600), 5, 5),
    ],
    ids=["short data", "data of several lengths", "more allowed", "less allowed"],
)
def test_the_longest_request_follows_from_the_data_unless_the_operator_says_otherwise(
    folder: Path, lengths: tuple[int, ...], given: int | None, most: int
) -> None:
    with ServerThread(place_of(comparing(folder, *lengths), most_length=given)) as server:
        assert ask(server.http_url, "comparing", most) == ""
        known = max(lengths) if given is None else None
        assert ask(server.http_url, "comparing", most + 1) == refused(most, known, most + 1)


def test_rows_that_run_together_take_no_more_than_the_longest_one_that_is_allowed(
    folder: Path,
) -> None:
    path = comparing(folder, 20, 10, varying=("y",))
    with ServerThread(place_of(path)) as server:
        assert ask(server.http_url, "comparing", 20, rows=100) == ""
        assert ask(server.http_url, "comparing", 512, rows=4) == ""
        assert ask(server.http_url, "comparing", 512, rows=5) == (
            "input 'x': at most 4 rows of 512 can be run together here, since the bundle was made with up to 20; got 5: the "
            "server's option --max-length 1145 allows it"
        )
        assert "at most 1 row of 1,024 can be run together" in ask(
            server.http_url, "comparing", 1024, rows=2
        )
        assert ask(server.http_url, "comparing", 1, rows=1024) == ""
        assert ask(server.http_url, "comparing", 1, rows=1025) == (
            "input 'x': at most 1,024 rows of 1 can be run together here, since the bundle was made with up to 20; got "
            "1,025: the server's option --max-length 1025 allows it"
        )
    with ServerThread(place_of(path, most_length=1025)) as server:
        assert ask(server.http_url, "comparing", 1, rows=1025) == ""
    for most, answer in ((1144, "at most 4 rows"), (1145, "")):
        with ServerThread(place_of(path, most_length=most)) as server:
            assert answer in ask(server.http_url, "comparing", 512, rows=5)
            assert ask(server.http_url, "comparing", 512, rows=4) == ""


def test_rows_of_one_size_are_no_length_whether_they_run_together_or_not() -> None:
    spec, request = (TensorSpec("x", "float32", shape) for shape in (("rows", 3), (1, 3)))
    for batched in (False, True):
        lengths = Lengths.of(spec, request, (), batched=batched, rows=True)
        assert lengths.known == {}
        InputSpec(spec, batched, lengths).check_lengths((100_000, 3))


def test_rows_far_longer_than_the_data_are_run_apart_and_others_together(folder: Path) -> None:
    with ServerThread(place_of(comparing(folder, 20))) as server:
        for length, runs in ((20, 1), (128, 1), (1024, 4)):
            RAN.clear()
            assert ask(server.http_url, "comparing", length, rows=4) == ""
            assert len(RAN) == runs


def numbers(server: ServerThread, model: str, x: np.ndarray) -> np.ndarray | str:
    """Ask over gRPC; return the numbers of the answer, or the error."""
    made = message("ModelInferRequest")(model_name=model)
    made.inputs.add(name="x", datatype="FP32", shape=x.shape)
    made.raw_input_contents.append(x.tobytes())
    with grpc.insecure_channel(server.grpc_url) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            answer = message("ModelInferResponse").FromString(call(made.SerializeToString()))
        except grpc.RpcError as error:
            return str(error.details())
    return np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answer.outputs[0].shape)


def test_the_answer_to_rows_that_are_run_apart_is_that_of_each_row_in_its_order(
    folder: Path,
) -> None:
    x = np.random.default_rng(0).integers(-9, 9, (7, 600)).astype(np.float32)
    with ServerThread(place_of(comparing(folder, 20)), grpc=True) as server:
        RAN.clear()
        whole = numbers(server, "comparing", x)
        assert 1 < len(RAN) < 7
        np.testing.assert_array_equal(
            whole, np.abs(x[:, :, None] - x[:, None, :]).sum(axis=1, dtype=np.float32)
        )


def test_rows_that_are_run_apart_must_have_an_answer_each(folder: Path) -> None:
    """Places in a batch, such as those of NonZero, would be those in a part, and rows would be others'."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        chosen (float[batch, length] x) => (float[batch, length] y)
        <float least = {-500}> {
            most = ReduceMax <axes = [1], keepdims = 0> (x)  fits = Greater (most, least)
            y = Compress <axis = 0> (x, fits)
        }"""
    save(parser.parse_model(text), folder / "chosen.onnx")
    model = onnx.load(folder / "chosen.onnx").settled_by({"x": np.zeros(20, np.float32)})
    (folder / "built").mkdir()
    engine = Pausing().inner
    built = part("a label", (), engine, engine.build(model, Target.host(), folder / "built"))
    write(folder / "chosen.hasten", stated(built, None, status="exact"), {})
    x = np.zeros((4, 1024), np.float32)
    with ServerThread(place_of(folder / "chosen.hasten"), grpc=True) as server:
        np.testing.assert_array_equal(numbers(server, "chosen", x), x)
        x[2] = -1000
        assert numbers(server, "chosen", x) == (
            "the output 'y' of 1 rows has the shape [0, 1024]; serve this model with --max-batch 1"
        )


def test_parts_take_no_more_than_the_largest_batch_of_the_longest_samples() -> None:
    spec = InputSpec(TensorSpec("x", "float32", ("n", "length")), True, Lengths({1: 100}, 300))
    values = np.arange(32 * 300, dtype=np.float32).reshape(32, 300)
    parts = Parts([spec], (1, 2, 4, 8, 32))
    assert parts.of({"x": values[:, :100]}) == []
    assert parts.of({"x": values[:2, :300]}) == []
    for length, rows in ((101, 8), (200, 8), (201, 4), (300, 2)):
        found = [one["x"] for one in parts.of({"x": values[:, :length]})]
        assert {len(one) for one in found} == {rows}
        np.testing.assert_array_equal(np.concatenate(found), values[:, :length])


def test_a_sample_is_no_smaller_for_being_low_where_it_is_wide() -> None:
    """The memory of a model that compares the numbers of each row grows with the square of the width alone."""
    spec = TensorSpec("x", "float32", ("n", "height", "width"))
    parts = Parts([InputSpec(spec, True, Lengths({1: 32, 2: 32}))], (1, 2, 4, 8, 32))
    for height, width, rows in ((32, 32, 32), (1, 32, 32), (16, 64, 8), (1, 1024, 1)):
        x = np.zeros((32, height, width), np.float32)
        found = [len(one["x"]) for one in parts.of({"x": x})] or [32]
        assert found == [rows] * (32 // rows)


def by_http(server: ServerThread, x: np.ndarray) -> str:
    head = {"name": "x", "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}
    url = f"{server.http_url}/v2/models/pixels/infer"
    try:
        with urllib.request.urlopen(url, json.dumps({"inputs": [head]}).encode(), timeout=60):
            return ""
    except urllib.error.HTTPError as error:
        return str(json.load(error)["error"])


def by_gzip(server: ServerThread, x: np.ndarray) -> str:
    head = {"name": "x", "datatype": "FP32", "shape": x.shape}
    said = json.dumps({"inputs": [{**head, "parameters": {"binary_data_size": x.nbytes}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(said)), "Content-Encoding": "gzip"}
    body, url = gzip.compress(said + x.tobytes()), f"{server.http_url}/v2/models/pixels/infer"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60):
            return ""
    except urllib.error.HTTPError as error:
        return str(json.load(error)["error"])


def asked_by_grpc(x: np.ndarray) -> bytes:
    made = message("ModelInferRequest")(model_name="pixels")
    made.inputs.add(name="x", datatype="FP32", shape=x.shape)
    made.raw_input_contents.append(x.tobytes())
    return bytes(made.SerializeToString())


def by_grpc(server: ServerThread, x: np.ndarray) -> str:
    with grpc.insecure_channel(server.grpc_url) as channel:
        try:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(asked_by_grpc(x))
        except grpc.RpcError as error:
            return str(error.details())
    return ""


def by_stream(server: ServerThread, x: np.ndarray) -> str:
    with grpc.insecure_channel(server.grpc_url) as channel:
        call = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        (answer,) = call(iter([asked_by_grpc(x)]))
    return str(message("ModelStreamInferResponse").FromString(answer).error_message)


@pytest.mark.parametrize("way", [by_http, by_gzip, by_grpc, by_stream])
def test_the_product_of_open_dimensions_is_bounded_however_it_is_asked(
    folder: Path, way: Callable[[ServerThread, np.ndarray], str]
) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        pixels (float[batch, height, width] x) => (float[batch, height, width] y) { y = Relu (x) }"""
    save(parser.parse_model(text), folder / "pixels.onnx")
    model = onnx.load(folder / "pixels.onnx").settled_by({"x": np.zeros((4, 8), np.float32)})
    (folder / "built").mkdir()
    engine = Pausing().inner
    built = part("a label", (), engine, engine.build(model, Target.host(), folder / "built"))
    write(folder / "pixels.hasten", stated(built, None, status="exact"), {})
    with ServerThread(place_of(folder / "pixels.hasten"), grpc=True) as server:
        for height, width in ((1, 1024), (32, 32)):
            assert way(server, np.zeros((1, height, width), np.float32)) == ""
        assert way(server, np.zeros((1, 32, 33), np.float32)) == (
            "input 'x': the sizes of its open dimensions are at most 1,024 here when multiplied, since the bundle "
            "was made with up to 4 x 8; got 32 x 33: the server's option --max-length 264 allows it"
        )
    with ServerThread(place_of(folder / "pixels.hasten", most_length=264), grpc=True) as server:
        assert way(server, np.zeros((1, 32, 33), np.float32)) == ""
