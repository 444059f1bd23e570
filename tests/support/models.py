"""More small ONNX models as text, for what only hasten's own tests ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from hasten.core.model import Model
from hasten.inputs.models.onnx import load
from hasten.testing.models import write

CONVNET = """
<ir_version: 10, opset_import: ["": 20]>
convnet (float[batch, 3, 16, 16] x) => (float[batch, 5] y)
<float[16, 3, 3, 3] w1, float[16] b1, float[16, 1, 3, 3] w2, float[16] b2,
 float[16, 5] w3, float[5] b3, float lo = {0.0}, float hi = {6.0}>
{
    [conv1] c1 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w1, b1)
    [clip1] r1 = Clip (c1, lo, hi)
    [conv2] c2 = Conv <pads = [1, 1, 1, 1], group = 16> (r1, w2, b2)
    [add] s = Add (c2, r1)
    [relu] r2 = Relu (s)
    [pool] p = GlobalAveragePool (r2)
    [flat] f = Flatten (p)
    [head] y = Gemm (f, w3, b3)
}
"""

ELEMENTWISE = """
<ir_version: 10, opset_import: ["": 20]>
elementwise (float[batch, 4] x) => (float[batch, 4] y)
{
    [relu] r = Relu (x)
    [exp] y = Exp (r)
}
"""

COLOURS = ("red", "green", "blue")
COLOUR = """
colour (float[batch, 3, 8, 8] pixels) => (float[batch, 3] scores)
{
    mean = GlobalAveragePool (pixels)
    scores = Flatten (mean)
}
"""
"""One score for each colour, which is its mean over the picture."""

Build = Callable[..., Model]


BRANCHES = """
<ir_version: 10, opset_import: ["": 20]>
branches (float[batch, 16] x) => (float[batch, 16] y)
<float[16, 16] w>
{
    largest = ReduceMax <keepdims = 0> (x)
    zero = Constant <value_float = 0.0> ()
    some = Greater (largest, zero)
    y = If (some) <
        then_branch = yes () => (float[batch, 16] a) { a = MatMul (x, w) },
        else_branch = no () => (float[batch, 16] b) { b = Identity (x) }
    >
}
"""
"""A matrix product inside a branch, and none outside."""


def built(folder: Path, text: str, name: str = "model", external: bool = False) -> Model:
    """Write ONNX text into a folder, load it and settle it.

    Args:
        folder: Folder to write into; it is made where it is missing.
        text: A model; the values that it declares without giving them are weights, drawn from one
            seed.
        name: Name of the file without its ending.
        external: Whether the weights lie in a file of their own.
    """
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(3)
    given = {value.name for value in proto.graph.initializer}
    given |= {name for node in proto.graph.node for name in node.output}
    for value in proto.graph.value_info:
        if value.name not in given:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            fan = max(1, int(np.prod(shape[1:])) if len(shape) == 4 else shape[0])
            own = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            weight = (random.standard_normal(shape) / np.sqrt(fan)).astype(own)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, value.name))
    del proto.graph.value_info[:]
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.onnx"
    onnx.save(proto, str(path), save_as_external_data=external, location=f"{name}.data")
    return settled(load(path))


def settled(model: Model) -> Model:
    """Return a model with the request of a sample of zeros, batch 1."""
    samples = {
        spec.name: np.zeros([int(size) for size in spec.shape[1:]], spec.dtype)
        for spec in model.inputs
    }
    return model.settled_by(samples)


def depthwise_cnn(folder: Path, batch: int | str = "batch") -> Path:
    """Write x: float32[batch, 16, 16, 16] -> logits: float32[batch, 8]: a residual block, with a
    depthwise convolution in it, between a convolution and a matrix product."""
    text = f"""
        depthwise_cnn (float[{batch}, 16, 16, 16] x) => (float[{batch}, 8] logits)
            <float low = {{0.0}}, float high = {{6.0}}> {{
            [stem] c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
            [relu1] r1 = Relu(c1)
            [depthwise] c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = 32> (r1, w2, b2)
            [relu6] r2 = Clip(c2, low, high)
            [pointwise] c3 = Conv <kernel_shape = [1, 1]> (r2, w3, b3)
            [skip] s = Add(c3, r1)
            [relu2] r3 = Relu(s)
            [pool] p = GlobalAveragePool(r3)
            [flatten] f = Flatten <axis = 1> (p)
            [classifier] logits = Gemm(f, w4, b4)
        }}"""
    weights = {
        "w1": (32, 16, 3, 3),
        "b1": (32,),
        "w2": (32, 1, 3, 3),
        "b2": (32,),
        "w3": (32, 32, 1, 1),
        "b3": (32,),
        "w4": (32, 8),
        "b4": (8,),
    }
    return write(folder / "depthwise_cnn.onnx", text, weights)


def identity(folder: Path, datatype: str = "float", sizes: str = "1000") -> Path:
    """Write x: [batch, sizes] -> y, the same; `datatype` as ONNX's text has it."""
    kind = f"{datatype}[batch, {sizes}]"
    text = f"""
        identity ({kind} x) => ({kind} y) {{
            y = Identity(x)
        }}"""
    return write(folder / f"identity_{datatype}.onnx", text, {})


