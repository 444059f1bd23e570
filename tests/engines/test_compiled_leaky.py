"""Leaky ReLUs of sums that nothing has rounded: a slope of the rounding, in place of a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from tests.engines.test_compiled_openvino import lowered, of_openvino
from tests.engines.test_compiled_quantized import parsed, weights
from tests.support.models import built
from tests.support.plans import answers
from tests.support.quantized import assert_exact, drawn, ran
from tests.support.quantized import lowered as lowered_onnx

from hasten.core import c_compiler
from hasten.core.model import Model
from hasten.core.tensors import Array, TensorSpec
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.plan import Plan
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.testing.pass_tests import samples_of

_DETECTOR = """
<ir_version: 10, opset_import: ["": 20]>
detector (float[batch, 3, 24, 20] x) => (float[batch, 6, 6, 5] y)
<float[16, 3, 3, 3] w0, float[16] b0, float[24, 16, 3, 3] w1, float[24] b1, float[24, 1, 1] s,
 float[24, 24, 3, 3] w2, float[24] b2, float[24, 1, 3, 3] w3, float[24] b3, float[6, 24, 1, 1] w4,
 float[6] b4>
{
    [first] a0 = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
    [first_leaky] a = LeakyRelu <alpha = 0.1> (a0)
    [pool] p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a)
    [second] c0 = Conv <pads = [1, 1, 1, 1]> (p, w1, b1)
    [by_channel] c = PRelu (c0, s)
    [third] d0 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (c, w2, b2)
    [third_leaky] d = LeakyRelu <alpha = 0.3> (d0)
    [deep] e0 = Conv <pads = [1, 1, 1, 1], group = 24> (d, w3, b3)
    [deep_leaky] e = LeakyRelu <alpha = 0.1> (e0)
    [head] y = Conv (e, w4, b4)
}
"""


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the compiler optimize less; other tests compile the same operations as models do."""
    monkeypatch.setattr(c_compiler, "_OPTIMIZED", {"gcc": ("-O1",)})


def convolutions(plan: Plan) -> list[Conv8]:
    return [one for one in plan.operations if isinstance(one, Conv8)]


def roundings(model: Model, folder: Path) -> tuple[Model, list[float]]:
    """Return an IR that gives what is rounded behind its leaky ReLUs, and the step of each rounding."""
    graph = openvino.Core().read_model(model.path)
    ports, steps = [], []
    for operation in graph.get_ordered_ops():
        if operation.get_type_name() != "FakeQuantize":
            continue
        low, high = (operation.input_value(at).get_node().get_data() for at in (3, 4))
        if operation.input_value(0).get_node().get_type_name() == "PRelu" and low.size == 1:
            ports.append(operation.output(0))
            steps.append((high.item() - low.item()) / 255)
    for number, port in enumerate(ports):
        port.set_names({f"y{number}"})
    path = folder / "rounded.xml"
    cut = openvino.Model(ports, graph.get_parameters(), "rounded")
    openvino.save_model(cut, path, compress_to_fp16=False)
    shapes = [
        tuple(one.get_length() for one in list(port.get_partial_shape())[1:]) for port in ports
    ]
    outputs = tuple(
        TensorSpec(f"y{number}", "float32", ("batch", *shape))
        for number, shape in enumerate(shapes)
    )
    return replace(model, path=path, files=(path.with_suffix(".bin"),), outputs=outputs), steps


def test_leaky_relus_that_nncf_quantized_are_those_of_openvino(tmp_path: Path) -> None:
    model = built(tmp_path, _DETECTOR)
    quantized = NncfQuantization("mixed")(model, samples_of(model, 6), tmp_path)
    model, steps = roundings(quantized, tmp_path)
    assert len(steps) == 3
    plan, content = lowered(model)
    assert all(one.slope and not one.table for one in convolutions(plan))
    given = samples_of(model, 1).inputs([0])["x"]
    found = answers(plan, content, {plan.inputs[0]: given})
    wanted = of_openvino(model, given)
    apart = [
        np.abs(found[name] - one.ravel()) / step
        for name, one, step in zip(plan.outputs, wanted, steps, strict=True)
    ]
    assert np.mean(apart[0] < 0.01) > 0.999  # the same byte
    assert np.mean(apart[1] < 0.01) > 0.98
    assert max(one.max() for one in apart[:2]) < 1.01
    # In between, the depthwise convolution's channels have one byte of 0, for which some steps grow.
    assert np.mean(apart[2] < 1.01) > 0.95


