"""Places at which graphs of OpenVINO look numbers up, and whether they can be beyond the tensor: the plugin reads zeros there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from hasten.core.tensors import Array

_SAME = frozenset({"Convert", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operations that hand all places on as they are."""
_PARTS = frozenset({"Gather", "Slice", "Split", "StridedSlice", "VariadicSplit"})
"""Operations that hand some places on as they are."""
_CHOOSING = frozenset({"Broadcast", "GatherElements", "Tile"})
"""Operations whose numbers are all of the first input, at places that a request may say."""
_SUMS = frozenset({"Add", "Subtract"})


class _Origin(NamedTuple):
    """Result that places come from.

    Attributes:
        port: The result.
        added: Whether constants were added to it.
        known: Whether which of its numbers are looked up follows from constants.
    """

    port: Any
    added: bool
    known: bool


def uncertain(operations: Sequence[Any]) -> Iterator[Any]:
    """Yield each Gather that may look beyond its tensor for some requests.

    Where an input's own numbers, or these and a constant, are rows of a constant table, the bundle checks them.

    Args:
        operations: Operations of a graph, in order.
    """
    fixed = _fixed(operations)
    for operation in operations:
        if operation.get_type_name() != "Gather":
            continue
        origin = _origin(operation.input_value(1))
        kind = origin.port.get_node().get_type_name()
        table = operation.input_value(0).get_node().get_name() in fixed
        checked = kind == "Parameter" and origin.known and table
        if not checked and (origin.added or not within(operation, origin.port)):
            yield operation


def within(gather: Any, port: Any) -> bool:
    """Whether all numbers of a result are places in a Gather's tensor, as of constants or the places of the largest.

    Args:
        gather: The Gather.
        port: The result that its places come from.
    """
    node, rows = port.get_node(), rows_of(gather)
    if (numbers := constant(port)) is not None:
        most = 1 if rows is None else rows  # an empty tensor is another matter
        return bool(((numbers >= -most) & (numbers < most)).all())
    if node.get_type_name() == "TopK" and port.get_index() == 1:
        data, along = node.input_value(0), node.get_attributes()["axis"]
        axis, rank = constant(gather.input_value(2)), data.get_partial_shape().rank
        if rank.is_dynamic:
            return False
        own = gather.input_value(0)
        same = (own.get_node().get_name(), own.get_index()) == (
            data.get_node().get_name(),
            data.get_index(),
        )
        if same and axis is not None and (int(axis.item()) - along) % rank.get_length() == 0:
            return True
        size = data.get_partial_shape()[along]
        return rows is not None and size.is_static and size.get_length() <= rows
    return False


def rows_of(gather: Any) -> int | None:
    """Return the size of a Gather's tensor along its axis; None where it is open."""
    axis, shape = constant(gather.input_value(2)), gather.input_value(0).get_partial_shape()
    if axis is None or shape.rank.is_dynamic or shape[int(axis.item())].is_dynamic:
        return None
    return int(shape[int(axis.item())].get_length())


def origin_of(port: Any) -> Any:
    """Return the result that places come from, if nothing is added to them; else the sum."""
    return _origin(port, adds=False).port


def constant(port: Any) -> Array | None:
    """Return the numbers of a constant; None for another result."""
    node = port.get_node()
    return np.asarray(node.get_data()) if node.get_type_name() == "Constant" else None


def _origin(port: Any, *, adds: bool = True) -> _Origin:
    added, known = False, True
    while True:
        node = port.get_node()
        kind, places = node.get_type_name(), range(len(node.inputs()))
        if kind in _SUMS and adds:
            variable = [place for place in places if constant(node.input_value(place)) is None]
            if len(variable) != 1 or (kind == "Subtract" and variable != [0]):
                break
            added, port = True, node.input_value(variable[0])
            continue
        if kind not in _SAME | _PARTS | _CHOOSING:
            break
        others = map(node.input_value, places[1:])
        known = known and (
            kind in _SAME or (kind in _PARTS and all(constant(one) is not None for one in others))
        )
        port = node.input_value(0)
    return _Origin(port, added, known)


def _fixed(operations: Sequence[Any]) -> set[str]:
    """Return the names of operations that follow from constants alone."""
    fixed = set[str]()
    for operation in operations:
        sources = [port.get_source_output().get_node().get_name() for port in operation.inputs()]
        if operation.get_type_name() == "Constant" or (sources and fixed.issuperset(sources)):
            fixed.add(operation.get_name())
    return fixed
