"""What passes ask of OpenVINO's graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

from hasten.core.model import Model, libraries
from hasten.errors import CandidateError

PRODUCTS = frozenset({"Convolution", "GroupConvolution", "MatMul"})
"""Operations that carry a bias in an Add behind them."""
_TRANSPOSED = frozenset({"ConvolutionBackpropData", "GroupConvolutionBackpropData"})
_RECURRENT = {"GRUCell", "GRUSequence", "LSTMCell", "LSTMSequence", "RNNCell", "RNNSequence"}
_LABORIOUS = PRODUCTS | _TRANSPOSED | _RECURRENT
_LABORIOUS |= {"Einsum", "If", "Interpolate", "Loop", "ScaledDotProductAttention", "TensorIterator"}
"""What takes long, or may hold what does."""


def converted(model: Model) -> Any:
    """Return an ONNX model as a graph of OpenVINO's.

    Through the converter: NNCF doesn't recognize the biases in what `core.read_model` gives.
    """
    import openvino

    extensions = [str(path) for path in libraries(model.custom_ops, "create_extensions")]
    return openvino.convert_model(str(model.path), extension=extensions or None)


def operations_of(graph: Any, proto: onnx.ModelProto, names: Sequence[str]) -> list[str]:
    """Return OpenVINO's names for what ONNX nodes became.

    One node may become several operations: a convolution with a bias "c" becomes "c/WithoutBiases"
    and the addition "c". A node that gives an output of the model is called as that output.

    Raises:
        CandidateError: one can't be told from its neighbours any more.
    """
    known = [operation.get_friendly_name() for operation in graph.get_ordered_ops()]
    outputs = {value.name for value in proto.graph.output}
    nodes = {node.name: node for node in proto.graph.node}
    found: list[str] = []
    for name in names:
        own = outputs.intersection(nodes[name].output)
        mine = [n for n in known if n == name or n.startswith(f"{name}/") or n in own]
        if not mine:
            raise CandidateError(
                f"can't keep {name!r} in float: OpenVINO merged it into another operation"
            )
        found += mine
    return found


def behind_products(graph: Any) -> list[str]:
    """Return the names of operations that lead to nothing laborious, as a detector's decoding of boxes.

    They are a small part of the work, and 8 bits are few for coordinates. What is added to a product
    isn't one of them: OpenVINO (2026.4) crashed where its last addition alone was in float.
    """
    leads: set[str] = set()
    found = []
    for operation in reversed(graph.get_ordered_ops()):
        name = operation.get_friendly_name()
        readers = [
            target.get_node().get_friendly_name()
            for output in operation.outputs()
            for target in output.get_target_inputs()
        ]
        if operation.get_type_name() in _LABORIOUS or leads.intersection(readers):
            leads.add(name)
        elif operation.get_type_name() not in ("Constant", "Result") and not _adds_to_product(
            operation
        ):
            found.append(name)
    return found[::-1]


def _adds_to_product(operation: Any) -> bool:
    """Whether an operation adds to what a product gives: a bias, or what a block passes by itself."""
    if operation.get_type_name() != "Add":
        return False
    kinds = {value.get_node().get_type_name() for value in operation.input_values()}
    return bool(kinds & (PRODUCTS | _TRANSPOSED | {"Add"}))


def bias_of(product: Any) -> tuple[Any, int] | None:
    """Return the addition of a constant right behind a product, and which of its inputs that is."""
    for target in product.output(0).get_target_inputs():
        addition = target.get_node()
        if addition.get_type_name() != "Add":
            continue
        for position in range(2):
            if addition.input_value(position).get_node().get_type_name() == "Constant":
                return addition, position
    return None
