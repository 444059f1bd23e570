"""Choice between bytes and floats for each node of an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.graph import Node
from hasten.engines.compiled.nodes.int8 import (
    channels,
    curves,
    lower16,
    residuals,
    sums,
    transposed,
    views,
)
from hasten.engines.compiled.nodes.int8.lower16 import byte_type
from hasten.engines.compiled.nodes.int8.pending import PendingNode
from hasten.engines.compiled.operators.int8.elementwise import Quantize
from hasten.engines.compiled.operators.int8.numbers import Rounding
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.tensors import contiguous, product
from hasten.engines.compiled.values import Bytes, Draft, Levels, Pending, Value, byte_codes, ordered
from hasten.errors import IntegrityError

_MOVES = frozenset(
    [
        "DepthToSpace",
        "Dropout",
        "Flatten",
        "Identity",
        "Reshape",
        "Resize",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
        "Upsample",
    ]
)
"""Operators whose results are elements of their first input."""
_SHAPES = frozenset(["Flatten", "Reshape", "Squeeze", "Unsqueeze"])
"""Operators that give their first input another shape."""
_OF_CODES = frozenset({*_MOVES, "Concat", "GlobalMaxPool", "MaxPool", "Pad"})
"""Operators that mean the same for bytes as for the numbers that they stand for."""
_TAKEN: Mapping[str, Callable[[Node], bool]] = {
    "Conv": sums.conv,
    "ConvTranspose": transposed.transposed,
    "Gemm": sums.gemm,
    "MatMul": sums.matmul,
    "Add": sums.both(1),
    "Sub": sums.both(-1),
    "Mul": sums.both(0),
    "GlobalAveragePool": sums.global_average,
    "ReduceMean": sums.mean(sums.global_average),
    "AveragePool": sums.pool,
    "MaxPool": sums.pool,
    "GlobalMaxPool": sums.global_largest,
    "Concat": sums.concat,
}


def taken(node: Node, lowering: Callable[[Node], None] | None) -> bool:
    """Lower a node over bytes, if that is possible; return whether it was.

    Args:
        node: The node.
        lowering: Its lowering over any numbers; None where there is none.
    """
    kind = node.proto.op_type
    if kind == "QuantizeLinear":
        return _quantize(node) or lower16.quantize(node)
    if kind == "DequantizeLinear":
        return _dequantize(node) or lower16.dequantize(node)
    given = [node.graph.values[name] for name in node.proto.input if name]
    if not any(value.narrow for value in given):
        return False
    if any(value.bytes is not None and value.dtype != "float32" for value in given):
        return kind in _OF_CODES and _as_codes(node, lowering)
    if kind == "Pad":
        return lowering is not None and _pad(node, lowering)
    if kind in ("Relu", "Clip") and _cut(node):
        return True
    if kind in curves.ONE_BY_ONE and _one_by_one(node):
        return True
    if kind in sums.BY_CHANNEL and sums.by_channel(node):
        return True
    if lower16.taken(node):
        return True
    if kind in _MOVES and lowering is not None and _move(node, lowering):
        return True
    found = _TAKEN.get(kind)
    return (found is not None and found(node)) or (kind == "Add" and residuals.add(node))


def known(node: Node) -> bool:
    """Give the numbers of a constant that was stored as integers, and remember the integers.

    Returns:
        Whether the node is a DequantizeLinear of such a constant.
    """
    numbers, scale = node.peek(0).constant, node.peek(1).constant
    zero = node.peek(2).constant if node.has(2) else None
    if numbers is None or scale is None or numbers.dtype.kind not in "iu":
        return False
    if scale.dtype != np.float32 or node.attributes.get("block_size", 0) or not numbers.size:
        return False
    if node.has(2) and zero is None:
        return False
    axis = int(node.attributes.get("axis", 1)) % max(1, numbers.ndim)
    along = [1] * numbers.ndim
    if scale.size > 1:
        along[axis] = scale.size
    whole = numbers.astype(np.int64)
    if zero is not None:
        whole = whole - zero.astype(np.int64).reshape(along if zero.size > 1 else ())
    factor = scale.reshape(along if scale.size > 1 else ())
    array = np.asarray(whole.astype(np.float32) * factor, np.float32)
    levels = None
    if whole.min() >= -128 and whole.max() <= 127:
        kept = whole.astype(np.int8)
        levels = Levels(kept, scale.reshape(-1), axis if scale.size > 1 else None)
    array.flags.writeable = False
    node.give(Value("", "float32", array.shape, None, array, levels=levels))
    return True


def turned(node: Node) -> None:
    """Remember the integers of a constant whose axes were put in another order."""
    first, made = node.peek(0), node.graph.values[node.proto.output[0]]
    if first.levels is None:
        return
    rank = len(first.shape)
    order = [int(one) for one in node.attributes.get("perm", range(rank)[::-1])]
    axis = None if first.levels.axis is None else order.index(first.levels.axis)
    numbers = np.ascontiguousarray(first.levels.numbers.transpose(order))
    node.give(replace(made, levels=replace(first.levels, numbers=numbers, axis=axis)))


def _scale(node: Node) -> tuple[float, int, bool] | None:
    """Return the scale, the byte of zero and whether bytes are signed, of a node that quantizes."""
    scale = node.peek(1).constant
    zero = node.peek(2).constant if node.has(2) else np.zeros((), byte_type(node))
    if scale is None or zero is None or scale.size != 1 or scale.dtype != np.float32:
        return None
    if zero.dtype not in (np.int8, np.uint8) or not (np.isfinite(scale).all() and scale.min() > 0):
        return None
    signed = zero.dtype == np.int8
    return float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]) + 128 * signed, signed


def _quantize(node: Node) -> bool:
    """Round a value to bytes; give a value of bytes, which a DequantizeLinear makes numbers of."""
    value = node.peek(0)
    if value.dtype != "float32" or value.constant is not None:
        return False
    if value.batch != 0 or product(value.shape) < 1:
        return False
    if value.bytes is not None and value.bytes.scales is not None:
        value = node.input(0)
    form = _scale(node)
    if form is not None:
        scale, zero, signed = form
        key = (node.proto.input[0], zero, scale)
        made = node.graph.known.get(key) or _bytes(node, value, zero, scale)
        node.graph.known[key] = made
    else:
        hidden = node.proto.output[0] in node.graph.between and len(value.shape) in (3, 4)
        by_channel = channels.forms(node, value.shape[1]) if hidden else None
        if by_channel is None:
            return False
        scales, zeros, signed = by_channel
        found = channels.rounded(value, scales, zeros)
        made = found or _bytes(node, value, *channels.joint(scales, zeros))
        made = replace(made, chosen=True)
    dtype = "int8" if signed else "uint8"
    node.give(Value("", dtype, value.shape, value.batch, bytes=made))
    return True


def _bytes(node: Node, value: Value, zero: int, scale: float) -> Bytes:
    """Append operations that round a value to bytes of one scale."""
    graph = node.graph
    if value.pending is not None:
        known = graph.rounded.get(id(value.pending))
        if known is not None and (known[1].zero, known[1].scale) == (zero, scale):
            return known[1]
        with suppress(IntegrityError):  # it is beyond what a sum's rounding takes
            made = value.pending.rounded(zero, scale)
            if value.pending.uncut is None:
                graph.rounded.setdefault(id(value.pending), (value.pending, made))
            return made
    elif value.bytes is not None and value.bytes.scales is None:
        return value.bytes.rounded(graph, value.shape, zero, scale)
    elif (of_words := lower16.to_bytes(node, zero, scale)) is not None:
        return of_words
    value = node.input(0)
    last = len(value.shape) in (3, 4) and value.shape[0] == 1
    rows = value.shape[1] if last else 1
    tensor = graph.new("uint8", value.shape, None).tensor
    pixels = product(value.shape) // rows
    read = graph.tensor(value)
    graph.add(Quantize(read, tensor, rows, pixels, scale, Rounding(zero)))
    return Bytes.stored(tensor, last, zero, scale)


def _dequantize(node: Node) -> bool:
    """Give the numbers that bytes stand for."""
    value, form = node.peek(0), _scale(node)
    if value.bytes is not None and value.bytes.chosen:
        bytes_ = replace(value.bytes, chosen=False)
        node.give(Value("", "float32", value.shape, value.batch, bytes=bytes_))
        return True
    if form is None or value.dtype not in ("int8", "uint8") or value.batch != 0:
        return False
    scale, zero, signed = form
    if signed != (value.dtype == "int8"):
        return False
    if value.bytes is not None:
        made = value.bytes.read_as(zero, scale)
    elif value.constant is None:
        tensor = _shifted(node.graph, value) if signed else value.tensor
        made = Bytes.stored(tensor, False, zero, scale)
    else:
        return False
    node.give(Value("", "float32", value.shape, value.batch, bytes=made))
    return True


def _shifted(graph: Draft, value: Value) -> str:
    """Append the bytes of a tensor of int8, each 128 higher; return their tensor."""
    made = graph.new("uint8", value.shape, None)
    steps = [
        Step("cast", (0,), "int32"),
        Step("value", (), "int32", "128"),
        Step("add", (1, 2), "int32"),
        Step("cast", (3,), "uint8"),
    ]
    graph.map(steps, [(value, contiguous(value.shape), 0)], made)
    return made.tensor


def _cut(node: Node) -> bool:
    """Take bounds of sums that aren't rounded yet."""
    value = node.peek(0)
    if not isinstance(value.pending, PendingNode):
        return False
    bounds = [0.0, np.inf]
    if node.proto.op_type == "Clip":
        bounds = [-np.inf, np.inf]
        for at, name in enumerate(("min", "max")):
            if node.has(at + 1):
                found = node.peek(at + 1).constant
                if found is None:
                    return False
                bounds[at] = float(found.reshape(-1)[0])
            elif name in node.attributes:
                bounds[at] = float(node.attributes[name])
    low, high = (
        max(min(one, bounds[1]), bounds[0]) for one in (value.pending.low, value.pending.high)
    )
    if np.isnan([low, high]).any() or bounds[0] > bounds[1]:
        return False
    uncut = value.pending.uncut or value.pending
    cut = replace(value.pending, node=node, low=low, high=high, uncut=uncut)
    node.give(replace(value, pending=cut))
    return True


