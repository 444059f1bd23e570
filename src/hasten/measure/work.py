"""What a model's layers have to do at the least, counted from its graph: operations and elements."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from hasten.core.model import Model
from hasten.engines.layers import node_name
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.onnx import read
from hasten.measure.products import OPERATORS, Count, Product, Shape
from hasten.measure.roofline import LayerWork

if TYPE_CHECKING:
    import onnx

_SMALL = 1024
"""A constant of at most so many elements may be a shape that others follow from."""
_VALUES = ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data")
_LENGTHS = 4
"""Where a recurrent node takes the sequences' lengths."""


def work(model: Model) -> tuple[LayerWork, ...]:
    """Count the work of every layer that does arithmetic, in order; the others cost nothing.

    Activations, normalizations, pooling, copies and changes of shape can be done on the way by the
    layer before or after, so a lower bound takes them as done. Layers that don't depend on the
    inputs, or that no output depends on, needn't be run at all. The scores of attention needn't be
    stored: kernels that fuse it keep them.

    Args:
        model: An ONNX model with its request settled.

    Raises:
        InputError: it isn't ONNX, or its request isn't settled.
        CandidateError: its shapes contradict each other.
    """
    if model.format != "onnx":
        raise InputError(f"work is counted in an ONNX model; got one of format {model.format!r}")
    return tuple(_Graph(_inferred(model).graph).layers())


def _inferred(model: Model) -> onnx.ModelProto:
    """Return the graph with the shapes that follow from one request, without its large weights."""
    import onnx
    from onnx import external_data_helper, inliner

    proto = read(model.path)
    for tensor in proto.graph.initializer:
        if math.prod(tensor.dims) > _SMALL:
            for field in _VALUES:
                tensor.ClearField(field)
        elif tensor.data_location == onnx.TensorProto.EXTERNAL:
            external_data_helper.load_external_data_for_tensor(tensor, str(model.path.parent))
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    settled = {spec.name: spec.sizes for spec in model.request or model.inputs}
    for value in proto.graph.input:
        if value.name in settled:
            dims = value.type.tensor_type.shape.dim
            del dims[:]
            for size in settled[value.name]:
                dims.add().dim_value = size
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]  # it may have the names of dimensions that are settled now
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CandidateError(f"shapes don't follow from those of a request: {first}") from error


