"""Graphs of bytes: lowered plans answer as ONNX Runtime does, their C as numpy does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.support.quantized import drawn, lowered, quantized, ran, steps_apart

from hasten.core import c_compiler
from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.operators.int8.definition import MOST_LENGTH
from hasten.engines.compiled.plan import Plan
from hasten.errors import CandidateError

_HEAD = '<ir_version: 8, opset_import: ["": {opset}]>'
_FORMS: list[dict[str, Any]] = [
    {},
    {"signed": True},
    {"wide": False, "weights": "uint8"},
    {"signed": True, "biases": False},
]
_KINDS = {"Quantize", "Conv8", "Pool8", "Table8", "Add8", "Gate8", "Multiply8", "Dequantize", "Map"}
"""Operations that calculate with bytes, and copies."""


def text(signature: str, outputs: str, body: str, constants: str = "", opset: int = 17) -> str:
    made = ", ".join(
        f"float[{', '.join(f'{o}{n}' for n in range(4))}] {o}" for o in outputs.split()
    )
    return f"{_HEAD.format(opset=opset)} g ({signature}) => ({made}) {constants} {{ {body} }}"


def kinds(plan: Plan) -> set[str]:
    return {type(one).__name__ for one in plan.operations}


def assert_close(
    model: onnx.ModelProto, folder: Path, steps: float = 1.6, *, compiled: bool = True
) -> Plan:
    plan, apart = steps_apart(model, folder, compiled=compiled)
    assert max(apart.values()) <= steps, apart
    return plan


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the compiler optimize less; other tests compile the same operations as models do."""
    monkeypatch.setattr(c_compiler, "_OPTIMIZED", {"gcc": ("-O1",)})


@pytest.mark.parametrize("form", _FORMS)
def test_convolutions_of_all_shapes_are_of_bytes(form: dict[str, Any], tmp_path: Path) -> None:
    body = """
        a = Conv <pads = [3, 3, 3, 3]> (x, w7, b7)
        b = Conv <strides = [2, 2], pads = [1, 1, 1, 1], group = 6> (x, wd, b6)
        c = Conv <pads = [0, 2, 1, 1], dilations = [2, 1], group = 2> (x, wg)
        d = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w4, b4)
        r = Clip (d, low, high)
        e = Conv (r, w1)"""
    shapes = {"w7": (4, 6, 7, 7), "b7": (4,), "wd": (12, 1, 3, 3), "b6": (12,), "wg": (4, 3, 3, 3)}
    shapes |= {"w4": (4, 6, 4, 4), "b4": (4,), "w1": (5, 4, 1, 1)}
    bounds = "<float low = {0}, float high = {6}>"
    model = quantized(text("float[1, 6, 9, 7] x", "a b c e", body, bounds), shapes, **form)
    plan = assert_close(model, tmp_path, compiled=form == _FORMS[0])
    assert kinds(plan) == {"Quantize", "Conv8", "Dequantize"}


@pytest.mark.parametrize("form", _FORMS[:3:2])
def test_transposed_convolutions_of_all_shapes_are_of_bytes(
    form: dict[str, Any], tmp_path: Path
) -> None:
    body = """
        a = ConvTranspose <strides = [2, 2]> (x, w2, b5)
        b = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w4, c5)
        c = ConvTranspose <strides = [2, 3], pads = [1, 0, 1, 2], output_padding = [1, 0]> (x, w3)
        d = ConvTranspose <pads = [1, 1, 1, 0]> (x, w3)
        e = ConvTranspose <strides = [3, 2], pads = [2, 1, 0, 3], group = 2> (x, wg)
        f = ConvTranspose <strides = [4, 1], output_padding = [3, 0]> (x, w1, d5)
        r = Relu (a)
        g = ConvTranspose <strides = [2, 2], group = 5> (r, wd)"""
    shapes: dict[str, tuple[int, ...]] = {
        "w2": (6, 5, 2, 2),
        "w4": (6, 5, 4, 4),
        "w3": (6, 5, 3, 3),
        "wg": (6, 2, 5, 4),
    }
    shapes |= {"w1": (6, 5, 1, 1), "wd": (5, 1, 3, 2), "b5": (5,), "c5": (5,), "d5": (5,)}
    model = quantized(text("float[1, 6, 5, 7] x", "a b c d e f g", body), shapes, **form)
    plan = assert_close(model, tmp_path)
    assert kinds(plan) == {"Quantize", "Conv8", "Map", "Table8", "Dequantize"}


