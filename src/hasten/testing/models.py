"""Write small ONNX models from text, with equal weights every time.

Each function writes a file (IR version 10, opset 17) into a folder and returns its path. `batch`
is the size of the first axis, or its name if its size is open.
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
    return write(folder / "linear_classifier.onnx", text, {"weight": (16, 4), "bias": (4,)})


def small_cnn(folder: Path, batch: int | str = "batch") -> Path:
    """Write x: float32[batch, 3, 32, 32] -> logits: float32[batch, 10], two convolutions."""
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
    return write(folder / "small_cnn.onnx", text, weights)


def two_inputs(folder: Path, batch: int | str = "batch") -> Path:
    """Write features: float32[batch, 8], ids: int64[batch, 3] -> score and same_ids.

    `ids` are rows of a table of 10; the second output, `same_ids`, equals the second input.
    """
    text = f"""
        two_inputs (float[{batch}, 8] features, int64[{batch}, 3] ids)
            => (float[{batch}, 8] score, int64[{batch}, 3] same_ids) {{
            rows = Gather(table, ids)
            row = ReduceMean <axes = [1], keepdims = 0> (rows)
            score = Mul(features, row)
            same_ids = Flatten <axis = 1> (ids)
        }}"""
    return write(folder / "two_inputs.onnx", text, {"table": (10, 8)})


def mixed_inputs(folder: Path, batch: int | str = "batch") -> Path:
    """Write inputs of every kind -> scores: float32[batch, 4], best: int64[batch], sure: bool[batch].

    The inputs are x: float32[batch, 8], ids: int64[batch, 3], mask: bool[batch, 3], kind: int32[batch],
    and the scalars scale: float32 and rate: int64, a rate of 1 being another branch than 0.
    """
    text = f"""
        mixed_inputs (float[{batch}, 8] x, int64[{batch}, 3] ids, bool[{batch}, 3] mask,
            int32[{batch}] kind, float scale, int64 rate)
            => (float[{batch}, 4] scores, int64[{batch}] best, bool[{batch}] sure)
            <int64 one = {{1}}, int64[1] last = {{2}}, float half = {{0.5}}, float low = {{0.0}}> {{
            rows = Gather(table, ids)
            weight = Cast <to = 1> (mask)
            weights = Unsqueeze(weight, last)
            kept = Mul(rows, weights)
            row = ReduceMean <axes = [1], keepdims = 0> (kept)
            own = Gather(table, kind)
            with_row = Add(x, row)
            with_own = Add(with_row, own)
            is_one = Equal(rate, one)
            factor = Where(is_one, scale, half)
            scaled = Mul(with_own, factor)
            scores = Gemm(scaled, w, b)
            best = ArgMax <axis = 1, keepdims = 0> (scores)
            highest = ReduceMax <axes = [1], keepdims = 0> (scores)
            sure = Greater(highest, low)
        }}"""
    return write(folder / "mixed_inputs.onnx", text, {"table": (10, 8), "w": (8, 4), "b": (4,)})


def tiny_transformer_block(folder: Path, batch: int | str = "batch") -> Path:
    """Write x: float32[batch, 16, 32] -> y of the same shape, attention and two layers."""
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
    return write(folder / "tiny_transformer_block.onnx", text, weights)


def unknown_operator(folder: Path) -> Path:
    """Write a model with an operator that no engine has: Frobnicate in the node the_culprit."""
    text = """
        unknown_operator (float[batch, 4] x) => (float[batch, 4] y) {
            [innocent] r = Relu(x)
            [the_culprit] y = Frobnicate(r)
        }"""
    return write(folder / "unknown_operator.onnx", text, {})


def write(path: Path, text: str, weights: Weights) -> Path:
    """Write a model from ONNX's text syntax and from the shapes of its weights.

    The weights are drawn from the same seed every time.

    Args:
        path: Path of the file.
        text: Graph in ONNX's text syntax, without a header.
        weights: Shapes of the weights, by name.
    """
    import onnx
    from onnx import numpy_helper, parser

    model = parser.parse_model(HEADER + text)
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(_weight(rng, shape), name))
    onnx.save(model, path)
    return path


def _weight(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Draw weights that keep activations near unit size.

    Source: He et al., arXiv:1502.01852, eq. 10.
    """
    inputs = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
    return np.float32((2 / inputs) ** 0.5) * rng.standard_normal(shape, dtype=np.float32)