def _one_by_one(node: Node) -> bool:
    """Take an operator over values that depend on the same byte: its results are a table."""
    given = [node.graph.values[name] for name in node.proto.input if name]
    moving = [value for value in given if value.constant is None]
    roots = {value.bytes.root if value.bytes else "" for value in moving}
    shapes = {(value.shape, value.bytes.last) for value in moving if value.bytes}
    if "" in roots:
        return curves.taken(node)
    if len(roots) != 1 or len(shapes) != 1 or moving[0].dtype != "float32":
        return False
    if any(value.bytes is not None and value.bytes.scales is not None for value in moving):
        return False
    if any(value.constant is not None and value.constant.size != 1 for value in given):
        return False
    if any(
        value.constant is not None and value.constant.ndim > len(moving[0].shape) for value in given
    ):
        return False
    first = moving[0].bytes
    assert first is not None
    with np.errstate(all="ignore"):
        table = _evaluated(node)
    if table is None:
        return False
    made = Bytes(first.root, first.last, table)
    node.give(Value("", "float32", moving[0].shape, moving[0].batch, bytes=made))
    return True


def _evaluated(node: Node) -> Array | None:
    """Return a node's results for each of the 256 bytes, as the standard's evaluator computes them."""
    named: dict[str, Array] = {}
    for name in filter(None, node.proto.input):
        value = node.graph.values[name]
        table = value.bytes.table if value.bytes is not None else None
        numbers = value.constant if value.constant is not None else table
        assert numbers is not None
        named[name] = numbers.reshape(-1) if value.constant is None else numbers.reshape(())
    found = node.evaluated(named)
    if found is None or found[0].shape != (256,):
        return None
    table = np.asarray(found[0], np.float32)
    return table if np.isfinite(table).all() else None


