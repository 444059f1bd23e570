"""Small ONNX models as text, with weights that are the same every time.

Each function writes a file (IR version 10, opset 17) into a folder and returns its path. `batch`
is the size of the first axis, or the name of an open one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

HEADER = '<ir_version: 10, opset_import: ["": 17]>'

Weights = Mapping[str, tuple[int, ...]]


def linear_classifier(folder: Path, batch: int | str = "batch") -> Path:
    """Write x: float32[batch, 16] -> logits: float32[batch, 4], one matrix product."""
    text = f"""
        linear_classifier (float[{batch}, 16] x) => (float[{batch}, 4] logits) {{
            logits = Gemm(x, weight, bias)
        }}"""
    return _write(folder / "linear_classifier.onnx", text, {"weight": (16, 4), "bias": (4,)})


def small_cnn(folder: Path, batch: int | str = "batch") -> Path:
    """Write x: float32[batch, 3, 32, 32] -> logits: float32[batch, 10]: two convolutions."""
    text = f"""
        small_cnn (float[{batch}, 3, 32, 32] x) => (float[{batch}, 10] logits) {{
            [conv1] c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
            [relu1] r1 = Relu(c1)
            [conv2] c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (r1, w2, b2)
            [relu2] r2 = Relu(c2)
            [pool] p = GlobalAveragePool(r2)
            [flatten] f = Flatten <axis = 1> (p)
            [classifier] logits = Gemm(f, w3, b3)
        }}"""
    weights = {
        "w1": (16, 3, 3, 3),
        "b1": (16,),
        "w2": (32, 16, 3, 3),
        "b2": (32,),
        "w3": (32, 10),
        "b3": (10,),
    }
    return _write(folder / "small_cnn.onnx", text, weights)


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
    return _write(folder / "depthwise_cnn.onnx", text, weights)


def two_inputs(folder: Path, batch: int | str = "batch") -> Path:
    """Write features: float32[batch, 8], ids: int64[batch, 3] -> score, and ids handed on.

    `ids` are rows of a table of 10; the second output, `same_ids`, is the second input itself.
    """
    text = f"""
        two_inputs (float[{batch}, 8] features, int64[{batch}, 3] ids)
            => (float[{batch}, 8] score, int64[{batch}, 3] same_ids) {{
            rows = Gather(table, ids)
            row = ReduceMean <axes = [1], keepdims = 0> (rows)
            score = Mul(features, row)
            same_ids = Flatten <axis = 1> (ids)
        }}"""
    return _write(folder / "two_inputs.onnx", text, {"table": (10, 8)})


def tiny_transformer_block(folder: Path, batch: int | str = "batch") -> Path:
    """Write x: float32[batch, 16, 32] -> y of the same shape: attention, then two layers."""
    text = f"""
        tiny_transformer_block (float[{batch}, 16, 32] x) => (float[{batch}, 16, 32] y)
            <float[32] one = {{{", ".join(["1.0"] * 32)}}}, float scale = {{{32**-0.5}}}> {{
            n1 = LayerNormalization <axis = -1> (x, one)
            q = MatMul(n1, wq)
            k = MatMul(n1, wk)
            v = MatMul(n1, wv)
            kt = Transpose <perm = [0, 2, 1]> (k)
            qk = MatMul(q, kt)
            scaled = Mul(qk, scale)
            weights = Softmax <axis = -1> (scaled)
            mixed = MatMul(weights, v)
            a = Add(x, mixed)
            n2 = LayerNormalization <axis = -1> (a, one)
            up = MatMul(n2, w1)
            active = Relu(up)
            down = MatMul(active, w2)
            y = Add(a, down)
        }}"""
    weights = {"wq": (32, 32), "wk": (32, 32), "wv": (32, 32), "w1": (32, 64), "w2": (64, 32)}
    return _write(folder / "tiny_transformer_block.onnx", text, weights)


def identity(folder: Path, datatype: str = "float", sizes: str = "1000") -> Path:
    """Write x: [batch, sizes] -> y, the same; `datatype` as ONNX's text has it."""
    kind = f"{datatype}[batch, {sizes}]"
    text = f"""
        identity ({kind} x) => ({kind} y) {{
            y = Identity(x)
        }}"""
    return _write(folder / f"identity_{datatype}.onnx", text, {})


