"""A count of the bytes of a model's tensors that exist at once, for samples larger than those of the data."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.core.growth import Growth
from hasten.core.shapes import Extent
from hasten.core.tensors import Array, TensorSpec
from hasten.measure.unrolling import inner_graphs

if TYPE_CHECKING:
    import onnx

USUAL = 1024
"""Size of an open dimension up to which samples are counted, however small it is in the data."""
_TIMES = 2
_SMALL = 4096
"""Largest number of elements of a tensor that is computed, since others' shapes may follow from it."""
_MOST_SHAPES = 8
"""Largest number of shapes of one size that are counted; else one that is as large in every dimension."""
_MOST_DOUBLINGS = 31
_MOST_HALVINGS = 31
_VIEWS = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""Operators whose output has the memory of their first input."""
_BY_CHANCE = ("Random", "Bernoulli", "Multinomial", "Dropout")
_STANDARD = ("", "ai.onnx")
_GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
"""Recurrent operators -> their gates, whose numbers for all steps are computed at once."""

Axes = tuple[tuple[str, int], ...]
"""Axes of inputs, each with the input's name, that have one size."""


def known_sizes(
    inputs: Sequence[TensorSpec], request: Sequence[TensorSpec], extents: Sequence[Extent]
) -> dict[tuple[str, int], int]:
    """Return the open axes of a model's inputs that are no batch's -> the largest size in the data.

    Those of the batch are returned if there are no others, since a server may have to run a request's rows together.

    Args:
        inputs: Inputs of the model; open dimensions have names.
        request: One request, without open dimensions.
        extents: Dimensions in which the samples of the data differ.
    """
    own = {spec.name: spec.sizes for spec in request}
    differ = {(one.input, one.axis): one.most for one in extents}
    firsts = {spec.shape[:1] for spec in inputs}
    rows = (
        len(firsts) == 1
        and all(first and isinstance(first[0], str) for first in firsts)
        and all(sizes[:1] == (1,) for sizes in own.values())
        and not any(axis == 0 for _, axis in differ)
    )
    open_ = [
        (spec.name, axis)
        for spec in inputs
        for axis, size in enumerate(spec.shape)
        if isinstance(size, str)
    ]
    lengths = [at for at in open_ if not (rows and at[1] == 0)]
    return {
        (name, axis): differ.get((name, axis), own[name][axis]) for name, axis in lengths or open_
    }


def growth_of(
    proto: onnx.ModelProto,
    inputs: Sequence[TensorSpec],
    request: Sequence[TensorSpec],
    extents: Sequence[Extent],
) -> tuple[Growth, ...]:
    """Count the memory of samples of 1, 2, 4, ... times the size in the data, up to where servers answer by default.

    Those of a half, a quarter, ... of it count, too, down to where all dimensions have the size 1.

    Of each size, that sample counts which takes the most: one that is longer in one of its dimensions. Where a
    tensor's size is a sum of products of sizes, one that is longer in several takes no more. Of smaller sizes, that counts
    which is as large in every dimension.

    Args:
        proto: The model, without functions of its own; its large weights may be missing.
        inputs: Its inputs; open dimensions have names.
        request: One request, without open dimensions.
        extents: Dimensions in which the samples of the data differ.

    Returns:
        Memory by size, or by rows where no other dimension is open; empty where none is open, or the tensors' sizes
        depend on values. Sizes that the model can't take are left out.
    """
    known = known_sizes(inputs, request, extents)
    if not known or not all(known.values()):
        return ()
    graph = _Graph(proto, {spec.name: spec for spec in request})
    largest = max(max(_TIMES, USUAL / size) for size in known.values())
    found = [*_longer_counts(graph, inputs, known, largest)]
    return (*_shorter_counts(graph, known, found[0].memory_bytes), *found) if found else ()


