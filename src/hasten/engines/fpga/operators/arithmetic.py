"""Elementwise operators, and means over axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from hasten.engines.fpga.formats import rounded_weights
from hasten.engines.fpga.values import Values, attributes
from hasten.errors import NotCovered


def mean(own: Values, node: onnx.NodeProto) -> Any:
    """Return the sum or the mean over axes."""
    given = own.narrow(node)
    if node.op_type == "GlobalAveragePool":
        axes, keep = tuple(range(2, given.ndim)), True
    else:
        settings = attributes(node)
        listed = settings.get("axes") if "axes" in settings else own.constant(node, 1)
        axes = (
            tuple(int(a) % given.ndim for a in np.ravel(listed))
            if listed is not None
            else tuple(range(given.ndim))
        )
        keep = bool(settings.get("keepdims", 1))
    count = int(np.prod([given.shape[a] for a in axes]))
    kept = [a for a in range(given.ndim) if a not in axes]
    moved = given.transpose((*kept, *axes)).reshape(*[given.shape[a] for a in kept], count)
    total = np.sum(moved, axis=-1)
    shape = (
        [1 if a in axes else n for a, n in enumerate(given.shape)]
        if keep
        else [given.shape[a] for a in kept]
    )
    found = total if node.op_type == "ReduceSum" else total * own.share(node, count)
    return found.reshape(*shape)


def add(own: Values, node: onnx.NodeProto) -> Any:
    """Return a sum or a difference, of two tensors or of one and a constant."""
    places = [own.is_constant(name) for name in node.input]
    sign = -1.0 if node.op_type == "Sub" else 1.0
    if not any(places):
        one, other = np.broadcast_arrays(own.wide(node, 0)._vars, own.wide(node, 1)._vars)
        return (
            own.array(one) + own.array(other) * sign
            if sign > 0
            else own.array(one) - own.array(other)
        )
    place = places.index(True)
    constant = own.constant(node, place)
    assert constant is not None
    value = own.wide(node, 1 - place)
    added = own.bias(node, constant) * (sign if place else 1.0)
    value = value if place or sign > 0 else -value
    shape = np.broadcast_shapes(value.shape, added.shape)
    return own.array(np.broadcast_to(value._vars, shape)) + (
        np.broadcast_to(added, shape) + own.half_a_step(node)
    )


def multiply(own: Values, node: onnx.NodeProto) -> Any:
    """Return a product or quotient with constants, or a product of two tensors."""
    places = [own.is_constant(name) for name in node.input]
    if node.op_type == "Div" and not places[1]:
        raise NotCovered(
            f"a Div by a value that isn't constant (node {node.name!r}) has no fixed-point form"
        )
    if not any(places):
        one, other = np.broadcast_arrays(own.narrow(node, 0)._vars, own.narrow(node, 1)._vars)
        return own.array(one) * own.array(other)
    place = places.index(True)
    factor = own.constant(node, place)
    assert factor is not None
    factor = 1.0 / factor if node.op_type == "Div" else factor
    value = own.narrow(node, 1 - place)
    shape = np.broadcast_shapes(value.shape, factor.shape)
    flat = np.broadcast_to(factor, shape).astype(np.float64)
    rounded = rounded_weights(flat.reshape(-1, 1), own.widths.of(node.name)[0], 0).reshape(shape)
    return own.array(np.broadcast_to(value._vars, shape)) * rounded


def normalize(own: Values, node: onnx.NodeProto) -> Any:
    """Return a batch normalization, as a factor and an offset per channel."""
    scale, bias, mean, variance = (own.constant(node, i) for i in range(1, 5))
    assert scale is not None
    assert bias is not None
    assert mean is not None
    assert variance is not None
    factor = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    shape = [1, -1, *([1] * (len(own.value(node.input[0]).shape) - 2))]
    bits = own.widths.of(node.name)[0]
    rounded = rounded_weights(factor.reshape(-1, 1), bits, 0).reshape(shape)
    added = own.bias(node, bias - mean * factor).reshape(shape)
    return own.narrow(node) * rounded + (added + own.half_a_step(node))


def relu(own: Values, node: onnx.NodeProto) -> Any:
    """Return the input with negative numbers replaced by 0."""
    return own.wide(node).relu()


def clip(own: Values, node: onnx.NodeProto) -> Any:
    """Return the input clipped to constant bounds, which are rounded to the input's step."""
    settings = attributes(node)
    bounds = [own.constant(node, 1), own.constant(node, 2)]
    low, high = (
        settings.get(name) if bound is None else float(bound)
        for name, bound in zip(("min", "max"), bounds, strict=True)
    )
    value = own.narrow(node)
    step = 2.0 ** -float(value.kif[2].max())
    if low is not None:
        value = value.relu() if low == 0 else np.maximum(value, np.round(low / step) * step)
    return value if high is None else np.minimum(value, np.round(high / step) * step)


def leaky_relu(own: Values, node: onnx.NodeProto) -> Any:
    """Return the input with negative numbers multiplied by a constant slope."""
    value = own.narrow(node)
    slope = np.array([[attributes(node).get("alpha", 0.01)]])
    rounded = float(rounded_weights(slope, own.widths.of(node.name)[0], 0)[0, 0])
    return np.maximum(value, value * rounded)
