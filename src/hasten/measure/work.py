"""The least work of a model's layers, counted from its graph: operations and elements."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hasten.core.model import Model
from hasten.core.tensors import Tensors
from hasten.engines.layers import node_name
from hasten.engines.onnxruntime.shapes import Execution, executions
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.onnx import read
from hasten.measure.products import Count, Product, Shape, free, operator_of
from hasten.measure.roofline import LayerWork
from hasten.measure.unrolling import inner_graphs, reads, unrolled

if TYPE_CHECKING:
    import onnx

_SMALL = 1024
"""Largest number of elements of a constant that may be a shape from which others follow."""
_VALUES = ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data")
_REQUEST_ALONE = ("Constant", "Shape", "Size")
"""Operators whose output depends only on the request's shapes, not on its values."""
_RECURRENT = ("DynamicQuantizeLSTM", "GRU", "LSTM", "RNN")
_LENGTHS = 4
"""Position of the sequences' lengths among a recurrent node's inputs."""


def work(model: Model, request: Tensors) -> tuple[LayerWork, ...]:
    """Count the work of every layer that does arithmetic, in order; other layers cost nothing.

    Activations, normalizations, pooling, copies and changes of shape can be done on the way by a
    neighbouring layer, so a lower bound ignores them. Layers that don't depend on the inputs'
    values, or that no output depends on, need not run at all. Attention's scores need not be
    stored, since kernels that fuse it keep them. A layer in a loop's body counts as often as the
    request runs it; one in a branch that the request doesn't take doesn't count.

    Where the file doesn't determine the shapes, ONNX Runtime answers the request and reports them.

    Args:
        model: ONNX model with its request settled.
        request: One request by input name, with the shapes in `model.request`.

    Returns:
        Layers with products, and layers with an unknown number of them: see `LayerWork.counted`.

    Raises:
        InputError: the model isn't ONNX, or its request isn't settled.
    """
    if model.format != "onnx":
        raise InputError(f"work is counted in an ONNX model; got one of format {model.format!r}")
    settled = {spec.name: spec.sizes for spec in model.request or model.inputs}
    proto, names = _identified(read(model.path))
    graph = _inferred(proto, settled, model.path.parent)
    layers = tuple(_Graph(graph, names, {}).layers())
    if not all(layer.counted for layer in layers):
        with contextlib.suppress(CandidateError):  # then those layers stay uncounted
            whole, _ = _identified(read(model.path))
            seen = executions(whole, model, request)
            layers = tuple(_Graph(graph, names, seen).layers())
    return layers