def test_transposed_convolutions_of_signals_are_of_bytes(tmp_path: Path) -> None:
    body = """
        a = ConvTranspose <strides = [4], pads = [2, 2]> (x, w8, b)
        y = LeakyRelu (a)"""
    shapes = {"w8": (6, 4, 8), "b": (4,)}
    signature = text("float[1, 6, 50] x", "y", body).replace("[y0, y1, y2, y3]", "[y0, y1, y2]")
    plan = assert_close(quantized(signature, shapes, floats=("a",)), tmp_path, 2.1)
    assert kinds(plan) <= {"Quantize", "Conv8", "Map", "Table8", "Dequantize"}


@pytest.mark.parametrize(
    "attributes",
    [
        "dilations = [2, 2]",
        "strides = [5, 4]",
        "strides = [2, 2], output_padding = [1, 1], dilations = [1, 2]",
    ],
)
def test_transposed_convolutions_of_other_kinds_are_of_floats(
    attributes: str, tmp_path: Path
) -> None:
    body = f"y = ConvTranspose <{attributes}> (x, w)"
    model = quantized(text("float[1, 4, 5, 6] x", "y", body), {"w": (4, 3, 3, 3)})
    assert "Conv" in kinds(assert_close(model, tmp_path))


def test_residuals_gates_and_activations_are_of_bytes(tmp_path: Path) -> None:
    body = """
        c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        h = HardSwish (c)
        p = ReduceMean <axes = [-1, -2], keepdims = 0> (h)
        u = Unsqueeze (p, ends)
        f = Conv (u, w1, b1)
        s = Sigmoid (f)
        m = Mul (s, h)
        v = Conv (x, w2)
        n = Add (m, v)
        r = Relu (n)
        t = Sub (r, x)
        d = Add (t, t)
        l = LeakyRelu <alpha = 0.1> (d)
        i = Sigmoid (l)
        y = Mul (l, i)
        q = GlobalMaxPool (y)"""
    shapes = {"w": (6, 6, 3, 3), "b": (6,), "w1": (6, 6, 1, 1), "b1": (6,), "w2": (6, 6, 1, 1)}
    ends = "<int64[2] ends = {2, 3}>"
    model = quantized(text("float[1, 6, 9, 7] x", "y q", body, ends), shapes, floats=("i",))
    plan = assert_close(model, tmp_path, 3.1)
    assert kinds(plan) <= _KINDS - {"Map"}
    made = Counter(type(one).__name__ for one in plan.operations)
    assert (made["Add8"], made["Gate8"]) == (1, 1)  # twice the same number is a table
    assert sum(isinstance(one, Conv8) and one.sum is not None for one in plan.operations) == 1


def test_pools_pads_and_joins_are_of_bytes(tmp_path: Path) -> None:
    body = """
        c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        m = MaxPool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 1, 1], ceil_mode = 1> (c)
        a = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (c)
        p = Pad (a, around)
        k = Conv (p, v)
        e = Concat <axis = 1> (c, x, c)
        f = Concat <axis = 2> (x, c)
        g = Flatten (m)
        h = Flatten (f)
        j = Concat <axis = 1> (g, h)
        y = Reshape (j, all)"""
    constants = "<int64[8] around = {0, 0, 1, 0, 0, 0, 2, 1}, int64[4] all = {1, -1, 1, 1}>"
    shapes = {"w": (6, 6, 3, 3), "b": (6,), "v": (3, 6, 2, 2)}
    model = quantized(text("float[1, 6, 9, 7] x", "e k y", body, constants), shapes)
    assert kinds(assert_close(model, tmp_path)) <= _KINDS