def _as_codes(node: Node, lowering: Callable[[Node], None] | None) -> bool:
    """Take an operator that moves bytes, whatever they stand for: as one over numbers in steps of 1."""
    graph = node.graph
    kept = {name: graph.values[name] for name in node.proto.input if name}
    kept = {name: value for name, value in kept.items() if value.bytes is not None}
    dtypes = {value.dtype for value in kept.values()}
    if len(dtypes) > 1:
        return False
    (dtype,) = dtypes
    try:
        for name, value in kept.items():
            assert value.bytes is not None
            codes = value.bytes.read_as(128 if dtype == "int8" else 0, 1.0)
            graph.values[name] = replace(value, dtype="float32", tensor="", bytes=codes)
        if not taken(node, lowering):
            return False
    finally:
        graph.values.update(kept)
    for name in filter(None, node.proto.output):
        graph.values[name] = replace(graph.values[name], dtype=dtype)
    return True


def _pad(node: Node, lowering: Callable[[Node], None]) -> bool:
    """Take bytes with one number around them, or their own ones."""
    value = sums.stored(node.peek(0))
    fill = node.attributes.get("value", 0.0)
    if node.has(2):
        known = node.peek(2).constant
        fill = None if known is None else known.item()
    if value is None or fill is None:
        return False
    code = int(byte_codes(np.array([fill]), value.zero, value.scale)[0])
    if (
        value.table[code] != np.float32(fill)
        and node.attributes.get("mode", "constant") == "constant"
    ):
        return False
    proto = type(node.proto)()
    proto.CopyFrom(node.proto)
    if node.has(2):
        proto.input[2] = ""
    return _move(
        replace(node, proto=proto, attributes={**node.attributes, "value": code}), lowering
    )


