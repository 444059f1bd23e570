"""Graphs with 16-bit activations: lowered plans answer as ONNX Runtime does, their C as numpy does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.engines.test_compiled_quantized import kinds, text
from tests.support.plans import answers
from tests.support.quantized import lowered, quantized, ran, steps_apart

from hasten.core import c_compiler
from hasten.core.target import Target
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.compiled.integers import Integers
from hasten.engines.compiled.operators.int8.convolutions16 import Conv16
from hasten.engines.compiled.plan import Plan
from hasten.errors import CandidateError
from hasten.inputs.models.onnx import load

_NARROW = {"Quantize16", "Conv16", "Add16", "Multiply16", "Table16", "Numbers16", "Dequantize16"}
"""Operations that calculate with words."""


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the compiler optimize less; other tests compile the same operations as models do."""
    monkeypatch.setattr(c_compiler, "_OPTIMIZED", {"gcc": ("-O1",)})


def assert_close(model: onnx.ModelProto, folder: Path, words: float = 3.0) -> Plan:
    """Assert that answers are within some steps of 16 bits of ONNX Runtime's, which calculates in floats."""
    plan, apart = steps_apart(model, folder)
    assert max(apart.values()) <= words / 257, apart
    return plan


@pytest.mark.parametrize("signed", [False, True])
def test_sums_of_words_are_calculated_in_integers(tmp_path: Path, *, signed: bool) -> None:
    body = """
        a = Conv <pads = [3, 3, 3, 3]> (x, w7, b7)
        b = Conv <strides = [2, 2], pads = [1, 1, 1, 1], group = 6> (x, wd, b6)
        c = Conv <pads = [0, 2, 1, 1], dilations = [2, 1], group = 2> (x, wg)
        d = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w4, b4)
        r = Clip (d, low, high)
        e = Conv (r, w1)
        m = Conv <group = 6, pads = [1, 1, 1, 1]> (x, wm)
        l = LeakyRelu <alpha = 0.2> (m)
        t = ConvTranspose <strides = [2, 2]> (x, w2, b5)"""
    shapes = {"w7": (4, 6, 7, 7), "b7": (4,), "wd": (12, 1, 3, 3), "b6": (12,), "wg": (4, 3, 3, 3)}
    shapes |= {"w4": (4, 6, 4, 4), "b4": (4,), "w1": (5, 4, 1, 1), "wm": (6, 1, 3, 3)}
    shapes |= {"w2": (6, 5, 2, 2), "b5": (5,)}
    bounds = "<float low = {0}, float high = {6}>"
    signature = text("float[1, 6, 9, 7] x", "a b c e l t", body, bounds)
    model = quantized(signature, shapes, signed=signed, words=None, floats=("m",))
    plan = assert_close(model, tmp_path)
    assert kinds(plan) == {"Quantize16", "Conv16", "Dequantize16", "Map"}


def test_matrix_products_of_words_are_calculated_in_integers(tmp_path: Path) -> None:
    body = "a = MatMul (x, m) b = Add (a, c) r = Relu (b) f = Flatten (r) g = Gemm (f, n, k)"
    shapes = {"m": (33, 20), "c": (20,), "n": (140, 9), "k": (9,)}
    signature = '<ir_version: 8, opset_import: ["": 17]> g (float[1, 7, 33] x) => (float[1, 9] g)'
    model = quantized(f"{signature} {{ {body} }}", shapes, words=None, floats=("a",))
    plan = assert_close(model, tmp_path, 8)
    assert sum(isinstance(one, Conv16) for one in plan.operations) == 2


