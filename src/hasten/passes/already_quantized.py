"""Find what a model brings in int8 already: it is kept, and quantizers leave it alone."""

from __future__ import annotations

import onnx

from hasten.passes.base import Skipped
from hasten.passes.onnx_files import COMPUTE_OPS, graphs, quantized_nodes

_INTEGER = frozenset(
    (
        *(
            "ConvInteger",
            "DynamicQuantizeLSTM",
            "DynamicQuantizeMatMul",
            "MatMulInteger",
            "MatMulIntegerToFloat",
        ),
        *("MatMulNBits", "QAttention", "QGemm", "QLinearConv", "QLinearMatMul"),
    )
)
"""Operators of ONNX and of ONNX Runtime that compute products with quantized weights."""


def quantized_products(proto: onnx.ModelProto) -> tuple[int, int]:
    """Return how many products of a graph read quantized values, and how many products it has."""
    done = whole = 0
    for graph in graphs(proto.graph):
        integer = sum(node.op_type in _INTEGER for node in graph.node)
        done += integer + len(quantized_nodes(graph))
        whole += integer + sum(node.op_type in COMPUTE_OPS for node in graph.node)
    return done, whole


def words(proto: onnx.ModelProto) -> str:
    """Return what a graph has quantized, and what is tried on the rest, in one line; empty where it has nothing."""
    done, whole = quantized_products(proto)
    if not done:
        return ""
    rest = "no pass quantizes the rest"
    if _mostly_float(done, whole):
        rest = "the rest is left to the passes that take partly quantized models"
    return f"{_already(done, whole)}: they stay as they are, and {rest}"


def check_in_float(proto: onnx.ModelProto) -> None:
    """Check that a graph has no quantized product yet, for a pass that takes float models alone.

    Raises:
        Skipped: it has some; the message says how many.
    """
    done, whole = quantized_products(proto)
    if _mostly_float(done, whole):
        raise Skipped(f"{_already(done, whole)}, and this pass takes models in float alone")
    if done:
        raise Skipped(words(proto))


def check_mostly_float(proto: onnx.ModelProto) -> None:
    """Check that less than half of a graph's products are quantized, for a pass that quantizes the rest.

    Where most are, whoever quantized the model left the others in float on purpose.

    Raises:
        Skipped: half or more are; the message says how many.
    """
    done, whole = quantized_products(proto)
    if done and not _mostly_float(done, whole):
        raise Skipped(words(proto))


def _mostly_float(done: int, whole: int) -> bool:
    return 0 < 2 * done < whole


def _already(done: int, whole: int) -> str:
    verb = "is" if done == 1 else "are"
    return (
        f"{done} of the model's {whole} convolutions and matrix products {verb} already quantized"
    )
