"""NaN in inputs of OpenVINO, whose kernels make ordinary numbers of it, such as 0 in a Relu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import BeyondRange

_ASKING = (b'type="IsNaN"', b'type="Equal"', b'type="NotEqual"')
"""What a graph that looks for NaN has in its file; `x == x` is true except for NaN."""
_HANDING_ON = """Add Broadcast Concat Convert Divide Gather Identity Multiply Negative Reshape Result Select Slice Split
    Squeeze StridedSlice Subtract Tile Transpose Unsqueeze VariadicSplit"""
_CARRYING = frozenset(_HANDING_ON.split())
"""Operations whose kernels make NaN of NaN."""
_TELLING = frozenset(["Equal", "IsFinite", "IsInf", "IsNaN", "NotEqual", "ShapeOf"])
"""Operations that answer NaN right, by a truth or by none. To `Greater`, NaN is more than some numbers."""
_INFINITY_16, _NEGATIVE_INFINITY_16 = 0x7C00, 0xFC00
"""Bits of float16's infinities."""


def inputs_with_nan(path: Path, read: Callable[[], Any]) -> frozenset[str]:
    """Return the names of inputs of a graph that may have NaN, since the graph looks for it itself.

    These are inputs whose NaN meets only operations that hand it on or answer it right, up to a Select by whether it is
    NaN, which replaces missing values.

    Args:
        path: The graph as IR.
        read: Function that reads it as a graph of OpenVINO.
    """
    content = path.read_bytes()
    if not any(one in content for one in _ASKING):
        return frozenset()
    found = set[str]()
    operations = read().get_ordered_ops()
    for one in operations:
        if one.get_type_name() == "Parameter" and _replaces(one, operations):
            found |= one.output(0).names
    return frozenset(found)


def _replaces(parameter: Any, operations: list[Any]) -> bool:
    """Whether the graph asks an input's numbers whether they are NaN, and nothing else reads NaN of it."""
    unknown, truths, asked = {_place(parameter.output(0))}, set[str](), False
    for one in operations:
        kind = one.get_type_name()
        sources = [_place(port.get_source_output()) for port in one.inputs()]
        if kind == "Select" and sources[0] in truths:
            continue
        if unknown.isdisjoint(sources):
            told = not truths.isdisjoint(sources)
            reach = truths if told and _is_truth(one) else None
        elif kind in _TELLING:
            asks = kind == "IsNaN" or (kind in ("Equal", "NotEqual") and len({*sources}) == 1)
            asked |= asks
            reach = truths if asks else None
        elif kind in _CARRYING:
            reach = unknown
        else:
            return False
        if reach is not None:
            reach.update(map(_place, one.outputs()))
    return asked


def _is_truth(operation: Any) -> bool:
    return all(port.get_element_type().get_type_name() == "boolean" for port in operation.outputs())


def _place(port: Any) -> str:
    """Return the place of an operation's result, by its own name: people may give several the same."""
    return f"{port.get_node().get_name()}:{port.get_index()}"


def check_nan(name: str, flat: Array) -> None:
    """Check that floats of an input, `(n,)`, have no NaN, since the answer might not show it.

    Raises:
        BeyondRange: one is NaN.
    """
    if flat.size and _has_nan(flat):
        raise BeyondRange(
            f"OpenVINO makes ordinary numbers of NaN, and the input {name!r} has one: replace it before the call, or "
            "use another engine"
        )


def _has_nan(flat: Array) -> bool:
    if flat.dtype != np.float16:
        return bool(np.isnan(np.maximum.reduce(flat)))
    # Their bits are compared ten times as fast: NaN's are above infinity's, and negative NaN's above -infinity's.
    return bool(
        flat.view(np.int16).max() > _INFINITY_16
        or flat.view(np.uint16).max() > _NEGATIVE_INFINITY_16
    )
