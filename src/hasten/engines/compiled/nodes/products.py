"""ONNX's matrix products with constant matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Node, Value, broadcast
from hasten.engines.compiled.operators.dense import Dense
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.plan import contiguous, product


def dense(node: Node, value: Value, weight: Array, bias: Array | None) -> Value:
    """Append a layer over the last axis of a value; return its result.

    Args:
        node: Node that asks.
        value: Value of shape `(..., inner)`.
        weight: Constant of shape `(inner, outer)`.
        bias: Constant of shape `(outer,)`; None for none.
    """
    inner, outer = weight.shape
    if value.shape[-1] != inner:
        node.refuse(f"{list(value.shape)} by {list(weight.shape)}")
    if str(weight.dtype) not in ("float32", "float64") or value.dtype != str(weight.dtype):
        node.refuse(f"{value.dtype} by {weight.dtype}")
    if value.batch == len(value.shape) - 1:
        node.mixes_rows()
    graph = node.graph
    made = graph.new(value.dtype, (*value.shape[:-1], outer), value.batch)
    graph.add(
        Dense(
            graph.tensor(value),
            graph.store(np.ascontiguousarray(weight)),
            "" if bias is None else graph.store(np.ascontiguousarray(bias)),
            made.tensor,
            product(value.shape[:-1]),
            inner,
            outer,
        )
    )
    return made


def _matmul(node: Node) -> None:
    left, right = node.inputs
    if right.constant is not None and len(right.shape) == 2 and left.shape:
        node.give(dense(node, left, right.constant, None))
        return
    node.refuse("both matrices are computed, or the second one isn't a matrix")


def _gemm(node: Node) -> None:
    left = node.input(0)
    attributes = node.attributes
    weight = node.constant(1, "second matrix")
    weight = weight.T if attributes.get("transB", 0) else weight
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if attributes.get("transA", 0):
        node.refuse("its first matrix is transposed")
    if alpha != 1:
        weight = (weight * np.asarray(alpha, weight.dtype)).astype(weight.dtype)
    if not node.has(2):
        node.give(dense(node, left, weight, None))
        return
    added = node.input(2)
    bias = added.constant
    outer = weight.shape[1]
    if (
        bias is not None
        and product(bias.shape) in (1, outer)
        and bias.shape[-1:] in ((), (1,), (outer,))
    ):
        whole = np.broadcast_to(bias.reshape(-1), (outer,))
        node.give(dense(node, left, weight, (whole * beta).astype(weight.dtype)))
        return
    made = dense(node, left, weight, None)
    kind = made.dtype
    output = node.computed(kind, made.shape, made.batch)
    steps = [Step("value", (), kind, float(beta).hex()), Step("multiply", (1, 2), kind)]
    steps.append(Step("add", (0, 3), kind))
    reads = [(made, contiguous(made.shape), 0), (added, broadcast(added, made.shape), 0)]
    node.graph.map(steps, reads, output)


LOWERINGS: dict[str, Callable[[Node], None]] = {"MatMul": _matmul, "Gemm": _gemm}
"""Lowering of each operator by its name."""
