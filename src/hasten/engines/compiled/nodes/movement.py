"""ONNX's operators that move numbers: new shapes cost nothing, all else is a copy through strides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Node, broadcast
from hasten.engines.compiled.nodes.choices import gathered
from hasten.engines.compiled.operators.programs import Step, number
from hasten.engines.compiled.tensors import Access, contiguous, product
from hasten.engines.compiled.values import Value

_MOST_PARTS = 64
"""Largest number of copies that one node becomes."""
_OPEN_END = 2**31 - 1
"""End of a slice from which it means all that there is, as exporters write it."""


def _numbers(node: Node, place: int, attribute: str, what: str) -> list[int] | None:
    """Return whole numbers that newer operators take as an input, and older ones as an attribute."""
    if attribute in node.attributes:
        return [int(one) for one in np.atleast_1d(node.attributes[attribute])]
    if not node.has(place):
        return None
    return [int(one) for one in node.constant(place, what).reshape(-1)]


def _renamed(node: Node, shape: Sequence[int], settled: set[int]) -> None:
    """Give the input under another shape; find where the batch's axis has gone.

    Args:
        node: Node.
        shape: The shape.
        settled: Axes that keep their size however many rows there are.
    """
    value, sizes = node.input(0), tuple(shape)
    if value.constant is not None:
        constant = value.constant.reshape(sizes)
        node.give(replace(value, shape=sizes, constant=constant))
        return
    batch = None
    if value.batch is not None:
        before = product(value.shape[: value.batch])
        # The axis of one row stands where as many elements lie before it as did.
        places = [at for at, n in enumerate(sizes) if n == 1 and product(sizes[:at]) == before]
        places = [at for at in places if at not in settled]
        if len(places) > 1 and value.batch in places:
            places = [value.batch]
        if places:
            batch = places[0]
        else:
            node.mixes_rows()
    node.give(replace(value, shape=sizes, batch=batch))


def _reshape(node: Node) -> None:
    value = node.input(0)
    wanted = asked = _numbers(node, 1, "shape", "shape") or []
    if not node.attributes.get("allowzero", 0):
        if any(size == 0 and at >= len(value.shape) for at, size in enumerate(wanted)):
            node.refuse(f"shape {wanted}")
        wanted = [value.shape[at] if size == 0 else size for at, size in enumerate(wanted)]
    whole = product(value.shape)
    settled: set[int] = set()
    if wanted.count(-1) == 1:
        # With more rows the one that is left open grows, and no other.
        settled = {at for at, size in enumerate(asked) if size > 0}
        rest = product(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = whole // rest if rest else 0
    if product(wanted) != whole or any(size < 0 for size in wanted):
        node.refuse(f"{list(value.shape)} as {wanted}")
    _renamed(node, wanted, settled)


def _flatten(node: Node) -> None:
    shape = node.input(0).shape
    axis = node.attributes.get("axis", 1)
    axis = axis if axis == len(shape) else node.axis(axis, len(shape))
    settled = {0} if axis == 0 else set[int]()
    _renamed(node, [product(shape[:axis]), product(shape[axis:])], settled)


def _squeeze(node: Node) -> None:
    shape = node.input(0).shape
    axes = _numbers(node, 1, "axes", "axes")
    if axes is None:
        gone = {at for at, size in enumerate(shape) if size == 1}
        if node.input(0).batch is not None:
            node.mixes_rows()
    else:
        gone = {node.axis(axis, len(shape)) for axis in axes}
    if any(shape[axis] != 1 for axis in gone):
        node.refuse(f"axes {sorted(gone)} of {list(shape)}")
    value = node.input(0)
    if value.batch in gone:
        node.mixes_rows()
    kept = [axis for axis in range(len(shape)) if axis not in gone]
    _placed(node, [shape[axis] for axis in kept], dict(zip(kept, range(len(kept)), strict=True)))


def _unsqueeze(node: Node) -> None:
    value = node.input(0)
    axes = _numbers(node, 1, "axes", "axes") or []
    rank = len(value.shape) + len(axes)
    new = {node.axis(axis, rank) for axis in axes}
    old = [axis for axis in range(rank) if axis not in new]
    shape = [1] * rank
    for at, axis in enumerate(old):
        shape[axis] = value.shape[at]
    _placed(node, shape, dict(enumerate(old)))


def _placed(node: Node, shape: Sequence[int], places: dict[int, int]) -> None:
    """Give the input under a shape whose axes are known by where they stood."""
    value, sizes = node.input(0), tuple(shape)
    batch = None if value.batch is None else places.get(value.batch)
    constant = None if value.constant is None else value.constant.reshape(sizes)
    node.give(replace(value, shape=sizes, batch=batch, constant=constant))


def _copied(
    node: Node,
    value: Value,
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int,
    batch: int | None,
) -> Value:
    """Append a copy of elements through strides; return it."""
    made = node.graph.new(value.dtype, tuple(shape), batch)
    node.graph.map([Step("copy", (0,), value.dtype)], [(value, tuple(strides), offset)], made)
    return made


def _transpose(node: Node) -> None:
    value = node.input(0)
    rank = len(value.shape)
    order = [int(one) for one in node.attributes.get("perm", range(rank - 1, -1, -1))]
    if sorted(order) != list(range(rank)):
        node.refuse(f"its perm is {order}")
    shape = [value.shape[axis] for axis in order]
    batch = None if value.batch is None else order.index(value.batch)
    wide = [axis for axis in order if value.shape[axis] != 1]
    if wide == sorted(wide):  # only axes of one element move
        node.give(replace(value, shape=tuple(shape), batch=batch))
        return
    strides = contiguous(value.shape)
    node.give(_copied(node, value, shape, [strides[axis] for axis in order], 0, batch))


def _expand(node: Node) -> None:
    value = node.input(0)
    wanted = [int(one) for one in node.constant(1, "shape").reshape(-1)]
    shape = np.broadcast_shapes(value.shape, tuple(wanted))
    batch = None if value.batch is None else value.batch + len(shape) - len(value.shape)
    if shape == value.shape:
        node.give(value)
        return
    if batch is not None and shape[batch] != 1:
        node.mixes_rows()
    if node.input(1).counts_rows and batch is None:
        node.mixes_rows()
    node.give(_copied(node, value, shape, broadcast(value, shape), 0, batch))


def _tile(node: Node) -> None:
    value = node.input(0)
    repeats = [int(one) for one in node.constant(1, "repeats").reshape(-1)]
    if value.batch is not None and repeats[value.batch] != 1:
        node.mixes_rows()
    strides, shape, steps = contiguous(value.shape), [], []
    for size, stride, times in zip(value.shape, strides, repeats, strict=True):
        shape += [times, size]
        steps += [0, stride]
    made = _copied(node, value, shape, steps, 0, None)
    sizes = tuple(a * b for a, b in zip(value.shape, repeats, strict=True))
    node.give(replace(made, shape=sizes, batch=value.batch))


def _slice(node: Node) -> None:
    value = node.input(0)
    rank = len(value.shape)
    starts = _numbers(node, 1, "starts", "starts") or []
    ends = _numbers(node, 2, "ends", "ends") or []
    axes = _numbers(node, 3, "axes", "axes") or list(range(len(starts)))
    steps = _numbers(node, 4, "steps", "steps") or [1] * len(starts)
    shape, strides, offset = list(value.shape), list(contiguous(value.shape)), 0
    for start, end, given, step in zip(starts, ends, axes, steps, strict=True):
        axis = node.axis(given, rank)
        if step == 0:
            node.refuse("its step is 0")
        picked = range(value.shape[axis])[slice(start, end if end >= -(2**31) + 1 else None, step)]
        if axis == value.batch and len(picked) != 1:
            node.mixes_rows()
        if axis == value.batch and ((start, step) != (0, 1) or end < _OPEN_END):
            node.mixes_rows()
        if not len(picked):
            node.refuse("its result is empty")
        offset += picked.start * strides[axis]
        shape[axis], strides[axis] = len(picked), strides[axis] * step
    node.give(_copied(node, value, shape, strides, offset, value.batch))


def _split(node: Node) -> None:
    value = node.input(0)
    axis = node.axis(node.attributes.get("axis", 0), len(value.shape))
    sizes = _numbers(node, 1, "split", "sizes")
    count = len(node.proto.output)
    if sizes is None:
        each = -(-value.shape[axis] // count)
        sizes = [min(each, value.shape[axis] - at * each) for at in range(count)]
    if sum(sizes) != value.shape[axis] or min(sizes) < 1 or len(sizes) != count:
        node.refuse(f"it splits {value.shape[axis]} into {sizes}")
    if axis == value.batch:
        node.mixes_rows()
    strides, start = contiguous(value.shape), 0
    for place, size in enumerate(sizes):
        shape = [size if at == axis else n for at, n in enumerate(value.shape)]
        if node.wants(place):
            copied = _copied(node, value, shape, strides, start * strides[axis], value.batch)
            node.give(copied, place)
        start += size


def _concat(node: Node) -> None:
    values = node.inputs
    axis = node.axis(node.attributes["axis"], len(values[0].shape))
    node.give(concatenated(node, values, axis))


def concatenated(node: Node, values: Sequence[Value], axis: int) -> Value:
    """Append copies of values of one type behind each other along an axis; return the result."""
    batches = {value.batch for value in values if value.batch is not None}
    fixed = any(value.constant is not None for value in values)
    if len(batches) > 1 or axis in batches or any(value.counts_rows for value in values):
        node.mixes_rows()
    batch = min(batches, default=None)
    if fixed and batch is not None and any(v.shape[batch] != 1 for v in values):
        node.mixes_rows()
    shape = list(values[0].shape)
    shape[axis] = sum(value.shape[axis] for value in values)
    output = node.graph.new(values[0].dtype, tuple(shape), batch)
    strides, start = contiguous(output.shape), 0
    for value in values:
        node.graph.map(
            [Step("copy", (0,), value.dtype)],
            [(value, contiguous(value.shape), 0)],
            output,
            into=Access(output.tensor, strides, start * strides[axis]),
            shape=value.shape,
        )
        start += value.shape[axis]
    return output


def _pad(node: Node) -> None:
    value = node.input(0)
    rank = len(value.shape)
    given = _numbers(node, 1, "pads", "pads") or []
    axes = [node.axis(a, rank) for a in _numbers(node, 3, "axes", "axes") or range(rank)]
    before, after = [0] * rank, [0] * rank
    for at, axis in enumerate(axes):
        before[axis], after[axis] = given[at], given[at + len(axes)]
    if min(*before, *after, 0) < 0:
        node.refuse("its pads are negative")
    if value.batch is not None and (before[value.batch] or after[value.batch]):
        node.mixes_rows()
    mode = node.attributes.get("mode", "constant")
    if mode != "constant":
        node.give(_repeated(node, value, before, after, mode))
        return
    fill = node.attributes.get("value", 0.0)
    if node.has(2):
        fill = node.constant(2, "value").item()
    node.give(padded(node, value, before, after, fill))


def _repeated(
    node: Node, value: Value, before: Sequence[int], after: Sequence[int], mode: str
) -> Value:
    """Append copies of a value's own elements around it, axis by axis; return the result."""
    if mode not in ("reflect", "edge", "wrap"):
        node.refuse(f"its mode is {mode!r}")
    for axis, (start, end) in enumerate(zip(before, after, strict=True)):
        if not start and not end:
            continue
        size = value.shape[axis]
        if mode == "reflect" and max(start, end) >= size:
            node.refuse(f"it pads {size} by a reflection of {max(start, end)}")
        picked = np.pad(np.arange(size), (start, end), mode)  # type: ignore[call-overload]
        value = replace(taken(node, value, picked, axis), batch=value.batch)
    return value


