"""Attributes that later versions of ONNX's operators brought, which a runtime that is older passes over in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def newer_attribute(node: onnx.NodeProto, newest: int) -> str | None:
    """Return the first attribute of a node that its operator hasn't in an operator set; None where it has all.

    Args:
        node: Node of the graph; one of another domain has none.
        newest: Newest operator set that is known.
    """
    import onnx

    if node.domain not in ("", "ai.onnx"):
        return None
    try:
        known = onnx.defs.get_schema(node.op_type, newest, "").attributes
    except (
        onnx.defs.SchemaError
    ):  # the operator itself came later, and a runtime refuses it by its name
        return None
    return next((one.name for one in node.attribute if one.name not in known), None)
