"""Find what a model brings in int8 already: it is kept, and quantizers leave such a model alone."""

from __future__ import annotations

import onnx

from hasten.passes.base import Skipped
from hasten.passes.onnx_files import COMPUTE_OPS, graphs

_INTEGER = frozenset(
    (
        *("ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat"),
        *("MatMulNBits", "QAttention", "QGemm", "QLinearConv", "QLinearMatMul"),
    )
)
"""Operators of ONNX and of ONNX Runtime that compute products with quantized weights."""


def quantized_products(proto: onnx.ModelProto) -> tuple[int, int]:
    """Return how many products of a graph read quantized values, and how many products it has."""
    done = whole = 0
    for graph in graphs(proto.graph):
        opened = {
            name
            for node in graph.node
            if node.op_type == "DequantizeLinear"
            for name in node.output
        }
        integer = sum(node.op_type in _INTEGER for node in graph.node)
        products = [node for node in graph.node if node.op_type in COMPUTE_OPS]
        done += integer + sum(not opened.isdisjoint(node.input[:2]) for node in products)
        whole += integer + len(products)
    return done, whole


def words(proto: onnx.ModelProto) -> str:
    """Return what a graph has quantized, in one line; empty where it has nothing."""
    done, whole = quantized_products(proto)
    if not done:
        return ""
    return (
        f"{done} of the model's {whole} convolutions and matrix products are already quantized: "
        "they stay as they are, and no pass quantizes the rest"
    )


def check_in_float(proto: onnx.ModelProto) -> None:
    """Check that a graph has no quantized product yet, since quantizers take float models alone.

    Raises:
        Skipped: it has some; the message says how many.
    """
    if said := words(proto):
        raise Skipped(said)