def fragile(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y, the same, but NaN wherever a number is over 89."""
    text = """
        fragile (float[batch, 4] x) => (float[batch, 4] y) {
            e = Exp(x)
            zero = Sub(e, e)
            y = Add(x, zero)
        }"""
    return _write(folder / "fragile.onnx", text, {})


def undefined(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y: NaN, whatever is asked."""
    text = """
        undefined (float[batch, 4] x) => (float[batch, 4] y) {
            zero = Sub(x, x)
            y = Div(zero, zero)
        }"""
    return _write(folder / "undefined.onnx", text, {})


def solid(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y, the same: what `fragile` should be."""
    text = """
        solid (float[batch, 4] x) => (float[batch, 4] y) {
            y = Identity(x)
        }"""
    return _write(folder / "solid.onnx", text, {})


def mirrored(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y, each row from its last number to its first."""
    text = """
        mirrored (float[batch, 4] x) => (float[batch, 4] y)
            <int64[1] begin = {-1}, int64[1] end = {-5}, int64[1] axis = {1}, int64[1] step = {-1}> {
            y = Slice(x, begin, end, axis, step)
        }"""
    return _write(folder / "mirrored.onnx", text, {})


def sociable(folder: Path) -> Path:
    """Write x: float32[batch, 4] -> y, each row less the mean over the batch."""
    text = """
        sociable (float[batch, 4] x) => (float[batch, 4] y) {
            mean = ReduceMean <axes = [0], keepdims = 1> (x)
            y = Sub(x, mean)
        }"""
    return _write(folder / "sociable.onnx", text, {})


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
    return _write(folder / "slow.onnx", text, {"spread": (4, 256), "mix": (256, 256)})


def voice_detector(folder: Path) -> Path:
    """Write audio: float32[1, 256], state: float32[1, 8], rate: int64 -> speech: float32[1, 2], next:
    float32[1, 8]. At a rate of 16,000 it answers; at any other, another branch makes frames that don't
    fit the weights, so that it fails."""
    text = """
        voice_detector (float[1, 256] audio, float[1, 8] state, int64 rate)
            => (float[1, 2] speech, float[1, 8] next)
            <int64 wide = {16000}, int64 thousand = {1000}, int64[1] one = {1}, int64[1] rest = {-1},
             int64[2] by_wide = {16, 16}, int64[2] row = {1, -1}> {
            is_wide = Equal(rate, wide)
            frames = If (is_wide) <
                then_branch = at_16000 () => (float[n, m] wide_frames) {
                    wide_frames = Reshape(audio, by_wide)
                },
                else_branch = at_others () => (float[n, m] other_frames) {
                    length = Div(rate, thousand)
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
        }"""
    weights = {"w1": (16, 8), "w2": (8, 2), "b2": (2,)}
    return _write(folder / "voice_detector.onnx", text, weights)


def unknown_operator(folder: Path) -> Path:
    """Write a model with an operator, Frobnicate in node the_culprit, that no engine has."""
    text = """
        unknown_operator (float[batch, 4] x) => (float[batch, 4] y) {
            [innocent] r = Relu(x)
            [the_culprit] y = Frobnicate(r)
        }"""
    return _write(folder / "unknown_operator.onnx", text, {})


def _write(path: Path, text: str, weights: Weights) -> Path:
    """Parse the text, add the weights, and save."""
    import onnx
    from onnx import numpy_helper, parser

    model = parser.parse_model(HEADER + text)
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(_weight(rng, shape), name))
    onnx.save(model, path)
    return path


def _weight(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Draw weights that keep activations near unit size: He et al., arXiv:1502.01852, eq. 10."""
    inputs = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
    return np.float32((2 / inputs) ** 0.5) * rng.standard_normal(shape, dtype=np.float32)