def fragile(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y, the same, but NaN wherever a number is over 89."""
    text = """
        fragile (float[batch, 4] x) => (float[batch, 4] y) {
            e = Exp(x)
            zero = Sub(e, e)
            y = Add(x, zero)
        }"""
    return write(folder / "fragile.onnx", text, {})


def undefined(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y: NaN, whatever is asked."""
    text = """
        undefined (float[batch, 4] x) => (float[batch, 4] y) {
            zero = Sub(x, x)
            y = Div(zero, zero)
        }"""
    return write(folder / "undefined.onnx", text, {})


def solid(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y, the same: what `fragile` should be."""
    text = """
        solid (float[batch, 4] x) => (float[batch, 4] y) {
            y = Identity(x)
        }"""
    return write(folder / "solid.onnx", text, {})


def mirrored(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y, each row from its last number to its first."""
    text = """
        mirrored (float[batch, 4] x) => (float[batch, 4] y)
            <int64[1] begin = {-1}, int64[1] end = {-5}, int64[1] axis = {1}, int64[1] step = {-1}> {
            y = Slice(x, begin, end, axis, step)
        }"""
    return write(folder / "mirrored.onnx", text, {})


def sociable(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y, each row less the mean over the batch."""
    text = """
        sociable (float[batch, 4] x) => (float[batch, 4] y) {
            mean = ReduceMean <axes = [0], keepdims = 1> (x)
            y = Sub(x, mean)
        }"""
    return write(folder / "sociable.onnx", text, {})


def drawing(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y, the same with random numbers added."""
    text = """
        drawing (float[batch, 4] x) => (float[batch, 4] y) {
            drawn = RandomNormalLike (x)
            y = Add(x, drawn)
        }"""
    return write(folder / "drawing.onnx", text, {})


def slow(folder: Path, rounds: int = 1000) -> Path:
    """Write x: float32[batch, 4] -> y: float32[batch, 256], by so many products, one after another.

    One takes a good 10 us for one row.
    """
    text = f"""
        slow (float[batch, 4] x) => (float[batch, 256] y)
            <int64 rounds = {{{rounds}}}, bool go = {{1}}> {{
            first = MatMul(x, spread)
            y = Loop (rounds, go, first) <body = round (int64 number, bool on, float[batch, 256] a)
                => (bool still, float[batch, 256] b) {{
                    still = Identity(on)
                    product = MatMul(a, mix)
                    b = Tanh(product)
                }}>
        }}"""
    return write(folder / "slow.onnx", text, {"spread": (4, 256), "mix": (256, 256)})


def voice_detector(folder: Path, rate: str = "int64") -> Path:
    """Write audio: float32[1, 256], state: float32[1, 8], rate: int64 -> speech: float32[1, 2], next:
    float32[1, 8]. At a rate of 16,000 it answers; at any other, another branch makes frames that don't
    fit the weights, so that it fails."""
    text = """
        voice_detector (float[1, 256] audio, float[1, 8] state, RATE rate)
            => (float[1, 2] speech, float[1, 8] next)
            <int64 wide = {16000}, int64 thousand = {1000}, int64[1] one = {1}, int64[1] rest = {-1},
             int64[2] by_wide = {16, 16}, int64[2] row = {1, -1}> {
            number = Squeeze(rate)
            is_wide = Equal(number, wide)
            frames = If (is_wide) <
                then_branch = at_16000 () => (float[n, m] wide_frames) {
                    wide_frames = Reshape(audio, by_wide)
                },
                else_branch = at_others () => (float[n, m] other_frames) {
                    length = Div(number, thousand)
                    size = Reshape(length, one)
                    sizes = Concat <axis = 0> (rest, size)
                    other_frames = Reshape(audio, sizes)
                }>
            means = ReduceMean <axes = [1], keepdims = 0> (frames)
            features = Reshape(means, row)
            hidden = MatMul(features, w1)
            moved = Add(hidden, state)
            next = Tanh(moved)
            logits = Gemm(next, w2, b2)
            speech = Softmax(logits)
        }""".replace("RATE", rate)
    weights = {"w1": (16, 8), "w2": (8, 2), "b2": (2,)}
    return write(folder / "voice_detector.onnx", text, weights)


def recurrent_detector(folder: Path) -> Path:
    """Write audio: float32[1, 256], rate: int64, h, c: float32[1, 1, 8] -> speech: float32[1, 2], hn, cn: an LSTM
    behind a branch on the rate. At 16,000 its step is 4 frames of 64, at any other rate 8 frames of 32, padded."""
    text = """
        recurrent_detector (float[1, 256] audio, int64 rate, float[1, 1, 8] h, float[1, 1, 8] c)
            => (float[1, 2] speech, float[1, 1, 8] hn, float[1, 1, 8] cn)
            <int64 wide = {16000}, int64[3] by_64 = {4, 1, 64}, int64[3] by_32 = {8, 1, 32},
             int64[6] padding = {0, 0, 0, 0, 0, 32}, int64[2] row = {1, -1}> {
            is_wide = Equal(rate, wide)
            frames = If (is_wide) <
                then_branch = at_16000 () => (float[n, 1, 64] wide_frames) {
                    wide_frames = Reshape(audio, by_64)
                },
                else_branch = at_others () => (float[n, 1, 64] other_frames) {
                    narrow = Reshape(audio, by_32)
                    other_frames = Pad(narrow, padding)
                }>
            ys, hn, cn = LSTM <hidden_size = 8> (frames, w, r, b, , h, c)
            features = Reshape(hn, row)
            logits = Gemm(features, w2, b2)
            speech = Softmax(logits)
        }"""
    weights = {"w": (1, 32, 64), "r": (1, 32, 8), "b": (1, 64), "w2": (8, 2), "b2": (2,)}
    return write(folder / "recurrent_detector.onnx", text, weights)
