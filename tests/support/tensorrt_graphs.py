"""Graphs that TensorRT takes, and graphs that it doesn't, each in a few lines of ONNX text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

FLOAT8 = object()
"""A zero point of float8, which numpy has no type for."""

_S, _Z = np.float32(0.02), np.int8(0)
_SCALES, _ZEROS = np.full(16, 0.03, np.float32), np.zeros(16, np.int8)
_WEIGHT = np.random.default_rng(0).standard_normal((16, 8, 3, 3)).astype(np.float32)
_STORED = (40 * _WEIGHT).astype(np.int8)
_BIAS = np.linspace(-1, 1, 16, dtype=np.float32)

_IMAGE = "(float[1, 8, 8, 8] x) => (float[1, 16, 6, 6] y)"
_ROW = "(float[1, 8] x) => (float[1, 8] y)"
_PAIR = "[Q] q = QuantizeLinear(x, s, z) [DQ] d = DequantizeLinear(q, s, z)"
_WEIGHTS = """[wQ] wq = QuantizeLinear <axis = 0> (w, ws, wz)
              [wDQ] wd = DequantizeLinear <axis = 0> (wq, ws, wz)"""
_CONVOLVED = {"s": _S, "z": _Z, "w": _WEIGHT, "ws": _SCALES, "wz": _ZEROS}
_ONE = f"g {_ROW} {{ {_PAIR} [end] y = Relu(d) }}"


@dataclass(frozen=True)
class Graph:
    """A graph, and what the checker says of it.

    Attributes:
        name: Name of the graph.
        text: ONNX's own.
        constants: Its initializers.
        says: Beginning of the checker's message; empty where TensorRT takes the graph.
        opset: Opset of ONNX.
        part: The GPU that it is for.
    """

    name: str
    text: str
    constants: Mapping[str, Any] = field(default_factory=dict)
    says: str = ""
    opset: int = 21
    part: str = "sm80"

    def write(self, folder: Path) -> Path:
        """Write the file into a folder and return its path."""
        header = f'<ir_version: 10, opset_import: ["": {self.opset}, "my.ops": 1]>'
        model = onnx.parser.parse_model(header + self.text)
        for name, value in self.constants.items():
            model.graph.initializer.append(
                onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT8E4M3FN, (), [0.0])
                if value is FLOAT8
                else onnx.numpy_helper.from_array(np.asarray(value), name)
            )
        path = folder / "graph.onnx"
        onnx.save(model, str(path))
        return path


def _convolution(name: str, weights: str = _WEIGHTS, says: str = "", **constants: Any) -> Graph:
    text = f"g {_IMAGE} {{ {_PAIR} {weights} [conv] c = Conv(d, wd) [end] y = Relu(c) }}"
    return Graph(name, text, _CONVOLVED | constants, says)


def _pair(name: str, says: str = "", part: str = "sm80", **constants: Any) -> Graph:
    return Graph(name, _ONE, {"s": _S, "z": _Z} | constants, says, part=part)


GOOD = (
    _convolution("pairs on activations and weights"),
    _convolution(
        "weights stored as int8",
        "[wDQ] wd = DequantizeLinear <axis = 0> (wq, ws, wz)",
        wq=_STORED,
    ),
    _convolution(
        "one scale per weight tensor",
        ws=np.float32(0.03),
        wz=np.int8(0),
    ),
    _convolution("weights left in float", "wd = Identity(w)"),
    _convolution(
        "weights' axis counted from the end",
        _WEIGHTS.replace("axis = 0", "axis = -4"),
    ),
    Graph(
        "a bias in float",
        f"g {_IMAGE} {{ {_PAIR} {_WEIGHTS} [conv] y = Conv(d, wd, b) }}",
        _CONVOLVED | {"b": _BIAS},
    ),
    Graph(
        "a product of matrices in half precision",
        "g (float16[4, 16] x) => (float16[4, 16] y) { [product] y = MatMul(x, m) }",
        {"m": np.ones((16, 16), np.float16)},
        part="sm75",
    ),
    _pair(
        "scales per channel of an activation",
        s=np.full(8, 0.02, np.float32),
        z=np.zeros(8, np.int8),
    ),
    Graph(
        "a scale that is computed",
        f"""g {_ROW} {{ top = ReduceMax <keepdims = 0> (x) s = Div(top, most) {_PAIR}
                         [end] y = Relu(d) }}""",
        {"z": _Z, "most": np.float32(127)},
        opset=17,
    ),
    Graph(
        "int8 between operators",
        """g (float[1, 8, 8, 8] x) => (float[1, 8, 7, 7] y) {
               [Q] q = QuantizeLinear(x, s, z)
               p = MaxPool <kernel_shape = [2, 2]> (q)
               [DQ] y = DequantizeLinear(p, s, z) }""",
        {"s": _S, "z": _Z},
    ),
    Graph(
        "a function of the model's own",
        f"""g {_ROW} {{ [twice] y = my.ops.Twice(x) }}
            <domain: "my.ops", opset_import: ["": 21]>
            Twice (a) => (b) {{ b = Add(a, a) }}""",
    ),
    Graph(
        "an input of uint8 that is cast first",
        "g (uint8[1, 8] x) => (float[1, 8] y) { c = Cast <to = 1> (x) y = Relu(c) }",
    ),
    _pair("float8 where the GPU has it", part="sm89", z=FLOAT8),
)

BROKEN = (
    _pair(
        "an asymmetric activation",
        "QuantizeLinear (node 'Q'): its zero point isn't 0",
        z=np.int8(3),
    ),
    _pair(
        "uint8 activations",
        "QuantizeLinear (node 'Q'): its zero point isn't 0",
        z=np.uint8(128),
    ),
    _pair(
        "int16 activations",
        "QuantizeLinear (node 'Q'): 'z' is int16, a type that isn't supported",
        z=np.int16(0),
    ),
    _pair("a scale of 0", "QuantizeLinear (node 'Q'): a scale isn't above 0", s=np.float32(0)),
    _pair(
        "no number for a scale",
        "QuantizeLinear (node 'Q'): a scale isn't above 0",
        s=np.float32("nan"),
    ),
    _pair(
        "fewer scales than channels",
        "QuantizeLinear (node 'Q'): it has 5 scales for 8 channels",
        s=np.full(5, 0.02, np.float32),
        z=np.zeros(5, np.int8),
    ),
    _pair(
        "fewer zero points than scales",
        "QuantizeLinear (node 'Q'): it has 8 scales and 3 zero points",
        s=np.full(8, 0.02, np.float32),
        z=np.zeros(3, np.int8),
    ),
    _pair(
        "float8 where the GPU lacks it", "QuantizeLinear (node 'Q'): sm80 has no float8", z=FLOAT8
    ),
    _convolution(
        "scales along another axis",
        _WEIGHTS.replace("axis = 0", "axis = 1"),
        "QuantizeLinear (node 'wQ'): it has 16 scales for 8 channels",
    ),
    _convolution(
        "an axis that the weights don't have",
        _WEIGHTS.replace("axis = 0", "axis = 5"),
        "QuantizeLinear (node 'wQ'): its axis is 5, but the input has 4 dimensions",
    ),
    _convolution(
        "asymmetric weights",
        says="QuantizeLinear (node 'wQ'): its zero point isn't 0",
        wz=np.full(16, 3, np.int8),
    ),
    _convolution(
        "weights stored as uint8",
        "[wDQ] wd = DequantizeLinear <axis = 0> (wq, ws, wz)",
        "DequantizeLinear (node 'wDQ'): it dequantizes uint8, but only int8 around 0 is allowed",
        wq=_STORED.astype(np.uint8),
        wz=_ZEROS.astype(np.uint8),
    ),
    _convolution(
        "int8 weights that nothing dequantizes",
        "[cast] wd = Cast <to = 1> (wq)",
        "Cast (node 'cast'): the int8 constant 'wq' is read by a node that doesn't dequantize",
        wq=_STORED,
    ),
    Graph(
        "a quantized bias",
        f"""g {_IMAGE} {{ {_PAIR} {_WEIGHTS} [bDQ] b = DequantizeLinear <axis = 0> (bq, bs)
                          [conv] y = Conv(d, wd, b) }}""",
        _CONVOLVED | {"bq": np.arange(16, dtype=np.int32), "bs": 0.02 * _SCALES},
        "DequantizeLinear (node 'bDQ'): it dequantizes int32, as in a quantized bias: "
        "leave biases in float",
    ),
    Graph(
        "a zero point that is an input",
        f"g (float[1, 8] x, int8 z) => (float[1, 8] y) {{ {_PAIR} [end] y = Relu(d) }}",
        {"s": _S},
        "QuantizeLinear (node 'Q'): its zero point is computed, but only a constant is allowed",
    ),
    Graph(
        "uint8 by an attribute",
        f"""g {_ROW} {{ [Q] q = QuantizeLinear <output_dtype = 2> (x, s)
                        [DQ] y = DequantizeLinear(q, s) }}""",
        {"s": _S},
        "QuantizeLinear (node 'Q'): quantization to uint8 isn't supported",
    ),
    Graph(
        "quantization as it goes",
        f"g {_ROW} {{ [dyn] q, s, z = DynamicQuantizeLinear(x) [DQ] y = DequantizeLinear(q, s, z) }}",
        says="DynamicQuantizeLinear (node 'dyn'): the operator isn't supported",
    ),
    Graph(
        "an operator that it lacks",
        "g (float[2, 2] x) => (float y) { [det] y = Det(x) }",
        says="Det (node 'det'): the operator isn't supported",
    ),
    Graph(
        "an operator without what runs it",
        "g (float[8] x) => (int64[1, n] y) { [where] y = NonZero(x) }",
        says="NonZero (node 'where'): the operator isn't supported",
    ),
    Graph(
        "an operator that nobody knows",
        f"g {_ROW} {{ [foo] y = my.ops.Frobnicate(x) }}",
        says="Frobnicate (node 'foo'): the operator isn't supported",
    ),
    Graph(
        "an operator that it lacks, inside a branch",
        """g (bool c) => (float y) {
               [if] y = If (c) <
                   then_branch = then () => (float a) { [det] a = Det(m) },
                   else_branch = other () => (float b) { b = Constant <value_float = 1.0> () }
               > }""",
        {"m": np.eye(2, dtype=np.float32)},
        "Det (node 'det'): the operator isn't supported",
    ),
    Graph(
        "text",
        "g (string[2] x) => (string[2] y) { [same] y = Identity(x) }",
        says="Identity (node 'same'): 'x' is string, a type that isn't supported",
    ),
    Graph(
        "a cast to what it lacks",
        f"g {_ROW} {{ [cast] c = Cast <to = 5> (x) y = Cast <to = 1> (c) }}",
        says="Cast (node 'cast'): int16 isn't supported",
    ),
    Graph(
        "uint8 in between",
        f"g {_ROW} {{ [cast] c = Cast <to = 2> (x) y = Cast <to = 1> (c) }}",
        says="Cast (node 'cast'): uint8 is allowed only for inputs and outputs, not in between",
    ),
    Graph(
        "an input of uint8 that is turned",
        "g (uint8[1, 8] x) => (float[8, 1] y) { [turn] t = Transpose(x) y = Cast <to = 1> (t) }",
        says="Transpose (node 'turn'): it doesn't take uint8, the type of 'x': cast it to float "
        "first",
    ),
    Graph(
        "integers that are quantized",
        f"g (int32[1, 8] x) => (float[1, 8] y) {{ {_PAIR} [end] y = Relu(d) }}",
        {"s": _S, "z": _Z},
        "QuantizeLinear (node 'Q'): it quantizes int32 instead of float",
    ),
    Graph(
        "nine dimensions",
        "g (float[1, 1, 1, 1, 1, 1, 1, 1, 1] x) => (float[1, 1, 1, 1, 1, 1, 1, 1, 1] y) { y = Relu(x) }",
        says="'x' has 9 dimensions, but at most 8 are allowed",
    ),
    Graph(
        "a product of matrices in float32 on Turing",
        "g (float[4, 16] x) => (float[4, 16] y) { [product] y = MatMul(x, m) }",
        {"m": np.ones((16, 16), np.float32)},
        "MatMul (node 'product'): sm75 has no matrix product in float32: use half precision",
        part="sm75",
    ),
    Graph(
        "three dimensions convolved in float32 on Turing",
        "g (float[1, 8, 4, 4, 4] x) => (float[1, 4, 2, 2, 2] y) { [conv] y = Conv(x, w) }",
        {"w": np.ones((4, 8, 3, 3, 3), np.float32)},
        "Conv (node 'conv'): sm75 has no three-dimensional convolution in float32",
        part="sm75",
    ),
    Graph(
        "bfloat16 on Turing",
        f"g {_ROW} {{ [cast] c = Cast <to = 16> (x) r = Relu(c) y = Cast <to = 1> (r) }}",
        says="Cast (node 'cast'): sm75 has no bfloat16",
        part="sm75",
    ),
    Graph(
        "an operator whose plugin isn't there",
        """g (float[1, 2, 8, 8] x, float[3, 4] boxes, int64[3] of) => (float[3, 2, 2, 2] y) {
               [align] y = RoiAlign <output_height = 2, output_width = 2> (x, boxes, of) }""",
        says="RoiAlign (node 'align'): the operator isn't supported",
    ),
)
"""What the parser or the builder refuses."""

ALTERED = (
    _pair(
        "uint8 around 0",
        "QuantizeLinear (node 'Q'): it quantizes to uint8, which would become int8: "
        "values above 127 are clipped",
        z=np.uint8(0),
    ),
    Graph(
        "uint8 since nothing says otherwise",
        f"g {_ROW} {{ [Q] q = QuantizeLinear(x, s) [DQ] y = DequantizeLinear(q, s) }}",
        {"s": _S},
        "QuantizeLinear (node 'Q'): it quantizes to uint8, which would become int8: "
        "values above 127 are clipped",
    ),
    Graph(
        "float64",
        "g (double[2] x) => (double[2] y) { y = Identity(x) }",
        says="'x' is float64, which would become float32",
    ),
    Graph(
        "float64 in between",
        f"g {_ROW} {{ [cast] c = Cast <to = 11> (x) y = Cast <to = 1> (c) }}",
        says="Cast (node 'cast'): it casts to float64, which would become float32",
    ),
    Graph(
        "another's operator of a known name",
        f"g {_ROW} {{ [own] y = my.ops.Relu(x) }}",
        says="Relu (node 'own'): it would be taken for ONNX's own operator: its domain, 'my.ops', is ignored",
    ),
)
"""What it takes without a word, and computes otherwise."""
