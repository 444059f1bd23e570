"""How each ONNX operator is written in LiteRT's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from onnx import helper

from hasten.tensors import Array
from hasten.tflite.converter import FUSED, TO_NHWC, Converter
from hasten.tflite.graph import Node, axes_of, numbers
from hasten.tflite.patterns import clip_limits
from hasten.tflite.windows import padded

Rule: TypeAlias = Callable[[Converter, Node], None]
_POSITION = {axis: position for position, axis in enumerate(TO_NHWC)}
"""Where an axis of ONNX's is with the channels last."""


def _convolution(c: Converter, node: Node) -> None:
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


def _transposed_convolution(c: Converter, node: Node) -> None:
    weights = c.constant(node, 1)
    settings = node.settings
    if weights.ndim != 4 or settings.get("group", 1) != 1 or set(settings.get("dilations", (1,))) != {1}:
        raise node.refused("only pictures, without groups and dilation, are supported")
    if settings.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in settings:
        raise node.refused("its padding must be given by numbers")
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


def _pool(code: str) -> Rule:
    def rule(c: Converter, node: Node) -> None:
        settings = node.settings
        if set(settings.get("dilations", (1,))) != {1} or len(node.outputs) > 1:
            raise node.refused("dilation and indices aren't supported")
        mode = "edge" if code == "MAX_POOL_2D" else "none"
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


def _gemm(c: Converter, node: Node) -> None:
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


def _matmul(c: Converter, node: Node) -> None:
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


def _binary(code: str, kind: str, *, fuses: bool = True) -> Rule:
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


def _unary(code: str, kind: str = "", **fields: Any) -> Rule:
    def rule(c: Converter, node: Node) -> None:
        tensor, layout = c.either(node.inputs[0], node)
        options = c.writer.options(kind, **fields) if kind else None
        c.elementwise(node, code, [tensor], layout, options)

    return rule


def _reciprocal(c: Converter, node: Node) -> None:
    tensor, layout = c.either(node.inputs[0], node)
    one = c.weights(node, np.float32(1), "one")
    c.elementwise(node, "DIV", [one, tensor], layout, c.writer.options("Div"))


def _clip(c: Converter, node: Node) -> None:
    low, high = clip_limits(c.graph, node)
    if (low, high) in FUSED:
        _unary(FUSED[low, high])(c, node)
        return
    tensor, layout = c.either(node.inputs[0], node)
    shape = c.laid_out(c.shape(node.outputs[0], node), layout)
    for code, limit in (("MAXIMUM", low), ("MINIMUM", high)):
        if math.isfinite(limit):
            number = c.weights(node, np.float32(limit), "limit")
            options = c.writer.options("MaximumMinimum")
            tensor = c.emit(node, code, [tensor, number], shape, options)
    c.give(node, tensor, layout)


def _hard_sigmoid(c: Converter, node: Node) -> None:
    """A sixth of RELU6(6 alpha x + 6 beta)."""
    tensor, layout = c.either(node.inputs[0], node)
    shape = c.laid_out(c.shape(node.outputs[0], node), layout)
    slope, middle = 6 * node.settings.get("alpha", 0.2), 6 * node.settings.get("beta", 0.5)
    if not math.isclose(slope, 1.0, rel_tol=1e-6):
        tensor = _times(c, node, tensor, slope, shape, "slope")
    clipped = _clipped(c, node, tensor, middle, shape)
    c.give(node, _times(c, node, clipped, 1 / 6, shape), layout)


def _hard_swish(c: Converter, node: Node) -> None:
    """To be quantized, x / 6 times RELU6(x + 3): the division changes no int8, only their scale."""
    if not c.to_quantize:
        _unary("HARD_SWISH", "HardSwish")(c, node)
        return
    x, layout = c.either(node.inputs[0], node)
    shape = c.laid_out(c.shape(node.outputs[0], node), layout)
    inputs = [_times(c, node, x, 1 / 6, shape, "sixth"), _clipped(c, node, x, 3.0, shape)]
    c.give(node, c.emit(node, "MUL", inputs, shape, c.writer.options("Mul")), layout)


