"""Operators that only move numbers, and so become wires without logic."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from hasten.engines.fpga.values import Values, attributes
from hasten.errors import NotCovered

_FLOATS = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    }
)


def reshape(own: Values, node: onnx.NodeProto) -> Any:
    """Return the input in another shape."""
    value = own.wide(node)
    shape = own.ranges[node.output[0]].low.shape
    return value.reshape(*shape)


def transpose(own: Values, node: onnx.NodeProto) -> Any:
    """Return the input with its axes in another order."""
    value = own.wide(node)
    return value.transpose(tuple(attributes(node).get("perm", range(value.ndim)[::-1])))


def concatenate(own: Values, node: onnx.NodeProto) -> Any:
    """Return tensors and constants joined along an axis."""
    parts = [
        np.asarray(own.value(name)) if own.is_constant(name) else own.value(name)._vars
        for name in node.input
    ]
    whole = np.concatenate(
        [np.asarray(p, dtype=object) for p in parts], axis=attributes(node)["axis"]
    )
    return own.array(whole)


def cut(own: Values, node: onnx.NodeProto) -> Any:
    """Return a slice with constant bounds."""
    value = own.wide(node)
    starts, ends, axes, steps = (own.constant(node, i) for i in range(1, 5))
    assert starts is not None
    assert ends is not None
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones_like(starts) if steps is None else steps
    cut = [slice(None)] * value.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end < -value.shape[int(axis)] else int(end)
        cut[int(axis)] = slice(int(start), stop, int(step))
    return value[tuple(cut)]


def gather(own: Values, node: onnx.NodeProto) -> Any:
    """Return the entries at constant indices."""
    indices = own.constant(node, 1)
    assert indices is not None
    axis = int(attributes(node).get("axis", 0))
    return own.array(np.take(own.wide(node)._vars, indices.astype(np.int64), axis=axis))


def pad(own: Values, node: onnx.NodeProto) -> Any:
    """Return the input with constants around it."""
    settings = attributes(node)
    pads, filler = own.constant(node, 1), own.constant(node, 2)
    if settings.get("mode", b"constant") != b"constant" or pads is None or len(node.input) > 3:
        raise NotCovered(f"a Pad that isn't constant (node {node.name!r}) has no fixed-point form")
    value = own.wide(node)
    half = len(pads) // 2
    widths = [(int(b), int(e)) for b, e in zip(pads[:half], pads[half:], strict=True)]
    with_what = 0.0 if filler is None else float(filler)
    return own.array(np.pad(value._vars, widths, constant_values=with_what))


def cast(own: Values, node: onnx.NodeProto) -> Any:
    """Return the input unchanged for a cast between float types."""
    kind = attributes(node)["to"]
    if kind not in _FLOATS:
        name = onnx.TensorProto.DataType.Name(kind).lower()
        raise NotCovered(f"a Cast to {name} (node {node.name!r}) has no fixed-point form")
    return own.wide(node)


def same(own: Values, node: onnx.NodeProto) -> Any:
    """Return the input unchanged."""
    return own.wide(node)
