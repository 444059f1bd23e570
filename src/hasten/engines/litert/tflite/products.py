"""Rules for convolutions, pools and matrix products."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.litert.tflite.converter import TO_NHWC, Converter, Rule
from hasten.engines.litert.tflite.graph import Node
from hasten.engines.litert.tflite.windows import padded


def convolution(c: Converter, node: Node) -> None:
    weights = c.constant(node, 1)
    bias = _bias(c, node, len(weights))
    channels, filters = c.shape(node.inputs[0], node)[1], len(weights)
    dilations = node.settings.get("dilations", (1, 1))
    x, padding = padded(c, node, weights.shape[2:])
    strides = node.settings.get("strides", (1, 1))
    activation, name = c.fused(node)
    fields = {
        "padding": padding,
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
        "fusedActivationFunction": activation,
    }
    kind, code, array = "Conv2D", "CONV_2D", weights.transpose(TO_NHWC)
    if node.settings.get("group", 1) == channels > 1:
        kind, code = "DepthwiseConv2D", "DEPTHWISE_CONV_2D"
        array = array.transpose(3, 1, 2, 0)
        fields["depthMultiplier"] = filters // channels
    inputs = [x, c.weights(node, array), c.weights(node, bias, "bias")]
    shape = c.laid_out(c.shape(node.outputs[0], node), "nhwc")
    options = c.writer.options(kind, **fields)
    c.give(node, c.emit(node, code, inputs, shape, options), "nhwc", name)


def _bias(c: Converter, node: Node, size: int) -> Array:
    given = c.graph.argument(node, 2)
    return np.zeros(size, np.float32) if given is None else given


def transposed_convolution(c: Converter, node: Node) -> None:
    weights = c.constant(node, 1)
    settings = node.settings
    if (
        weights.ndim != 4
        or settings.get("group", 1) != 1
        or set(settings.get("dilations", (1,))) != {1}
    ):
        raise node.refused("only images, without groups and dilation, are supported")
    if settings.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in settings:
        raise node.refused("its padding must be given as numbers")
    x, strides = c.nhwc(node.inputs[0], node), settings.get("strides", (1, 1))
    shape = c.laid_out(c.shape(node.outputs[0], node), "nhwc")
    sizes, pads = c.shape(node.inputs[0], node)[2:], settings.get("pads", (0, 0, 0, 0))[:2]
    full = [(n - 1) * s + k for n, s, k in zip(sizes, strides, weights.shape[2:], strict=True)]
    cut = [whole - size for whole, size in zip(full, shape[1:3], strict=True)]
    same = all(
        begin == total // 2 and total >= 0 and size == math.ceil(out / step)
        for begin, total, size, out, step in zip(pads, cut, sizes, shape[1:3], strides, strict=True)
    )
    if not same and any(begin > total for begin, total in zip(pads, cut, strict=True)):
        raise node.refused("its output padding can't be expressed")
    kinds = c.writer.schema.Padding
    options = c.writer.options(
        "TransposeConv",
        padding=kinds.SAME if same else kinds.VALID,
        strideH=strides[0],
        strideW=strides[1],
    )
    whole = shape if same else (shape[0], *full, shape[3])
    inputs = [
        c.weights(node, np.array(whole, np.int32), "shape"),
        c.weights(node, weights.transpose(1, 2, 3, 0)),
        x,
        c.weights(node, _bias(c, node, weights.shape[1]), "bias"),
    ]
    tensor = c.emit(node, "TRANSPOSE_CONV", inputs, whole, options)
    if not same:
        begins = [0, *pads, 0]
        ends = [0, *(begin + out for begin, out in zip(pads, shape[1:3], strict=True)), 0]
        tensor = c.slice(node, tensor, shape, begins, ends, [1] * 4, {1, 2}, "crop")
    c.give(node, tensor, "nhwc")


def pool(code: str) -> Rule:
    def rule(c: Converter, node: Node) -> None:
        settings = node.settings
        if set(settings.get("dilations", (1,))) != {1} or len(node.outputs) > 1:
            raise node.refused("dilation and indices aren't supported")
        mode: Literal["zero", "edge", "none"] = "edge" if code == "MAX_POOL_2D" else "none"
        if mode == "none" and settings.get("count_include_pad", 0):
            mode = "zero"
        x, padding = padded(c, node, settings["kernel_shape"], mode)
        strides = settings.get("strides", (1, 1))
        activation, name = c.fused(node)
        options = c.writer.options(
            "Pool2D",
            padding=padding,
            strideH=strides[0],
            strideW=strides[1],
            filterHeight=settings["kernel_shape"][0],
            filterWidth=settings["kernel_shape"][1],
            fusedActivationFunction=activation,
        )
        shape = c.laid_out(c.shape(node.outputs[0], node), "nhwc")
        c.give(node, c.emit(node, code, [x], shape, options), "nhwc", name)

    return rule


def gemm(c: Converter, node: Node) -> None:
    settings, weights = node.settings, c.constant(node, 1)
    weights = weights if settings.get("transB", 0) else weights.T
    x, shape = c.flat(node.inputs[0], node), c.shape(node.inputs[0], node)
    if settings.get("transA", 0):
        x = c.transpose(node, x, (1, 0), shape[::-1], "turned")
    bias = c.graph.argument(node, 2)
    if bias is not None:
        if bias.size not in (1, bias.shape[-1] if bias.ndim else 1):
            raise node.refused("it adds a matrix, not a vector")
        bias = np.broadcast_to(bias.reshape(-1), len(weights)) * settings.get("beta", 1.0)
    _product(c, node, x, weights * settings.get("alpha", 1.0), bias)


def _product(c: Converter, node: Node, x: int, weights: Array, bias: Array | None) -> None:
    """Multiply by constant weights `(outputs, inputs)` along the last axis."""
    activation, name = c.fused(node)
    inputs = [x, c.weights(node, weights.astype(np.float32))]
    if bias is not None:
        inputs.append(c.weights(node, bias.astype(np.float32), "bias"))
    shape = c.shape(node.outputs[0], node)
    options = c.writer.options(
        "FullyConnected", fusedActivationFunction=activation, keepNumDims=len(shape) > 2
    )
    c.give(node, c.emit(node, "FULLY_CONNECTED", inputs, shape, options), name=name)


def matmul(c: Converter, node: Node) -> None:
    shapes = [c.shape(name, node) for name in node.inputs[:2]]
    if min(map(len, shapes)) < 2:
        raise node.refused("a vector isn't supported")
    weights = c.graph.constants.get(node.inputs[1])
    if weights is not None and weights.ndim == 2:
        x = c.plain(node.inputs[0], node)
        _product(c, node, x, weights.T, c.graph.argument(node, 2))
        return
    inputs = [c.plain(name, node) for name in node.inputs]
    c.elementwise(node, "BATCH_MATMUL", inputs, "plain", c.writer.options("BatchMatMul"))