def _times(
    c: Converter, node: Node, x: int, number: float, shape: Sequence[int], suffix: str = ""
) -> int:
    inputs = [x, c.weights(node, np.float32(number), "factor")]
    return c.emit(node, "MUL", inputs, shape, c.writer.options("Mul"), suffix=suffix)


def _clipped(c: Converter, node: Node, x: int, number: float, shape: Sequence[int]) -> int:
    relu6 = c.writer.schema.ActivationFunctionType.RELU6
    inputs = [x, c.weights(node, np.float32(number), "middle")]
    options = c.writer.options("Add", fusedActivationFunction=relu6)
    return c.emit(node, "ADD", inputs, shape, options, suffix="clipped")


def _power(c: Converter, node: Node) -> None:
    exponent = c.constant(node, 1)
    tensor, layout = c.either(node.inputs[0], node)
    if exponent.size == 1 and exponent.reshape(()) == 2:
        c.elementwise(node, "MUL", [tensor, tensor], layout, c.writer.options("Mul"))
    elif exponent.size == 1 and exponent.reshape(()) == 0.5:
        c.elementwise(node, "SQRT", [tensor], layout)
    elif exponent.size == 1:
        number = c.weights(node, exponent.reshape(()).astype(np.float32), "exponent")
        c.elementwise(node, "POW", [tensor, number], layout, c.writer.options("Pow"))
    else:
        raise node.refused("its exponent must be one number")


def _reduce(code: str, *, whole: bool = False) -> Rule:
    """Reduce along some axes, or over all of a picture's places."""

    def rule(c: Converter, node: Node) -> None:
        rank = len(c.shape(node.inputs[0], node))
        given = None if whole else c.graph.argument(node, 1, "axes")
        axes = sorted(axes_of(list(range(rank)) if given is None else given, rank))
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
            axes = sorted(_POSITION[axis] for axis in axes)
        options = c.writer.options("Reducer", keepDims=keep)
        inputs = [tensor, c.weights(node, np.array(axes, np.int32), "axes")]
        c.elementwise(node, code, inputs, layout if keep else "plain", options)

    return rule


def _softmax(c: Converter, node: Node) -> None:
    shape = c.shape(node.inputs[0], node)
    axis = node.settings.get("axis", -1 if c.graph.opset >= 13 else 1) % len(shape)
    last, options = len(shape) - 1, c.writer.options("Softmax", beta=1.0)
    if c.graph.opset < 13 and axis != last:
        raise node.refused("over several axes at once it isn't supported")
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


def _layer_normalization(c: Converter, node: Node) -> None:
    """Spell it out; names end in ":norm", since squares of int8 differences say little."""
    if len([name for name in node.outputs if name]) > 1:
        raise node.refused("its mean and deviation as outputs aren't supported")
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
    epsilon = c.weights(node, np.float32(node.settings.get("epsilon", 1e-5)), "epsilon")
    variance = step("MEAN", [squares, axes], narrow, "Reducer")
    inverse = step("RSQRT", [step("ADD", [variance, epsilon], narrow, "Add")], narrow, "")
    tensor = step("MUL", [centred, inverse], shape, "Mul")
    for position, code, kind in ((1, "MUL", "Mul"), (2, "ADD", "Add")):
        if (factor := c.graph.argument(node, position)) is not None:
            tensor = step(code, [tensor, c.weights(node, factor, kind.lower())], shape, kind)
    c.give(node, tensor)


def _reshape(c: Converter, node: Node) -> None:
    shape, dtype = c.shape(node.outputs[0], node), c.graph.dtype(node.outputs[0], node)
    if shape == c.shape(node.inputs[0], node):
        c.values[node.outputs[0]] = c.alias(node.inputs[0], node)
        return
    c.give(node, c.reshape(node, c.flat(node.inputs[0], node), shape, dtype=dtype))


