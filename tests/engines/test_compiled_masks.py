"""Encoders with masks and normalizations, as IR files on the compiled engine: near OpenVINO's answers."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import openvino
import pytest
from tests.support.models import Build, built
from tests.support.plans import answers

from hasten.core.model import Model
from hasten.engines.compiled.ir.reader import as_onnx
from hasten.engines.compiled.lowering import lower_graph
from hasten.errors import CandidateError
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.openvino_graphs import converted
from hasten.testing.pass_tests import run, samples_of

ENCODER = """
<ir_version: 10, opset_import: ["": 20]>
encoder (float[batch, 6, 16] x) => (float[batch, 6, 16] y)
<float[16, 16] wq, float[16, 16] wk, float[16, 16] wv, float[16, 16] wo, float[16] bo,
 float[16] g, float[16] b, float zero = {0}, float far = {-10000}, int64[1] last = {-1},
 int64[1] middle = {1}, int64[3] whole = {1, 6, 6}>
{
    [query] q = MatMul (x, wq)
    [key] k = MatMul (x, wk)
    [value] v = MatMul (x, wv)
    [turn] kt = Transpose <perm = [0, 2, 1]> (k)
    [score] s = MatMul (q, kt)
    [loud] l = ReduceSum <keepdims = 0> (x, last)
    [there] t = Greater (l, zero)
    [nowhere] n = Not (t)
    [row] r = Unsqueeze (n, middle)
    [wide] e = Expand (r, whole)
    [masked] m = Where (e, far, s)
    [soft] a = Softmax (m)
    [mix] c = MatMul (a, v)
    [out] o = MatMul (c, wo)
    [skip] h = Add (o, x)
    [norm] y = LayerNormalization (h, g, b)
}
"""
COMPARED = """
<ir_version: 10, opset_import: ["": 20]>
compared (float[batch, 8] x, float[batch, 8] z) => (float[batch, 8] y)
{
    [turned] s = Sin (x)
    [other] c = Cos (z)
    [first] a = OPERATOR (x, z)
    [y] y = Where (a, s, c)
}
"""


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return partial(built, tmp_path / "source")


def as_ir(model: Model, folder: Path) -> Model:
    """Return a model as OpenVINO converts it, in float."""
    path = folder / "float.xml"
    openvino.save_model(converted(model), path, compress_to_fp16=False)
    return replace(model, path=path, format="openvino", files=(path.with_suffix(".bin"),))


def apart(model: Model) -> float:
    """Return how far the compiled engine's answers are from OpenVINO's, by the largest of these."""
    graph = as_onnx(model.path, model.request, model.outputs)
    plan, weights = lower_graph(graph, model.request, model.outputs)
    plan.check(len(weights))
    given = samples_of(model, 1).inputs([0])
    asked = zip(plan.inputs, given.values(), strict=True)
    found = answers(plan, weights, dict(asked))
    settings = {"INFERENCE_PRECISION_HINT": "f32", "LP_TRANSFORMS_MODE": "NO"}
    compiled = openvino.Core().compile_model(
        openvino.Core().read_model(model.path), "CPU", settings
    )
    (wanted,) = compiled(given).values()
    return float(np.abs(found[plan.outputs[0]] - wanted.ravel()).max() / np.abs(wanted).max())


def test_an_encoder_with_a_mask_answers_as_openvino(build: Build, tmp_path: Path) -> None:
    assert apart(as_ir(build(ENCODER, "encoder"), tmp_path)) < 1e-5


@pytest.mark.seconds
def test_an_encoder_that_nncf_quantized_is_near_openvino(build: Build, tmp_path: Path) -> None:
    model = run(NncfQuantization("mixed", transformer=True), build(ENCODER, "encoder"), tmp_path)
    assert apart(model) < 0.05


@pytest.mark.parametrize("operator", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_each_comparison_chooses_as_openvino_does(
    build: Build, tmp_path: Path, operator: str
) -> None:
    text = COMPARED.replace("OPERATOR", operator)
    assert apart(as_ir(build(text, operator.lower()), tmp_path)) < 1e-5


def test_a_normalization_over_other_axes_is_refused(build: Build, tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    other (float[batch, 4, 8] x) => (float[batch, 4, 8] y)
    { [norm] y = MeanVarianceNormalization <axes = [1, 2]> (x) }
    """
    model = as_ir(build(text, "other"), tmp_path)
    with pytest.raises(CandidateError, match=r"its axes aren't the last"):
        as_onnx(model.path, model.request, model.outputs)


def test_an_ir_without_the_models_output_is_refused(build: Build, tmp_path: Path) -> None:
    model = as_ir(build(COMPARED.replace("OPERATOR", "Less"), "cut"), tmp_path)
    text = model.path.read_text()
    assert 'type="Result"' in text
    model.path.write_text(text.replace('type="Result"', 'type="44"'))
    with pytest.raises(
        CandidateError, match=r"^the compiled engine finds 0 outputs in the IR, not 1$"
    ):
        as_onnx(model.path, model.request, model.outputs)


def test_a_single_number_stored_as_a_byte_is_read(build: Build, tmp_path: Path) -> None:
    import openvino.opset13 as ops

    given = ops.parameter([1, 8], np.float32, "x")
    byte = ops.constant(np.array(3, np.int8))
    graph = openvino.Model([ops.multiply(given, ops.convert(byte, np.float32))], [given])
    graph.inputs[0].set_names({"x"})
    graph.outputs[0].set_names({"y"})
    path = tmp_path / "byte.xml"
    openvino.save_model(graph, path, compress_to_fp16=False)
    text = """
    <ir_version: 10, opset_import: ["": 20]>
    byte (float[batch, 8] x) => (float[batch, 8] y)
    <float three = {3}>
    { [y] y = Mul (x, three) }
    """
    model = replace(build(text, "byte"), path=path, format="openvino")
    assert apart(model) < 1e-6
