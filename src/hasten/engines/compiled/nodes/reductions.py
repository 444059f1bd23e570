"""ONNX's reductions, and what is made of them: softmax and normalizations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from hasten.engines.compiled.graph import Node, broadcast
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.operators.reductions import Reduce
from hasten.engines.compiled.tensors import Access, contiguous
from hasten.engines.compiled.values import Value

_KINDS = {
    "ReduceSum": "sum",
    "ReduceMean": "mean",
    "ReduceMax": "maximum",
    "ReduceMin": "minimum",
    "ReduceProd": "product",
    "ReduceL1": "sum",
    "ReduceL2": "sum",
    "ReduceSumSquare": "sum",
    "ReduceLogSum": "sum",
}
_BEFORE = {"ReduceL1": "absolute", "ReduceL2": "square", "ReduceSumSquare": "square"}
_AFTER = {"ReduceL2": "sqrt", "ReduceLogSum": "log"}


def reduced(node: Node, value: Value, axes: Sequence[int], kind: str) -> Value:
    """Append a reduction whose axes stay, with one element; return its result."""
    gone = sorted(axes)
    kept = [axis for axis in range(len(value.shape)) if axis not in gone]
    if value.batch in gone:
        node.mixes_rows()
    strides = contiguous(value.shape)
    shape = tuple(1 if axis in gone else n for axis, n in enumerate(value.shape))
    dtype = "int64" if kind.startswith("arg") else value.dtype
    batch = None if value.batch in gone else value.batch
    made = node.graph.new(dtype, shape, batch)
    access = Access(node.graph.tensor(value), tuple(strides[axis] for axis in (*kept, *gone)))
    outer = tuple(value.shape[axis] for axis in kept)
    inner = tuple(value.shape[axis] for axis in gone)
    node.graph.add(Reduce(kind, access, made.tensor, outer, inner))  # type: ignore[arg-type]
    return made


def mapped(node: Node, steps: Sequence[Step], *values: Value) -> Value:
    """Append a map over values, broadcast to each other; return its result."""
    shape = np.broadcast_shapes(*(value.shape for value in values))
    batch = next((value.batch for value in values if value.batch is not None), None)
    made = node.graph.new(steps[-1].dtype, shape, batch)
    node.graph.map(steps, [(value, broadcast(value, shape), 0) for value in values], made)
    return made


def done(node: Node, op: str, *values: Value) -> Value:
    """Append one step over values; return its result."""
    kind = values[0].dtype
    if op == "square":
        return mapped(node, [Step("multiply", (0, 0), kind)], *values)
    return mapped(node, [Step(op, tuple(range(len(values))), kind)], *values)


def _axes(node: Node) -> list[int] | None:
    rank = len(node.input(0).shape)
    given = node.attributes.get("axes")
    if given is None and node.has(1):
        given = node.constant(1, "axes").reshape(-1)
    if given is None or not len(given):
        if node.attributes.get("noop_with_empty_axes", 0):
            return None
        return list(range(rank))
    return sorted({node.axis(int(axis), rank) for axis in given})


def _reduce(node: Node) -> None:
    value, axes, name = node.input(0), _axes(node), node.proto.op_type
    if axes is None:
        node.give(value)
        return
    if name in _BEFORE:
        value = done(node, _BEFORE[name], value)
    result = reduced(node, value, axes, _KINDS[name])
    if name in _AFTER:
        result = done(node, _AFTER[name], result)
    node.give(_kept(node, result, axes))


def _kept(node: Node, result: Value, axes: Sequence[int]) -> Value:
    """Return a result without the axes that were reduced, unless they are to stay."""
    if node.attributes.get("keepdims", 1):
        return result
    kept = [axis for axis in range(len(result.shape)) if axis not in axes]
    batch = kept.index(result.batch) if result.batch in kept else None
    return replace(result, shape=tuple(result.shape[axis] for axis in kept), batch=batch)


def _arg(node: Node) -> None:
    value = node.input(0)
    if node.attributes.get("select_last_index", 0):
        node.refuse("it takes the last of equal numbers")
    axis = node.axis(node.attributes.get("axis", 0), len(value.shape))
    node.give(_kept(node, reduced(node, value, [axis], node.proto.op_type.lower()), [axis]))


def _softmax(node: Node) -> None:
    value = node.input(0)
    rank = len(value.shape)
    axis = node.axis(node.attributes.get("axis", -1 if node.opset >= 13 else 1), rank)
    axes = [axis] if node.opset >= 13 else list(range(axis, rank))
    less = done(node, "subtract", value, reduced(node, value, axes, "maximum"))
    powers = done(node, "exp", less)
    whole = reduced(node, powers, axes, "sum")
    if node.proto.op_type == "LogSoftmax":
        node.give(done(node, "subtract", less, done(node, "log", whole)))
    else:
        node.give(done(node, "divide", powers, whole))


def _layer_normalization(node: Node) -> None:
    value = node.input(0)
    rank = len(value.shape)
    axis = node.axis(node.attributes.get("axis", -1), rank)
    if node.wants(1) or node.wants(2):
        node.refuse("its mean or deviation is used")
    axes = list(range(axis, rank))
    centred = done(node, "subtract", value, reduced(node, value, axes, "mean"))
    result = _by_deviation(node, centred, axes)
    result = done(node, "multiply", result, node.input(1))
    node.give(done(node, "add", result, node.input(2)) if node.has(2) else result)


def _by_deviation(node: Node, centred: Value, axes: Sequence[int]) -> Value:
    """Divide numbers, less their mean, by their deviation."""
    kind = centred.dtype
    variance = reduced(node, done(node, "square", centred), axes, "mean")
    epsilon = float(np.float32(node.attributes.get("epsilon", 1e-5)))
    steps = [
        Step("value", (), kind, epsilon.hex()),
        Step("add", (0, 1), kind),
        Step("sqrt", (2,), kind),
    ]
    return done(node, "divide", centred, mapped(node, steps, variance))


def _instance_normalization(node: Node) -> None:
    value = node.input(0)
    axes = list(range(2, len(value.shape)))
    shape = (-1, *(1,) * len(axes))
    scale, shift = (
        Value("", value.dtype, one.reshape(shape).shape, None, one.reshape(shape))
        for one in (node.constant(1, "scale"), node.constant(2, "shift"))
    )
    centred = done(node, "subtract", value, reduced(node, value, axes, "mean"))
    result = done(node, "multiply", _by_deviation(node, centred, axes), scale)
    node.give(done(node, "add", result, shift))


def _global_pool(node: Node) -> None:
    value = node.input(0)
    kind = "mean" if node.proto.op_type == "GlobalAveragePool" else "maximum"
    node.give(reduced(node, value, list(range(2, len(value.shape))), kind))


def _log_sum_exp(node: Node) -> None:
    """Lower the logarithm of a sum of powers, less the largest exponent so that none is too large.

    Of an infinite exponent, the largest finite number is subtracted, so that it stays infinite.
    """
    value, axes = node.input(0), _axes(node)
    if axes is None:
        node.give(value)
        return
    kind = value.dtype
    limit = float(np.finfo(kind).max)
    clamp = [
        Step("value", (), kind, (-limit).hex()),
        Step("maximum", (0, 1), kind),
        Step("value", (), kind, limit.hex()),
        Step("minimum", (2, 3), kind),
    ]
    most = mapped(node, clamp, reduced(node, value, axes, "maximum"))
    powers = done(node, "exp", done(node, "subtract", value, most))
    whole = done(node, "log", reduced(node, powers, axes, "sum"))
    node.give(_kept(node, done(node, "add", whole, most), axes))


LOWERINGS: dict[str, Callable[[Node], None]] = {
    **dict.fromkeys(_KINDS, _reduce),
    "ReduceLogSumExp": _log_sum_exp,
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "LayerNormalization": _layer_normalization,
    "InstanceNormalization": _instance_normalization,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
}
"""Lowering of each operator by its name."""
