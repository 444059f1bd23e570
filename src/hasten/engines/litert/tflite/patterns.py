"""Rewriting of several ONNX nodes as one that LiteRT has an operator for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.litert.tflite.graph import Graph, Node, scalar


def simplify(graph: Graph) -> None:
    """Fold normalizations into weights and additions into biases, and recognize activations."""
    for node in list(graph.nodes):
        if node.op == "BatchNormalization":
            _fold_normalization(graph, node)
        elif node.op in ("Mul", "Div"):
            _recognize_activation(graph, node)
        elif node.op == "Add":
            _fold_bias(graph, node)
        elif node.op == "ReduceL2":
            _spell_out_length(graph, node)
    graph.remove_unused()


def clip_limits(graph: Graph, node: Node) -> tuple[float, float]:
    """Return the least and the greatest value that a Relu or Clip lets through."""
    if node.op == "Relu":
        return 0.0, math.inf
    low = scalar(graph.argument(node, 1, "min"))
    high = scalar(graph.argument(node, 2, "max"))
    return -math.inf if low is None else low, math.inf if high is None else high


def _fold_normalization(graph: Graph, node: Node) -> None:
    """Fold a BatchNormalization into the convolution before it; else spell it out."""
    if node.settings.get("training_mode", 0):
        raise node.refused("it is in training mode")
    scale, bias, mean, variance = (_constant(graph, node, i) for i in range(1, 5))
    factor = scale / np.sqrt(variance + node.settings.get("epsilon", 1e-5))
    shift = bias - mean * factor
    conv = graph.producer(node.inputs[0])
    outputs = (f"{node.name}:factor", f"{node.name}:shift")
    foldable = (
        conv is not None
        and conv.op == "Conv"
        and conv.inputs[1] in graph.constants
        and all(name in graph.constants for name in conv.inputs[2:3] if name)
        and graph.only_consumer(node.inputs[0]) is node
    )
    if foldable and conv is not None:
        weights = graph.constants[conv.inputs[1]]
        given = conv.inputs[2] if len(conv.inputs) > 2 else ""
        before = graph.constants[given] if given else np.zeros_like(shift)
        graph.constants[outputs[0]] = weights * factor.reshape(-1, *[1] * (weights.ndim - 1))
        graph.constants[outputs[1]] = before * factor + shift
        folded = replace(conv, inputs=(conv.inputs[0], *outputs), outputs=node.outputs[:1])
        graph.swap((conv, node), (folded,))
        return
    shape = (-1, *[1] * (len(graph.shape(node.inputs[0], node)) - 2))
    graph.constants[outputs[0]] = factor.reshape(shape)
    graph.constants[outputs[1]] = shift.reshape(shape)
    scaled = f"{node.outputs[0]}:scaled"
    graph.copy_type(node.inputs[0], scaled)
    spelled = (
        Node("Mul", f"{node.name}:scaled", (node.inputs[0], outputs[0]), (scaled,)),
        Node("Add", node.name, (scaled, outputs[1]), node.outputs[:1]),
    )
    graph.swap((node,), spelled)


def _constant(graph: Graph, node: Node, position: int) -> Array:
    array = graph.argument(node, position)
    assert array is not None
    return array


def _fold_bias(graph: Graph, node: Node) -> None:
    """Make a vector that is added to a constant product that product's bias."""
    for value, added in (node.inputs, node.inputs[::-1]):
        product, bias = graph.producer(value), graph.constants.get(added)
        if product is None or bias is None or product.op != "MatMul" or len(product.inputs) > 2:
            continue
        weights = graph.constants.get(product.inputs[1])
        if weights is None or weights.ndim != 2 or bias.shape[-1:] != weights.shape[1:]:
            continue
        if bias.ndim > len(graph.shape(value, node)):
            continue  # the addition also adds dimensions
        if bias.size == bias.shape[-1] and graph.only_consumer(value) is node:
            whole = replace(product, inputs=(*product.inputs, added), outputs=node.outputs)
            graph.swap((product, node), (whole,))
            return


