"""Rules for activations, elementwise operators, and reductions along axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hasten.engines.litert.tflite.converter import FUSED, POSITION, TO_NHWC, Converter, Rule
from hasten.engines.litert.tflite.graph import Node, axes_of
from hasten.engines.litert.tflite.patterns import clip_limits


def binary(code: str, kind: str, *, fuses: bool = True) -> Rule:
    def rule(c: Converter, node: Node) -> None:
        floats = c.graph.dtype(node.inputs[0], node) == np.float32
        if len(node.inputs) != 2 or (code == "DIV" and not floats):
            raise node.refused("only two tensors of floats are supported")
        inputs, layout = c.operands(node, node.inputs)
        options, name = c.writer.options(kind), node.outputs[0]
        if fuses and floats:
            options.fusedActivationFunction, name = c.fused(node)
        c.elementwise(node, code, inputs, layout, options, name)

    return rule


def unary(code: str, kind: str = "", **fields: Any) -> Rule:
    def rule(c: Converter, node: Node) -> None:
        tensor, layout = c.either(node.inputs[0], node)
        options = c.writer.options(kind, **fields) if kind else None
        c.elementwise(node, code, [tensor], layout, options)

    return rule


def reciprocal(c: Converter, node: Node) -> None:
    tensor, layout = c.either(node.inputs[0], node)
    one = c.number(node, 1, "one")
    c.elementwise(node, "DIV", [one, tensor], layout, c.writer.options("Div"))


def clip(c: Converter, node: Node) -> None:
    low, high = clip_limits(c.graph, node)
    if (low, high) in FUSED:
        unary(FUSED[low, high])(c, node)
        return
    tensor, layout = c.either(node.inputs[0], node)
    shape = c.laid_out(c.shape(node.outputs[0], node), layout)
    for code, limit in (("MAXIMUM", low), ("MINIMUM", high)):
        if math.isfinite(limit):
            number = c.number(node, limit, "limit")
            options = c.writer.options("MaximumMinimum")
            tensor = c.emit(node, code, [tensor, number], shape, options)
    c.give(node, tensor, layout)


def hard_sigmoid(c: Converter, node: Node) -> None:
    """Write RELU6(6 alpha x + 6 beta) / 6."""
    tensor, layout = c.either(node.inputs[0], node)
    shape = c.laid_out(c.shape(node.outputs[0], node), layout)
    slope, middle = 6 * node.settings.get("alpha", 0.2), 6 * node.settings.get("beta", 0.5)
    if not math.isclose(slope, 1.0, rel_tol=1e-6):
        tensor = _times(c, node, tensor, slope, shape, "slope")
    clipped = _clipped(c, node, tensor, middle, shape)
    c.give(node, _times(c, node, clipped, 1 / 6, shape), layout)


def hard_swish(c: Converter, node: Node) -> None:
    """Write HARD_SWISH; to be quantized, (x / 6) * RELU6(x + 3): /6 changes only the int8 scale."""
    if not c.to_quantize:
        unary("HARD_SWISH", "HardSwish")(c, node)
        return
    x, layout = c.either(node.inputs[0], node)
    shape = c.laid_out(c.shape(node.outputs[0], node), layout)
    inputs = [_times(c, node, x, 1 / 6, shape, "sixth"), _clipped(c, node, x, 3.0, shape)]
    c.give(node, c.emit(node, "MUL", inputs, shape, c.writer.options("Mul")), layout)


def _times(
    c: Converter, node: Node, x: int, number: float, shape: Sequence[int], suffix: str = ""
) -> int:
    inputs = [x, c.number(node, number, "factor")]
    return c.emit(node, "MUL", inputs, shape, c.writer.options("Mul"), suffix=suffix)


def _clipped(c: Converter, node: Node, x: int, number: float, shape: Sequence[int]) -> int:
    relu6 = c.writer.schema.ActivationFunctionType.RELU6
    inputs = [x, c.number(node, number, "middle")]
    options = c.writer.options("Add", fusedActivationFunction=relu6)
    return c.emit(node, "ADD", inputs, shape, options, suffix="clipped")


def power(c: Converter, node: Node) -> None:
    exponent = c.constant(node, 1)
    tensor, layout = c.either(node.inputs[0], node)
    if exponent.size == 1 and exponent.reshape(()) == 2:
        c.elementwise(node, "MUL", [tensor, tensor], layout, c.writer.options("Mul"))
    elif exponent.size == 1 and exponent.reshape(()) == 0.5:
        c.elementwise(node, "SQRT", [tensor], layout)
    elif exponent.size == 1:
        number = c.number(node, float(exponent.reshape(())), "exponent")
        c.elementwise(node, "POW", [tensor, number], layout, c.writer.options("Pow"))
    else:
        raise node.refused("its exponent must be one number")


def reduce(code: str, *, whole: bool = False) -> Rule:
    """Reduce along some axes, or over all positions of an image."""

    def rule(c: Converter, node: Node) -> None:
        rank = len(c.shape(node.inputs[0], node))
        given = None if whole else c.graph.argument(node, 1, "axes")
        if given is None or not np.size(given):
            if node.settings.get("noop_with_empty_axes", 0):
                raise node.refused("it has no axes to reduce")
            axes = list(range(rank))
        else:
            axes = sorted(axes_of(given, rank))
        if whole:
            axes = axes[2:]
        keep = bool(whole or node.settings.get("keepdims", 1))
        tensor, layout = c.either(node.inputs[0], node)
        left = [axis for axis in TO_NHWC if axis not in axes]
        if rank == 4 and axes == [2, 3]:
            tensor, layout = c.nhwc(node.inputs[0], node), "nhwc"
        elif layout == "nhwc" and not keep and left != sorted(left):
            tensor, layout = c.plain(node.inputs[0], node), "plain"
        if layout == "nhwc":
            axes = sorted(POSITION[axis] for axis in axes)
        options = c.writer.options("Reducer", keepDims=keep)
        inputs = [tensor, c.weights(node, np.array(axes, np.int32), "axes")]
        c.elementwise(node, code, inputs, layout if keep else "plain", options)

    return rule


def softmax(c: Converter, node: Node) -> None:
    shape = c.shape(node.inputs[0], node)
    axis = node.settings.get("axis", -1 if c.graph.opset >= 13 else 1) % len(shape)
    last, options = len(shape) - 1, c.writer.options("Softmax", beta=1.0)
    if c.graph.opset < 13 and axis != last:
        raise node.refused("a softmax over several axes at once isn't supported")
    if len(shape) == 4 and axis == 1:
        c.elementwise(node, "SOFTMAX", [c.nhwc(node.inputs[0], node)], "nhwc", options)
    elif axis == last:
        c.elementwise(node, "SOFTMAX", [c.plain(node.inputs[0], node)], "plain", options)
    else:
        order = list(range(len(shape)))
        order[axis], order[last] = last, axis
        turned = [shape[i] for i in order]
        x = c.transpose(node, c.plain(node.inputs[0], node), order, turned, "turned")
        x = c.emit(node, "SOFTMAX", [x], turned, options, suffix="last")
        c.give(node, c.transpose(node, x, order, shape))


def layer_normalization(c: Converter, node: Node) -> None:
    """Spell it out in tensors named ":norm", to be left in float: int8 squares lose too much."""
    if len([name for name in node.outputs if name]) > 1:
        raise node.refused("its mean and deviation aren't supported as outputs")
    x, shape = c.plain(node.inputs[0], node), c.shape(node.inputs[0], node)
    axis = node.settings.get("axis", -1) % len(shape)
    axes = c.weights(node, np.arange(axis, len(shape), dtype=np.int32), "axes")
    narrow = (*shape[:axis], *[1] * (len(shape) - axis))

    def step(code: str, inputs: list[int], sizes: Sequence[int], kind: str) -> int:
        fields = {"keepDims": True} if kind == "Reducer" else {}
        options = c.writer.options(kind, **fields) if kind else None
        return c.emit(node, code, inputs, sizes, options, suffix="norm")

    centred = step("SUB", [x, step("MEAN", [x, axes], narrow, "Reducer")], shape, "Sub")
    squares = step("MUL", [centred, centred], shape, "Mul")
    epsilon = c.number(node, node.settings.get("epsilon", 1e-5), "epsilon")
    variance = step("MEAN", [squares, axes], narrow, "Reducer")
    inverse = step("RSQRT", [step("ADD", [variance, epsilon], narrow, "Add")], narrow, "")
    tensor = step("MUL", [centred, inverse], shape, "Mul")
    for position, code, kind in ((1, "MUL", "Mul"), (2, "ADD", "Add")):
        if (factor := c.graph.argument(node, position)) is not None:
            tensor = step(code, [tensor, c.weights(node, factor, kind.lower())], shape, kind)
    c.give(node, tensor)


def gelu(c: Converter, node: Node) -> None:
    approximate = node.settings.get("approximate", b"none") == b"tanh"
    unary("GELU", "Gelu", approximate=approximate)(c, node)


def leaky(c: Converter, node: Node) -> None:
    unary("LEAKY_RELU", "LeakyRelu", alpha=node.settings.get("alpha", 0.01))(c, node)


def elu(c: Converter, node: Node) -> None:
    if node.settings.get("alpha", 1.0) != 1.0:
        raise node.refused("its alpha must be 1")
    unary("ELU")(c, node)


def prelu(c: Converter, node: Node) -> None:
    inputs, layout = c.operands(node, node.inputs)
    c.elementwise(node, "PRELU", inputs, layout)
