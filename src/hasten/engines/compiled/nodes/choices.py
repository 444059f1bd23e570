"""ONNX's operators that choose elements: tables, places, order, running sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Node, broadcast
from hasten.engines.compiled.operators.choices import Accumulate, Largest, Pick
from hasten.engines.compiled.operators.programs import Step, number
from hasten.engines.compiled.tensors import Access, contiguous
from hasten.engines.compiled.values import Value


def picked(node: Node, value: Value, places: Array, axis: int) -> Value:
    """Append a choice of constant places along an axis; return its result."""
    chosen: Array = np.ascontiguousarray(places, np.int64)
    made = gathered(node, value, Value("", "int64", chosen.shape, None, chosen), axis)
    return replace(made, batch=value.batch)


def gathered(node: Node, value: Value, places: Value, axis: int) -> Value:
    """Append a choice of elements along an axis, in whose place the places' axes stand."""
    if places.dtype not in ("int64", "int32"):
        node.refuse(f"its indices are {places.dtype}")
    lead, rank = axis, len(places.shape)
    shape = (*value.shape[:axis], *places.shape, *value.shape[axis + 1 :])
    batches = set()
    if places.batch is not None:
        batches.add(axis + places.batch)
    if value.batch is not None and value.batch != axis:
        batches.add(value.batch + (rank - 1 if value.batch > axis else 0))
    if len(batches) > 1 or value.batch == axis:
        node.mixes_rows()
    made = node.graph.new(value.dtype, shape, min(batches, default=None))
    strides = contiguous(value.shape)
    tail = len(value.shape) - axis - 1
    read = Access(node.graph.tensor(value), (*strides[:axis], *(0,) * rank, *strides[axis + 1 :]))
    at = Access(node.graph.tensor(places), (*(0,) * lead, *contiguous(places.shape), *(0,) * tail))
    node.graph.add(Pick(read, at, made.tensor, shape, value.shape[axis], strides[axis]))
    return made


def _gather_nd(node: Node) -> None:
    """Lower a choice along the first axis, or of known places along several, as indexing by arrays becomes."""
    value, places = node.inputs
    if node.attributes.get("batch_dims", 0):
        node.refuse("it chooses in each row of a batch")
    if places.shape[-1:] != (1,):
        if places.constant is None:
            node.refuse("it chooses along several axes, at places that aren't constant")
        node.give(_along_several(node, value, places.constant))
        return
    if places.batch is not None and places.batch == len(places.shape) - 1:
        node.mixes_rows()
    shape = places.shape[:-1]
    constant = None if places.constant is None else places.constant.reshape(shape)
    batch = places.batch if places.batch != len(shape) else None
    node.give(
        gathered(node, value, replace(places, shape=shape, constant=constant, batch=batch), 0)
    )


def _along_several(node: Node, value: Value, places: Array) -> Value:
    """Append a choice of known places along the first axes, which are read as one."""
    count = places.shape[-1]
    sizes, rest = np.array(value.shape[:count], np.int64), value.shape[count:]
    if not ((-sizes <= places) & (places < sizes)).all():
        node.refuse(f"its indices go beyond {sizes.tolist()}")
    at = places % sizes @ np.array(contiguous(value.shape[:count]), np.int64)
    batch = value.batch
    if batch is not None:
        if batch < count:
            node.mixes_rows()
        batch = None if batch < count else batch - count + 1
    shape = (int(sizes.prod()), *rest)
    constant = None if value.constant is None else value.constant.reshape(shape)
    whole = replace(value, shape=shape, constant=constant, batch=batch)
    chosen: Array = np.ascontiguousarray(at)
    return gathered(node, whole, Value("", "int64", chosen.shape, None, chosen), 0)


def _gather_elements(node: Node) -> None:
    value, places = node.inputs
    rank = len(value.shape)
    axis = node.axis(node.attributes.get("axis", 0), rank)
    if len(places.shape) != rank or places.dtype not in ("int64", "int32"):
        node.refuse(f"its indices are {places.dtype}, of shape {list(places.shape)}")
    if any(at != axis and places.shape[at] > value.shape[at] for at in range(rank)):
        node.refuse(f"its indices, of shape {list(places.shape)}, exceed {list(value.shape)}")
    size, known = value.shape[axis], places.constant
    if known is not None and not ((-size <= known) & (known < size)).all():
        node.refuse(f"its indices go beyond {size}")
    batch = value.batch if value.batch == places.batch else None
    if value.batch != places.batch or batch == axis:
        node.mixes_rows()  # a row's number says which row of the other it reads
    made = node.computed(value.dtype, places.shape, batch)
    strides = contiguous(value.shape)
    along = tuple(0 if at == axis else stride for at, stride in enumerate(strides))
    node.graph.add(
        Pick(
            Access(node.graph.tensor(value), along),
            Access(node.graph.tensor(places), contiguous(places.shape)),
            made.tensor,
            places.shape,
            size,
            strides[axis],
        )
    )