def _transpose(c: Converter, node: Node) -> None:
    shape, dtype = c.shape(node.outputs[0], node), c.graph.dtype(node.outputs[0], node)
    order = list(node.settings.get("perm", range(len(shape))[::-1]))
    if len(shape) == 4 and node.inputs[0] in c.values:
        for layout, tensor in c.values[node.inputs[0]].items():
            place = [_POSITION[axis] if layout == "nhwc" else axis for axis in order]
            if place == [0, 1, 2, 3]:
                c.give(node, tensor)
                return
            if [place[axis] for axis in TO_NHWC] == [0, 1, 2, 3]:
                c.give(node, tensor, "nhwc")
                return
        if "nhwc" in c.values[node.inputs[0]]:
            x = c.nhwc(node.inputs[0], node)
            c.give(node, c.transpose(node, x, [_POSITION[axis] for axis in order], shape, dtype=dtype))
            return
    x = c.plain(node.inputs[0], node)
    c.give(node, c.transpose(node, x, order, shape, dtype=dtype))


def _concat(c: Converter, node: Node) -> None:
    inputs, layout = c.operands(node, node.inputs)
    axis = node.settings["axis"] % len(c.shape(node.outputs[0], node))
    options = c.writer.options("Concatenation", axis=_POSITION[axis] if layout == "nhwc" else axis)
    c.elementwise(node, "CONCATENATION", inputs, layout, options)


def _split(c: Converter, node: Node) -> None:
    whole = c.shape(node.inputs[0], node)
    axis = node.settings.get("axis", 0) % len(whole)
    tensor, layout = c.either(node.inputs[0], node)
    position = _POSITION[axis] if layout == "nhwc" else axis
    begin = 0
    for i, name in enumerate(node.outputs):
        shape = c.laid_out(c.shape(name, node), layout)
        begins, ends = [0] * len(whole), [0] * len(whole)
        begins[position], ends[position] = begin, begin + shape[position]
        suffix = f"part{i}" if i else ""
        part = c.slice(node, tensor, shape, begins, ends, [1] * len(whole), {position}, suffix)
        c.give(node, part, layout, name)
        begin += shape[position]


def _slice(c: Converter, node: Node) -> None:
    whole = c.shape(node.inputs[0], node)
    starts, stops = (c.graph.argument(node, i, n) for i, n in ((1, "starts"), (2, "ends")))
    given, steps = c.graph.argument(node, 3, "axes"), c.graph.argument(node, 4)
    if starts is None or stops is None:
        raise node.refused("its starts and ends must be given")
    axes = axes_of(np.arange(starts.size) if given is None else given, len(whole))
    tensor, layout = c.either(node.inputs[0], node)
    begins, ends, strides = [0] * len(whole), [0] * len(whole), [1] * len(whole)
    cut = set()
    for i, axis in enumerate(axes):
        step = 1 if steps is None else int(steps[i])
        if step < 1:
            raise node.refused("backwards it isn't supported")
        position = _POSITION[axis] if layout == "nhwc" else axis
        begin, end, step = slice(int(starts[i]), int(stops[i]), step).indices(whole[axis])
        begins[position], ends[position], strides[position] = begin, end, step
        if (begin, end, step) != (0, whole[axis], 1):
            cut.add(position)
    shape = c.laid_out(c.shape(node.outputs[0], node), layout)
    if 0 in shape:
        raise node.refused("nothing would be left")
    c.give(node, c.slice(node, tensor, shape, begins, ends, strides, cut), layout)


