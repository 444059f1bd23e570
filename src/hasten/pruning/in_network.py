"""What each layer takes where it stands, read off the profile of a whole network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from hasten.engines.layers import LayerTime, node_name
from hasten.frontends.onnx import read
from hasten.pruning.layers import Layer


def in_network(
    layers: Sequence[Layer], exported: Path, steps: Sequence[LayerTime]
) -> dict[str, float]:
    """Return the nanoseconds of each layer in a profile.

    The exporter writes products in the order in which the module makes them, so the n-th that has
    weights is the n-th layer's.

    Args:
        layers: Of the module.
        exported: The ONNX file that the module was exported to.
        steps: The profile of that file, or of what passes made of it, with its nodes as sources.

    Returns:
        Layer -> all its calls together; without those that the profile doesn't name. Empty where
        the file has other products than the module has layers.
    """
    weighted = [layer for layer in layers if layer.shape.kind != "attention"]
    nodes = list(_products(read(exported).graph))
    if len(nodes) != len(weighted):
        return {}
    owners = {name: layer.name for name, layer in zip(nodes, weighted, strict=True)}
    found: dict[str, float] = defaultdict(float)
    for step in steps:
        named = [owners[source] for source in step.sources if source in owners]
        for name in named:
            found[name] += step.median_ns / len(named)
    return {name: time_ns for name, time_ns in found.items() if time_ns > 0}


def _products(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the nodes that multiply by weights, in order."""
    constant = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.input and all(name in constant for name in node.input if name):
            constant.update(node.output)  # a weight that is turned or reshaped first
        elif node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in constant:
            yield node_name(node)