def test_moved_bytes_stay_bytes(tmp_path: Path) -> None:
    body = """
        c = Conv <pads = [1, 1, 1, 1]> (x, w)
        r = Reshape (c, groups)
        t = Transpose <perm = [0, 2, 1, 3, 4]> (r)
        s = Reshape (t, back)
        u, v = Split <axis = 1> (s)
        d = Conv (u, w2)
        e = Concat <axis = 1> (v, d)
        n = Resize <mode = "nearest"> (e, , scales)
        z = SpaceToDepth <blocksize = 2> (n)
        y = Conv (z, w3)"""
    constants = """<int64[5] groups = {1, 2, 4, 6, 5}, int64[4] back = {1, 8, 6, 5},
        float[4] scales = {1, 1, 2, 2}>"""
    shapes = {"w": (8, 8, 3, 3), "w2": (4, 4, 1, 1), "w3": (5, 32, 1, 1)}
    model = quantized(text("float[1, 8, 6, 5] x", "y", body, constants), shapes)
    assert kinds(assert_close(model, tmp_path, 3.1)) <= _KINDS | {"Pick"}


def test_channels_are_picked_where_they_are_last(tmp_path: Path) -> None:
    body = """
        c = Conv (x, w)
        a, b = Split <axis = -3> (c, parts)
        s = Slice (c, one, five, one)
        n = Resize <mode = "nearest"> (s, , scales)
        h = Slice (n, one, five, axes)
        r = Resize <mode = "nearest"> (b, , , sizes)
        d = Conv (a, k)
        y = Conv (h, k)
        z = Conv (r, k2)"""
    constants = """<int64[2] parts = {4, 2}, int64[1] one = {1}, int64[1] five = {5},
        int64[1] axes = {-1}, float[4] scales = {1, 1, 2, 3}, int64[4] sizes = {1, 2, 9, 5}>"""
    shapes = {"w": (6, 6, 1, 1), "k": (3, 4, 1, 1), "k2": (3, 2, 1, 1)}
    model = quantized(text("float[1, 6, 6, 5] x", "d y z", body, constants), shapes)
    plan = assert_close(model, tmp_path, 3.1)
    assert kinds(plan) <= _KINDS | {"Pick"}
    made = Counter(type(one).__name__ for one in plan.operations)
    assert made["Map"] == 4  # no copy with another order of axes


def test_a_tensor_that_is_read_under_two_shapes_is_ordered_for_each(tmp_path: Path) -> None:
    body = """
        c = Conv <pads = [1, 1, 1, 1]> (x, w)
        r = Reshape (c, first)
        d = Conv (r, v)
        u = Reshape (r, second)
        e = Conv (u, k)
        f = Flatten (d)
        g = Flatten (e)
        j = Concat <axis = 1> (f, g)
        y = Reshape (j, all)"""
    constants = """<int64[3] first = {1, 3, 126}, int64[4] second = {1, 2, 27, 7},
        int64[4] all = {1, -1, 1, 1}>"""
    shapes = {"w": (6, 6, 3, 3), "v": (5, 3, 1), "k": (2, 2, 1, 1)}
    assert_close(quantized(text("float[1, 6, 9, 7] x", "y", body, constants), shapes), tmp_path)


def test_a_value_in_floats_is_known_as_bytes_under_no_other_shape(tmp_path: Path) -> None:
    body = """
        c = Conv (x, w)
        h = HardSwish (c)
        r = Reshape (h, other)
        y = Transpose <perm = [0, 2, 3, 1]> (r)
        s = Transpose <perm = [0, 1, 2, 3]> (h)
        z = Mul (s, h)"""
    other = "<int64[4] other = {1, 7, 6, 9}>"
    model = quantized(
        text("float[1, 6, 9, 7] x", "y z", body, other), {"w": (6, 6, 1, 1)}, floats=("h", "s")
    )
    assert_close(model, tmp_path)


