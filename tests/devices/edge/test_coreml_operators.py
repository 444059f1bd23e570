"""Operators that Core ML's converter writes, computed here and by ONNX Runtime: `build` compares them."""

from pathlib import Path

import pytest

pytest.importorskip("coremltools", reason="needs Core ML Tools: pip install 'hasten[edge]'")
pytest.importorskip("onnx2coreml", reason="needs onnx2coreml: pip install 'hasten[edge]'")

from tests.devices.edge.edge_models import device
from tests.support.models import Build

from hasten.engines.coreml.engine import CoreMl

PICTURES = {
    "strides and uneven pads": "y = Conv <strides = [2, 1], pads = [1, 0, 2, 1]> (x, w)",
    "dilations": "y = Conv <dilations = [2, 2], pads = [2, 2, 2, 2]> (x, w)",
    "groups": "y = Conv <group = 2, pads = [1, 1, 1, 1]> (x, g)",
    "same, more at the end": 'y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)',
    "same, more at the beginning": 'y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w)',
    "transposed": "y = ConvTranspose <strides = [2, 2]> (x, t)",
    "transposed with pads": "y = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (x, t)",
    "maximum": "y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (x)",
    "maximum to the end": "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)",
    "mean": "y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)",
    "mean with its pads": "y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x)",
    "batch normalization": "y = BatchNormalization (x, v, v, v, s)",
    "instance normalization": "y = InstanceNormalization (x, v, v)",
    "parametric": "y = PRelu (x, p)",
    "nearest": 'y = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"> (x, , twice)',
    "linear": 'y = Resize <mode = "linear"> (x, , twice)',
    "shuffled": 'y = DepthToSpace <blocksize = 2, mode = "CRD"> (x)',
    "depth to space": "y = DepthToSpace <blocksize = 2> (x)",
    "reflected": 'y = Pad <mode = "reflect"> (x, pads)',
    "padded": "y = Pad (x, pads)",
    "global maximum": "y = GlobalMaxPool (x)",
}
ROWS = {
    "erf": "y = Erf (x)",
    "gelu": "y = Gelu (x)",
    "hard swish": "y = HardSwish (x)",
    "hard sigmoid": "y = HardSigmoid <alpha = 0.3, beta = 0.4> (x)",
    "leaky": "y = LeakyRelu <alpha = 0.2> (x)",
    "elu": "y = Elu <alpha = 0.7> (x)",
    "softplus": "y = Softplus (x)",
    "tanh": "y = Tanh (x)",
    "silu": "s = Sigmoid (x)  y = Mul (x, s)",
    "softmax": "y = Softmax <axis = 1> (x)",
    "logarithmic softmax": "y = LogSoftmax (x)",
    "root": "a = Abs (x)  y = Sqrt (a)",
    "power": "a = Abs (x)  y = Pow (a, h)",
    "quotient": "a = Exp (x)  y = Div (x, a)",
    "smaller": "y = Min (x, row)",
    "chosen": "c = Greater (x, row)  y = Where (c, x, row)",
    "negated": "c = LessOrEqual (x, row)  n = Not (c)  y = Cast <to = 1> (n)",
    "normalized": "y = LayerNormalization (x, row, row)",
    "sum": "y = ReduceSum <keepdims = 0> (x, last)",
    "mean": "y = ReduceMean <keepdims = 1> (x, last)",
    "largest": "y = ReduceMax (x, last)",
    "length": "y = ReduceL2 (x, last)",
    "absolute sum": "y = ReduceL1 (x, last)",
    "logarithm of a sum": "y = ReduceLogSumExp (x, last)",
    "where the largest is": "i = ArgMax <axis = 1> (x)  y = Cast <to = 1> (i)",
    "turned": "y = Transpose <perm = [0, 2, 1]> (x)",
    "joined": "y = Concat <axis = 1> (x, x)",
    "split": "a, b = Split <axis = 2, num_outputs = 2> (x)  y = Sub (a, b)",
    "sliced backwards": "y = Slice (x, from, to, last, back)",
    "gathered": "y = Gather <axis = 2> (x, some)",
    "tiled": "y = Tile (x, reps)",
    "product": "y = MatMul (x, m)",
    "product of two": "t = Transpose <perm = [0, 2, 1]> (x)  y = MatMul (x, t)",
}
CONSTANTS = """
 float[6, 4, 3, 3] w, float[6, 2, 3, 3] g, float[4, 6, 3, 3] t, float[4, 1, 1] p,
 float[4] v, float[4] s = {1.0, 2.0, 0.5, 1.5}, float[4] twice = {1.0, 1.0, 2.0, 2.0},
 int64[8] pads = {0, 0, 1, 2, 0, 0, 2, 1}
"""
ROW_CONSTANTS = """
 float[8] row, float h = {1.5}, float[8, 5] m, int64[1] last = {2}, int64[1] from = {-1},
 int64[1] to = {-6}, int64[1] back = {-2}, int64[3] some = {0, 5, -1}, int64[3] reps = {1, 2, 3}
"""


def check(build: Build, header: str, nodes: str, constants: str, folder: Path) -> None:
    text = f'<ir_version: 10, opset_import: ["": 20]> {header} <{constants}> {{ {nodes} }}'
    (folder / "built").mkdir()
    CoreMl().build(build(text), device("coreml"), folder / "built")


@pytest.mark.parametrize("name", PICTURES)
def test_an_operator_on_pictures_is_computed_as_onnx_does(
    name: str, build: Build, tmp_path: Path
) -> None:
    header = "one (float[batch, 4, 9, 8] x) => (float[batch, c, height, width] y)"
    check(build, header, PICTURES[name], CONSTANTS, tmp_path)


@pytest.mark.parametrize("name", ROWS)
def test_an_operator_on_rows_is_computed_as_onnx_does(
    name: str, build: Build, tmp_path: Path
) -> None:
    rank = 2 if name == "sum" else 3
    sizes = ", ".join(["batch", "rows", "columns"][:rank])
    header = f"one (float[batch, 6, 8] x) => (float[{sizes}] y)"
    check(build, header, ROWS[name], ROW_CONSTANTS, tmp_path)