def test_a_network_of_words_is_calculated_with_words_alone(tmp_path: Path) -> None:
    body = """
        s = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, stem, bs)
        h = HardSwish (s)
        d = Conv <group = 8, pads = [1, 1, 1, 1]> (h, wd)
        v = Sigmoid (d)
        u = Mul (d, v)
        p = GlobalAveragePool (u)
        q = Conv (p, squeeze)
        k = HardSigmoid (q)
        g = Mul (u, k)
        e = Conv (g, wide)
        f = Add (e, h)
        j = Sub (f, u)
        c = Concat <axis = 1> (j, u)
        r = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric"> (c, none, scales)
        y = DepthToSpace <blocksize = 2> (r)"""
    shapes = {
        "stem": (8, 3, 3, 3),
        "bs": (8,),
        "wd": (8, 1, 3, 3),
        "squeeze": (8, 8, 1, 1),
        "wide": (8, 8, 1, 1),
    }
    constants = "<float none = {0}, float[4] scales = {1, 1, 2, 2}>"
    model = quantized(text("float[1, 3, 12, 10] x", "y", body, constants), shapes, words=None)
    node = next(one for one in model.graph.node if one.op_type == "Resize")
    node.input[1] = ""
    plan = assert_close(model, tmp_path, 24)
    assert kinds(plan) - {"Map", "Pick"} == _NARROW - {"Numbers16"}  # these two copy words
    assert plan.same_bits


@pytest.mark.parametrize("words", [("x", "b"), ("a", "c"), ("x", "a"), ("b",), ("s",)])
def test_bytes_and_words_alternate(words: tuple[str, ...], tmp_path: Path) -> None:
    body = """
        a = Conv <pads = [1, 1, 1, 1]> (x, wa)
        b = Conv <group = 20, pads = [1, 1, 1, 1]> (a, wd)
        s = Add (b, a)
        c = Conv (s, wc)
        y = Relu (c)"""
    shapes = {"wa": (20, 4, 3, 3), "wd": (20, 1, 3, 3), "wc": (6, 20, 1, 1)}
    model = quantized(text("float[1, 4, 9, 8] x", "y", body), shapes, words=words)
    plan, apart = steps_apart(model, tmp_path)
    assert max(apart.values()) <= 2.6, apart
    assert "Conv16" in kinds(plan)


def test_what_has_no_form_of_words_is_calculated_in_floats(tmp_path: Path) -> None:
    body = """
        a = Conv (x, wa)
        m = MaxPool <kernel_shape = [2, 2]> (a)
        t = Transpose <perm = [0, 2, 3, 1]> (m)
        z = Softmax (t)
        k = Mul (z, t)
        v = Erf (m)
        n = ReduceMax <axes = [1]> (v)"""
    model = quantized(text("float[1, 4, 9, 8] x", "k n", body), {"wa": (6, 4, 1, 1)}, words=None)
    assert_close(model, tmp_path, 24)


def test_a_layer_whose_sums_may_exceed_32_bits_stays_in_float(tmp_path: Path) -> None:
    body = "a = Conv (x, wa) b = Conv (a, wb) y = Relu (b)"
    shapes = {"wa": (3000, 2, 1, 1), "wb": (4, 3000, 1, 1)}
    model = quantized(text("float[1, 2, 2, 2] x", "y", body), shapes, words=None)
    for one in model.graph.initializer:
        if one.name == "wb_byte":
            one.CopyFrom(numpy_helper.from_array(np.full((4, 3000, 1, 1), 99, np.int8), one.name))
    plan = assert_close(model, tmp_path, 24)
    assert [one.channels for one in plan.operations if isinstance(one, Conv16)] == [(2, 3000)]
    assert "Conv" in kinds(plan) or "Dense" in kinds(plan)


