"""Graphs of OpenVINO that compute in float64, which its plugins round to a shorter format."""

from __future__ import annotations

from typing import Any

from hasten.engines.openvino.wholes import bodies_of
from hasten.errors import NotCovered

REFUSES = "OpenVINO computes float64 in float32"
_CARRIERS = frozenset({"Parameter", "Constant", "Convert", "Result"})
"""Operations that calculate nothing."""
_LONG = frozenset({"i32", "i64", "u32", "u64"})
"""Whole numbers that float64 holds, and that a plugin rounds to float32 where it should convert them."""
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
        kind, ports = operation.get_type_name(), operation.inputs()
        # By their own names, since those for people may be the same for several operations.
        sources = {port.get_source_output().get_node().get_name() for port in ports}
        if kind != "Parameter" and (kind in _SIZES or not sources & values):
            continue
        values.add(operation.get_name())
        taken, made = (
            {port.get_element_type().get_type_name() for port in of}
            for of in (ports, operation.outputs())
        )
        rounds = kind not in _CARRIERS or (taken & _LONG and "f64" in made)
        if "f64" in taken | made and rounds:
            name = operation.get_friendly_name()
            raise NotCovered(f"{REFUSES}, as in {kind} (node {name!r})")
        for body in bodies_of(operation):
            check_doubles(body)