def test_factors_and_summands_of_channels_are_of_bytes(tmp_path: Path) -> None:
    body = """
        m = Mul (x, f)
        s = Sub (g, m)
        d = Div (s, h)
        n = BatchNormalization (d, a, b, c, v)
        y = Relu (n)"""
    constants = (
        "<float[3] v = {0.5, 1, 2}, float[3] a = {-1, 0, 0.5}, float[3, 1, 1] h = {1, 2, 3}>"
    )
    shapes = {"f": (1, 3, 1, 1), "g": (3, 1, 1), "b": (3,), "c": (3,)}
    model = quantized(text("float[1, 3, 6, 5] x", "y", body, constants), shapes, floats=("n",))
    plan = assert_close(model, tmp_path, 3.1)
    assert kinds(plan) == {"Quantize", "Conv8", "Dequantize"}


def test_rows_sequences_and_matrices_are_of_bytes(tmp_path: Path) -> None:
    body = """
        c = Conv <pads = [1, 2], strides = [2], dilations = [2]> (x, w, b)
        m = MatMul (c, v)
        f = Flatten (m)
        g = Gemm <transB = 1, alpha = 0.5> (f, k, b2)
        r = Relu (g)
        h = Gemm (r, k2)
        y = Reshape (h, all)"""
    shapes = {"w": (4, 6, 3), "b": (4,), "v": (10, 5), "k": (7, 20), "b2": (7,), "k2": (7, 3)}
    all_of = "<int64[4] all = {1, -1, 1, 1}>"
    model = quantized(text("float[1, 6, 20] x", "y", body, all_of), shapes)
    assert kinds(assert_close(model, tmp_path)) <= _KINDS


def test_what_is_of_floats_between_bytes_answers_the_same(tmp_path: Path) -> None:
    body = """
        c = Conv <pads = [1, 1, 1, 1]> (x, w)
        s = Sin (c)
        d = Conv (s, w2)
        r = Relu (d)
        t = ConvTranspose <strides = [2, 2]> (r, w3)
        l = Resize <mode = "linear"> (c, , scales)
        e = Concat <axis = 1> (t, l)
        p = PRelu (e, slopes)
        a = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (p)
        y = Conv (a, w4)"""
    shapes = {"w": (6, 6, 3, 3), "w2": (4, 6, 1, 1), "w3": (4, 2, 2, 2), "slopes": (8, 1, 1)}
    shapes["w4"] = (3, 8, 1, 1)
    scales = "<float[4] scales = {1, 1, 2, 2}>"
    model = quantized(
        text("float[1, 6, 5, 4] x", "y c", body, scales), shapes, floats=("s", "d"), signed=True
    )
    assert_close(model, tmp_path, 3.1)


def parsed(body: str, given: str, made: str, opset: int = 17, **constants: Any) -> onnx.ModelProto:
    """Return a graph of bytes as it is written, with its constants."""
    head = f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>'
    model = onnx.parser.parse_model(f"{head} g ({given}) => ({made}) {{ {body} }}")
    usual: dict[str, Any] = {
        "sx": np.float32(0.03), "zx": np.uint8(120), "sy": np.float32(0.05), "zy": np.uint8(100),
        "ix": np.int8(-5), "iy": np.int8(20), "wz": np.int8(0),
    }  # fmt: skip
    used = {name for node in model.graph.node for name in node.input}
    for name, array in {**usual, **constants}.items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


def weights(*shape: int) -> Array:
    return np.random.default_rng(3).integers(-60, 60, shape).astype(np.int8)


_SHAPE = "[a, b, c, d]"


