"""Order of equal numbers in graphs of OpenVINO: the smaller place comes first, as ONNX says."""

from __future__ import annotations

import math
from typing import Any

from hasten.engines.openvino.wholes import bodies_of

_MOST = 1 << 16
"""Largest number of comparisons, those of each number taken with all others, for which order costs microseconds."""
_MOST_IN_ROWS = 1 << 18
"""Largest number of them in all rows: of 8,400 rows of 80 numbers each, order of the first one costs milliseconds."""


def keep_order(graph: Any) -> None:
    """Let a graph's TopK keep the order of equal numbers, where their places are read and it is cheap.

    The converter leaves this open, and which place the plugin takes then depends on the batch. ArgMax and ArgMin become
    TopK, too. For 300 of 8,400 numbers, the plugin takes 11 ms instead of 0.15 ms to keep it, so large ones stay as they are.
    """
    for operation in graph.get_ordered_ops():
        for body in bodies_of(operation):
            keep_order(body)
        if (
            operation.get_type_name() == "TopK"
            and operation.output(1).get_target_inputs()
            and _cheap(operation)
        ):
            _make_stable(operation)


def _make_stable(operation: Any) -> None:
    """Put a TopK that keeps the order in the place of one that doesn't; only sorted ones can."""
    import openvino.opset13 as operators

    said = operation.get_attributes()
    if said.get("stable", True) or said["sort"] != "value":
        return
    data, count = operation.input_value(0), operation.input_value(1)
    kept = (said["axis"], said["mode"], said["sort"], said["index_element_type"])
    other = operators.topk(data, count, *kept, stable=True)
    other.set_friendly_name(operation.get_friendly_name())
    for own, new in zip(operation.outputs(), other.outputs(), strict=True):
        names = own.get_names()
        for reader in own.get_target_inputs():
            reader.replace_source_output(new)
        new.set_names(names)


def _cheap(operation: Any) -> bool:
    """Whether a TopK compares few numbers: those that it takes of a row with all of it, and so in all rows.

    Open axes beside its own count as 1, as of a single sample.
    """
    axis, shape = operation.get_attributes()["axis"], operation.input(0).get_partial_shape()
    taken = operation.output(0).get_partial_shape()
    if shape.rank.is_dynamic or taken.rank.is_dynamic:
        return False
    if shape[axis].is_dynamic or taken[axis].is_dynamic:
        return False
    count: int = taken[axis].get_length()
    whole = math.prod(1 if one.is_dynamic else one.get_length() for one in shape)
    return bool(shape[axis].get_length() * count <= _MOST and whole * count <= _MOST_IN_ROWS)
