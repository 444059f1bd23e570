"""Rules that write each ONNX operator in LiteRT's operators."""

from __future__ import annotations

from hasten.engines.litert.tflite import elementwise as each
from hasten.engines.litert.tflite import products, shapes
from hasten.engines.litert.tflite.converter import Rule
from hasten.engines.litert.tflite.resizing import resize

OPERATORS: dict[str, Rule] = {
    "Abs": each.unary("ABS", "Abs"),
    "Add": each.binary("ADD", "Add"),
    "AveragePool": products.pool("AVERAGE_POOL_2D"),
    "Cast": shapes.cast,
    "Ceil": each.unary("CEIL"),
    "Clip": each.clip,
    "Concat": shapes.concat,
    "Conv": products.convolution,
    "ConvTranspose": products.transposed_convolution,
    "Div": each.binary("DIV", "Div"),
    "Elu": each.elu,
    "Exp": each.unary("EXP", "Exp"),
    "Expand": shapes.expand,
    "Flatten": shapes.reshape,
    "Floor": each.unary("FLOOR"),
    "Gather": shapes.gather,
    "Gelu": each.gelu,
    "Gemm": products.gemm,
    "GlobalAveragePool": each.reduce("MEAN", whole=True),
    "GlobalMaxPool": each.reduce("REDUCE_MAX", whole=True),
    "HardSigmoid": each.hard_sigmoid,
    "HardSwish": each.hard_swish,
    "LayerNormalization": each.layer_normalization,
    "LeakyRelu": each.leaky,
    "Log": each.unary("LOG"),
    "MatMul": products.matmul,
    "Max": each.binary("MAXIMUM", "MaximumMinimum", fuses=False),
    "MaxPool": products.pool("MAX_POOL_2D"),
    "Min": each.binary("MINIMUM", "MaximumMinimum", fuses=False),
    "Mul": each.binary("MUL", "Mul"),
    "Neg": each.unary("NEG", "Neg"),
    "PRelu": each.prelu,
    "Pad": shapes.pad,
    "Pow": each.power,
    "Reciprocal": each.reciprocal,
    "ReduceMax": each.reduce("REDUCE_MAX"),
    "ReduceMean": each.reduce("MEAN"),
    "ReduceSum": each.reduce("SUM"),
    "Relu": each.clip,
    "Reshape": shapes.reshape,
    "Resize": resize,
    "Sigmoid": each.unary("LOGISTIC"),
    "Slice": shapes.part,
    "Softmax": each.softmax,
    "Split": shapes.split,
    "Sqrt": each.unary("SQRT"),
    "Squeeze": shapes.reshape,
    "Sub": each.binary("SUB", "Sub"),
    "Tanh": each.unary("TANH"),
    "Transpose": shapes.transpose,
    "Unsqueeze": shapes.reshape,
}
"""Rules by the operator's name in ONNX."""
REWRITTEN = frozenset({"BatchNormalization", "Erf", "ReduceL2"})
"""Operators that `patterns` replaces by others, or recognizes as parts of an activation."""
