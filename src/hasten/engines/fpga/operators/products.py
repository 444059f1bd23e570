"""Products, whose outputs are sums of inputs times constants or times other inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from hasten.engines.fpga.operators.windows import unrolled
from hasten.engines.fpga.values import Values, attributes
from hasten.errors import NotCovered


def gemm(own: Values, node: onnx.NodeProto) -> Any:
    """Return a product with constant weights, plus a bias."""
    settings = attributes(node)
    if settings.get("transA", 0):
        raise NotCovered(f"a Gemm with transA (node {node.name!r}) has no fixed-point form")
    weights = own.constant(node, 1)
    assert weights is not None
    weights = weights.T if settings.get("transB", 0) else weights
    bias = own.constant(node, 2)
    bias = np.zeros(weights.shape[1]) if bias is None else bias * settings.get("beta", 1.0)
    rounded = own.weights(node, weights * settings.get("alpha", 1.0), 1)
    return own.narrow(node) @ rounded + (own.bias(node, bias) + own.half_a_step(node))


def matmul(own: Values, node: onnx.NodeProto) -> Any:
    """Return a product with constants, or of two tensors."""
    if own.is_constant(node.input[1]):
        weights = own.constant(node, 1)
        assert weights is not None
        if weights.ndim != 2:
            raise NotCovered(
                f"a MatMul with weights of {weights.ndim} axes (node {node.name!r}) has no fixed-point form"
            )
        found = own.narrow(node) @ own.weights(node, weights, 1)
        half = own.half_a_step(node) if _biased_later(own, node) is False else 0.0
        return found + half if half else found
    if own.is_constant(node.input[0]):
        raise NotCovered(
            f"constants times a tensor (MatMul, node {node.name!r}) have no fixed-point form"
        )
    one, other = own.narrow(node, 0), own.narrow(node, 1)
    batch = np.broadcast_shapes(one.shape[:-2], other.shape[:-2])
    left = np.broadcast_to(one._vars, (*batch, *one.shape[-2:]))
    right = np.broadcast_to(other._vars, (*batch, *other.shape[-2:]))
    parts = [(own.array(left[i]) @ own.array(right[i]))._vars for i in np.ndindex(*batch)]
    whole = np.array(parts, dtype=object).reshape(*batch, one.shape[-2], other.shape[-1])
    return own.array(whole)


def _biased_later(own: Values, node: onnx.NodeProto) -> bool:
    """Whether the next operator adds a constant."""
    return any(reader.op_type in ("Add", "Sub") for reader in own.readers.get(node.output[0], []))


def conv(own: Values, node: onnx.NodeProto) -> Any:
    """Return a convolution, unrolled into a product with the weights at each position."""
    weights = own.constant(node, 1)
    assert weights is not None
    settings, groups = attributes(node), int(attributes(node).get("group", 1))
    given = own.narrow(node)
    spatial = given.ndim - 2
    kernel = weights.shape[2:]
    patches, places = unrolled(given._vars, kernel, settings, spatial, 0.0)
    rounded = own.weights(node, weights, 0)
    bias = own.constant(node, 2)
    bias = np.zeros(len(weights)) if bias is None else bias
    added = own.bias(node, bias) + own.half_a_step(node)
    per_group, each = weights.shape[1], len(weights) // groups
    outputs = np.empty((len(weights), int(np.prod(places))), dtype=object)
    for group in range(groups):
        part = patches[:, group * per_group : (group + 1) * per_group]
        matrix = rounded[group * each : (group + 1) * each].reshape(each, -1).T
        for place in range(part.shape[0]):
            vector = own.array(part[place].reshape(1, -1))
            outputs[group * each : (group + 1) * each, place] = np.ravel((vector @ matrix)._vars)
    shape = (1, len(weights), *places)
    return own.array(outputs.reshape(shape)) + added.reshape(1, -1, *([1] * spatial))
