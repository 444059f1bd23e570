"""Each ONNX operator that is converted gives what ONNX Runtime gives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hasten.engines.litert.tflite.operators import OPERATORS

Compare = Callable[..., str]

PICTURE = "float[batch, 4, 6, 7] x"
ROWS = "float[batch, 5, 8] x"

CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    # id: (inputs, the nodes, outputs, constants)
    "Abs": (PICTURE, "y = Abs(x)", "y", {}),
    "Add": (PICTURE, "y = Add(x, w)", "y", {"w": (4, 1, 1)}),
    "Add a row": (PICTURE, "y = Add(x, w)", "y", {"w": (7,)}),
    "Add a number": (PICTURE, "y = Add(x, w)", "y", {"w": np.float32(2)}),
    "Add behind a convolution": (PICTURE, "c = Conv(x, k) y = Add(c, w)", "y", {"k": (6, 4, 1, 1), "w": (1, 6, 1, 1)}),
    "Add a column behind a convolution": (PICTURE, "c = Conv(x, k) y = Add(w, c)", "y", {"k": (6, 4, 1, 1), "w": (6, 7)}),
    "Add of pictures": (PICTURE, "c = Conv(x, k) y = Add(x, c)", "y", {"k": (4, 4, 1, 1)}),
    "Add and Relu": (PICTURE, "s = Add(x, w) y = Relu(s)", "y", {"w": (4, 1, 1)}),
    "Add used twice": (PICTURE, "s = Add(x, w) r = Relu(s) y = Mul(r, s)", "y", {"w": (4, 1, 1)}),
    "Add whose sum is an output": (PICTURE, "s = Add(x, w) y = Relu(s)", "s y", {"w": (4, 1, 1)}),
    "Add of integers": ("int64[batch, 3] x", "y = Add(x, w)", "y", {"w": np.array([1, 2, 3])}),
    "AveragePool": (PICTURE, "y = AveragePool<kernel_shape=[2, 3], strides=[2, 1]>(x)", "y", {}),
    "AveragePool without its padding": (
        "float[batch, 4, 7, 7] x",
        "y = AveragePool<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]>(x)", "y", {},
    ),
    "AveragePool with its padding": (
        PICTURE,
        "y = AveragePool<kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1>(x)", "y", {},
    ),
    "AveragePool SAME": (PICTURE, 'y = AveragePool<kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER">(x)', "y", {}),
    "BatchNormalization": (PICTURE, "y = BatchNormalization(x, a, b, m, v)", "y", {"a": (4,), "b": (4,), "m": (4,), "v": np.full(4, 2.5, np.float32)}),
    "BatchNormalization of rows": ("float[batch, 4] x", "y = BatchNormalization(x, a, b, m, v)", "y", {"a": (4,), "b": (4,), "m": (4,), "v": np.full(4, 2.5, np.float32)}),
    "BatchNormalization behind a convolution": (
        PICTURE, "c = Conv(x, k, d) y = BatchNormalization<epsilon=0.1>(c, a, b, m, v)", "y",
        {"k": (6, 4, 1, 1), "d": (6,), "a": (6,), "b": (6,), "m": (6,), "v": np.full(6, 2.5, np.float32)},
    ),
    "Cast": ("int64[batch, 3] x", "y = Cast<to=1>(x)", "y", {}),
    "Cast to the same": (PICTURE, "y = Cast<to=1>(x)", "y", {}),
    "Ceil": (PICTURE, "y = Ceil(x)", "y", {}),
    "Clip": (PICTURE, "y = Clip(x, l, h)", "y", {"l": np.float32(-1.5), "h": np.float32(0.5)}),
    "Clip to 6": (PICTURE, "y = Clip(x, l, h)", "y", {"l": np.float32(0), "h": np.float32(6)}),
    "Clip from below": (PICTURE, "y = Clip(x, l)", "y", {"l": np.float32(-0.5)}),
    "Clip from above": (PICTURE, "y = Clip(x, , h)", "y", {"h": np.float32(0.5)}),
    "Concat": ("float[1, 4, 6, 7] x", "c = Conv(x, k) y = Concat<axis=1>(x, c, w)", "y", {"k": (3, 4, 1, 1), "w": (1, 2, 6, 7)}),
    "Concat of columns": (PICTURE, "y = Concat<axis=-1>(x, x)", "y", {}),
    "Concat of rows": (ROWS, "y = Concat<axis=1>(x, x)", "y", {}),
    "ConvTranspose": (PICTURE, "y = ConvTranspose<strides=[2, 2]>(x, k, b)", "y", {"k": (4, 3, 2, 2), "b": (3,)}),
    "ConvTranspose SAME": (PICTURE, "y = ConvTranspose<strides=[2, 2], pads=[1, 1, 1, 1]>(x, k)", "y", {"k": (4, 3, 4, 4)}),
    "ConvTranspose cropped": (
        PICTURE, "y = ConvTranspose<strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]>(x, k)", "y", {"k": (4, 3, 3, 3)},
    ),
    "Div": (PICTURE, "y = Div(x, w)", "y", {"w": np.float32(3)}),
    "Div of a number": (PICTURE, "a = Exp(x) y = Div(w, a)", "y", {"w": np.float32(3)}),
    "Dropout": (PICTURE, "d = Dropout(x) y = Relu(d)", "y", {}),
    "Elu": (PICTURE, "y = Elu(x)", "y", {}),
    "Exp": (PICTURE, "y = Exp(x)", "y", {}),
    "Expand": ("float[1, 1, 5] x", "y = Expand(x, s)", "y", {"s": np.array([1, 4, 5])}),
    "Flatten": (PICTURE, "c = Conv(x, k) y = Flatten(c)", "y", {"k": (3, 4, 1, 1)}),
    "Flatten of channels": (PICTURE, "c = Conv(x, k) p = GlobalAveragePool(c) y = Flatten(p)", "y", {"k": (3, 4, 1, 1)}),
    "Floor": (PICTURE, "y = Floor(x)", "y", {}),
    "Gather": (PICTURE, "y = Gather<axis=1>(x, i)", "y", {"i": np.array([2, 0, -1])}),
    "Gather one": (ROWS, "y = Gather<axis=1>(x, i)", "y", {"i": np.int64(3)}),
    "Gather by an input": ("int64[batch, 3] x", "y = Gather(t, x)", "y", {"t": (5, 2)}),
    "Gelu": (ROWS, "y = Gelu(x)", "y", {}),
    "Gelu by tanh": (ROWS, 'y = Gelu<approximate="tanh">(x)', "y", {}),
    "Gelu spelled out": (
        ROWS, "d = Div(x, r) e = Erf(d) f = Add(e, one) m = Mul(x, f) y = Mul(m, half)", "y",
        {"r": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)},
    ),
    "Gelu the other way round": (
        ROWS, "h = Mul(half, x) d = Mul(x, r) e = Erf(d) f = Add(one, e) y = Mul(f, h)", "y",
        {"r": np.float32(0.5**0.5), "one": np.float32(1), "half": np.float32(0.5)},
    ),
    "Gemm": ("float[batch, 4] x", "y = Gemm<alpha=0.5, beta=2.0>(x, w, b)", "y", {"w": (4, 3), "b": (3,)}),
    "Gemm turned": ("float[batch, 4] x", "g = Gemm<transB=1>(x, w) y = Relu(g)", "y", {"w": (3, 4)}),
    "Gemm of a turned input": ("float[4, 2] x", "y = Gemm<transA=1>(x, w, b)", "y", {"w": (4, 3), "b": (1, 3)}),
    "GlobalAveragePool": (PICTURE, "y = GlobalAveragePool(x)", "y", {}),
    "GlobalMaxPool": (PICTURE, "y = GlobalMaxPool(x)", "y", {}),
    "HardSigmoid": (PICTURE, "y = HardSigmoid(x)", "y", {}),
    "HardSigmoid as torch has it": (PICTURE, "y = HardSigmoid<alpha=0.16666667, beta=0.5>(x)", "y", {}),
    "HardSwish": (PICTURE, "y = HardSwish(x)", "y", {}),
    "HardSwish of HardSigmoid": (PICTURE, "h = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(h, x)", "y", {}),
    "HardSwish spelled out": (
        PICTURE, "a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)", "y",
        {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)},
    ),
    "HardSwish, divided before": (
        PICTURE, "a = Add(three, x) c = Clip(a, zero, six) d = Mul(c, sixth) y = Mul(d, x)", "y",
        {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6), "sixth": np.float32(1 / 6)},
    ),
    "HardSigmoid spelled out": (
        PICTURE, "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)", "y",
        {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)},
    ),
    "what only looks like HardSwish": (
        PICTURE, "a = Add(x, three) c = Clip(a, zero, six) m = Mul(a, c) y = Div(m, six)", "y",
        {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)},
    ),
    "Identity": (PICTURE, "i = Identity(x) y = Relu(i)", "y", {}),
    "Identity alone": (PICTURE, "y = Identity(x)", "y", {}),
    "LayerNormalization": (ROWS, "y = LayerNormalization(x, a, b)", "y", {"a": (8,), "b": (8,)}),
    "LayerNormalization over two axes": (ROWS, "y = LayerNormalization<axis=1>(x, a)", "y", {"a": (5, 8)}),
    "LeakyRelu": (PICTURE, "y = LeakyRelu<alpha=0.2>(x)", "y", {}),
    "Log": (PICTURE, "a = Exp(x) y = Log(a)", "y", {}),
    "MatMul": (ROWS, "y = MatMul(x, w)", "y", {"w": (8, 3)}),
    "MatMul and Add": (ROWS, "m = MatMul(x, w) y = Add(b, m)", "y", {"w": (8, 3), "b": (3,)}),
    "MatMul and an Add of a matrix": (ROWS, "m = MatMul(x, w) y = Add(b, m)", "y", {"w": (8, 3), "b": (5, 3)}),
    "MatMul used twice": (ROWS, "m = MatMul(x, w) s = Add(m, b) y = Mul(m, s)", "y", {"w": (8, 3), "b": (3,)}),
    "MatMul of rows": ("float[batch, 4] x", "m = MatMul(x, w) y = Relu(m)", "y", {"w": (4, 3)}),
    "MatMul of two inputs": (ROWS, "t = Transpose<perm=[0, 2, 1]>(x) y = MatMul(x, t)", "y", {}),
    "MatMul by heads": (
        ROWS, "h = Reshape(x, s) a = Transpose<perm=[0, 2, 1, 3]>(h) b = Transpose<perm=[0, 2, 3, 1]>(h) y = MatMul(a, b)", "y",
        {"s": np.array([0, 5, 2, 4])},
    ),
    "MatMul by a stack": (ROWS, "y = MatMul(x, w)", "y", {"w": (1, 8, 3)}),
    "Max": (PICTURE, "y = Max(x, w)", "y", {"w": (4, 1, 1)}),
    "MaxPool": (PICTURE, "y = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(x)", "y", {}),
    "MaxPool padded": (PICTURE, "y = MaxPool<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]>(x)", "y", {}),
    "MaxPool padded behind Relu": (PICTURE, "r = Relu(x) y = MaxPool<kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]>(r)", "y", {}),
    "MaxPool of all windows": (PICTURE, "y = MaxPool<kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1>(x)", "y", {}),
    "Min": (PICTURE, "y = Min(x, w)", "y", {"w": np.float32(0.1)}),
    "Mul": (PICTURE, "c = Conv(x, k) p = GlobalAveragePool(c) y = Mul(c, p)", "y", {"k": (3, 4, 1, 1)}),
    "Mul with a smaller input": (f"{PICTURE}, float[6, 7] z", "c = Conv(x, k) y = Mul(z, c)", "y", {"k": (3, 4, 1, 1)}),
    "Mul with a smaller input that is broadcast": (f"{PICTURE}, float[3, 6, 1] z", "c = Conv(x, k) y = Mul(z, c)", "y", {"k": (3, 4, 1, 1)}),
    "Neg": (PICTURE, "y = Neg(x)", "y", {}),
    "PRelu": (PICTURE, "y = PRelu(x, w)", "y", {"w": (4, 1, 1)}),
    "Pad": (PICTURE, "y = Pad(x, p)", "y", {"p": np.array([0, 1, 2, 0, 0, 0, 1, 3])}),
    "Pad with a value": (PICTURE, "c = Conv(x, k) y = Pad(c, p, v)", "y", {"k": (3, 4, 1, 1), "p": np.array([0, 1, 2, 0, 0, 0, 1, 3]), "v": np.float32(-2)}),
    "Pad of some axes": (PICTURE, "y = Pad(x, p, , a)", "y", {"p": np.array([1, 2, 0, 3]), "a": np.array([2, -1])}),
    "Pad by reflection": (PICTURE, 'y = Pad<mode="reflect">(x, p)', "y", {"p": np.array([0, 0, 2, 1, 0, 0, 1, 3])}),
    "Pow 2": (PICTURE, "y = Pow(x, w)", "y", {"w": np.float32(2)}),
    "Pow 0.5": (PICTURE, "a = Exp(x) y = Pow(a, w)", "y", {"w": np.float32(0.5)}),
    "Pow 3": (PICTURE, "y = Pow(x, w)", "y", {"w": np.float32(3)}),
    "Reciprocal": (PICTURE, "a = Exp(x) y = Reciprocal(a)", "y", {}),
    "ReduceL2": (ROWS, "y = ReduceL2(x, a)", "y", {"a": np.array([-1])}),
    "ReduceL2 of channels": (PICTURE, "c = Conv(x, k) y = ReduceL2<keepdims=0>(c, a)", "y", {"k": (3, 4, 1, 1), "a": np.array([1])}),
    "ReduceMax": (PICTURE, "y = ReduceMax<keepdims=0>(x, a)", "y", {"a": np.array([1])}),
    "ReduceMean": (PICTURE, "c = Conv(x, k) y = ReduceMean<keepdims=0>(c, a)", "y", {"k": (3, 4, 1, 1), "a": np.array([-1, 2])}),
    "ReduceMean of columns": (PICTURE, "c = Conv(x, k) y = ReduceMean<keepdims=0>(c, a)", "y", {"k": (3, 4, 1, 1), "a": np.array([3])}),
    "ReduceMean, kept": (PICTURE, "c = Conv(x, k) y = ReduceMean(c, a)", "y", {"k": (3, 4, 1, 1), "a": np.array([1])}),
    "ReduceMean of rows": (ROWS, "y = ReduceMean(x, a)", "y", {"a": np.array([-1])}),
    "ReduceSum": (ROWS, "y = ReduceSum<keepdims=0>(x, a)", "y", {"a": np.array([1])}),
    "Relu": (PICTURE, "y = Relu(x)", "y", {}),
    "Reshape": (PICTURE, "c = Conv(x, k) y = Reshape(c, s)", "y", {"k": (3, 4, 1, 1), "s": np.array([0, 3, -1])}),
    "Reshape to the same": (PICTURE, "y = Reshape(x, s)", "y", {"s": np.array([0, 4, 6, 7])}),
    "Reshape by a computed shape": (PICTURE, "n = Shape<end=1>(x) t = Concat<axis=0>(n, s) y = Reshape(x, t)", "y", {"s": np.array([28, 6])}),
    "Resize": (PICTURE, 'y = Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , s)', "y", {"s": np.array([1, 1, 2, 2], np.float32)}),
    "Resize by three": (PICTURE, 'y = Resize(x, , s)', "y", {"s": np.array([1, 1, 3, 3], np.float32)}),
    "Resize to a size": ("float[1, 4, 6, 7] x", 'y = Resize<mode="linear">(x, , , n)', "y", {"n": np.array([1, 4, 9, 5])}),
    "Resize by corners": ("float[1, 4, 6, 7] x", 'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , , n)', "y", {"n": np.array([1, 4, 12, 14])}),
    "Resize, linear and asymmetric": (PICTURE, 'y = Resize<mode="linear", coordinate_transformation_mode="asymmetric">(x, , s)', "y", {"s": np.array([1, 1, 2, 2], np.float32)}),
    "Sigmoid": (PICTURE, "y = Sigmoid(x)", "y", {}),
    "Slice": (PICTURE, "c = Conv(x, k) y = Slice(c, b, e, a, t)", "y", {"k": (3, 4, 1, 1), "b": np.array([1, -3]), "e": np.array([5, 2**62]), "a": np.array([2, -1]), "t": np.array([2, 1])}),
    "Slice of channels": (PICTURE, "c = Conv(x, k) y = Slice(c, b, e, a)", "y", {"k": (3, 4, 1, 1), "b": np.array([1]), "e": np.array([3]), "a": np.array([1])}),
    "Slice of rows": (ROWS, "y = Slice(x, b, e)", "y", {"b": np.array([0, 1]), "e": np.array([2**62, 3])}),
    "Softmax": (ROWS, "y = Softmax(x)", "y", {}),
    "Softmax of channels": (PICTURE, "y = Softmax<axis=1>(x)", "y", {}),
    "Softmax of an axis inside": (ROWS, "y = Softmax<axis=1>(x)", "y", {}),
    "Split": (PICTURE, "c = Conv(x, k) a, b = Split<axis=1, num_outputs=2>(c) y = Mul(a, b)", "y", {"k": (6, 4, 1, 1)}),
    "Split by sizes": (ROWS, "a, b = Split<axis=2>(x, s)", "b a", {"s": np.array([3, 5])}),
    "Sqrt": (PICTURE, "a = Exp(x) y = Sqrt(a)", "y", {}),
    "Squeeze": (PICTURE, "p = GlobalAveragePool(x) y = Squeeze(p, a)", "y", {"a": np.array([2, 3])}),
    "Sub": (PICTURE, "y = Sub(w, x)", "y", {"w": (4, 1, 1)}),
    "Tanh": (PICTURE, "y = Tanh(x)", "y", {}),
    "Transpose": (ROWS, "y = Transpose<perm=[0, 2, 1]>(x)", "y", {}),
    "Transpose to channels last": (PICTURE, "c = Conv(x, k) y = Transpose<perm=[0, 2, 3, 1]>(c)", "y", {"k": (3, 4, 1, 1)}),
    "Transpose there and back": (
        PICTURE, "t = Transpose<perm=[0, 2, 3, 1]>(x) m = MatMul(t, w) u = Transpose<perm=[0, 3, 1, 2]>(m) y = Conv(u, k)", "y",
        {"w": (4, 5), "k": (3, 5, 1, 1)},
    ),
    "Transpose of another kind": (PICTURE, "c = Conv(x, k) y = Transpose<perm=[0, 3, 1, 2]>(c)", "y", {"k": (3, 4, 1, 1)}),
    "Unsqueeze": (ROWS, "y = Unsqueeze(x, a)", "y", {"a": np.array([2])}),
    "a branch of constants": (ROWS, "c = Add(a, b) y = Mul(x, c)", "y", {"a": (8,), "b": (8,)}),
    "a constant as an output": (ROWS, "y = Relu(x) z = Add(a, b)", "y z", {"a": (3, 8), "b": (8,)}),
    "an input that nobody reads": (f"{ROWS}, float[batch, 3] unread", "y = Relu(x)", "y", {}),
    "an input as an output": (f"{ROWS}, int64[batch, 3] ids", "y = Relu(x) z = Identity(ids)", "y z", {}),
    "one value as two outputs": (ROWS, "y = Relu(x) z = Identity(y)", "y z", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_gives_what_onnx_runtime_gives(case: str, agree: Compare) -> None:
    inputs, nodes, outputs, constants = CASES[case]
    given = ", ".join(outputs.split())
    agree(f"case ({inputs}) => ({given}) {{ {nodes} }}", **constants)


def test_every_operator_has_a_case() -> None:
    spelled = " ".join(nodes for _, nodes, _, _ in CASES.values()).replace("<", "(")
    assert [name for name in OPERATORS if f" {name}(" not in f" {spelled}"] == []