def _pad(c: Converter, node: Node) -> None:
    rank = len(c.shape(node.inputs[0], node))
    pads, given = c.graph.argument(node, 1, "pads"), c.graph.argument(node, 3)
    value, mode = c.graph.argument(node, 2, "value"), node.settings.get("mode", b"constant")
    if pads is None or min(numbers(pads)) < 0 or mode not in (b"constant", b"reflect"):
        raise node.refused("only constants and reflections can be added")
    tensor, layout = c.either(node.inputs[0], node)
    edges = [[0, 0] for _ in range(rank)]
    axes = axes_of(np.arange(rank) if given is None else given, rank)
    for i, axis in enumerate(axes):
        position = _POSITION[axis] if layout == "nhwc" else axis
        edges[position] = [int(pads[i]), int(pads[i + len(axes)])]
    inputs = [tensor, c.weights(node, np.array(edges, np.int32), "pads")]
    if mode == b"reflect":
        options = c.writer.options("MirrorPad", mode=c.writer.schema.MirrorPadMode.REFLECT)
        c.elementwise(node, "MIRROR_PAD", inputs, layout, options)
    elif value is None or not value.any():
        c.elementwise(node, "PAD", inputs, layout, c.writer.options("Pad"))
    else:
        inputs.append(c.weights(node, np.float32(value.reshape(())), "value"))
        c.elementwise(node, "PADV2", inputs, layout, c.writer.options("PadV2"))


def _gather(c: Converter, node: Node) -> None:
    shape, dtype = c.shape(node.inputs[0], node), c.graph.dtype(node.outputs[0], node)
    axis = node.settings.get("axis", 0) % len(shape)
    chosen = c.graph.constants.get(node.inputs[1])
    if chosen is not None:
        indices = c.weights(node, (chosen % shape[axis]).astype(np.int32), "indices")
    else:
        indices = c.plain(node.inputs[1], node)
    options = c.writer.options("Gather", axis=axis)
    inputs = [c.plain(node.inputs[0], node), indices]
    c.give(node, c.emit(node, "GATHER", inputs, c.shape(node.outputs[0], node), options, dtype=dtype))


def _cast(c: Converter, node: Node) -> None:
    if helper.tensor_dtype_to_np_dtype(node.settings["to"]) == c.graph.dtype(node.inputs[0], node):
        c.values[node.outputs[0]] = c.alias(node.inputs[0], node)
        return
    _unary("CAST", "Cast")(c, node)


def _expand(c: Converter, node: Node) -> None:
    shape = c.shape(node.outputs[0], node)
    sizes = c.weights(node, np.array(shape, np.int32), "shape")
    options = c.writer.options("BroadcastTo")
    c.elementwise(node, "BROADCAST_TO", [c.plain(node.inputs[0], node), sizes], "plain", options)


def _resize(c: Converter, node: Node) -> None:
    mode, settings = node.settings.get("mode", b"nearest").decode(), node.settings
    before, after = c.shape(node.inputs[0], node), c.shape(node.outputs[0], node)
    if mode not in ("nearest", "linear") or settings.get("antialias", 0) or len(before) != 4:
        raise node.refused("only nearest and linear, of pictures and without antialias, are supported")
    if before[:2] != after[:2]:
        raise node.refused("it changes more than the height and the width")
    kind, code = {
        "nearest": ("ResizeNearestNeighbor", "RESIZE_NEAREST_NEIGHBOR"),
        "linear": ("ResizeBilinear", "RESIZE_BILINEAR"),
    }[mode]
    for corners, centres in ((False, False), (False, True), (True, False)):
        same = [
            np.allclose(_sources(c, node, *sizes), _own_sources(mode, *sizes, corners, centres))
            for sizes in zip(before[2:], after[2:], strict=True)
        ]
        if all(same):
            options = c.writer.options(kind, alignCorners=corners, halfPixelCenters=centres)
            sizes = c.weights(node, np.array(after[2:], np.int32), "sizes")
            c.elementwise(node, code, [c.nhwc(node.inputs[0], node), sizes], "nhwc", options)
            return
    raise node.refused("its coordinates can't be expressed")


