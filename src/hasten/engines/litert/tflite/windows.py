"""Padding of convolutions and pools in LiteRT's terms: SAME, VALID, or a separate operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from hasten.engines.litert.tflite.converter import Converter
from hasten.engines.litert.tflite.graph import Node

Edges = list[tuple[int, int]]
"""Padding before and after the height, and before and after the width."""


def padded(
    c: Converter,
    node: Node,
    kernel: Sequence[int],
    mode: Literal["zero", "edge", "none"] = "zero",
) -> tuple[int, int]:
    """Return a node's first input, padded where LiteRT's operator can't, and how it pads itself.

    Args:
        c: Converter that writes the operators needed.
        node: Convolution or pool.
        kernel: Height and width of the kernel.
        mode: Values that may serve as padding: "zero"; "edge" for a maximum, which any value from
            inside each window leaves unchanged; or "none", where padding mustn't count.

    Raises:
        CandidateError: LiteRT can't express the padding.
    """
    x = c.nhwc(node.inputs[0], node)
    sizes, wanted = c.shape(node.inputs[0], node)[2:], c.shape(node.outputs[0], node)[2:]
    steps = node.settings.get("strides", (1, 1))
    dilations = node.settings.get("dilations", (1, 1))
    reach = [(k - 1) * wide + 1 for k, wide in zip(kernel, dilations, strict=True)]
    given, edges, same = _given(node, sizes, reach, steps), [], []
    for size, out, step, width, (begin, _) in zip(sizes, wanted, steps, reach, given, strict=True):
        needed = (out - 1) * step + width - size
        edges.append((begin, max(needed - begin, 0)))
        total = max((math.ceil(size / step) - 1) * step + width - size, 0)
        same.append((total // 2, total - total // 2) if out == math.ceil(size / step) else None)
    kinds = c.writer.schema.Padding
    beyond = any(end > own for (_, end), (_, own) in zip(edges, given, strict=True))
    if not any(map(any, edges)):
        return x, int(kinds.VALID)
    if edges == same and not (mode == "zero" and node.op == "AveragePool"):
        return x, int(kinds.SAME)
    wide = any(2 * max(edge) > k for edge, k in zip(edges, kernel, strict=True))
    if mode == "none" or (mode == "edge" and wide) or (mode == "zero" and beyond):
        raise node.refused(f"its padding {edges} can't be expressed")
    return _written(c, node, x, edges, mode), int(kinds.VALID)


def _given(node: Node, sizes: Sequence[int], reach: Sequence[int], steps: Sequence[int]) -> Edges:
    auto = node.settings.get("auto_pad", b"NOTSET")
    if auto == b"NOTSET":
        pads = node.settings.get("pads", (0, 0, 0, 0))
        return [(pads[0], pads[2]), (pads[1], pads[3])]
    found = []
    for size, width, step in zip(sizes, reach, steps, strict=True):
        total = max((math.ceil(size / step) - 1) * step + width - size, 0)
        total = 0 if auto == b"VALID" else total
        small, large = total // 2, total - total // 2
        found.append((small, large) if auto == b"SAME_UPPER" else (large, small))
    return found


def _written(c: Converter, node: Node, x: int, edges: Edges, mode: str) -> int:
    shape = c.laid_out(c.shape(node.inputs[0], node), "nhwc")
    pads = [(0, 0), *edges, (0, 0)]
    whole = [size + sum(edge) for size, edge in zip(shape, pads, strict=True)]
    inputs = [x, c.weights(node, np.array(pads, np.int32), "pads")]
    if mode == "zero" or _never_negative(c, node.inputs[0]):
        return c.emit(node, "PAD", inputs, whole, c.writer.options("Pad"), suffix="padded")
    options = c.writer.options("MirrorPad", mode=c.writer.schema.MirrorPadMode.SYMMETRIC)
    return c.emit(node, "MIRROR_PAD", inputs, whole, options, suffix="padded")


def _never_negative(c: Converter, name: str) -> bool:
    """Whether a value is never negative, so that zeros can't exceed a window's maximum."""
    node = c.graph.producer(name)
    return (
        node is not None
        and node.op in ("Relu", "Sigmoid", "HardSigmoid", "MaxPool")
        and (node.op != "MaxPool" or _never_negative(c, node.inputs[0]))
    )
