"""Operators that the standard itself defines by others: their definitions in the place of their nodes."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

_SMALL_BYTES = 4096
"""Largest constant that may be a shape, and so decides the type of what follows."""


def spelled_out(proto: onnx.ModelProto, covered: Collection[str]) -> onnx.ModelProto | None:
    """Return a model in which definitions by other operators stand for operators that aren't covered.

    Args:
        proto: The model, with its weights.
        covered: Names of operators to leave as they are.

    Returns:
        The model; None where nothing in it is defined by others, or its types can't be found.
    """
    import onnx.inliner

    opset = max(
        (one.version for one in proto.opset_import if one.domain in ("", "ai.onnx")), default=0
    )
    wanted = {
        node.op_type
        for node in proto.graph.node
        if node.domain in ("", "ai.onnx") and node.op_type not in covered
    }
    defined = {name: schema for name in wanted if (schema := _defined(name, opset)) is not None}
    if not defined:
        return None
    try:
        bare = onnx.shape_inference.infer_shapes(without_weights(proto), data_prop=True)
        for node in bare.graph.node:
            if node.domain in ("", "ai.onnx") and node.op_type in defined:
                _state_defaults(node, defined[node.op_type])
        ids = [("", name) for name in sorted(defined)]
        found = onnx.inliner.inline_selected_functions(bare, ids, False, True)
    except (
        Exception
    ):  # whatever its checks of types raise: some definitions need types that aren't known
        return None
    del found.graph.initializer[:]
    found.graph.initializer.extend(proto.graph.initializer)
    return found


def _defined(name: str, opset: int) -> Any:
    """Return an operator's schema if it has a definition by others; else None."""
    import onnx

    try:
        schema: Any = onnx.defs.get_schema(name, opset, "")
    except onnx.defs.SchemaError:
        return None
    return schema if schema.has_function or schema.has_context_dependent_function else None


def _state_defaults(node: onnx.NodeProto, schema: Any) -> None:
    """State the attributes that a node leaves out: definitions that refer to them would lose them."""
    given = {attribute.name for attribute in node.attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.type:
            node.attribute.append(attribute.default_value)


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the types of its large weights in their place, from which other types are inferred."""
    import onnx

    bare = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    bare.graph.name = proto.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(bare.graph, field).extend(getattr(proto.graph, field))
    known = {value.name for value in (*proto.graph.input, *proto.graph.value_info)}
    for tensor in proto.graph.initializer:
        if tensor.ByteSize() <= _SMALL_BYTES:
            bare.graph.initializer.append(tensor)
        if tensor.name not in known:
            bare.graph.value_info.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return bare
