"""Attributes that later versions of ONNX's operators brought, which a runtime that is older passes over in silence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def newer_attribute(node: onnx.NodeProto, newest: int) -> str | None:
    """Return the first attribute of a node that its operator hasn't in an operator set; None where it has all.

    An attribute that states its default says no more than if it were left out.

    Args:
        node: Node of the graph; one of another domain has none.
        newest: Newest operator set that is known.
    """
    import onnx

    if node.domain not in ("", "ai.onnx"):
        return None
    try:
        known = onnx.defs.get_schema(node.op_type, newest, "").attributes
        latest = onnx.defs.get_schema(node.op_type, "").attributes
    except (
        onnx.defs.SchemaError
    ):  # the operator itself came later, and a runtime refuses it by its name
        return None
    return next(
        (
            one.name
            for one in node.attribute
            if one.name not in known
            and not (one.name in latest and _same(one, latest[one.name].default_value))
        ),
        None,
    )


def every_node(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a model: of its graph, of the graphs inside nodes, and of its functions."""
    waiting = [*proto.graph.node, *(node for one in proto.functions for node in one.node)]
    while waiting:
        node = waiting.pop(0)
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                waiting += inner.node


def _same(one: onnx.AttributeProto, default: onnx.AttributeProto) -> bool:
    import onnx

    if one.type != default.type:
        return False
    given: object = onnx.helper.get_attribute_value(one)
    return bool(given == onnx.helper.get_attribute_value(default))
