"""Requests that are far longer than the data of a bundle, whose work may grow with the square of their length."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from onnx import parser, save
from tests.support.bundles import stated
from tests.support.pausing import RAN, Pausing, pausing_installed
from tests.support.servers import ServerThread, place_of

from hasten.bundle import part, write
from hasten.core.shapes import extents
from hasten.core.target import Target
from hasten.inputs.models import onnx
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


def ask(server: ServerThread, length: int, rows: int = 1) -> str:
    """Ask over HTTP; return the error, or "" for an answer of the request's shape."""
    size = 4 * rows * length
    head = {"name": "x", "datatype": "FP32", "shape": [rows, length]}
    said = json.dumps({"inputs": [{**head, "parameters": {"binary_data_size": size}}]})
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/comparing/infer",
        said.encode() + bytes(size),
        {"Inference-Header-Content-Length": str(len(said))},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["outputs"][0]["shape"] == [rows, length]
            return ""
    except urllib.error.HTTPError as error:
        return str(json.load(error)["error"]) if error.code == 400 else str(error)


def test_a_request_of_32_kb_that_would_take_a_quarter_of_a_gib_is_refused(folder: Path) -> None:
    with ServerThread(place_of(comparing(folder, 600)), grpc=True) as server:
        warm = len(RAN)
        assert ask(server, 1200) == ""
        for length in (1201, 8_000):
            said = refused(1200, 600, length)
            assert ask(server, length) == said
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
        assert ask(server, most) == ""
        known = max(lengths) if given is None else None
        assert ask(server, most + 1) == refused(most, known, most + 1)


def test_the_rows_of_a_model_that_is_served_without_batching_are_no_length(folder: Path) -> None:
    bundle = comparing(folder, 20, 10, varying=("y",))
    with ServerThread(place_of(bundle, most_length=30)) as server:
        assert ask(server, 30, rows=100) == ""
        assert ask(server, 31, rows=100) == refused(30, None, 31)
