"""Inspect OpenVINO's graphs for passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx

from hasten.core.model import Model, libraries
from hasten.engines.openvino.engine import check_attributes
from hasten.engines.openvino.ties import keep_order
from hasten.errors import CandidateError

PRODUCTS = frozenset({"Convolution", "GroupConvolution", "MatMul"})
"""Operations that may be followed by an Add of their bias."""
_TRANSPOSED = frozenset({"ConvolutionBackpropData", "GroupConvolutionBackpropData"})
_RECURRENT = {"GRUCell", "GRUSequence", "LSTMCell", "LSTMSequence", "RNNCell", "RNNSequence"}
_LABORIOUS = PRODUCTS | _TRANSPOSED | _RECURRENT
_LABORIOUS |= {"Einsum", "If", "Interpolate", "Loop", "ScaledDotProductAttention", "TensorIterator"}
"""Operations that take long, or may contain some that do."""


def converted(model: Model) -> Any:
    """Convert an ONNX model to an OpenVINO graph.

    The converter is used since NNCF doesn't recognize the biases in graphs from `core.read_model`. Equal numbers keep
    their order as in the engine's own graphs.

    Raises:
        CandidateError: the converter would pass over an attribute.
    """
    import openvino

    check_attributes(model.path)
    extensions = [str(path) for path in libraries(model.custom_ops, "create_extensions")]
    # In a list twice, since it splits other paths at commas.
    graph = openvino.convert_model([[model.path]], extension=extensions or None)
    keep_order(graph)
    return graph


def operations_of(graph: Any, proto: onnx.ModelProto, names: Sequence[str]) -> list[str]:
    """Return OpenVINO's names of the operations made from ONNX nodes.

    One node may become several operations: a convolution "c" with a bias becomes "c/WithoutBiases"
    and the addition "c". A node that computes an output of the model gets the output's name.

    Raises:
        CandidateError: OpenVINO merged a node into another operation.
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
    """Return the names of operations with no laborious ones after them, such as decoding of boxes.

    They are a small part of the work, and 8 bits are too few for coordinates. Additions to a
    product aren't included: OpenVINO 2026.4 crashed if only its last addition was in float.
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
    """Return whether an operation adds a bias or a skip connection to the output of a product."""
    if operation.get_type_name() != "Add":
        return False
    kinds = {value.get_node().get_type_name() for value in operation.input_values()}
    return bool(kinds & (PRODUCTS | _TRANSPOSED | {"Add"}))


def bias_of(product: Any) -> tuple[Any, int] | None:
    """Return the addition of a constant right after a product, and the constant's input index."""
    for target in product.output(0).get_target_inputs():
        addition = target.get_node()
        if addition.get_type_name() != "Add":
            continue
        for position in range(2):
            if addition.input_value(position).get_node().get_type_name() == "Constant":
                return addition, position
    return None