def _identified(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Give every node a name of its own, and replace calls to functions by the functions' nodes.

    Returns:
        The model; and each node's new name -> its name in the file.
    """
    from onnx import inliner

    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    names: dict[str, str] = {}
    for node in _all_nodes(proto.graph):
        new = f"node{len(names)}"
        names[new] = node_name(node)
        node.name = new
    return proto, names


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from _all_nodes(inner)


def _inferred(
    proto: onnx.ModelProto, settled: Mapping[str, tuple[int, ...]], folder: Path
) -> onnx.GraphProto:
    """Fill in the shapes that follow from one request, and drop the large weights.

    If the shapes contradict each other, only those that the file states for its inputs remain.
    """
    import onnx
    from onnx import external_data_helper

    for tensor in proto.graph.initializer:
        if math.prod(tensor.dims) > _SMALL:
            for field in _VALUES:
                tensor.ClearField(field)
        elif tensor.data_location == onnx.TensorProto.EXTERNAL:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    for value in proto.graph.input:
        if value.name in settled:
            dims = value.type.tensor_type.shape.dim
            del dims[:]
            for size in settled[value.name]:
                dims.add().dim_value = size
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    del proto.graph.value_info[:]  # it may have names of dimensions that are settled now
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except Exception:  # its C++ part raises several kinds
        return proto.graph


class _Graph:
    """A graph with its shapes, what depends on its inputs, and what its outputs depend on.

    Args:
        graph: Graph in which all nodes, those of inner graphs too, have different names.
        names: Node -> its name in the file.
        seen: Node -> its executions for one request; empty where none was observed.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        names: Mapping[str, str],
        seen: Mapping[str, Sequence[Execution]],
    ) -> None:
        found = unrolled(graph, seen.keys())
        self._nodes, self._initializers = found.nodes, found.initializers
        self._names, self._seen = names, seen
        self._outputs = {value.name for value in graph.output}
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
            if not self._live.intersection(node.output) or _first(node) in self._constants:
                continue
            name = self._names.get(node.name, "")
            if _multiplies(node):
                counts = self._counts(node)
                if counts is None:
                    yield LayerWork(name, node.op_type)
                elif any(count.multiplications for count in counts):
                    yield self._layer(node, counts, weighed)
            elif not _free(node):
                yield LayerWork(name, node.op_type)

    def _layer(
        self, node: onnx.NodeProto, counts: Sequence[Count], weighed: set[frozenset[str]]
    ) -> LayerWork:
        output = _first(node)
        read: dict[str, int] = {}
        weights = 0
        needs = map(max, zip(*(count.needed for count in counts), strict=True))
        for operand, needed in zip(_operands(node), needs, strict=True):
            roots = self._constants.get(operand)
            if roots is None:
                read[operand] = needed if operand not in self._kept[output] else 0
            elif roots not in weighed:
                weighed.add(roots)
                weights += needed
        passed_on = output in self._passed_on
        written = 0 if passed_on else max(math.prod(to) for _, to in self._met(node))
        operations = 2 * sum(count.multiplications for count in counts)
        name = self._names[node.name]
        return LayerWork(name, node.op_type, operations, sum(read.values()), weights, written)

    def _counts(self, node: onnx.NodeProto) -> list[Count] | None:
        """Count a product, once per execution; return None where its shapes don't determine it."""
        import onnx

        recurrent = node.op_type in _RECURRENT
        cut_short = recurrent and len(node.input) > _LENGTHS and node.input[_LENGTHS]
        operator = operator_of(node.domain, node.op_type)
        met = self._met(node)
        if operator is None or cut_short or not met:
            return None
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        counts = [operator.count(Product(operands, to, attributes)) for operands, to in met]
        known = [count for count in counts if count is not None]
        return known if len(known) == len(counts) else None

    def _met(self, node: onnx.NodeProto) -> list[tuple[tuple[Shape, ...], Shape]]:
        """Return the operands' and output's shapes of each execution; empty where unknown."""
        there = [name for name in node.input if name]
        operands, output = _operands(node), _first(node)
        executions = self._seen.get(node.name, ())
        if executions and all(len(one.inputs) == len(there) for one in executions):
            if not all(operands):
                return []
            places = [there.index(name) for name in operands]
            return [(tuple(one.inputs[i] for i in places), one.outputs[0]) for one in executions]
        shapes = [self._shapes.get(name) for name in (*operands, output)]
        known = [shape for shape in shapes if shape is not None]
        return [(tuple(known[:-1]), known[-1])] if len(known) == len(shapes) else []

    @cached_property
    def _constants(self) -> dict[str, frozenset[str]]:
        """Return tensors that don't depend on inputs -> initializers and constants behind them."""
        found = {name: frozenset([name]) for name in self._initializers}
        for node in self._nodes:
            names = [name for name in node.input if name]
            if node.op_type in _REQUEST_ALONE:
                found[node.output[0]] = frozenset(node.output)
            elif node.op_type in ("Loop", "Scan") or inner_graphs(node):
                continue
            elif names and all(name in found for name in names):
                roots = frozenset[str]().union(*(found[name] for name in names))
                found.update({name: roots for name in node.output if name})
        return found

    @cached_property
    def _live(self) -> set[str]:
        """Return the tensors that an output depends on."""
        needed = set(self._outputs)
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(filter(None, reads(node)))
        return needed

    @cached_property
    def _kept(self) -> dict[str, set[str]]:
        """Return a product's output -> those of its operands that are never stored.

        They are attention's scores: what one product of two activations passes on to another,
        whatever is done on the way.
        """
        found: dict[str, set[str]] = {}
        for node in filter(_multiplies, self._nodes):
            operands = _operands(node)
            mixes = self._mixes(node)
            found[_first(node)] = {n for n in operands if mixes and self._mixed(n)}
        return found

    @cached_property
    def _passed_on(self) -> set[str]:
        """Return the products' outputs that go into a `_kept` operand."""
        operands = {name for kept in self._kept.values() for name in kept}
        return {_first(node) for name in operands for node in self._mixed(name)}

    def _mixes(self, node: onnx.NodeProto) -> bool:
        """Whether a product multiplies activations only."""
        return node.op_type in ("MatMul", "Einsum") and not any(
            name in self._constants for name in _operands(node)
        )

    def _mixed(self, name: str) -> list[onnx.NodeProto]:
        """Return the products of activations that a tensor was made from directly."""
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
    """Return the names of a product's operands; "" for one that it lacks."""
    operator = operator_of(node.domain, node.op_type)
    places = operator.inputs if operator else ()
    return [(*node.input, "", "", "", "")[i] for i in places] or list(node.input)


def _first(node: onnx.NodeProto) -> str:
    """Return a node's first output that exists."""
    return next(filter(None, node.output), "")


def _multiplies(node: onnx.NodeProto) -> bool:
    return operator_of(node.domain, node.op_type) is not None


def _free(node: onnx.NodeProto) -> bool:
    """Whether a node can be computed on the way: it has no product, nor do its inner graphs."""
    inner = (one for graph in inner_graphs(node) for one in graph.node)
    return free(node.domain, node.op_type) and all(map(_free, inner))