def test_codes_are_moved_pooled_and_joined_as_they_are(tmp_path: Path) -> None:
    for zero, dtype in (("zx", "uint8"), ("ix", "int8")):
        body = f"""
            q = QuantizeLinear (x, sx, {zero})
            t = Transpose <perm = [0, 2, 3, 1]> (q)
            m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (t)
            p = Pad (m, around)
            j = Concat <axis = 1> (p, p)
            y = DequantizeLinear (j, sy, {zero})"""
        made = f"float{_SHAPE} y, {dtype}{_SHAPE} j, {dtype}{_SHAPE} t"
        around = np.array([0, 0, 1, 0, 0, 0, 0, 2])
        plan = assert_close(parsed(body, "float[1, 6, 9, 7] x", made, around=around), tmp_path)
        assert kinds(plan) == {"Quantize", "Map", "Pool8", "Dequantize"}


def test_bytes_come_in_and_go_out_as_they_are(tmp_path: Path) -> None:
    body = """
        n = Transpose <perm = [0, 3, 1, 2]> (x)
        r = DequantizeLinear (n, sx, {zero})
        w = DequantizeLinear <axis = 0> (k, ks)
        c = Conv (r, w)
        y = QuantizeLinear (c, sy, {zero})"""
    scales = np.linspace(0.001, 0.004, 4, dtype=np.float32)
    for zero, dtype in (("zx", "uint8"), ("ix", "int8")):
        model = parsed(
            body.replace("{zero}", zero), f"{dtype}[1, 9, 7, 3] x", f"{dtype}{_SHAPE} y",
            k=weights(4, 3, 2, 2), ks=scales,
        )  # fmt: skip
        assert kinds(assert_close(model, tmp_path)) == {"Map", "Conv8"}


@pytest.mark.parametrize("opset", [10, 13, 19, 21, 23])
def test_every_version_of_the_standard_means_the_same(opset: int, tmp_path: Path) -> None:
    signed = "<output_dtype = 3>" if opset >= 21 else ""
    body = f"""
        q = QuantizeLinear {signed} (x, sx)
        r = DequantizeLinear (q, sx)
        w = DequantizeLinear (k, ks)
        c = Conv (r, w)
        o = QuantizeLinear {signed} (c, sy)
        y = DequantizeLinear (o, sy)"""
    ks = np.float32(0.004)
    model = parsed(
        body, "float[1, 6, 9, 7] x", f"float{_SHAPE} y", opset, k=weights(4, 6, 1, 1), ks=ks
    )
    plan = assert_close(model, tmp_path, compiled=False)
    assert kinds(plan) == {"Quantize", "Conv8", "Dequantize"}


def test_operators_of_bytes_are_taken_in_their_own_form(tmp_path: Path) -> None:
    body = """
        q = QuantizeLinear (x, sx, zx)
        c = QLinearConv <pads = [1, 1, 1, 1]> (q, sx, zx, k, ks, kz, sy, zy, b)
        a = com.microsoft.QLinearAdd (c, sy, zy, q, sx, zx, sy, zy)
        l = com.microsoft.QLinearLeakyRelu <alpha = 0.1> (a, sy, zy, sx, zx)
        s = com.microsoft.QLinearSigmoid (l, sx, zx, su, zu)
        m = com.microsoft.QLinearMul (s, su, zu, a, sy, zy, sx, zx)
        j = com.microsoft.QLinearConcat <axis = 1> (sy, zy, m, sx, zx, c, sy, zy)
        g = com.microsoft.QLinearGlobalAveragePool (j, sy, zy, sx, zx)
        f = Flatten (g)
        n = QLinearMatMul (f, sx, zx, v, vs, wz, sx, zx)
        h = com.microsoft.QGemm <transB = 1> (n, sx, zx, v2, vs, wz, b2)
        y = com.microsoft.DequantizeLinear (j, sy, zy)"""
    rng = np.random.default_rng(0)
    model = parsed(
        body, "float[1, 6, 9, 7] x", f"float{_SHAPE} y, float[a, e] h",
        k=weights(6, 6, 3, 3), ks=np.full(6, 0.001, np.float32), kz=np.zeros(6, np.int8),
        b=rng.integers(-2000, 2000, 6).astype(np.int32), su=np.float32(1 / 256), zu=np.uint8(0),
        v=weights(12, 5), vs=np.float32(0.01), v2=weights(3, 5),
        b2=rng.integers(-2000, 2000, 3).astype(np.int32),
    )  # fmt: skip
    assert kinds(assert_close(model, tmp_path, 3.1)) <= _KINDS


