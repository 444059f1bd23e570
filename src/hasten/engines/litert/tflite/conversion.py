"""ONNX to .tflite, whole: read, simplify, write each operator."""

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

    Shapes are those of `model.request`; the first axis stays open where the model leaves it so.
    Each tensor is named as the ONNX node that gives it; what a node needs besides is named so too,
    with a colon and a word behind. An activation that a product can apply by itself is its.

    Args:
        model: In ONNX.
        path: Where to write.
        to_quantize: Spell out HardSwish: XNNPACK has a kernel for it in float only, and each part of
            it in int8 as well.

    Raises:
        CandidateError: it can't be converted: which operator, which node.
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
            continue  # done with the node before it
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
