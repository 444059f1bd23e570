"""Find operators that draw random numbers, so that no two answers to the same input are equal."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import numpy_helper

from hasten.errors import visible
from hasten.passes.onnx_files import graphs

_DRAWING = frozenset(
    (
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    )
)


def words(proto: onnx.ModelProto) -> str:
    """Return a note on the first operator of a model that draws random numbers; empty where none does."""
    for graph in graphs(proto.graph):
        for node in graph.node:
            trains = node.op_type == "Dropout" and _true(proto, node.input[2:3])
            if node.domain in ("", "ai.onnx") and (trains or node.op_type in _DRAWING):
                name = visible(node.name or next(iter(node.output), ""))
                kind = "Dropout in training mode" if trains else node.op_type
                remedy = (
                    "export it in evaluation mode, such as after model.eval() of PyTorch"
                    if trains
                    else "export it without that operator, or with the numbers as an input"
                )
                return (
                    f"the model draws random numbers by {kind} ({name!r}), so its answers to the same input differ, and no "
                    f"other form of it can be compared with it: {remedy}"
                )
    return ""


def _true(proto: onnx.ModelProto, names: Collection[str]) -> bool:
    """Whether a model has a constant of one of these names that is true."""
    known: list[onnx.TensorProto] = []
    for graph in graphs(proto.graph):
        known += [tensor for tensor in graph.initializer if tensor.name in names]
        for node in graph.node:
            if node.op_type == "Constant" and node.output[0] in names:
                known += [attribute.t for attribute in node.attribute if attribute.name == "value"]
    return any(numpy_helper.to_array(tensor).any() for tensor in known)