def test_numbers_beyond_all_bytes_answer_the_same(tmp_path: Path) -> None:
    body = """
        q = QuantizeLinear (x, sx, zx)
        r = DequantizeLinear (q, sx, zx)
        w = DequantizeLinear <axis = 0> (k, ks)
        c = Conv (r, w, b)
        cq = QuantizeLinear (c, tiny, zy)
        y = DequantizeLinear (cq, tiny, zy)
        a = Add (r, y)
        aq = QuantizeLinear (a, least, zy)
        z = DequantizeLinear (aq, least, zy)
        g = GlobalAveragePool (r)
        gq = QuantizeLinear (g, least, zy)
        p = DequantizeLinear (gq, least, zy)
        cs = QuantizeLinear (c, sy, zy)
        s = DequantizeLinear (cs, sy, zy)"""
    made = ", ".join(f"float{_SHAPE} {name}" for name in "yzps")
    model = parsed(
        body, "float[1, 6, 9, 7] x", made, k=weights(6, 6, 1, 1),
        ks=np.array([1e-3, 1e-12, 1e-30, 1e-42, 2e-3, 3e-3], np.float32),
        b=np.array([0.2, -0.2, 0.1, 0, 0.1, 0], np.float32),
        tiny=np.float32(1e-30), least=np.float32(1e-42),
    )  # fmt: skip
    assert_close(model, tmp_path)


def test_constants_that_were_rounded_are_numbers(tmp_path: Path) -> None:
    body = """
        q = QuantizeLinear (x, sx, zx)
        r = DequantizeLinear (q, sx, zx)
        k = DequantizeLinear (half, ks, zx)
        m = Mul (r, k)
        w = DequantizeLinear (uneven, ks, zx)
        wd = DequantizeLinear <axis = 1, block_size = 3> (blocks, bs)
        c = Conv (m, w)
        d = Conv (m, wd)
        a = Add (c, d)
        o = QuantizeLinear (a, sy, zy)
        y = DequantizeLinear (o, sy, zy)"""
    rng = np.random.default_rng(0)
    model = parsed(
        body, "float[1, 6, 9, 7] x", f"float{_SHAPE} y", 21, half=np.uint8(150),
        ks=np.float32(0.01), uneven=rng.integers(0, 256, (4, 6, 1, 1)).astype(np.uint8),
        blocks=weights(4, 6, 1, 1), bs=np.full((4, 2, 1, 1), 0.01, np.float32),
    )  # fmt: skip
    assert_close(model, tmp_path)


def _flat(head: str, ranks: dict[str, int]) -> str:
    """Return a text whose outputs have other ranks than 4."""
    for name, rank in ranks.items():
        old = f"float[{', '.join(f'{name}{n}' for n in range(4))}] {name}"
        head = head.replace(old, f"float[{', '.join(f'{name}{n}' for n in range(rank))}] {name}")
    return head


def test_a_signal_of_seconds_is_of_bytes(tmp_path: Path) -> None:
    body = """
        a = Conv <pads = [1, 1]> (x, w, b)
        r = Relu (a)
        d = Conv <pads = [32, 32], group = 16> (r, k)
        m = MaxPool <kernel_shape = [4], strides = [4]> (d)
        c = Conv <strides = [40]> (m, v)
        p = GlobalAveragePool (r)"""
    shapes = {"w": (16, 1, 3), "b": (16,), "k": (16, 1, 65), "v": (8, 16, 80)}
    head = _flat(text("float[1, 1, 70000] x", "c p", body), {"c": 3, "p": 3})
    plan = assert_close(quantized(head, shapes), tmp_path)
    assert kinds(plan) <= _KINDS
    assert plan.same_bits


