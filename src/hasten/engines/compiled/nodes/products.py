"""ONNX's matrix products with constant matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Node, broadcast
from hasten.engines.compiled.operators.dense import Dense
from hasten.engines.compiled.operators.matrices import Product
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.tensors import Access, contiguous, product
from hasten.engines.compiled.values import Value


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
    if not left.shape or not right.shape:
        node.refuse("one of its matrices has no axes")
    line, column = len(left.shape) == 1, len(right.shape) == 1
    if line:
        left = _reshaped(left, (1, *left.shape), 1)
    if column:
        right = _reshaped(right, (*right.shape, 1), 0)
    made = multiplied(node, left, right)
    shape, batch = list(made.shape), made.batch
    if line:
        del shape[-2]
        batch = None if batch is None or batch == len(shape) - 1 else batch
    if column:
        del shape[-1]
    node.give(replace(made, shape=tuple(shape), batch=batch))


def _reshaped(value: Value, shape: tuple[int, ...], before: int) -> Value:
    """Return a value under a shape with new axes of one element, some of them at the start."""
    constant = None if value.constant is None else value.constant.reshape(shape)
    batch = None if value.batch is None else value.batch + before
    return replace(value, shape=shape, constant=constant, batch=batch)


def multiplied(node: Node, left: Value, right: Value) -> Value:
    """Append a product of matrices, of which both may be computed; return its result.

    Args:
        node: Node that asks.
        left: Value of shape `(..., rows, inner)`.
        right: Value of shape `(..., inner, columns)`.
    """
    outer = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    rows, inner = left.shape[-2:]
    columns = right.shape[-1]
    if right.shape[-2] != inner or left.dtype != right.dtype:
        node.refuse(f"{left.dtype}{list(left.shape)} by {right.dtype}{list(right.shape)}")
    if left.dtype not in ("float32", "float64"):
        node.refuse(f"it multiplies {left.dtype}")
    rank = len(outer) + 2
    batches = set()
    for value, summed in ((left, -1), (right, -2)):
        if value.batch is not None:
            axis = value.batch - len(value.shape)
            batches.add(axis + rank)
            if axis == summed:
                node.mixes_rows()
    if len(batches) > 1:
        node.mixes_rows()
    graph = node.graph
    made = graph.new(left.dtype, (*outer, rows, columns), min(batches, default=None))
    accesses = []
    for value in (left, right):
        strides = contiguous(value.shape)[:-2]
        around = [0 if n == 1 else s for n, s in zip(value.shape[:-2], strides, strict=True)]
        around = [0] * (len(outer) - len(around)) + around
        accesses.append(Access(graph.tensor(value), (*around, *contiguous(value.shape)[-2:])))
    graph.add(Product(accesses[0], accesses[1], made.tensor, outer, rows, inner, columns))
    return made


def _gemm(node: Node) -> None:
    left = node.input(0)
    attributes = node.attributes
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if attributes.get("transA", 0):
        left = transposed(node, left, (1, 0))
    weight = node.input(1).constant
    if weight is None:
        _gemm_computed(node, left, alpha, beta)
        return
    weight = weight.T if attributes.get("transB", 0) else weight
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
    _added(node, dense(node, left, weight, None), 1.0, beta)


def _gemm_computed(node: Node, left: Value, alpha: float, beta: float) -> None:
    right = node.input(1)
    if node.attributes.get("transB", 0):
        right = transposed(node, right, (1, 0))
    _added(node, multiplied(node, left, right), alpha, beta)


def _added(node: Node, made: Value, alpha: float, beta: float) -> None:
    """Give `alpha * made + beta * input 2`, which may be missing."""
    kind = made.dtype
    steps = [Step("value", (), kind, float(alpha).hex()), Step("multiply", (0, 1), kind)]
    reads = [(made, contiguous(made.shape), 0)]
    if node.has(2):
        added = node.input(2)
        if added.batch is not None and made.batch is None:
            node.mixes_rows()
        steps = [Step("value", (), kind, float(one).hex()) for one in (alpha, beta)]
        steps += [Step("multiply", (0, 2), kind), Step("multiply", (1, 3), kind)]
        steps += [Step("add", (4, 5), kind)]
        reads.append((added, broadcast(added, made.shape), 0))
    node.graph.map(steps, reads, node.computed(kind, made.shape, made.batch))


def transposed(node: Node, value: Value, order: Sequence[int]) -> Value:
    """Append a copy with its axes in another order; return it."""
    if value.constant is not None:
        turned = np.ascontiguousarray(value.constant.transpose(order))
        return replace(value, shape=turned.shape, constant=turned)
    strides = contiguous(value.shape)
    shape = tuple(value.shape[axis] for axis in order)
    batch = None if value.batch is None else list(order).index(value.batch)
    made = node.graph.new(value.dtype, shape, batch)
    along = tuple(strides[axis] for axis in order)
    node.graph.map([Step("copy", (0,), value.dtype)], [(value, along, 0)], made)
    return made


def _einsum(node: Node) -> None:
    """Lower a sum over two operands' letters as a product of matrices."""
    text = node.attributes["equation"].replace(" ", "")
    given, arrow, result = text.partition("->")
    parts = given.split(",")
    if len(parts) != 2 or not arrow or "." in text:
        node.refuse(f"its equation is {text!r:.60}")
    first, second = parts
    both = [one for one in first if one in second]
    outer = [one for one in both if one in result]
    inner = [one for one in both if one not in result]
    rows = [one for one in first if one not in second]
    columns = [one for one in second if one not in first]
    unique = all(len(set(one)) == len(one) for one in (first, second, result))
    if not unique or sorted(result) != sorted((*outer, *rows, *columns)):
        node.refuse(f"its equation is {text!r:.60}")
    left = _ordered(node, node.input(0), first, outer, rows, inner)
    right = _ordered(node, node.input(1), second, outer, inner, columns)
    made = multiplied(node, left, right)
    sizes = dict(zip(first + second, node.input(0).shape + node.input(1).shape, strict=True))
    letters = [*outer, *rows, *columns]
    batch = None
    for value, names in ((node.input(0), first), (node.input(1), second)):
        if value.batch is not None:
            name = names[value.batch]
            batch = letters.index(name) if name in letters else None
    shape = tuple(sizes[one] for one in letters)
    made = replace(made, shape=shape, batch=batch)
    order = [letters.index(one) for one in result]
    node.give(made if order == sorted(order) else transposed(node, made, order))


def _ordered(
    node: Node, value: Value, letters: str, outer: list[str], rows: list[str], columns: list[str]
) -> Value:
    """Return an operand of an equation as matrices: loops around, rows, columns."""
    if len(letters) != len(value.shape):
        node.refuse(f"{letters!r} for {list(value.shape)}")
    order = [letters.index(one) for one in (*outer, *rows, *columns)]
    turned = value if order == sorted(order) else transposed(node, value, order)
    sizes = [turned.shape[at] for at in range(len(outer))]
    down = product(turned.shape[len(outer) : len(outer) + len(rows)])
    along = product(turned.shape[len(outer) + len(rows) :])
    shape = (*sizes, down, along)
    batch = turned.batch
    if batch is not None and batch >= len(outer):
        batch = len(outer) + (1 if batch >= len(outer) + len(rows) else 0)
    constant = None if turned.constant is None else turned.constant.reshape(shape)
    return replace(turned, shape=shape, constant=constant, batch=batch)


LOWERINGS: dict[str, Callable[[Node], None]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
}
"""Lowering of each operator by its name."""
