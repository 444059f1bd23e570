"""Rules for operators that move or copy values."""

from __future__ import annotations

import numpy as np
from onnx import helper

from hasten.engines.litert.tflite.converter import POSITION, TO_NHWC, Converter
from hasten.engines.litert.tflite.elementwise import unary
from hasten.engines.litert.tflite.graph import Node, axes_of, numbers


def reshape(c: Converter, node: Node) -> None:
    shape, dtype = c.shape(node.outputs[0], node), c.graph.dtype(node.outputs[0], node)
    if shape == c.shape(node.inputs[0], node):
        c.values[node.outputs[0]] = c.alias(node.inputs[0], node)
        return
    c.give(node, c.reshape(node, c.flat(node.inputs[0], node), shape, dtype=dtype))


def transpose(c: Converter, node: Node) -> None:
    shape, dtype = c.shape(node.outputs[0], node), c.graph.dtype(node.outputs[0], node)
    order = list(node.settings.get("perm", range(len(shape))[::-1]))
    if len(shape) == 4 and node.inputs[0] in c.values:
        for layout, tensor in c.values[node.inputs[0]].items():
            place = [POSITION[axis] if layout == "nhwc" else axis for axis in order]
            if place == [0, 1, 2, 3]:
                c.give(node, tensor)
                return
            if [place[axis] for axis in TO_NHWC] == [0, 1, 2, 3]:
                c.give(node, tensor, "nhwc")
                return
        if "nhwc" in c.values[node.inputs[0]]:
            x = c.nhwc(node.inputs[0], node)
            c.give(
                node, c.transpose(node, x, [POSITION[axis] for axis in order], shape, dtype=dtype)
            )
            return
    x = c.plain(node.inputs[0], node)
    c.give(node, c.transpose(node, x, order, shape, dtype=dtype))


def concat(c: Converter, node: Node) -> None:
    inputs, layout = c.operands(node, node.inputs)
    axis = node.settings["axis"] % len(c.shape(node.outputs[0], node))
    options = c.writer.options("Concatenation", axis=POSITION[axis] if layout == "nhwc" else axis)
    c.elementwise(node, "CONCATENATION", inputs, layout, options)


def split(c: Converter, node: Node) -> None:
    whole = c.shape(node.inputs[0], node)
    axis = node.settings.get("axis", 0) % len(whole)
    tensor, layout = c.either(node.inputs[0], node)
    position = POSITION[axis] if layout == "nhwc" else axis
    begin = 0
    for i, name in enumerate(node.outputs):
        shape = c.laid_out(c.shape(name, node), layout)
        begins, ends = [0] * len(whole), [0] * len(whole)
        begins[position], ends[position] = begin, begin + shape[position]
        suffix = f"part{i}" if i else ""
        part = c.slice(node, tensor, shape, begins, ends, [1] * len(whole), {position}, suffix)
        c.give(node, part, layout, name)
        begin += shape[position]


def part(c: Converter, node: Node) -> None:
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
            raise node.refused("a negative step isn't supported")
        position = POSITION[axis] if layout == "nhwc" else axis
        begin, end, step = slice(int(starts[i]), int(stops[i]), step).indices(whole[axis])
        begins[position], ends[position], strides[position] = begin, end, step
        if (begin, end, step) != (0, whole[axis], 1):
            cut.add(position)
    shape = c.laid_out(c.shape(node.outputs[0], node), layout)
    if 0 in shape:
        raise node.refused("the slice is empty")
    c.give(node, c.slice(node, tensor, shape, begins, ends, strides, cut), layout)


def pad(c: Converter, node: Node) -> None:
    rank = len(c.shape(node.inputs[0], node))
    pads, given = c.graph.argument(node, 1, "pads"), c.graph.argument(node, 3)
    value, mode = c.graph.argument(node, 2, "value"), node.settings.get("mode", b"constant")
    if pads is None or min(numbers(pads)) < 0 or mode not in (b"constant", b"reflect"):
        raise node.refused("only padding with constants or by reflection is supported")
    tensor, layout = c.either(node.inputs[0], node)
    edges = [[0, 0] for _ in range(rank)]
    axes = axes_of(np.arange(rank) if given is None else given, rank)
    for i, axis in enumerate(axes):
        position = POSITION[axis] if layout == "nhwc" else axis
        edges[position] = [int(pads[i]), int(pads[i + len(axes)])]
    inputs = [tensor, c.weights(node, np.array(edges, np.int32), "pads")]
    if mode == b"reflect":
        options = c.writer.options("MirrorPad", mode=c.writer.schema.MirrorPadMode.REFLECT)
        c.elementwise(node, "MIRROR_PAD", inputs, layout, options)
    elif value is None or not value.any():
        c.elementwise(node, "PAD", inputs, layout, c.writer.options("Pad"))
    else:
        inputs.append(c.number(node, float(value.reshape(())), "value"))
        c.elementwise(node, "PADV2", inputs, layout, c.writer.options("PadV2"))


def gather(c: Converter, node: Node) -> None:
    shape, dtype = c.shape(node.inputs[0], node), c.graph.dtype(node.outputs[0], node)
    axis = node.settings.get("axis", 0) % len(shape)
    chosen = c.graph.constants.get(node.inputs[1])
    if chosen is not None:
        indices = c.weights(node, (chosen % shape[axis]).astype(np.int32), "indices")
    else:
        indices = c.plain(node.inputs[1], node)
    options = c.writer.options("Gather", axis=axis)
    inputs = [c.plain(node.inputs[0], node), indices]
    c.give(
        node, c.emit(node, "GATHER", inputs, c.shape(node.outputs[0], node), options, dtype=dtype)
    )


def cast(c: Converter, node: Node) -> None:
    if helper.tensor_dtype_to_np_dtype(node.settings["to"]) == c.graph.dtype(node.inputs[0], node):
        c.values[node.outputs[0]] = c.alias(node.inputs[0], node)
        return
    unary("CAST", "Cast")(c, node)


def expand(c: Converter, node: Node) -> None:
    shape = c.shape(node.outputs[0], node)
    sizes = c.weights(node, np.array(shape, np.int32), "shape")
    options = c.writer.options("BroadcastTo")
    c.elementwise(node, "BROADCAST_TO", [c.plain(node.inputs[0], node), sizes], "plain", options)
