"""Operators that move elements, as they are where the channels are last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Node
from hasten.engines.compiled.values import Value

_CONSTANTS: Mapping[str, tuple[int, ...]] = {
    "Resize": (1, 2, 3),
    "Slice": (3,),
    "Split": (),
    "Upsample": (1,),
}
"""Operators, and the places of inputs that are axes, or numbers for each axis."""


def last(node: Node, shape: tuple[int, ...]) -> Node | None:
    """Return a node that does the same to a picture whose channels are last; None where there is none.

    Args:
        node: Node that moves elements of its first input.
        shape: Shape of that, with the channels as axis 1.
    """
    kind, rank = node.proto.op_type, len(shape)
    if kind not in _CONSTANTS or rank not in (3, 4) or shape[0] != 1:
        return None
    order = (0, *range(2, rank), 1)
    attributes: dict[str, Any] = dict(node.attributes)
    if kind == "Split":
        attributes["axis"] = _moved([attributes.get("axis", 0)], order)[0]
    if "axes" in attributes:
        attributes["axes"] = _moved(attributes["axes"], order)
    if "scales" in attributes:
        attributes["scales"] = [attributes["scales"][axis] for axis in order]
    if kind == "Slice" and "axes" not in attributes and not node.has(3):
        return None
    proto = type(node.proto)()
    proto.CopyFrom(node.proto)
    for place in _CONSTANTS[kind]:
        if not node.has(place) or (kind == "Upsample" and node.opset < 9):
            continue
        known = node.peek(place).constant
        if known is None:
            return None
        each = (
            known if kind == "Slice" or not known.size or "axes" in attributes else known[[*order]]
        )
        made: Array = np.array(_moved(known, order), np.int64) if kind == "Slice" else each
        proto.input[place] = f"{proto.input[place]}, channels last, of {node.proto.output[0]}"
        value = Value("", str(made.dtype), made.shape, None, made)
        node.graph.values[proto.input[place]] = value
    return replace(node, proto=proto, attributes=attributes)


def _moved(axes: Sequence[int] | Array, order: tuple[int, ...]) -> list[int]:
    return [order.index(int(axis) % len(order)) for axis in axes]