def _spell_out_length(graph: Graph, node: Node) -> None:
    """Replace a Euclidean length by the root of the sum of squares."""
    x, squares, total = node.inputs[0], f"{node.name}:norm squares", f"{node.name}:norm sum"
    for name, like in ((squares, x), (total, node.outputs[0])):
        graph.shape(like, node)  # refuses the node if the shape isn't known
        graph.copy_type(like, name)
    spelled = (
        Node("Mul", squares, (x, x), (squares,)),
        Node("ReduceSum", total, (squares, *node.inputs[1:]), (total,), node.settings),
        Node("Sqrt", f"{node.name}:norm", (total,), node.outputs[:1]),
    )
    graph.swap((node,), spelled)


def _recognize_activation(graph: Graph, node: Node) -> None:
    """Replace nodes that spell out HardSwish, HardSigmoid or Gelu."""
    for name, scale in _unscaled(graph, node.outputs[0]):
        if (
            (gated := _gate(graph, name))
            and gated[0] == "clip"
            and math.isclose(scale, 1 / 6, rel_tol=1e-4)
        ):
            _activate(graph, node, "HardSigmoid", gated[1], {"alpha": 1 / 6, "beta": 0.5})
            return
        product = graph.producer(name)
        if product is None or product.op != "Mul":
            continue
        for value, gate in (product.inputs, product.inputs[::-1]):
            for behind, more in _unscaled(graph, gate):
                gated = _gate(graph, behind)
                for own, most in _unscaled(graph, value) if gated else ():
                    kind, x, whole = gated[0], gated[1], scale * more * most  # type: ignore[index]
                    wanted = {"clip": 1 / 6, "hard_sigmoid": 1.0, "erf": 0.5}[kind]
                    if own == x and math.isclose(whole, wanted, rel_tol=1e-4):
                        _activate(graph, node, "Gelu" if kind == "erf" else "HardSwish", x, {})
                        return


def _activate(graph: Graph, node: Node, op: str, x: str, settings: dict[str, float]) -> None:
    graph.swap((node,), (Node(op, node.name, (x,), node.outputs, settings),))


def _unscaled(graph: Graph, name: str) -> Iterator[tuple[str, float]]:
    """Yield a value with the factor 1, then earlier values with the constant factors since."""
    scale = 1.0
    while True:
        yield name, scale
        node = graph.producer(name)
        if node is None or node.op not in ("Mul", "Div"):
            return
        first, second = (scalar(graph.constants.get(value)) for value in node.inputs)
        if second:
            name, scale = node.inputs[0], scale * (second if node.op == "Mul" else 1 / second)
        elif first and node.op == "Mul":
            name, scale = node.inputs[1], scale * first
        else:
            return


def _gate(graph: Graph, name: str) -> tuple[str, str] | None:
    """Recognize the factor of an activation's input, and return its kind and that input.

    "clip" is Clip(x + 3, 0, 6), "hard_sigmoid" is a sixth of that, and "erf" is 1 + Erf(x /
    sqrt(2)).
    """
    node = graph.producer(name)
    if node is None:
        return None
    if node.op == "HardSigmoid":
        usual = math.isclose(node.settings.get("alpha", 0.2), 1 / 6, rel_tol=1e-4)
        half = node.settings.get("beta", 0.5) == 0.5
        return ("hard_sigmoid", node.inputs[0]) if usual and half else None
    if node.op == "Clip" and clip_limits(graph, node) == (0, 6):
        return _shifted(graph, node.inputs[0], 3.0, "clip")
    erf = _shifted(graph, name, 1.0, "erf")
    inner = graph.producer(erf[1]) if erf else None
    if inner is None or inner.op != "Erf":
        return None
    for x, scale in _unscaled(graph, inner.inputs[0]):
        if math.isclose(scale, math.sqrt(0.5), rel_tol=1e-4):
            return "erf", x
    return None


def _shifted(graph: Graph, name: str, by: float, kind: str) -> tuple[str, str] | None:
    node = graph.producer(name)
    if node is None or node.op != "Add":
        return None
    for value, added in (node.inputs, node.inputs[::-1]):
        if scalar(graph.constants.get(added)) == by:
            return kind, value
    return None