_ROUNDED = """
    q = QuantizeLinear (x, sx, zx)
    r = DequantizeLinear (q, sx, zx)
    w = DequantizeLinear <axis = 0> (k, ks)
    c = Conv (r, w)
    {}
    o = QuantizeLinear (l, sy, zy)
    y = DequantizeLinear (o, sy, zy)"""
_STEPS = np.full(6, 1e-3, np.float32)
_ONE = np.full((1, 1), 0.1, np.float32)
_EACH = np.linspace(-2, 1, 6, dtype=np.float32).reshape(6, 1, 1)


def near(model: onnx.ModelProto, folder: Path, most: float = 1.01) -> Plan:
    """Compare the bytes of a model's plan with numpy's, and with ONNX Runtime's up to some steps."""
    plan, content = lowered_onnx(model, folder)
    given = drawn(model, 1)
    found = assert_exact(plan, content, dict(zip(plan.inputs, given.values(), strict=True)))
    apart = np.abs(found[plan.outputs[0]] - ran(model, given)["y"].ravel()) / 0.05
    assert apart.max() <= most
    assert most > 2 or np.mean(apart < 0.01) > 0.99
    return plan


def behind_a_convolution(
    folder: Path, body: str, most: float = 1.01, **constants: Array | float
) -> Plan:
    """Return the plan of an activation behind a convolution, whose answers were compared."""
    usual: dict[str, Any] = {"k": weights(6, 6, 1, 1), "ks": _STEPS}
    shape = "float[1, 6, 9, 7]"
    model = parsed(_ROUNDED.format(body), f"{shape} x", f"{shape} y", **{**usual, **constants})
    return near(model, folder, most)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("l = LeakyRelu <alpha = 0.1> (c)", {}),
        ("l = LeakyRelu <alpha = -0.5> (c)", {}),
        ("l = PRelu (c, s)", {"s": _ONE}),
        ("l = PRelu (c, s)", {"s": _EACH}),
        ("m = LeakyRelu <alpha = 0.25> (c) l = Clip (m, low, high)", {"low": -0.5, "high": 3.0}),
        ("m = PRelu (c, s) l = Add (m, r)", {"s": _EACH}),
    ],
)
def test_a_leaky_relu_is_a_slope_of_the_rounding(
    body: str, constants: dict[str, Any], tmp_path: Path
) -> None:
    numbers = {name: np.asarray(one, np.float32) for name, one in constants.items()}
    plan = behind_a_convolution(tmp_path, body, 2.1 if "Add" in body else 1.01, **numbers)
    (conv,) = convolutions(plan)
    assert conv.slope
    assert not conv.table
    assert not conv.last
    assert bool(conv.residual) == ("Add" in body)


@pytest.mark.parametrize(
    "body",
    [
        "l = LeakyRelu <alpha = 1.5> (c)",
        "m = LeakyRelu <alpha = 0.1> (c) n = Sigmoid (m) l = Mul (m, n)",
        "m = Relu (c) l = LeakyRelu <alpha = 0.1> (m)",
        "cq = QuantizeLinear (c, sy, zy) l = LeakyRelu <alpha = 0.1> (c)",
    ],
)
def test_other_functions_of_sums_stay_tables(body: str, tmp_path: Path) -> None:
    plan = behind_a_convolution(tmp_path, body, 3.1)
    assert not any(one.slope for one in convolutions(plan))


@pytest.mark.parametrize("slope", [np.float32(1.5), np.float32(np.linspace(-1, 2, 6))])
def test_slopes_beyond_1_of_channels_are_of_floats(slope: Array, tmp_path: Path) -> None:
    slopes = np.broadcast_to(slope, 6).reshape(6, 1, 1)
    plan = behind_a_convolution(tmp_path, "l = PRelu (c, s)", s=slopes)
    assert not any(one.slope for one in convolutions(plan))
    assert any(type(one).__name__ == "Map" for one in plan.operations)


def test_rows_of_a_matrix_have_a_slope_for_each_column_or_none(tmp_path: Path) -> None:
    body = """
        q = QuantizeLinear (x, sx, zx)
        r = DequantizeLinear (q, sx, zx)
        w = DequantizeLinear <axis = 1> (k, ks)
        m = MatMul (r, w)
        l = PRelu (m, s)
        o = QuantizeLinear (l, sy, zy)
        y = DequantizeLinear (o, sy, zy)"""
    each = np.linspace(-1, 1, 6, dtype=np.float32)
    for slope, taken in ((each, True), (each.reshape(1, 6, 1), False)):
        model = parsed(
            body, "float[1, 6, 8] x", "float[1, 6, 6] y", k=weights(8, 6), ks=_STEPS, s=slope
        )
        plan = near(model, tmp_path)
        assert [bool(one.slope) for one in convolutions(plan)] == [taken]
