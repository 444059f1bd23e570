"""Order of equal numbers in graphs of OpenVINO: the smaller place comes first, as ONNX says."""

from __future__ import annotations

from typing import Any

from hasten.engines.openvino.wholes import bodies_of

_MOST = 1 << 16
"""Largest number of comparisons, those of each number taken with all others, for which order costs microseconds."""


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
            and 0 < _comparisons(operation) <= _MOST
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


def _comparisons(operation: Any) -> int:
    """Return how many numbers a TopK takes, times how many there are along its axis; 0 where either is open."""
    axis = operation.get_attributes()["axis"]
    among, taken = (
        port.get_partial_shape()[axis] for port in (operation.input(0), operation.output(0))
    )
    if among.is_dynamic or taken.is_dynamic:
        return 0
    return int(among.get_length() * taken.get_length())
