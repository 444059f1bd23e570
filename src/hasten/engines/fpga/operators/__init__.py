"""ONNX operators as additions, shifts, comparisons and tables of fixed-point numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx

from hasten.core.tensors import Array
from hasten.engines.fpga.operators import arithmetic, movement, products, windows
from hasten.engines.fpga.values import Values

Operator: TypeAlias = Callable[[Values, onnx.NodeProto], Any]
"""Function from the tensors so far and a node to the node's output."""


def _looked_up(function: Callable[[Array], Array]) -> Operator:
    return lambda own, node: own.table(node, function)


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


OPERATORS: Mapping[str, Operator] = {
    "Add": arithmetic.add,
    "AveragePool": windows.average_pool,
    "BatchNormalization": arithmetic.normalize,
    "Cast": movement.cast,
    "Clip": arithmetic.clip,
    "Concat": movement.concatenate,
    "Conv": products.conv,
    "Div": arithmetic.multiply,
    "Dropout": movement.same,
    "Flatten": movement.reshape,
    "Gather": movement.gather,
    "Gemm": products.gemm,
    "GlobalAveragePool": arithmetic.mean,
    "Identity": movement.same,
    "LeakyRelu": arithmetic.leaky_relu,
    "MatMul": products.matmul,
    "MaxPool": windows.max_pool,
    "Mul": arithmetic.multiply,
    "Pad": movement.pad,
    "ReduceMean": arithmetic.mean,
    "ReduceSum": arithmetic.mean,
    "Relu": arithmetic.relu,
    "Reshape": movement.reshape,
    "Sigmoid": _looked_up(_sigmoid),
    "Slice": movement.cut,
    "Squeeze": movement.reshape,
    "Sub": arithmetic.add,
    "Tanh": _looked_up(np.tanh),
    "Transpose": movement.transpose,
    "Unsqueeze": movement.reshape,
}