def test_rows_of_more_numbers_than_bytes_take_are_of_floats(tmp_path: Path) -> None:
    head = text("float[1, 1, 70000] x", "g", "f = Flatten (x) g = Gemm (f, v)")
    plan = assert_close(quantized(_flat(head, {"g": 2}), {"v": (70_000, 2)}), tmp_path)
    assert "Conv8" not in kinds(plan)


@pytest.mark.parametrize("length", [MOST_LENGTH, MOST_LENGTH + 1])
def test_a_signal_of_more_than_some_minutes_is_of_floats(length: int, tmp_path: Path) -> None:
    body = "p = GlobalAveragePool (x) m = MaxPool <kernel_shape = [2], strides = [4096]> (x)"
    head = _flat(text(f"float[1, 1, {length}] x", "p m", body), {"p": 3, "m": 3})
    plan = assert_close(quantized(head, {}), tmp_path)
    assert ("Pool8" in kinds(plan)) is (length == MOST_LENGTH)


def test_sizes_of_a_value_leave_it_bytes_and_one_rounding_is_done_once(tmp_path: Path) -> None:
    body = """
        q = QuantizeLinear (x, sx, zx)
        r = DequantizeLinear (q, sx, zx)
        w = DequantizeLinear <axis = 0> (k, ks)
        c = Conv (r, w)
        sizes = Shape (c)
        first = Gather (sizes, none)
        shape = Concat <axis = 0> (first, rest)
        o = QuantizeLinear (c, sy, zy)
        o2 = QuantizeLinear (c, sy, zy)
        d = DequantizeLinear (o, sy, zy)
        d2 = DequantizeLinear (o2, sy, zy)
        e = Add (d, d2)
        eq = QuantizeLinear (e, sy, zy)
        ed = DequantizeLinear (eq, sy, zy)
        y = Reshape (ed, shape)"""
    model = parsed(
        body, "float[1, 6, 9, 7] x", "float[a, b] y", k=weights(4, 6, 1, 1),
        ks=np.full(4, 0.002, np.float32), none=np.array([0]), rest=np.array([-1]),
    )  # fmt: skip
    plan = assert_close(model, tmp_path)
    assert [type(one).__name__ for one in plan.operations].count("Conv8") == 1
    assert "Map" not in {type(one).__name__ for one in plan.operations[:-2]}


def test_a_gate_of_more_rows_than_its_picture_is_of_floats(tmp_path: Path) -> None:
    body = """
        p = GlobalAveragePool (x)
        s = Sigmoid (p)
        t = Concat <axis = 0> (s, p)
        y = Mul (t, x)
        h = Concat <axis = 0> (x, x)
        z = Mul (h, s)"""
    model = quantized(text("float[1, 6, 4, 3] x", "y z", body), {}, floats=("p",))
    assert_close(model, tmp_path, 2.1)


def test_several_rows_at_once_answer_the_same(tmp_path: Path) -> None:
    body = "c = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (c) d = Conv (r, v) y = Add (d, r)"
    shapes = {"w": (6, 6, 3, 3), "b": (6,), "v": (6, 6, 1, 1)}
    plan = assert_close(quantized(text("float[2, 6, 9, 7] x", "y", body), shapes), tmp_path)
    assert not plan.by_row


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (
            "q, s, z = DynamicQuantizeLinear (x) y = DequantizeLinear (q, s, z)",
            "DynamicQuantizeLin",
        ),
        ("q = QuantizeLinear (x, s6, z16) y = DequantizeLinear (q, s6, z16)", "QuantizeLinear"),
    ],
)
def test_what_is_not_covered_is_named(body: str, named: str, tmp_path: Path) -> None:
    each = {"s6": np.full(6, 0.1, np.float32), "z16": np.zeros(6, np.int16)}
    model = parsed(body, "float[1, 6] x", "float[a, b] y", 21, **each)
    assert ran(model, drawn(model, 0))
    with pytest.raises(CandidateError, match=f"doesn't take {named}"):
        lowered(model, tmp_path)
