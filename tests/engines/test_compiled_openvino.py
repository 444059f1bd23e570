"""IR files that NNCF quantized, on the compiled engine: bytes as in numpy, near OpenVINO's answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from tests.support.models import built, settled
from tests.support.plans import answers

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array, TensorSpec
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.compiled.ir.reader import as_onnx
from hasten.engines.compiled.lowering import lower_graph
from hasten.engines.compiled.nodes.int8.curves import grid
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.plan import Plan
from hasten.errors import CandidateError
from hasten.passes.fake_quantize import round_everywhere
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.openvino_graphs import behind_products, converted
from hasten.testing.pass_tests import samples_of

MOBILE = """
<ir_version: 10, opset_import: ["": 20]>
mobile (float[batch, 3, 20, 18] x) => (float[batch, 5] y)
<float[8, 3, 3, 3] w0, float[8] b0, float[24, 8, 1, 1] w1, float[24] b1, float[24, 1, 3, 3] w2,
 float[24] b2, float[8, 24, 1, 1] w3, float[8] b3, float[24, 8, 1, 1] w4, float[24] b4,
 float[24, 1, 3, 3] w5, float[24] b5, float[16, 24, 1, 1] w6, float[16] b6, float[16, 5] w7,
 float[5] b7, float lo = {0}, float hi = {1.5}>
{
    [stem] s0 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w0, b0)
    s = Clip (s0, lo, hi)
    [expand] e0 = Conv (s, w1, b1)
    e = Clip (e0, lo, hi)
    [deep] d0 = Conv <pads = [1, 1, 1, 1], group = 24> (e, w2, b2)
    d = Clip (d0, lo, hi)
    [project] p = Conv (d, w3, b3)
    [skip] r = Add (p, s)
    [wide] v0 = Conv (r, w4, b4)
    [turning] v = LeakyRelu <alpha = 0.1> (v0)
    [deeper] u0 = Conv <pads = [1, 1, 1, 1], strides = [2, 2], group = 24> (v, w5, b5)
    u = Clip (u0, lo, hi)
    [last] t0 = Conv (u, w6, b6)
    t = Relu (t0)
    [pool] g = GlobalAveragePool (t)
    [flat] f = Flatten (g)
    [head] y = Gemm (f, w7, b7)
}
"""
SQUEEZED = """
<ir_version: 10, opset_import: ["": 20]>
squeezed (float[batch, 3, 16, 16] x) => (float[batch, 5] y)
<float[16, 3, 3, 3] w0, float[16] b0, float[16, 1, 3, 3] w1, float[16] b1, float[4, 16, 1, 1] w2,
 float[4] b2, float[16, 4, 1, 1] w3, float[16] b3, float[8, 16, 1, 1] w4, float[8] b4,
 float[8, 5] w5, float[5] b5>
{
    [stem] s0 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w0, b0)
    [swish] s = HardSwish (s0)
    [deep] d0 = Conv <pads = [1, 1, 1, 1], group = 16> (s, w1, b1)
    [swish2] d = HardSwish (d0)
    [mean] m = GlobalAveragePool (d)
    [reduce] q0 = Conv (m, w2, b2)
    q = Relu (q0)
    [grow] g0 = Conv (q, w3, b3)
    [gate] g = HardSigmoid <alpha = 0.16666667, beta = 0.5> (g0)
    [scale] e = Mul (d, g)
    [project] p0 = Conv (e, w4, b4)
    [mish] p = Mish (p0)
    [pool] a = GlobalAveragePool (p)
    [flat] f = Flatten (a)
    [head] y = Gemm (f, w5, b5)
}
"""
FOUND = """
<ir_version: 10, opset_import: ["": 20]>
found (float[batch, 3, 16, 16] x) => (float[batch, 6, 8, 8] y, float[batch, 4, 8, 8] z)
<float[16, 3, 3, 3] w0, float[16] b0, float[8, 8, 3, 3] w1, float[8] b1, float[8, 24, 1, 1] w2,
 float[8] b2, float[8, 16, 1, 1] w3, float[8] b3, float[6, 8, 1, 1] w4, float[6] b4,
 float[4, 8, 1, 1] w5, float[4] b5, float[4] zoom = {1, 1, 2, 2}, int64[2] halves = {8, 8}>
{
    [stem] s0 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w0, b0)
    [stem_gate] s1 = Sigmoid (s0)
    [stem_silu] s = Mul (s0, s1)
    [part] l, r = Split <axis = 1> (s, halves)
    [inner] i0 = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)
    [inner_gate] i1 = Sigmoid (i0)
    [inner_silu] i = Mul (i0, i1)
    [both] c = Concat <axis = 1> (l, r, i)
    [merge] m0 = Conv (c, w2, b2)
    [merge_gate] m1 = Sigmoid (m0)
    [merge_silu] m = Mul (m0, m1)
    [down] n = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (m)
    [up] o = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (n, , zoom)
    [again] k = Concat <axis = 1> (o, m)
    [mix] t0 = Conv (k, w3, b3)
    [mix_gate] t1 = Sigmoid (t0)
    [mix_silu] t = Mul (t0, t1)
    [boxes] y = Conv (t, w4, b4)
    [scores] z0 = Conv (t, w5, b5)
    [score] z = Sigmoid (z0)
}
"""
ENLARGED = """
<ir_version: 10, opset_import: ["": 20]>
enlarged (float[batch, 3, 16, 12] x) => (float[batch, 5, 16, 12] y)
<float[16, 3, 3, 3] w0, float[16] b0, float[32, 16, 3, 3] w1, float[32] b1, float[32, 16, 2, 2] w2,
 float[16] b2, float[32, 8, 4, 4] w3, float[8] b3, float[5, 8, 1, 1] w4, float[5] b4>
{
    [stem] s0 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w0, b0)
    s = Relu (s0)
    [down] d0 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (s, w1, b1)
    d = Relu (d0)
    [up] u = ConvTranspose <strides = [2, 2]> (d, w2, b2)
    [both] c = Concat <axis = 1> (u, s)
    [again] a0 = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (c, w3, b3)
    a = Relu (a0)
    [last] y = Conv (a, w4, b4)
}
"""
TEXTS = {"mobile": MOBILE, "squeezed": SQUEEZED, "found": FOUND, "enlarged": ENLARGED}


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Model]:
    """Return a function that quantizes a network once: by NNCF, or by ranges that suit no data."""

    @cache
    def make(name: str, how: str) -> Model:
        folder = tmp_path_factory.mktemp(name)
        model = built(folder, TEXTS[name], name)
        if how == "nncf":
            return NncfQuantization("mixed")(model, samples_of(model, 6), folder)
        graph = converted(model)
        round_everywhere(graph, kept=behind_products(graph), symmetric=False)
        path = folder / f"{name}.xml"
        openvino.save_model(graph, path, compress_to_fp16=False)
        return replace(model, path=path, format="openvino", files=(path.with_suffix(".bin"),))

    return make


def lowered(model: Model) -> tuple[Plan, bytes]:
    """Return the plan of an IR, checked, and its weights."""
    graph = as_onnx(model.path, model.request, model.outputs)
    plan, weights = lower_graph(graph, model.request, model.outputs)
    plan.check(len(weights))
    return plan, weights


def calculated(plan: Plan, weights: bytes, given: Array) -> dict[str, Array]:
    """Return the outputs of a plan as numpy computes them, as far as no floats lead to them."""
    known = {
        name: plan.constant(name, weights)
        for name, tensor in plan.tensors.items()
        if tensor.offset is not None
    }
    known[plan.inputs[0]] = given.ravel()
    for operation in plan.operations:
        if any(name not in known for name in operation.reads) or not operation.same_bits(plan):
            continue
        made = {
            name: np.zeros(plan.tensor(name).size, plan.tensor(name).dtype)
            for name in operation.writes
            if name not in known
        }
        known |= made
        operation.calculate(known)
    return {name: known[name] for name in plan.outputs if name in known}


def of_openvino(model: Model, given: Array) -> list[Array]:
    """Return OpenVINO's answers with the roundings computed as the IR says.

    Its own integers overflow on processors without VNNI.
    """
    graph = openvino.Core().read_model(model.path)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"}
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    return [np.array(one) for one in compiled(given).values()]


def kinds(plan: Plan) -> set[str]:
    """Return the kinds of operations in a plan."""
    return {type(operation).__name__ for operation in plan.operations}


@pytest.mark.parametrize(
    ("name", "how", "bound"),
    [
        ("mobile", "nncf", 0.03),
        ("squeezed", "asymmetric", 0.2),
        ("found", "asymmetric", 0.1),
        ("enlarged", "asymmetric", 0.1),
    ],
)
def test_answers_equal_numpy_and_are_near_openvino(
    rounded: Callable[[str, str], Model], name: str, how: str, bound: float
) -> None:
    model = rounded(name, how)
    plan, weights = lowered(model)
    assert not kinds(plan) & {"Conv", "Dense"}  # no product of floats
    given = samples_of(model, 1).inputs([0])["x"]
    found = answers(plan, weights, {plan.inputs[0]: given})
    wanted = of_openvino(model, given)
    for one, output in zip(plan.outputs, wanted, strict=True):
        assert np.abs(found[one] - output.ravel()).max() < bound * np.abs(output).max()
    for one, own in calculated(plan, weights, given).items():
        assert found[one].tobytes() == own.tobytes()


def test_the_engine_takes_an_ir_with_any_number_of_rows(
    rounded: Callable[[str, str], Model], tmp_path: Path
) -> None:
    model, engine, target = rounded("squeezed", "asymmetric"), CompiledC(), Target.host()
    artifact = engine.build(model, target, tmp_path)
    given = samples_of(model, 3).inputs([0, 1, 2])["x"]
    with engine.open(artifact, target) as session:
        together = session.run({"x": given})["y"]
        for row in range(3):
            alone = session.run({"x": given[row : row + 1]})["y"]
            assert alone.tobytes() == together[row : row + 1].tobytes()


def sigmoid(numbers: Array) -> Array:
    return 1 / (1 + np.exp(np.minimum(-numbers, 80)))


def silu(numbers: Array) -> Array:
    return numbers * sigmoid(numbers)


@pytest.mark.parametrize(
    ("function", "low", "high", "most"),
    [
        (lambda numbers: numbers * np.clip(numbers / 6 + 0.5, 0, 1), -0.375, 8.0, 1.5),
        (silu, -0.279, 8.0, 1.5),
        (silu, -0.279, 30.0, 1.2),
        (lambda numbers: np.where(numbers > 0, numbers, numbers * 0.1), -0.5, 5.0, 1.5),
        (sigmoid, 0.0, 1.0, 2.2),
    ],
)
def test_a_function_of_sums_is_near_the_function_of_floats(
    function: Callable[[Array], Array], low: float, high: float, most: float
) -> None:
    scale = (high - low) / 255
    zero = round(-low / scale)
    step, middle = grid(function, scale, zero)
    sums = np.linspace(-40, 40, 100_001)
    codes = np.clip(np.rint(sums / step) + middle, 0, 255)
    made = np.clip(np.rint(function((codes - middle) * step) / scale), -zero, 255 - zero)
    wanted = np.clip(function(sums) / scale, -zero, 255 - zero)
    assert np.abs(made - wanted).max() < most  # steps of the result, of which rounding takes half


def ir(folder: Path, make: Callable[[Any, Any], Any], shape: tuple[int, ...]) -> Model:
    """Write the IR of a function of one input."""
    from openvino import opset13 as operations

    given = operations.parameter(shape, np.float32, "x")
    made = make(operations, given)
    made = made if hasattr(made, "set_names") else made.output(0)
    made.set_names({"y"})
    given.output(0).set_names({"x"})
    path = folder / "model.xml"
    openvino.save_model(openvino.Model([made], [given]), path, compress_to_fp16=False)
    inputs = (TensorSpec("x", "float32", shape),)
    outputs = (TensorSpec("y", "float32", tuple(made.shape)),)
    return settled(Model(path, "openvino", inputs, outputs, files=(path.with_suffix(".bin"),)))


def _largest(operations: Any, given: Any) -> Any:
    values, places = operations.topk(given, operations.constant(3), 1, "max", "value").outputs()
    return operations.add(values, operations.convert(places, "f32"))


def _smallest(operations: Any, given: Any) -> Any:
    values, places = operations.topk(given, operations.constant(1), 1, "min", "index").outputs()
    return operations.multiply(values, operations.convert(places, "f32"))


def _picked(operations: Any, given: Any) -> Any:
    places = operations.constant(np.array([[2, 0, 1]], np.int32))
    return operations.gather_elements(given, places, 1)


def _chosen(operations: Any, given: Any) -> Any:
    o, zero = operations, operations.constant(np.float32(0.25))
    both = o.logical_and(o.greater(given, zero), o.less_equal(given, o.constant(np.float32(1))))
    other = o.logical_xor(o.less(given, zero), o.logical_not(o.not_equal(given, zero)))
    either = o.logical_or(both, o.logical_or(other, o.greater_equal(given, zero)))
    wide = o.broadcast(o.constant(np.float32(7)), o.constant(np.array([1, 5])))
    made = o.select(both, given, wide)
    return o.multiply(made, o.convert(o.logical_or(either, o.equal(given, zero)), "f32"))


def _product(operations: Any, given: Any) -> Any:
    return operations.reduce_prod(given, operations.constant(np.array([1])), True)


@pytest.mark.parametrize("make", [_largest, _smallest, _picked, _chosen, _product])
def test_heads_of_detectors_answer_as_openvino_does(
    tmp_path: Path, make: Callable[[Any, Any], Any]
) -> None:
    model = ir(tmp_path, make, (1, 5))
    plan, weights = lowered(model)
    for numbers in ([0.5, -1, 3, 0.25, 2], [1, 0, 0.75, -2, 8], [5, 4, 3, 2, 1]):
        given = np.array([numbers], np.float32)
        found = answers(plan, weights, {plan.inputs[0]: given})[plan.outputs[0]]
        assert found.tolist() == of_openvino(model, given)[0].ravel().tolist()


@pytest.mark.parametrize(
    ("low", "high", "levels"), [(-1.0, 0.9921875, 256), (-1.27, 1.27, 255), (0.0, 3.0, 16)]
)
def test_roundings_are_those_of_openvino(
    tmp_path: Path, low: float, high: float, levels: int
) -> None:
    def make(operations: Any, given: Any) -> Any:
        ends = [operations.constant(np.float32(end)) for end in (low, high)]
        return operations.fake_quantize(given, *ends, *ends, levels)

    model = ir(tmp_path, make, (1, 4000))
    given = np.linspace(-4, 4, 4000, dtype=np.float32).reshape(1, -1)
    plan, weights = lowered(model)
    found = answers(plan, weights, {plan.inputs[0]: given})[plan.outputs[0]]
    np.testing.assert_allclose(found, of_openvino(model, given)[0].ravel(), atol=2e-6)


def weights(operations: Any, *shape: int, step: float = 2e-3) -> Any:
    """Return weights that are stored as bytes."""
    whole = np.random.default_rng(1).integers(-127, 128, shape).astype(np.int8)
    scale = np.full([shape[0], *(1 for _ in shape[1:])], step, np.float32)
    return operations.multiply(
        operations.convert(operations.constant(whole), "f32"), operations.constant(scale)
    )


def to_bytes(operations: Any, given: Any, low: Any, high: Any) -> Any:
    """Return a rounding to 256 levels."""
    ends = [operations.constant(np.asarray(end, np.float32)) for end in (low, high)]
    return operations.fake_quantize(given, *ends, *ends, 256)


SIDES = ([1, 1], [1, 1], [1, 1], [1, 1])


def test_bytes_that_are_added_before_a_rounding_cost_one_more_step(tmp_path: Path) -> None:
    def make(operations: Any, given: Any) -> Any:
        given = to_bytes(operations, given, -2, 1.984375)
        dense = operations.convolution(given, weights(operations, 3, 3, 3, 3, step=6e-3), *SIDES)
        return to_bytes(operations, operations.add(dense, given), -2, 1.984375)

    model = ir(tmp_path, make, (1, 3, 9, 9))
    plan, content = lowered(model)
    assert any(isinstance(one, Conv8) and one.sum is not None for one in plan.operations)
    given = np.random.default_rng(0).standard_normal((1, 3, 9, 9)).astype(np.float32)
    found = calculated(plan, content, given)[plan.outputs[0]]
    far = np.abs(found - of_openvino(model, given)[0].ravel()).max()
    assert far <= 2 / 64 + 1e-6  # steps of the result


def test_channels_with_steps_of_their_own_are_joined_as_bytes(tmp_path: Path) -> None:
    """As in GhostNet, whose depthwise convolutions read two halves."""
    random = np.random.default_rng(5)
    high = random.uniform(0.2, 4, (2, 1, 4, 1, 1)).astype(np.float32)

    def make(operations: Any, given: Any) -> Any:
        given = to_bytes(operations, given, -2, 1.984375)
        halves = []
        for ends in high:
            dense = operations.convolution(given, weights(operations, 4, 3, 3, 3), *SIDES)
            made = operations.relu(dense)
            halves.append(to_bytes(operations, made, np.zeros_like(ends), ends))
        both = operations.concat(halves, 1)
        return operations.group_convolution(both, weights(operations, 8, 1, 1, 3, 3), *SIDES)

    model = ir(tmp_path, make, (1, 3, 9, 9))
    plan, content = lowered(model)
    assert kinds(plan) <= {"Quantize", "Conv8", "Map"}
    given = random.standard_normal((1, 3, 9, 9)).astype(np.float32)
    found = calculated(plan, content, given)[plan.outputs[0]]
    wanted = of_openvino(model, given)[0].ravel()
    assert np.abs(found - wanted).max() < 0.005 * np.abs(wanted).max()
    assert (
        answers(plan, content, {plan.inputs[0]: given})[plan.outputs[0]].tobytes()
        == found.tobytes()
    )


def test_steps_of_channels_stay_behind_a_relu_and_grow_where_zeros_differ(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    low = np.array([-4.0, -0.1, -8.0, -3.0], np.float32).reshape(1, 4, 1, 1)
    high = np.array([4.0, 8.0, 0.1, 3.0], np.float32).reshape(1, 4, 1, 1)
    middle = np.array([0.0, 4.0, -4.0, 0.0], np.float32).reshape(1, 4, 1, 1)

    def make(operations: Any, given: Any, cut: bool) -> Any:
        given = to_bytes(operations, given, -2, 1.984375)
        dense = operations.convolution(given, weights(operations, 4, 3, 3, 3), *SIDES)
        dense = operations.add(dense, operations.constant(middle))
        made = operations.relu(dense) if cut else dense
        made = to_bytes(operations, made, np.zeros_like(low) if cut else low, high)
        return operations.group_convolution(made, weights(operations, 4, 1, 1, 3, 3), *SIDES)

    given = random.standard_normal((1, 3, 9, 9)).astype(np.float32)
    for cut, bound in ((True, 0.005), (False, 0.05)):
        model = ir(tmp_path, lambda o, x, cut=cut: make(o, x, cut), (1, 3, 9, 9))  # type: ignore[misc]
        plan, content = lowered(model)
        assert kinds(plan) <= {"Quantize", "Conv8", "Map"}
        found = calculated(plan, content, given)[plan.outputs[0]]
        wanted = of_openvino(model, given)[0].ravel()
        assert np.abs(found - wanted).max() < bound * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda o, x: o.asinh(x),
            r"doesn't take Asinh \(operation 'Asinh_\d+'\): it isn't covered",
        ),
        (
            lambda o, x: o.topk(x, o.constant(2), 1, "max", "index").output(0),
            r"TopK \(operation '.*'\): its results are in the order of their indices",
        ),
        (
            lambda o, x: o.broadcast(
                o.reshape(x, o.constant(np.array([8])), False),
                o.constant(np.array([8, 2])),
                o.constant(np.array([0])),
                "EXPLICIT",
            ),
            r"Broadcast \(operation '.*'\): its mode is 'explicit'",
        ),
        (
            lambda o, x: o.fake_quantize(
                x, *(o.constant(np.float32(e)) for e in (1, 2, 1, 2)), 256
            ),
            r"FakeQuantize \(operation '.*'\): its range has no 0, from 1 to 2",
        ),
        (
            lambda o, x: o.fake_quantize(
                x, *(o.constant(np.float32(e)) for e in (0, 2, 0, 2)), 1024
            ),
            r"FakeQuantize \(operation '.*'\): it has 1024 levels",
        ),
    ],
)
def test_what_is_not_covered_is_named(
    tmp_path: Path, make: Callable[[Any, Any], Any], message: str
) -> None:
    with pytest.raises(CandidateError, match=message):
        lowered(ir(tmp_path, make, (1, 8)))


def test_a_damaged_ir_is_one_failed_candidate(tmp_path: Path) -> None:
    model = ir(tmp_path, lambda o, x: o.relu(x), (1, 8))
    model.path.write_text(model.path.read_text()[:200])
    with pytest.raises(CandidateError, match="the compiled engine can't read the IR"):
        CompiledC().build(model, Target.host(), tmp_path)