def _longer_counts(
    graph: _Graph,
    inputs: Sequence[TensorSpec],
    known: Mapping[tuple[str, int], int],
    largest: float,
) -> Iterator[Growth]:
    """Count samples as large as those of the data, and larger ones, up to at least `largest` times as large."""
    least = 1
    for doubling in range(min(_MOST_DOUBLINGS, math.ceil(math.log2(largest))) + 1):
        for chosen in _longer(inputs, known):
            sizes = {at: size << doubling if at in chosen else size for at, size in known.items()}
            taken = graph.bytes_with(sizes)
            if taken is None:
                return
            least = max(least, taken)
        yield Growth(2.0**doubling, least)


def _shorter_counts(graph: _Graph, known: Mapping[tuple[str, int], int], own: int) -> list[Growth]:
    """Count smaller samples than those of the data, which take `own` bytes, the smallest first."""
    found: list[Growth] = []
    for halving in range(1, min(_MOST_HALVINGS, math.ceil(math.log2(max(known.values())))) + 1):
        sizes = {at: -(-size >> halving) for at, size in known.items()}
        taken = graph.bytes_with(sizes)
        if taken is None:
            break
        own = max(1, min(own, taken))
        found.insert(0, Growth(0.5**halving, own))
    return found


def _longer(
    inputs: Sequence[TensorSpec], known: Mapping[tuple[str, int], int]
) -> Iterator[frozenset[tuple[str, int]]]:
    """Yield the axes that are longer in each shape to count: one dimension of each input, in every combination."""
    sharing: dict[object, list[tuple[str, int]]] = {}
    specs = {spec.name: spec for spec in inputs}
    for at, size in known.items():
        name = specs[at[0]].shape[at[1]]
        sharing.setdefault(at if name == "?" else (name, size), []).append(at)
    groups = {at: frozenset(group) for group in sharing.values() for at in group}
    each = {
        frozenset(groups[name, axis] for name, axis in known if name == spec.name)
        for spec in inputs
    } - {frozenset()}
    if math.prod(map(len, each)) > _MOST_SHAPES:
        yield frozenset(known)
        return
    for picked in itertools.product(*each):
        yield frozenset[tuple[str, int]]().union(*picked)


class _UnknownSize(Exception):  # noqa: N818 - it never leaves this file
    """A tensor's size doesn't follow from the sizes of the inputs."""


class _Graph:
    """A graph whose tensors' sizes follow from those of its inputs.

    Args:
        proto: The model, without functions of its own.
        request: Specs of one request by input name.
    """

    def __init__(self, proto: onnx.ModelProto, request: Mapping[str, TensorSpec]) -> None:
        self._proto, self._request = proto, request
        self._opsets = {
            "" if one.domain == "ai.onnx" else one.domain: one.version for one in proto.opset_import
        }
        self._evaluators: dict[int, tuple[onnx.NodeProto, Any]] = {}
        """Identity of a node -> the node, which must live as long as its identity counts, and what computes it."""

    def bytes_with(self, sizes: Mapping[tuple[str, int], int]) -> int | None:
        """Return the bytes of the tensors that exist at once, at most; None where a size is unknown or impossible.

        Args:
            sizes: Axes of inputs, each with the input's name -> the size; others are as in the request.
        """
        run = _Run(self, dict(self._weights[0]), dict(self._weights[1]))
        for spec in self._request.values():
            shape = [sizes.get((spec.name, axis), n) for axis, n in enumerate(spec.sizes)]
            run.starts_with(spec.name, np.dtype(spec.dtype), shape)
        try:
            run.follow(self._proto.graph)
        except _UnknownSize:
            return None
        return run.most_bytes({value.name for value in self._proto.graph.output})

    @cached_property
    def _weights(self) -> tuple[dict[str, onnx.TypeProto], dict[str, Array]]:
        types, values = dict[str, Any](), dict[str, Array]()
        _take_in(self._proto.graph, types, values)
        return types, values

    def inferred(
        self, node: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], values: Mapping[str, Array]
    ) -> dict[str, onnx.TypeProto]:
        """Return the types of a node's outputs.

        Raises:
            _UnknownSize: the operator is no standard one, or its output's size doesn't follow from its inputs.
        """
        import onnx
        from onnx import numpy_helper, shape_inference

        names = [name for name in node.input if name]
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opsets[""], "")
            data = {n: numpy_helper.from_array(values[n], n) for n in names if n in values}
            own = {name: types[name] for name in names}
            opsets = [onnx.helper.make_opsetid(*one) for one in self._opsets.items()]
            return dict(
                shape_inference.infer_node_outputs(
                    schema, node, own, data, opset_imports=opsets, ir_version=self._proto.ir_version
                )
            )
        except Exception as error:  # its C++ part raises several kinds
            raise _UnknownSize from error

    def computed(self, node: onnx.NodeProto, values: Mapping[str, Array]) -> list[Array]:
        """Return a node's outputs, computed from its inputs; none if that fails."""
        from onnx import reference

        with contextlib.suppress(Exception):  # whatever the operator's own code raises
            if id(node) not in self._evaluators:
                made = reference.ReferenceEvaluator(node, opsets=self._opsets)
                self._evaluators[id(node)] = node, made
            _, evaluator = self._evaluators[id(node)]
            given = {name: values[name] for name in node.input if name}
            return [np.asarray(array) for array in evaluator.run(None, given)]
        return []


