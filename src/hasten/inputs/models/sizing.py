"""Outputs whose first axis has a size that a graph makes from a request's values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hasten.core.tensors import BY_VALUE, TensorSpec

if TYPE_CHECKING:
    import onnx

_SIZING = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})


def named_by_value(
    proto: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    """Name the first axis of outputs `BY_VALUE` where values give its size, so that no batch is divided by it.

    Such an output is computed from what NonZero, NonMaxSuppression, Unique or Compress made of the inputs, and its
    first axis isn't the inputs' own: the file gives it another name, or none.

    Args:
        proto: Model.
        inputs: Inputs of the model.
        outputs: Outputs of the model.
    """
    own = {spec.shape[0] for spec in inputs if spec.shape} - {"?"}
    sized = _sized(proto)
    return tuple(
        dataclasses.replace(spec, shape=(BY_VALUE, *spec.shape[1:]))
        if spec.name in sized and spec.shape and _open(spec) and spec.shape[0] not in own
        else spec
        for spec in outputs
    )


def _open(spec: TensorSpec) -> bool:
    """Whether an output has a first axis of open size; "..." stands for axes of an unknown number."""
    return isinstance(spec.shape[0], str) and spec.shape[0] != "..."


def _sized(proto: onnx.ModelProto) -> set[str]:
    """Return the tensors of the main graph that may have another size for other values."""
    sizing = {*_SIZING}
    for function in proto.functions:  # a function follows those that it calls, or is rare
        if any(node.op_type in sizing for node in _nodes(function.node)):
            sizing.add(function.name)
    constants = {tensor.name for tensor in proto.graph.initializer}
    values, sized = {value.name for value in proto.graph.input} - constants, set[str]()
    for node in proto.graph.node:
        inner = [*_nodes([node])]
        read = {name for one in inner for name in one.input}
        if node.op_type in ("Shape", "Size"):
            values.update(node.output if read & sized else ())
            continue
        if read & values:
            values.update(node.output)
            if any(one.op_type in sizing for one in inner):
                sized.update(node.output)
        if read & sized:
            sized.update(node.output)
    return sized


def _nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g.node)
            for inner in attribute.graphs:
                yield from _nodes(inner.node)
