"""Graphs of OpenVINO that compute in float64, which its plugins round to a shorter format."""

from __future__ import annotations

from typing import Any

from hasten.errors import NotCovered

REFUSES = "OpenVINO computes float64 in float32"
_CARRIERS = frozenset({"Parameter", "Constant", "Convert", "Result"})
"""Operations that calculate nothing."""
_SIZES = frozenset({"ShapeOf"})
"""Operations whose answers don't depend on the values of their input."""


def check_doubles(graph: Any) -> None:
    """Refuse a graph that calculates with values of a request in float64.

    What follows from sizes alone, such as the root of a head's width, may be float64.

    Raises:
        NotCovered: it does so; the message names the operation.
    """
    values = set[str]()
    for operation in graph.get_ordered_ops():
        name, kind = operation.get_friendly_name(), operation.get_type_name()
        ports = operation.inputs()
        sources = {port.get_source_output().get_node().get_friendly_name() for port in ports}
        if kind != "Parameter" and (kind in _SIZES or not sources & values):
            continue
        values.add(name)
        types = {port.get_element_type().get_type_name() for port in (*ports, *operation.outputs())}
        if "f64" in types and kind not in _CARRIERS:
            raise NotCovered(f"{REFUSES}, as in {kind} (node {name!r})")