@pytest.mark.parametrize("threads", [1, 2])
def test_numpy_gives_the_same_bits_and_rows_with_nan_get_nan(threads: int, tmp_path: Path) -> None:
    body = """
        a = Conv <pads = [1, 1, 1, 1]> (x, wa)
        b = Conv <group = 64, pads = [1, 1, 1, 1]> (a, wd)
        y = Conv (b, wc)"""
    shapes = {"wa": (64, 4, 3, 3), "wd": (64, 1, 3, 3), "wc": (64, 64, 1, 1)}
    model = quantized(text("float[1, 4, 40, 30] x", "y", body), shapes, words=None)
    for one in (model.graph.input[0], model.graph.output[0]):
        one.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(model, tmp_path / "words.onnx")
    engine, target = CompiledC(threads=threads), Target.host().with_threads(threads)
    (tmp_path / "built").mkdir()
    artifact = engine.build(load(tmp_path / "words.onnx"), target, tmp_path / "built")
    assert engine.same_everywhere(artifact)
    x = np.random.default_rng(0).standard_normal((3, 4, 40, 30)).astype(np.float32)
    x[1, 2, 39, 29], x[2, 0, 0, :2] = np.nan, [np.inf, -np.inf]
    found = []
    for one in (engine, Integers()):
        with one.open(artifact, target) as session:
            found.append(session.run({"x": x})["y"])
    assert found[0].tobytes() == found[1].tobytes()
    assert [bool(np.isnan(row).any()) for row in found[0]] == [False, True, False]
    assert np.isnan(found[0][1]).all()


def test_words_are_given_and_asked_for(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 21]>
        g (int16[1, 5, 3] x) => (int16[1, 5, 3] y)
        <float scale = {0.001}, int16 zero = {-3}, float half = {0.37}>
        { a = DequantizeLinear (x, scale, zero) b = Mul (a, half) y = QuantizeLinear (b, scale, zero) }""")
    given = {"x": np.array([-32768, 32767, *range(-6, 7)], np.int16).reshape(1, 5, 3)}
    plan, weights = lowered(model, tmp_path)
    found = answers(plan, weights, dict(zip(plan.inputs, given.values(), strict=True)))
    (array,) = found.values()
    assert (array == ran(model, given)["y"].ravel()).all()


_READ = """
    <ir_version: 10, opset_import: ["": 21]>
    g (float[1, 3, 2, 4] x) => (int32[1, 4, 3, 2] y)
    <float scale = {{0.001}}, {dtype} zero = {{30000}}>
    {{ q = QuantizeLinear (x, scale, zero) c = Cast <to = 6> (q) y = Transpose <perm = [0, 3, 1, 2]> (c) }}"""


def test_words_that_something_else_reads_are_those_that_onnx_runtime_gives(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(_READ.format(dtype="int16"))
    x = np.linspace(-70, 70, 24, dtype=np.float32).reshape(1, 3, 2, 4)
    plan, weights = lowered(model, tmp_path)
    (found,) = answers(plan, weights, {plan.inputs[0]: x}).values()
    assert (found == ran(model, {"x": x})["y"].ravel()).all()


def test_words_of_uint16_that_something_else_reads_are_refused(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(_READ.format(dtype="uint16"))
    with pytest.raises(CandidateError, match="doesn't take tensors of uint16"):
        lowered(model, tmp_path)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_numbers_far_beyond_a_scale_become_its_largest_or_smallest(
    dtype: str, tmp_path: Path
) -> None:
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["": 21]>
        g (float[1, 4] x) => (float[1, 4] y, float[1, 4] n)
        <float wide = {{1.0}}, float small = {{1e-30}}, {dtype} zero = {{100}}>
        {{ q = QuantizeLinear (x, wide, zero) a = DequantizeLinear (q, wide, zero)
          e = Tanh (a) k = QuantizeLinear (e, small, zero) y = DequantizeLinear (k, small, zero)
          m = Neg (e) l = QuantizeLinear (m, small, zero) n = DequantizeLinear (l, small, zero) }}""")
    given = {"x": np.array([[-80, 0, 20, 27]], np.float32)}
    plan, weights = lowered(model, tmp_path)
    found = answers(plan, weights, dict(zip(plan.inputs, given.values(), strict=True)))
    for array, wanted in zip(found.values(), ran(model, given).values(), strict=True):
        assert (array == wanted.ravel()).all()
