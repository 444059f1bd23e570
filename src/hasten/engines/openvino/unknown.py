"""NaN in inputs of OpenVINO, whose kernels make ordinary numbers of it, such as 0 in a Relu."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import BeyondRange

_ASKING = (b'type="IsNaN"', b'type="Equal"', b'type="NotEqual"')
"""Text in the file of each graph that looks for NaN; `x == x` is true except for NaN."""
_HANDING_ON = """Add Broadcast Concat Convert Divide Gather Identity Multiply Negative Reshape Result Select Slice Split
    Squeeze StridedSlice Subtract Tile Transpose Unsqueeze VariadicSplit"""
_ELEMENTWISE = frozenset(
    ["Add", "Convert", "Divide", "Identity", "Multiply", "Negative", "Subtract"]
)
"""Operations of which each number is made of those at the same place, so NaN stays there."""
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


class _Asked(NamedTuple):
    """Truths that tell where a tensor has NaN.

    Attributes:
        origin: Place of the tensor, or of the one that it was calculated from element by element.
        is_nan: Truth for NaN.
    """

    origin: str
    is_nan: bool


def _replaces(parameter: Any, operations: list[Any]) -> bool:
    """Whether the graph asks an input's numbers whether they are NaN, and nothing else reads NaN of it."""
    start = _place(parameter.output(0))
    unknown, asked = {start: start}, dict[str, _Asked]()
    for one in operations:
        kind = one.get_type_name()
        sources = [_place(port.get_source_output()) for port in one.inputs()]
        made = [_place(port) for port in one.outputs()]
        origins = {unknown[source] for source in sources if source in unknown}
        if kind == "LogicalNot" and sources[0] in asked:
            origin, is_nan = asked[sources[0]]
            asked[made[0]] = _Asked(origin, not is_nan)
        elif not origins or (kind == "Select" and _stops(sources, unknown, asked)):
            continue
        elif kind in _TELLING:
            if kind == "IsNaN" or (kind in ("Equal", "NotEqual") and len({*sources}) == 1):
                asked[made[0]] = _Asked(origins.pop(), kind != "Equal")
        elif kind not in _CARRYING or _is_whole(one):
            return False
        elif kind in _ELEMENTWISE and len(origins) == 1:
            unknown[made[0]] = origins.pop()
        else:
            unknown.update({place: place for place in made})
    return bool(asked)


def _stops(sources: Sequence[str], unknown: Mapping[str, str], asked: Mapping[str, _Asked]) -> bool:
    """Whether a Select takes no NaN: it takes another tensor wherever the one that may have NaN has it.

    Args:
        sources: Places of its truths, of what it takes where they are true, and where they are false.
        unknown: Places of tensors that may have NaN, with their origins.
        asked: Places of truths that tell where.
    """
    truths = asked.get(sources[0])
    if truths is None:
        return False
    instead, kept = sources[1:] if truths.is_nan else sources[:0:-1]
    return instead not in unknown and unknown.get(kept, truths.origin) == truths.origin


def _is_whole(operation: Any) -> bool:
    """Whether an operation makes whole numbers, which have no NaN."""
    return any(not port.get_element_type().is_real() for port in operation.outputs())


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
