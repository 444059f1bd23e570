"""Read the time of each layer off the profile of a whole network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from hasten.engines.layers import LayerTime, node_name
from hasten.inputs.models.onnx import read
from hasten.lightening.pruning.layers import Layer


def in_network(
    layers: Sequence[Layer], exported: Path, steps: Sequence[LayerTime]
) -> tuple[dict[str, float], float]:
    """Return the nanoseconds of each layer in a profile, including operations up to the next layer.

    The exporter writes products in the order in which the module computes them, so the n-th product
    with weights is the n-th layer's. Normalizations, activations, poolings and copies count with
    the layer that was executed before them: they work on its channels, and shrink with it.

    Args:
        layers: Layers of the module.
        exported: ONNX file that the module was exported to.
        steps: Profile, in the order of execution, of that file or of what passes made of it, with
            the file's nodes as sources.

    Returns:
        Nanoseconds by layer, all its calls together, and the nanoseconds before the first layer.
        Layers that the profile doesn't name are missing; attentions, which count with their
        projections, have 0. No layers and 0 if the numbers of products and layers differ.
    """
    weighted = [layer for layer in layers if layer.shape.kind != "attention"]
    nodes = list(_products(read(exported).graph))
    if len(nodes) != len(weighted):
        return {}, 0.0
    owners = {name: layer.name for name, layer in zip(nodes, weighted, strict=True)}
    found: dict[str, float] = defaultdict(float)
    last, rest_ns = "", 0.0
    for step in steps:
        named = [owners[source] for source in step.sources if source in owners]
        for name in named:
            found[name] += step.median_ns / len(named)
            last = name
        if not named and last:
            found[last] += step.median_ns
        elif not named:
            rest_ns += step.median_ns
    if found:
        found |= {layer.name: 0.0 for layer in layers if layer.shape.kind == "attention"}
    return dict(found), rest_ns


def _products(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the nodes that multiply by weights, in order."""
    constant = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.input and all(name in constant for name in node.input if name):
            constant.update(node.output)  # a weight that is transposed or reshaped first
        elif node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in constant:
            yield node_name(node)