def _sources(c: Converter, node: Node, before: int, after: int) -> Array:
    """Return where ONNX looks for each place of a resized axis, as a place of the old."""
    how = node.settings.get("coordinate_transformation_mode", b"half_pixel").decode()
    if c.graph.opset < 11:
        how = "asymmetric"
    i, ratio = np.arange(after), before / after
    if how == "align_corners":
        places = i * (before - 1) / max(after - 1, 1)
    elif how == "asymmetric":
        places = i * ratio
    elif how == "half_pixel" or (how == "pytorch_half_pixel" and after > 1):
        places = (i + 0.5) * ratio - 0.5
    else:
        raise node.refused(f"{how} isn't supported")
    if node.settings.get("mode", b"nearest") == b"linear":
        return np.clip(places, 0, before - 1)
    nearest = node.settings.get("nearest_mode", b"round_prefer_floor").decode()
    if c.graph.opset < 11:
        nearest = "floor"
    rounded = {
        "round_prefer_floor": np.ceil(places - 0.5),
        "round_prefer_ceil": np.floor(places + 0.5),
        "floor": np.floor(places),
        "ceil": np.ceil(places),
    }[nearest]
    return np.clip(rounded, 0, before - 1)


def _own_sources(mode: str, before: int, after: int, corners: bool, centres: bool) -> Array:
    """Return where LiteRT looks."""
    i, ratio = np.arange(after), before / after
    if corners:
        places = i * (before - 1) / max(after - 1, 1)
        return np.floor(places + 0.5) if mode == "nearest" else places
    half = 0.5 if centres else 0.0
    places = np.floor((i + half) * ratio) if mode == "nearest" else (i + half) * ratio - half
    return np.clip(places, 0, before - 1)


def _gelu(c: Converter, node: Node) -> None:
    approximate = node.settings.get("approximate", b"none") == b"tanh"
    _unary("GELU", "Gelu", approximate=approximate)(c, node)


def _leaky(c: Converter, node: Node) -> None:
    _unary("LEAKY_RELU", "LeakyRelu", alpha=node.settings.get("alpha", 0.01))(c, node)


def _elu(c: Converter, node: Node) -> None:
    if node.settings.get("alpha", 1.0) != 1.0:
        raise node.refused("its alpha must be 1")
    _unary("ELU")(c, node)


def _prelu(c: Converter, node: Node) -> None:
    inputs, layout = c.operands(node, node.inputs)
    c.elementwise(node, "PRELU", inputs, layout)


OPERATORS: dict[str, Rule] = {
    "Abs": _unary("ABS", "Abs"),
    "Add": _binary("ADD", "Add"),
    "AveragePool": _pool("AVERAGE_POOL_2D"),
    "Cast": _cast,
    "Ceil": _unary("CEIL"),
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Div": _binary("DIV", "Div"),
    "Elu": _elu,
    "Exp": _unary("EXP", "Exp"),
    "Expand": _expand,
    "Flatten": _reshape,
    "Floor": _unary("FLOOR"),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _reduce("MEAN", whole=True),
    "GlobalMaxPool": _reduce("REDUCE_MAX", whole=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LayerNormalization": _layer_normalization,
    "LeakyRelu": _leaky,
    "Log": _unary("LOG"),
    "MatMul": _matmul,
    "Max": _binary("MAXIMUM", "MaximumMinimum", fuses=False),
    "MaxPool": _pool("MAX_POOL_2D"),
    "Min": _binary("MINIMUM", "MaximumMinimum", fuses=False),
    "Mul": _binary("MUL", "Mul"),
    "Neg": _unary("NEG", "Neg"),
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": _power,
    "Reciprocal": _reciprocal,
    "ReduceMax": _reduce("REDUCE_MAX"),
    "ReduceMean": _reduce("MEAN"),
    "ReduceSum": _reduce("SUM"),
    "Relu": _clip,
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": _unary("LOGISTIC"),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _unary("SQRT"),
    "Squeeze": _reshape,
    "Sub": _binary("SUB", "Sub"),
    "Tanh": _unary("TANH"),
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}
"""By ONNX's name. BatchNormalization and the parts of Gelu are rewritten before."""