def padded(
    node: Node, value: Value, before: Sequence[int], after: Sequence[int], fill: float
) -> Value:
    """Append a copy with one number around it; return it.

    Args:
        node: Node that asks.
        value: Value that is copied.
        before: Elements at the start of each axis.
        after: Elements at the end of each axis.
        fill: The number.
    """
    shape = tuple(b + n + a for b, n, a in zip(before, value.shape, after, strict=True))
    output = node.graph.new(value.dtype, shape, value.batch)
    node.graph.map([Step("value", (), value.dtype, number(fill, value.dtype))], [], output)
    strides = contiguous(shape)
    start = sum(b * stride for b, stride in zip(before, strides, strict=True))
    node.graph.map(
        [Step("copy", (0,), value.dtype)],
        [(value, contiguous(value.shape), 0)],
        output,
        into=Access(output.tensor, strides, start),
        shape=value.shape,
    )
    return output


def _gather(node: Node) -> None:
    """Lower a choice of places: where they are constant, neighbours at equal distances are one copy."""
    value = node.input(0)
    axis = node.axis(node.attributes.get("axis", 0), len(value.shape))
    places = node.input(1).constant
    if places is None:
        node.give(gathered(node, value, node.input(1), axis))
        return
    size = value.shape[axis]
    if places.size and not (-size <= places.min() and places.max() < size):
        node.refuse(f"its indices go beyond {size}")
    if axis == value.batch:
        node.mixes_rows()
    output = taken(node, value, places.reshape(-1) % size, axis)
    sizes = (*value.shape[:axis], *places.shape, *value.shape[axis + 1 :])
    batch = value.batch
    if batch is not None and batch > axis:
        batch += len(places.shape) - 1
    node.give(replace(output, shape=sizes, batch=None if value.batch == axis else batch))