class _Graph:
    """A graph: its shapes, what depends on its inputs, what its outputs depend on."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._nodes = list(graph.node)
        self._outputs = {value.name for value in graph.output}
        self._initializers = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self._shapes: dict[str, Shape] = dict(self._initializers)
        for value in (*graph.input, *graph.value_info, *graph.output):
            shape = _settled_shape(value)
            if shape is not None:
                self._shapes.setdefault(value.name, shape)
        self._makers = {name: node for node in self._nodes for name in node.output if name}

    def layers(self) -> Iterator[LayerWork]:
        """Yield the work of each layer that does arithmetic, or that may."""
        weighed: set[frozenset[str]] = set()
        for node in self._nodes:
            if not self._live.intersection(node.output) or node.output[0] in self._constants:
                continue
            if _multiplies(node):
                yield self._layer(node, weighed)
            elif not _free(node):
                yield LayerWork(node_name(node), node.op_type)

    def _layer(self, node: onnx.NodeProto, weighed: set[frozenset[str]]) -> LayerWork:
        name, output = node_name(node), node.output[0]
        counted = self._count(node)
        if counted is None:
            return LayerWork(name, node.op_type)
        read: dict[str, int] = {}
        weights = 0
        for operand, needed in zip(_operands(node), counted.needed, strict=True):
            roots = self._constants.get(operand)
            if roots is None:
                read[operand] = needed if operand not in self._kept[output] else 0
            elif roots not in weighed:
                weighed.add(roots)
                weights += needed
        written = math.prod(self._shapes[output]) if output not in self._passed_on else 0
        operations = 2 * counted.multiplications
        return LayerWork(name, node.op_type, operations, sum(read.values()), weights, written)

    def _count(self, node: onnx.NodeProto) -> Count | None:
        """Count a product; None where its shapes aren't known or don't tell."""
        import onnx

        shapes = [self._shapes.get(name) for name in (*_operands(node), node.output[0])]
        known = [shape for shape in shapes if shape is not None]
        recurrent = node.op_type in ("LSTM", "GRU", "RNN")
        cut_short = recurrent and len(node.input) > _LENGTHS and node.input[_LENGTHS]
        if len(known) < len(shapes) or cut_short:
            return None
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        product = Product(tuple(known[:-1]), known[-1], attributes)
        return OPERATORS[node.op_type].count(product)

    @cached_property
    def _constants(self) -> dict[str, frozenset[str]]:
        """Tensors that don't depend on the inputs -> the initializers and constants behind them."""
        found = {name: frozenset([name]) for name in self._initializers}
        for node in self._nodes:
            names = [name for name in node.input if name]
            if node.op_type == "Constant":
                found[node.output[0]] = frozenset(node.output)
            elif names and all(name in found for name in names) and not _inner(node):
                roots = frozenset[str]().union(*(found[name] for name in names))
                found.update({name: roots for name in node.output if name})
        return found

    @cached_property
    def _live(self) -> set[str]:
        """Tensors that an output depends on."""
        needed = set(self._outputs)
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(_reads(node))
        return needed

    @cached_property
    def _kept(self) -> dict[str, set[str]]:
        """A product's output -> its operands that were never stored: attention's scores.

        They are what a product of two activations gives to another, whatever is done on the way.
        """
        found: dict[str, set[str]] = {}
        for node in filter(_multiplies, self._nodes):
            operands = _operands(node)
            mixes = self._mixes(node)
            found[node.output[0]] = {n for n in operands if mixes and self._mixed(n)}
        return found

    @cached_property
    def _passed_on(self) -> set[str]:
        """What products give that goes into a `_kept` operand."""
        operands = {name for kept in self._kept.values() for name in kept}
        return {node.output[0] for name in operands for node in self._mixed(name)}

    def _mixes(self, node: onnx.NodeProto) -> bool:
        """Whether a product is one of activations alone."""
        return node.op_type in ("MatMul", "Einsum") and not any(
            name in self._constants for name in _operands(node)
        )

    def _mixed(self, name: str) -> list[onnx.NodeProto]:
        """Return the products of activations that a tensor was made of, with no other product between."""
        found, seen, left = [], {name}, [name]
        while left:
            node = self._makers.get(left.pop())
            if node is None:
                continue
            if _multiplies(node):
                found += [node] if self._mixes(node) else []
                continue
            left += [one for one in node.input if one and one not in seen]
            seen.update(node.input)
        return found


def _settled_shape(value: onnx.ValueInfoProto) -> Shape | None:
    """Return a tensor's shape where every size is known."""
    kind = value.type.tensor_type
    if not kind.HasField("shape") or not all(d.HasField("dim_value") for d in kind.shape.dim):
        return None
    return tuple(d.dim_value for d in kind.shape.dim)


def _operands(node: onnx.NodeProto) -> list[str]:
    """Return what a product multiplies; "" for what it lacks."""
    return [(*node.input, "", "", "", "")[i] for i in OPERATORS[node.op_type].inputs]


def _multiplies(node: onnx.NodeProto) -> bool:
    return _standard(node) and node.op_type in OPERATORS


def _free(node: onnx.NodeProto) -> bool:
    """Whether all that a node does can be done on the way: no product, in no inner graph."""
    inner = (one for graph in _inner(node) for one in graph.node)
    return _standard(node) and all(_free(one) and not _multiplies(one) for one in inner)


def _standard(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx")


def _inner(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs inside a node."""
    found = [graph for one in node.attribute for graph in (one.g, *one.graphs)]
    return [graph for graph in found if graph.node]


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, from inside its graphs too."""
    yield from node.input
    for graph in _inner(node):
        for one in graph.node:
            yield from _reads(one)