class _Run:
    """Sizes of the tensors that a graph computes for inputs of certain sizes, and numbers of small ones.

    Args:
        graph: The graph.
        types: Types of weights.
        values: Numbers of small weights.
    """

    def __init__(
        self, graph: _Graph, types: dict[str, onnx.TypeProto], values: dict[str, Array]
    ) -> None:
        self._graph, self._types, self._values = graph, types, values
        self._weights = {*types}
        self._bytes: dict[str, int] = {}
        self._steps: list[tuple[list[str], list[str], int]] = []
        """Tensors that each step reads and makes, and bytes that it takes besides."""
        self._root: dict[str, str] = {}
        """Tensor -> the one in whose memory it is."""

    def starts_with(self, name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> None:
        """Add an input."""
        import onnx

        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        self._types[name] = onnx.helper.make_tensor_type_proto(kind, shape)
        self._weights.discard(name)
        self._bytes[name] = math.prod(shape) * dtype.itemsize
        self._steps.append(([], [name], 0))

    def follow(self, graph: onnx.GraphProto) -> None:
        """Follow a graph's nodes in their order.

        Raises:
            _UnknownSize: a tensor's size doesn't follow from those of the inputs.
        """
        for node in graph.node:
            if inner_graphs(node):
                self._branch(node)
            else:
                self._step(node)

    def _branch(self, node: onnx.NodeProto) -> None:
        """Follow that branch of a node which its condition chooses, where this is known."""
        condition = self._values.get(node.input[0]) if node.op_type == "If" else None
        if condition is None:
            raise _UnknownSize
        wanted = "then_branch" if condition.all() else "else_branch"
        (inner,) = (one.g for one in node.attribute if one.name == wanted)
        types = dict[str, Any]()
        _take_in(inner, types, self._values)
        self._types.update(types)
        self._weights.update(types)
        self.follow(inner)
        for value, name in zip(inner.output, node.output, strict=True):
            self._types[name] = self._types[value.name]
            if value.name in self._values:
                self._values[name] = self._values[value.name]
            self._alias(name, value.name)

    def _step(self, node: onnx.NodeProto) -> None:
        if node.domain not in _STANDARD:
            raise _UnknownSize
        types = self._graph.inferred(node, self._types, self._values)
        made = [name for name in node.output if name]
        for name in made:
            self._types[name] = types.get(name) or _untold()
            shape = _shape_of(self._types[name])
            self._bytes[name] = math.prod(shape) * _itemsize(self._types[name])
        self._compute(node, made)
        if made and all(name in self._values for name in made):
            for name in made:
                self._bytes[name] = 0
        elif node.op_type in _VIEWS:
            self._alias(made[0], node.input[0])
        elif all(name in self._weights for name in node.input if name) and node.input:
            self._weights.update(made)  # computed once, as the model is opened
            return
        self._steps.append(([n for n in node.input if n], made, self._besides(node)))

    def _compute(self, node: onnx.NodeProto, made: Sequence[str]) -> None:
        """Keep a node's outputs if they are small and follow from numbers that are known."""
        names = [name for name in node.input if name]
        shapes = [_shape_of(self._types[name]) for name in made]
        if node.op_type == "Shape":
            whole = _shape_of(self._types[names[0]])
            given = {one.name: one.i for one in node.attribute}
            end = given.get("end", len(whole))
            self._values[made[0]] = np.array(whole[given.get("start", 0) : end], np.int64)
            return
        known = names or node.op_type == "Constant"
        if (
            not known
            or node.op_type.startswith(_BY_CHANCE)
            or not all(name in self._values for name in names)
            or any(math.prod(shape) > _SMALL for shape in shapes)
        ):
            return
        for name, array in zip(made, self._graph.computed(node, self._values), strict=False):
            self._values[name] = array

    def _besides(self, node: onnx.NodeProto) -> int:
        """Return the bytes that an operator takes for what its outputs don't show: attention's scores, or gates."""
        if node.op_type in _GATES:
            steps, rows, width = _shape_of(self._types[node.input[0]])
            directions, wide, _ = _shape_of(self._types[node.input[1]])
            itemsize = _itemsize(self._types[node.input[0]])
            return steps * rows * max(width, directions * wide) * itemsize
        if node.op_type != "Attention":
            return 0
        query, key = (_shape_of(self._types[name]) for name in node.input[:2])
        heads = {one.name: one.i for one in node.attribute}.get("q_num_heads", 0) or query[1]
        past = 0
        if len(node.input) > 4 and node.input[4]:
            past = _shape_of(self._types[node.input[4]])[-2]
        scores = query[0] * heads * query[-2] * (key[-2] + past)
        return 2 * scores * _itemsize(self._types[node.input[0]])

    def _alias(self, name: str, source: str) -> None:
        if source in self._weights:
            self._weights.add(name)
        self._root[name] = self._root.get(source, source)
        self._bytes[name] = 0

    def most_bytes(self, outputs: set[str]) -> int:
        """Return the bytes of the tensors that exist at once, at most, in the order of the nodes.

        Args:
            outputs: Outputs of the graph, which exist until the end.
        """
        last: dict[str, int] = {}
        for number, (read, made, _) in enumerate(self._steps):
            for name in (*read, *made):
                last[self._root.get(name, name)] = number
        for name in outputs:
            last[self._root.get(name, name)] = len(self._steps)
        ending: dict[int, list[str]] = {}
        for name, number in last.items():
            ending.setdefault(number, []).append(name)
        alive = most = 0
        for number, (_, made, besides) in enumerate(self._steps):
            alive += sum(self._bytes[name] for name in made)
            most = max(most, alive + besides)
            alive -= sum(self._bytes.get(name, 0) for name in ending.get(number, ()))
        return most


def _take_in(
    graph: onnx.GraphProto, types: dict[str, onnx.TypeProto], values: dict[str, Array]
) -> None:
    """Add the types of a graph's weights, and the numbers of small ones."""
    import onnx
    from onnx import numpy_helper

    for tensor in graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        outside = tensor.data_location == onnx.TensorProto.EXTERNAL
        if math.prod(tensor.dims) <= _SMALL and not outside:
            with contextlib.suppress(Exception):  # whatever a damaged tensor makes it raise
                values[tensor.name] = numpy_helper.to_array(tensor)


def _shape_of(value: onnx.TypeProto) -> tuple[int, ...]:
    """Return a tensor's shape.

    Raises:
        _UnknownSize: it is no tensor, or a size is unknown or impossible.
    """
    kind = value.tensor_type
    if not kind.HasField("shape") or not all(d.HasField("dim_value") for d in kind.shape.dim):
        raise _UnknownSize
    shape = tuple(d.dim_value for d in kind.shape.dim)
    if any(size < 0 for size in shape):  # a window is larger than its input
        raise _UnknownSize
    return shape


def _itemsize(value: onnx.TypeProto) -> int:
    import onnx

    try:
        return int(onnx.helper.tensor_dtype_to_np_dtype(value.tensor_type.elem_type).itemsize)
    except Exception as error:  # it raises several kinds
        raise _UnknownSize from error


def _untold() -> onnx.TypeProto:
    import onnx

    return onnx.TypeProto()