def _top_k(node: Node) -> None:
    value = node.input(0)
    rank = len(value.shape)
    axis = node.axis(node.attributes.get("axis", -1), rank)
    if "k" in node.attributes:
        count = int(node.attributes["k"])
    else:
        count = int(node.constant(1, "number").reshape(-1)[0])
    size = value.shape[axis]
    if not 1 <= count <= size:
        node.refuse(f"it takes the largest {count} of {size} values")
    if value.batch == axis:
        node.mixes_rows()
    # Lines lie along the last axis, so another one changes places with it before and after.
    swapped = list(range(rank))
    swapped[axis], swapped[-1] = swapped[-1], swapped[axis]
    given = value if axis == rank - 1 else moved(node, value, swapped)
    shape = (*given.shape[:-1], count)
    found = [node.graph.new(dtype, shape, given.batch) for dtype in (value.dtype, "int64")]
    lines = int(np.prod(given.shape[:-1], dtype=np.int64))
    smallest = not node.attributes.get("largest", 1)
    taken, (values, places) = node.graph.tensor(given), (one.tensor for one in found)
    node.graph.add(Largest(taken, values, places, lines, size, count, smallest))
    for place, one in enumerate(found):
        node.give(one if axis == rank - 1 else moved(node, one, swapped), place)


def moved(node: Node, value: Value, order: Sequence[int]) -> Value:
    """Append a copy of a value with its axes in another order; return it."""
    strides = contiguous(value.shape)
    batch = None if value.batch is None else order.index(value.batch)
    made = node.graph.new(value.dtype, tuple(value.shape[axis] for axis in order), batch)
    along = tuple(strides[axis] for axis in order)
    node.graph.map([Step("copy", (0,), value.dtype)], [(value, along, 0)], made)
    return made


def _cum_sum(node: Node) -> None:
    value = node.input(0)
    axis = node.axis(int(node.constant(1, "axis").reshape(-1)[0]), len(value.shape))
    if value.batch == axis:
        node.mixes_rows()
    made = node.computed(value.dtype, value.shape, value.batch)
    order = [*(at for at in range(len(value.shape)) if at != axis), axis]
    strides = [contiguous(value.shape)[at] for at in order]
    start = 0
    if node.attributes.get("reverse", 0):
        start = strides[-1] * (value.shape[axis] - 1)
        strides[-1] = -strides[-1]
    read, written = (
        Access(name, tuple(strides), start) for name in (node.graph.tensor(value), made.tensor)
    )
    shape = tuple(value.shape[at] for at in order)
    exclusive = bool(node.attributes.get("exclusive", 0))
    node.graph.add(Accumulate(read, written, shape, exclusive))


def _one_hot(node: Node) -> None:
    places = node.input(0)
    depth = int(node.constant(1, "depth").reshape(-1)[0])
    values = node.constant(2, "values")
    rank = len(places.shape) + 1
    axis = node.axis(node.attributes.get("axis", -1), rank)
    if depth < 1:
        node.refuse(f"its depth is {depth}")
    shape = (*places.shape[:axis], depth, *places.shape[axis:])
    batch = places.batch
    if batch is not None and batch >= axis:
        batch += 1
    kind = str(values.dtype)
    steps = [Step("cast", (0,), "int64")]
    steps += [Step("value", (), "int64", str(one)) for one in (0, depth)]
    steps += [Step("less", (2, 3), "bool"), Step("add", (2, 4), "int64")]
    steps += [Step("where", (5, 6, 2), "int64"), Step("equal", (7, 1), "bool")]
    steps += [Step("value", (), kind, number(one, kind)) for one in values.reshape(-1)]
    steps += [Step("where", (8, 10, 9), kind)]
    numbers: Array = np.arange(depth, dtype=np.int64)
    counted = Value("", "int64", numbers.shape, None, numbers)
    strides = contiguous(places.shape)
    along = (*strides[:axis], 0, *strides[axis:])
    each = tuple(1 if at == axis else 0 for at in range(rank))
    output = node.computed(kind, shape, batch)
    node.graph.map(steps, [(places, along, 0), (counted, each, 0)], output)


def _trilu(node: Node) -> None:
    value = node.input(0)
    diagonal = int(node.constant(1, "diagonal").reshape(-1)[0]) if node.has(1) else 0
    shape = value.shape[-2:]
    if value.batch is not None and value.batch >= len(value.shape) - 2:
        node.mixes_rows()
    ones: Array = np.ones(shape, np.bool_)
    upper = node.attributes.get("upper", 1)
    kept = np.triu(ones, diagonal) if upper else np.tril(ones, diagonal)
    mask = Value("", "bool", shape, None, np.ascontiguousarray(kept))
    kind = value.dtype
    output = node.computed(kind, value.shape, value.batch)
    steps = [Step("value", (), kind, number(0, kind)), Step("where", (1, 0, 2), kind)]
    reads = [(one, broadcast(one, value.shape), 0) for one in (value, mask)]
    node.graph.map(steps, reads, output)


LOWERINGS: dict[str, Callable[[Node], None]] = {
    "GatherElements": _gather_elements,
    "TopK": _top_k,
    "GatherND": _gather_nd,
    "CumSum": _cum_sum,
    "OneHot": _one_hot,
    "Trilu": _trilu,
}
"""Lowering of each operator by its name."""
