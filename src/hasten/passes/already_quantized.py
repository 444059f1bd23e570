"""Find what a model brings in int8 already: it is kept, and quantizers leave it alone."""

from __future__ import annotations

from collections.abc import Collection

import onnx

from hasten.passes.base import Skipped
from hasten.passes.onnx_files import COMPUTE_OPS, graphs, quantized_nodes

_INTEGER = frozenset(
    (
        *(
            "ConvInteger",
            "DynamicQuantizeMatMul",
            "MatMulInteger",
            "MatMulIntegerToFloat",
        ),
        *("MatMulNBits", "QAttention", "QGemm", "QLinearConv", "QLinearMatMul"),
    )
)
"""Operators of ONNX and of ONNX Runtime that compute products with quantized weights."""
_LSTM = frozenset({"LSTM"})


def quantized_products(proto: onnx.ModelProto) -> tuple[int, int]:
    """Return how many products of a graph read quantized values, and how many products it has."""
    done = whole = 0
    for graph in graphs(proto.graph):
        integer = sum(node.op_type in _INTEGER for node in graph.node)
        done += integer + len(quantized_nodes(graph))
        whole += integer + sum(node.op_type in COMPUTE_OPS for node in graph.node)
    return done, whole


def quantized_lstms(proto: onnx.ModelProto) -> tuple[int, int]:
    """Return how many LSTMs of a graph have quantized weights, and how many LSTMs it has."""
    nodes = [node.op_type for graph in graphs(proto.graph) for node in graph.node]
    done = nodes.count("DynamicQuantizeLSTM")
    return done, done + nodes.count("LSTM")


def open_kinds(proto: onnx.ModelProto) -> frozenset[str]:
    """Return the operators whose nodes in float a pass may quantize.

    Products are one kind, and LSTMs another. Where half or more of a kind are quantized, whoever
    quantized the model left the others in float on purpose. Where none of a kind is, that says nothing.
    """
    products, lstms = quantized_products(proto), quantized_lstms(proto)
    if not products[0] and not lstms[0]:
        return COMPUTE_OPS | _LSTM
    kinds = ((COMPUTE_OPS, products), (_LSTM, lstms))
    return frozenset().union(*(kind for kind, (done, whole) in kinds if 2 * done < whole))


def words(proto: onnx.ModelProto) -> str:
    """Return what a graph has quantized, and what is tried on the rest, in one line; empty where it has nothing."""
    already = _already(proto)
    if not already:
        return ""
    rest = "no pass quantizes the rest"
    if open_kinds(proto):
        rest = "the rest is left to the passes that take partly quantized models"
    return f"{already}: they stay as they are, and {rest}"


def check_in_float(proto: onnx.ModelProto) -> None:
    """Check that a graph has no quantized product or LSTM yet, for a pass that takes float models alone.

    Raises:
        Skipped: it has some; the message says how many.
    """
    already = _already(proto)
    if already and open_kinds(proto):
        raise Skipped(f"{already}, and this pass takes models in float alone")
    if already:
        raise Skipped(words(proto))


def check_mostly_float(proto: onnx.ModelProto, kinds: Collection[str] = COMPUTE_OPS) -> None:
    """Check that a pass may quantize some of the operators that it quantizes.

    Args:
        proto: Graph, a part of which may be quantized.
        kinds: Operators that the pass quantizes.

    Raises:
        Skipped: it may not; the message says how many are quantized.
    """
    if open_kinds(proto).isdisjoint(kinds):
        raise Skipped(words(proto))


def _already(proto: onnx.ModelProto) -> str:
    """Return in words how much of a graph is quantized; empty where nothing is."""
    products, lstms = quantized_products(proto), quantized_lstms(proto)
    done = products[0] + lstms[0]
    if not done:
        return ""
    nouns = ((products, "convolutions and matrix products"), (lstms, "LSTMs"))
    parts = [f"{own} of the model's {whole} {noun}" for (own, whole), noun in nouns if own]
    return f"{' and '.join(parts)} {'is' if done == 1 else 'are'} already quantized"