def taken(node: Node, value: Value, places: Array, axis: int) -> Value:
    """Append a choice of known places along an axis; return it, without an axis of the batch."""
    picked = [int(one) for one in places]
    shape = (*value.shape[:axis], len(picked), *value.shape[axis + 1 :])
    runs = _runs(picked)
    if len(runs) > _MOST_PARTS:
        chosen: Array = np.array(picked, np.int64)
        return gathered(node, value, Value("", "int64", chosen.shape, None, chosen), axis)
    output = node.graph.new(value.dtype, shape, None)
    strides, into = contiguous(value.shape), contiguous(shape)
    for start, first, count, step in runs:
        loops = tuple(count if at == axis else n for at, n in enumerate(value.shape))
        along = tuple(s * step if at == axis else s for at, s in enumerate(strides))
        node.graph.map(
            [Step("copy", (0,), value.dtype)],
            [(value, along, first * strides[axis])],
            output,
            into=Access(output.tensor, into, start * into[axis]),
            shape=loops,
        )
    return output


def _runs(picked: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Return runs of places at equal distances: where each begins, its first place, count and step."""
    runs: list[tuple[int, int, int, int]] = []
    at = 0
    while at < len(picked):
        count = 1
        step = picked[at + 1] - picked[at] if at + 1 < len(picked) else 1
        while at + count < len(picked) and picked[at + count] - picked[at + count - 1] == step:
            count += 1
        runs.append((at, picked[at], count, step))
        at += count
    return runs


def _shape(node: Node) -> None:
    value = node.peek(0)
    rank = len(value.shape)
    axes = range(rank)[node.attributes.get("start", 0) : node.attributes.get("end", rank)]
    sizes: Array = np.array([value.shape[axis] for axis in axes], np.int64)
    counts = value.batch in axes
    node.give(Value("", "int64", sizes.shape, None, sizes, counts))


def _size(node: Node) -> None:
    value = node.peek(0)
    count: Array = np.array(product(value.shape), np.int64)
    node.give(Value("", "int64", (), None, count, value.batch is not None))


def _constant_of_shape(node: Node) -> None:
    shape = tuple(int(one) for one in node.constant(0, "shape").reshape(-1))
    fill = node.attributes.get("value")
    filled = np.full(
        shape,
        0.0 if fill is None else fill.reshape(-1)[0],
        "float32" if fill is None else fill.dtype,
    )
    node.give(Value("", str(filled.dtype), shape, None, filled))


LOWERINGS: dict[str, Callable[[Node], None]] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Pad": _pad,
    "Gather": _gather,
    "Shape": _shape,
    "Size": _size,
    "ConstantOfShape": _constant_of_shape,
}
"""Lowering of each operator by its name."""
