"""Small models, as ONNX text and weights drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from hasten.core.model import Model
from hasten.inputs.models.onnx import load

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

ATTENTION = """
<ir_version: 10, opset_import: ["": 20]>
attention (float[batch, 8, 32] x) => (float[batch, 8, 32] y)
<float[32, 32] wq, float[32, 32] wk, float[32, 32] wv, float[32, 32] wo, float[32] bo,
 float[32] g, float[32] b>
{
    [query] q = MatMul (x, wq)
    [key] k = MatMul (x, wk)
    [value] v = MatMul (x, wv)
    [turn] kt = Transpose <perm = [0, 2, 1]> (k)
    [score] s = MatMul (q, kt)
    [soft] a = Softmax (s)
    [mix] m = MatMul (a, v)
    [out] o = MatMul (m, wo)
    [bias] ob = Add (o, bo)
    [skip] h = Add (ob, x)
    [norm] y = LayerNormalization (h, g, b)
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

WIDE = """
<ir_version: 10, opset_import: ["": 20]>
wide (float[batch, 64] x) => (float[batch, 64] y)
<float[64, 64] w>
{
    [product] p = MatMul (x, w)
    [same] y = Identity (p)
}
"""

Build = Callable[..., Model]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Return a function that writes ONNX text with random weights and loads it."""

    def write(text: str, name: str = "model", external: bool = False) -> Model:
        proto = onnx.parser.parse_model(text)
        random = np.random.default_rng(3)
        declared = {value.name for value in proto.graph.initializer}
        for value in list(proto.graph.value_info):
            if value.name in declared or value.name in {
                n for x in proto.graph.node for n in x.output
            }:
                continue
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            fan = max(1, int(np.prod(shape[1:])) if len(shape) == 4 else shape[0])
            weight = (random.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, value.name))
        del proto.graph.value_info[:]
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        path = folder / f"{name}.onnx"
        onnx.save(proto, str(path), save_as_external_data=external, location=f"{name}.data")
        model = load(path)
        return model.settled_by(
            {
                spec.name: np.zeros([int(size) for size in spec.shape[1:]], spec.dtype)
                for spec in model.inputs
            }
        )

    return write


@pytest.fixture
def convnet(build: Build) -> Model:
    """Two convolutions (one depthwise), a residual addition, a classifier."""
    return build(CONVNET, "convnet")


@pytest.fixture
def attention(build: Build) -> Model:
    """One attention block with a residual addition and a LayerNormalization."""
    return build(ATTENTION, "attention")


@pytest.fixture
def elementwise(build: Build) -> Model:
    """Nothing to quantize, simplify or fold."""
    return build(ELEMENTWISE, "elementwise")


@pytest.fixture
def outside(build: Build) -> Model:
    """A product whose weights lie outside the .onnx file."""
    model = build(WIDE, "outside", external=True)
    assert [file.name for file in model.files] == ["outside.data"]
    return model