def _move(node: Node, lowering: Callable[[Node], None]) -> bool:
    """Take an operator that moves elements, as one over bytes."""
    graph, given = node.graph, node.peek(0)
    if given.pending is not None and node.proto.op_type in _SHAPES:
        return _reshaped(node, given, given.pending, lowering)
    value = sums.operand(given)
    others = [graph.values[name] for name in node.proto.input[1:] if name]
    if value is None or any(other.narrow for other in others):
        return False
    if node.attributes.get("mode", "nearest") != "nearest" and node.proto.op_type in (
        "Resize",
        "Upsample",
    ):
        return False
    name, shape = node.proto.input[0], given.shape
    viewed = views.last(node, shape) if value.last else None
    plain = ordered(graph, value.tensor, value.last, shape, viewed is not None)
    if viewed is not None:
        shape = (shape[0], *shape[2:], shape[1])
    graph.values[name] = Value(plain, graph.tensors[plain].dtype, shape, given.batch)
    try:
        lowering(viewed or node)
    finally:
        graph.values[name] = given
    for one in node.proto.output:
        made = graph.values.get(one) if one else None
        if made is not None:
            shape = made.shape
            if viewed is not None:
                shape = (shape[0], shape[-1], *shape[1:-1])
            kept = value.moved(made.tensor, viewed is not None)
            graph.values[one] = kept.given(shape, made.batch)
    return True


def _reshaped(node: Node, given: Value, pending: Pending, lowering: Callable[[Node], None]) -> bool:
    """Give sums of one pixel, whose order is the same with the channels first or last, another shape."""
    graph, name = node.graph, node.proto.input[0]
    if given.batch != 0 or product(given.shape[2:]) > 1:
        return False
    graph.values[name] = replace(given, pending=None)
    try:
        lowering(node)
    finally:
        graph.values[name] = given
    made = graph.values[node.proto.output[0]]
    if product(made.shape[2:]) > 1 or made.batch != 0:
        return False
    node.give(replace(made, pending=replace(pending, shape=made.shape)))
    return True
