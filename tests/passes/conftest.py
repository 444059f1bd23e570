"""Small models, as ONNX text and weights drawn at random."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from tests.support.models import CONVNET, ELEMENTWISE, Build, built

from hasten.core.model import Model

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

WIDE = """
<ir_version: 10, opset_import: ["": 20]>
wide (float[batch, 64] x) => (float[batch, 64] y)
<float[64, 64] w>
{
    [product] p = MatMul (x, w)
    [same] y = Identity (p)
}
"""


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Return a function that writes ONNX text with random weights, loads it and settles it."""
    return partial(built, tmp_path / "source")


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
