"""Convolutions and matrix products of an IR, with the biases that follow them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hasten.engines.compiled.ir.constants import Known, known, refuse
from hasten.engines.compiled.ir.drawing import Drawing
from hasten.engines.compiled.ir.operators import Draw, attributes, shape_of, window


def _added(operation: Any, shape: tuple[int, ...]) -> tuple[Any, Known] | None:
    """Return the operation that adds a constant for each channel to a product, and the constant.

    Args:
        operation: The product.
        shape: Shape of a constant with one number for each channel.
    """
    readers = list(operation.output(0).get_target_inputs())
    if len(readers) != 1 or readers[0].get_node().get_type_name() != "Add":
        return None
    addition = readers[0].get_node()
    bias = known(addition.input_value(1 - readers[0].get_index()))
    if bias is None or bias.array.dtype != np.float32:
        return None
    short = len(shape) - bias.array.ndim
    if short < 0 or (bias.array.size > 1 and (1,) * short + bias.array.shape != shape):
        return None
    return addition, bias


def _weights(operation: Any, place: int = 1) -> Known:
    found = known(operation.input_value(place))
    if found is None:
        raise refuse(operation, "its weights must be constant")
    return found


def _convolution(drawing: Drawing, operation: Any) -> None:
    weights, groups = _weights(operation), 1
    if operation.get_type_name().startswith("Group"):
        groups, outs = weights.array.shape[:2]
        weights = weights.shaped((groups * outs, *weights.array.shape[2:]))
    size = shape_of(operation.input(0))[2:]
    shared = window(operation, weights.array.shape[2:], size)
    inputs = [drawing.input(operation, 0), drawing.stored(operation, weights)]
    outs = weights.array.shape[0]
    _with_bias(drawing, operation, "Conv", inputs, (1, outs, *(1 for _ in size)), shared, groups)


def _transposed(drawing: Drawing, operation: Any) -> None:
    weights, groups = _weights(operation), 1
    if operation.get_type_name().startswith("Group"):
        groups, ins = weights.array.shape[:2]
        weights = weights.shaped((groups * ins, *weights.array.shape[2:]))
    found = attributes(operation)
    if operation.get_input_size() > 2 or found.get("auto_pad", "explicit") != "explicit":
        raise refuse(operation, "it states an output shape, or pads of another kind")
    size = shape_of(operation.input(0))[2:]
    shared = window(operation, weights.array.shape[2:], size)
    shared["output_padding"] = [int(one) for one in found["output_padding"]]
    inputs = [drawing.input(operation, 0), drawing.stored(operation, weights)]
    outs = weights.array.shape[1] * groups
    shape = (1, outs, *(1 for _ in size))
    _with_bias(drawing, operation, "ConvTranspose", inputs, shape, shared, groups)


def _with_bias(
    drawing: Drawing, operation: Any, kind: str, inputs: list[str], shape: tuple[int, ...],
    shared: Mapping[str, Any], groups: int,
) -> None:  # fmt: skip
    """Draw a convolution with the constant that is added to it."""
    added = _added(operation, shape)
    if added is not None:
        bias = np.broadcast_to(added[1].array.reshape(-1), (shape[1],))
        inputs.append(drawing.constant(np.array(bias)))
    made = drawing.node(kind, operation, inputs, group=groups, **shared)
    drawing.give(operation if added is None else added[0], made)


def _matmul(drawing: Drawing, operation: Any) -> None:
    found = attributes(operation)
    turned = [bool(found["transpose_a"]), bool(found["transpose_b"])]
    weights = known(operation.input_value(1))
    given = drawing.input(operation, 0)
    if turned[0]:
        given = _swapped(drawing, operation, given, 0)
    if weights is None or weights.array.ndim != 2:
        second = drawing.input(operation, 1)
        second = _swapped(drawing, operation, second, 1) if turned[1] else second
        drawing.give(operation, drawing.node("MatMul", operation, [given, second]))
        return
    matrix = weights.turned((1, 0)) if turned[1] else weights
    inputs = [given, drawing.stored(operation, matrix)]
    outs = matrix.array.shape[1]
    added = None
    if len(shape_of(operation.input(0))) == 2:
        added = _added(operation, (1, outs))
    if added is None:
        drawing.give(operation, drawing.node("MatMul", operation, inputs))
        return
    bias = np.broadcast_to(added[1].array.reshape(-1), (outs,))
    inputs.append(drawing.constant(np.array(bias)))
    drawing.give(added[0], drawing.node("Gemm", operation, inputs))


def _swapped(drawing: Drawing, operation: Any, name: str, place: int) -> str:
    rank = len(shape_of(operation.input(place)))
    order = [*range(rank - 2), rank - 1, rank - 2]
    return drawing.node("Transpose", operation, [name], perm=order)[0]


PRODUCTS: Mapping[str, Draw] = {
    "Convolution": _convolution,
    "ConvolutionBackpropData": _transposed,
    "GroupConvolution": _convolution,
    "GroupConvolutionBackpropData": _transposed,
    "MatMul": _matmul,
}
"""Function that draws each product, by its name."""
