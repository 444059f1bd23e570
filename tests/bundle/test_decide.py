"""A bundle answers from what comes in: texts, sounds and JPEG files, in one call."""

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image
from tests.inputs.pipeline.test_audio import RATE, encoded, tone
from tests.inputs.pipeline.test_text import CONTENT
from tests.support.bundles import built, stated

from hasten.bundle import load, write
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError
from hasten.inputs.pipeline.audio import DecodeAudio, FitLength, LogMel
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.image import Decode, ToLayout
from hasten.inputs.pipeline.letterbox import Letterbox
from hasten.inputs.pipeline.text import Tokenize

WORDS_OF_A_TEXT = """
    m (int64[N, 8] input_ids, int64[N, 8] attention_mask) => (float[N, 9] scores)
    <int64 depth = {9}, float[2] values = {0, 1}, int64[1] axis = {1}, int64[1] last = {2}> {
        each = OneHot(input_ids, depth, values)
        mask = Cast<to = 1>(attention_mask)
        column = Unsqueeze(mask, last)
        kept = Mul(each, column)
        scores = ReduceSum<keepdims = 0>(kept, axis)
    }
"""


def bundle_of(folder: Path, graph: str, pipeline: Pipeline) -> Path:
    text = f'<ir_version: 8, opset_import: ["": 17]> {graph}'
    onnx.save(onnx.parser.parse_model(text), folder / "m.onnx")
    winner = built(folder, folder / "m.onnx", OnnxRuntime(threads=1))
    write(folder / "m.hasten", stated(winner, None, pipeline=pipeline), {}, {})
    return folder / "m.hasten"


def test_a_text_is_decided_on_by_a_model_of_two_inputs(tmp_path: Path) -> None:
    pipeline = Pipeline((Tokenize(CONTENT, 8),), (TopK(1, softmax=False),))
    with load(bundle_of(tmp_path, WORDS_OF_A_TEXT, pipeline)) as model:
        assert model.decide("cat cat the") == [{"class": 5, "score": 2.0}]
        assert model.decide(b"sat sat sat cat") == [{"class": 6, "score": 3.0}]
        with pytest.raises(InputError, match="tokenize needs a text"):
            model.decide(3)


def test_a_sound_is_decided_on(tmp_path: Path) -> None:
    graph = """
        m (float[N, 80, 100] x) => (float[N, 80] y)
        <int64[1] axis = {2}> { y = ReduceSum<keepdims = 0>(x, axis) }
    """
    steps = (DecodeAudio(), FitLength(RATE), LogMel())
    with load(bundle_of(tmp_path, graph, Pipeline(steps, (TopK(),)))) as model:
        (low,), (high,) = (model.decide(encoded(tone(hertz))) for hertz in (300, 3000))
    assert low["class"] < high["class"]


def test_a_jpeg_file_is_decided_on(tmp_path: Path) -> None:
    graph = """
        m (float[N, 3, 16, 16] x) => (float[N, 3] y)
        <int64[2] axes = {2, 3}> { y = ReduceSum<keepdims = 0>(x, axes) }
    """
    pipeline = Pipeline(
        (Decode(least=16), Letterbox(16), ToLayout()),
        (TopK(labels=("red", "green", "blue")),),
    )
    file = io.BytesIO()
    Image.fromarray(np.full((90, 120, 3), (0, 200, 30), np.uint8)).save(file, "JPEG")
    with load(bundle_of(tmp_path, graph, pipeline)) as model:
        assert model.decide(file.getvalue())[0]["label"] == "green"
