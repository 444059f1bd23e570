"""Samples and steps whose open dimensions are together far larger than in the data of a bundle."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from fuzz.served import WORDS, tokenizer
from tests.support import chains
from tests.support.chains import CELL, COLOURS, UNIT, png
from tests.support.servers import ServerThread, bundle_of, place_of

from hasten.core.sequences import Sequences
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.image import Decode, ToLayout
from hasten.inputs.pipeline.text import Tokenize
from hasten.serving.protocol.messages import message
from hasten.serving.run import settings_of
from hasten.testing import models

DATA: dict[int | str, int] = {"height": 4, "width": 8}
TOO_LARGE = (
    "input 'x': the sizes of its open dimensions are at most 1,024 here when multiplied, since the bundle was made "
    "with up to 4 x 8; got {}: the server's option --max-length 264 allows it"
)
Way = Callable[[ServerThread, str, bytes, str], str]


def by_http(server: ServerThread, model: str, sample: bytes, kind: str) -> str:
    """Send a sample as the body; return the error, or "" for a decision."""
    url = f"{server.http_url}/v2/models/{model}/infer"
    try:
        asked = urllib.request.Request(url, sample, {"Content-Type": kind})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert "decision" in json.load(answer)
            return ""
    except urllib.error.HTTPError as error:
        return str(json.load(error)["error"]) if error.code == 400 else str(error)


def by_grpc(server: ServerThread, model: str, sample: bytes, kind: str) -> str:
    """Send a sample as a tensor of bytes; return the error, or ""."""
    asked = message("ModelInferRequest")(model_name=model)
    given = asked.inputs.add(name="raw", datatype="BYTES", shape=[1])
    given.contents.bytes_contents.append(sample)
    with grpc.insecure_channel(server.grpc_url) as channel:
        try:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(
                asked.SerializeToString()
            )
        except grpc.RpcError as error:
            invalid = error.code() is grpc.StatusCode.INVALID_ARGUMENT
            return str(error.details()) if invalid else str(error)
    return ""


def picture(height: int, width: int) -> bytes:
    """Return a PNG of one color."""
    return png(np.full((height, width, 3), 90, np.uint8))


def reader(folder: Path) -> Path:
    """Write a bundle that tells the color of a picture of any size, which it compares with 4 x 8 pixels."""
    text = """
        colour (float[batch, 3, height, width] x) => (float[batch, 3] logits) {
            pooled = GlobalAveragePool(x)
            logits = Flatten <axis = 1> (pooled)
        }"""
    pipeline = Pipeline((Decode(), UNIT, ToLayout()), (TopK(labels=COLOURS),))
    model = models.write(folder / "colour.onnx", text, {})
    return bundle_of(folder, model, pipeline=pipeline, lengths=DATA)


@pytest.mark.parametrize("way", [by_http, by_grpc])
def test_a_picture_has_at_most_the_pixels_that_the_data_allows(tmp_path: Path, way: Way) -> None:
    place = reader(tmp_path)
    with ServerThread(place_of(place), grpc=True) as server:
        for height, width in ((1, 1024), (32, 32)):
            assert way(server, "colour", picture(height, width), "image/png") == ""
        refusal = way(server, "colour", picture(32, 33), "image/png")
        assert refusal == TOO_LARGE.format("32 x 33")
    with ServerThread(place_of(place, most_length=264), grpc=True) as server:
        assert way(server, "colour", picture(32, 33), "image/png") == ""


@pytest.mark.parametrize("way", [by_http, by_grpc])
def test_a_crop_of_a_chain_has_at_most_the_pixels_that_the_data_allows(
    tmp_path: Path, way: Way
) -> None:
    chain = f"squares={chains.detector(tmp_path)}+crop+{reader(tmp_path)}"
    square = chains.squares({(1, 2): "red"})
    higher = np.repeat(square, [2 if row % CELL == 0 else 1 for row in range(len(square))], axis=0)
    with ServerThread(*settings_of([chain]).models, grpc=True) as server:
        assert way(server, "squares", png(square), "image/png") == ""
        refusal = way(server, "squares", png(higher), "image/png")
        assert refusal == f"colour: {TOO_LARGE.format('33 x 32')}"
        assert way(server, "squares", png(square), "image/png") == ""


@pytest.mark.parametrize("way", [by_http, by_grpc])
def test_a_text_has_at_most_the_tokens_that_the_data_allows(tmp_path: Path, way: Way) -> None:
    text = """
        texts (int64[batch, length] input_ids, int64[batch, length] attention_mask) => (float[batch, length] y) {
            seen = Mul(input_ids, attention_mask)
            y = Cast <to = 1> (seen)
        }"""
    pipeline = Pipeline((Tokenize(tokenizer(), pad=False),), (TopK(1, softmax=False),))
    model = models.write(tmp_path / "texts.onnx", text, {})
    place = bundle_of(tmp_path, model, pipeline=pipeline, lengths={"length": 8})
    with ServerThread(place_of(place), grpc=True) as server:
        for words, refusal in (
            (1022, ""),  # and the two around a text
            (
                1023,
                "input 'input_ids': dimension 1 has at most 1,024 here, since the bundle was made with up to 8; got "
                "1,025: the server's option --max-length allows more",
            ),
        ):
            sample = " ".join([WORDS[5]] * words).encode()
            assert way(server, "texts", sample, "text/plain") == refusal


def stepped(server: ServerThread, way: str, x: np.ndarray, **place: Any) -> float | str:
    """Ask for a step of the sequence 7; return its output, or the error."""
    module: Any = __import__(f"tritonclient.{way}", fromlist=["InferInput"])
    url = server.host if way == "http" else server.grpc_url
    with module.InferenceServerClient(url) as client:
        tensor = module.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        try:
            answer = client.infer("sums", [tensor], sequence_id=7, **place)
        except Exception as error:
            return str(error.message())  # type: ignore[attr-defined]
        return float(answer.as_numpy("y")[0, 0])


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_a_step_of_a_sequence_that_is_too_large_leaves_its_state_as_it_was(
    tmp_path: Path, way: str
) -> None:
    text = """
        sums (float[batch, height, width] x, float[batch, 1] h) => (float[batch, 1] y, float[batch, 1] h_out)
            <int64[2] both = {1, 2}, int64[1] one = {1}> {
            sum = ReduceSum <keepdims = 0> (x, both)
            column = Unsqueeze (sum, one)
            h_out = Add(column, h)
            y = Identity(h_out)
        }"""
    model = models.write(tmp_path / "sums.onnx", text, {})
    carried = Sequences((("h", "h_out"),))
    place = bundle_of(tmp_path, model, sequences=carried, lengths=DATA)
    with ServerThread(place_of(place), grpc=True) as server:
        assert stepped(server, way, np.ones((1, 32, 32), np.float32), sequence_start=True) == 1024
        refusal = stepped(server, way, np.ones((1, 32, 33), np.float32))
        assert refusal == TOO_LARGE.format("32 x 33")
        assert stepped(server, way, np.ones((1, 1, 2), np.float32), sequence_end=True) == 1026
