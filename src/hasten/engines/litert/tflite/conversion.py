"""Conversion of an ONNX model to .tflite: read, simplify, write each operator."""

from __future__ import annotations

from pathlib import Path

from hasten.core.model import Model
from hasten.engines.litert.tflite.converter import Converter
from hasten.engines.litert.tflite.graph import read_graph
from hasten.engines.litert.tflite.operators import OPERATORS, REWRITTEN
from hasten.engines.litert.tflite.patterns import simplify
from hasten.errors import InputError


def convert(model: Model, path: Path, *, to_quantize: bool = False) -> None:
    """Write an ONNX model as a .tflite file with the same inputs and outputs.

    Shapes are those of `model.request`; the first axis stays open where the model leaves it open.
    Each tensor has the name of the ONNX node that computes it; a node's further tensors have that
    name with a colon and a word. A product applies the activation after it, if it can.

    Args:
        model: Model in ONNX.
        path: Path to write to.
        to_quantize: Whether to spell out HardSwish, for which XNNPACK has a kernel in float only,
            whereas its parts have kernels in int8, too.

    Raises:
        CandidateError: the model can't be converted; the message names the operator and node.
        InputError: the file can't be written.
    """
    graph = read_graph(model)
    for node in graph.nodes:
        if node.op not in OPERATORS and node.op not in REWRITTEN:
            raise node.refused()
    simplify(graph)
    converter = Converter(graph, to_quantize=to_quantize)
    for node in list(graph.nodes):
        if node.outputs[0] in converter.values:
            continue  # written with the node before it
        if node.op not in OPERATORS:
            raise node.refused()
        for name in filter(None, node.inputs):
            converter.shape(name, node)
        OPERATORS[node.op](converter, node)
    content = converter.finish()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from error
