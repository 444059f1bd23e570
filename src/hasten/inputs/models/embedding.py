"""Tables that a model looks its inputs' numbers up in, such as the embedding of tokens."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.lookups import MOST_NUMBERS, Lookup
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.text import Tokenize

if TYPE_CHECKING:
    import onnx

_SAME_VALUES = frozenset(
    ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
)
"""Operators that hand numbers on as they are."""
_PARTS = frozenset(("Gather", "Slice", "Split"))
"""Operators that hand some of the numbers on."""
_SUMS = {"Add": 1, "Sub": -1}
"""Operators that may add a constant to the numbers, or its negative."""
_MOST_ADDED = 1 << 30
"""Largest constant that is followed. A sum of int32 that overflows is then no row of a table with fewer rows than this."""
_WHOLE = (6, 7)
"""ONNX's numbers of int32 and int64, to one of which a cast keeps the numbers of rows."""
_TABLES = {
    ("", "Gather"): ((1, 0),),
    ("com.microsoft", "EmbedLayerNormalization"): ((0, 2), (1, 4)),
}
"""Operators that look numbers up: places of the inputs with the numbers and with the table."""
_OF_A_TABLE = frozenset(("Cast", "DequantizeLinear", "Identity", "QuantizeLinear"))
"""Operators whose output has as many rows as their first input."""
_OPEN, _LONG = 61, 4099
"""Sizes that stand for an open one. Tables count where both give the same, since a graph may cut the axis at a place."""
_MOST_PLACES = 1 << 18
"""Largest size of an input that may have tables."""
_MOST_FOLLOWED = 64 * _MOST_PLACES
"""Largest number of places of all tensors together that an input's numbers are followed to."""
_FREE = np.int64(1 << 62)
"""Bound of a place without a table."""
_MOST_STEPS = 8
"""Largest number of operators between a constant and the table that is made of it."""
_ROUNDED = 128
"""Largest multiple to which models usually round the rows of their embedding up."""
_SPARE = 1.01
"""Rows that some models have in reserve, by what their tokenizer and rounding explain."""


def check_vocabulary(
    pipeline: Pipeline, proto: onnx.ModelProto, inputs: Sequence[TensorSpec]
) -> str:
    """Check that a model's embedding has a row for every token of its pipeline's tokenizer.

    A model whose embedding can't be found, as in one that was split or fused, passes.

    Args:
        pipeline: Steps before the model.
        proto: Model, with or without its external data.
        inputs: Specs of its inputs.

    Returns:
        Note for people where the embedding has more rows than its rounding up explains, as where
        the tokenizer is that of another model; "" otherwise.

    Raises:
        InputError: the tokenizer has more tokens than the embedding has rows.
    """
    tokenizers = [step for step in pipeline.steps if isinstance(step, Tokenize)]
    tables = lookups_of(proto, inputs) if tokenizers else ()
    for step in tokenizers:
        rows = next((table.least for table in tables if table.input == step.ids), None)
        if rows is not None and step.vocabulary > rows:
            raise InputError(
                f"the tokenizer's numbers go up to {step.vocabulary - 1}, but the model's "
                f"embedding has {rows} rows: give the tokenizer that the model was trained with"
            )
        if rows is not None and rows > math.ceil(step.vocabulary / _ROUNDED) * _ROUNDED * _SPARE:
            return (
                f"the model's embedding has {rows} rows, but the tokenizer's numbers go up to "
                f"{step.vocabulary - 1} only: check that the model was trained with this tokenizer, "
                "because another one gives wrong answers and no error"
            )
    return ""


def lookups_of(proto: onnx.ModelProto, inputs: Sequence[TensorSpec]) -> tuple[Lookup, ...]:
    """Return the tables that a graph looks the numbers of its inputs up in, as they are.

    A number that is calculated with before, except that a constant is added, or that is looked up in a branch or a
    loop, isn't found.

    Args:
        proto: Model, with or without its external data.
        inputs: Specs of its inputs.
    """
    found, constants = [], _Constants(proto)
    looked_up = [(name, count) for name, count in constants.tables() if count]
    for spec in inputs if looked_up else ():
        if np.dtype(spec.dtype).kind not in "iuf":
            continue
        every = [_bounds(spec, sizes, looked_up, constants) for sizes in _settled(spec.shape)]
        if not every or any(bounds.shape != every[0].shape for bounds in every):
            continue
        below, rows = np.where(np.min(every, 0) > 0, np.max(every, 0), 0)
        if rows.any():
            first = np.where(rows > 0, 1 - below, 0)
            numbers = () if (first == -rows).all() else tuple(first.ravel().tolist())
            found.append(Lookup(spec.name, rows.shape, tuple(rows.ravel().tolist()), numbers))
    return tuple(found)


def _settled(shape: Sequence[int | str]) -> Iterator[list[int]]:
    """Yield sizes that a shape may have: one for all of its open axes, then a longer one for each of them.

    Nothing is yielded for a shape that is too large, or that holds nothing.
    """
    sizes = [_OPEN if isinstance(size, str) else size for size in shape]
    if not 0 < math.prod(sizes) <= _MOST_PLACES:
        return
    yield sizes
    for axis, size in enumerate(shape):
        if isinstance(size, str):
            long = min(_LONG, _MOST_PLACES // (math.prod(sizes) // _OPEN))
            yield [*sizes[:axis], long, *sizes[axis + 1 :]]


def _bounds(
    spec: TensorSpec,
    sizes: Sequence[int],
    looked_up: Sequence[tuple[str, int]],
    constants: _Constants,
) -> Array:
    """Return the numbers that each place of an input may have, by the tables together.

    The first entry is how many they are from 0 downwards, and the second from 0 upwards. Both are 0 for a place
    without a table, and for one of which 0 isn't a row.

    Args:
        spec: The input.
        sizes: Its shape, with sizes in place of open ones.
        looked_up: Names of what is looked up, and the rows of their tables.
        constants: The model's constants.
    """
    bounds = np.full((2, math.prod(sizes)), _FREE)
    places = constants.places(spec.name, np.arange(math.prod(sizes)).reshape(sizes))
    for name, count in looked_up:
        if name in places:
            added, own = np.divmod(places[name].ravel(), _MOST_PLACES)
            np.minimum.at(bounds[0], own, count + added + 1)
            np.minimum.at(bounds[1], own, count - added)
    found = ((bounds > 0) & (bounds < _FREE)).all(0)
    bounds = np.where(found, bounds, 0).reshape(2, *sizes)
    for axis, size in enumerate(spec.shape, 1):
        if isinstance(size, str) or (bounds == bounds.take([0], axis)).all():
            bounds = _alike(bounds, (axis,))
    return _alike(bounds, tuple(range(1, bounds.ndim))) if bounds[0].size > MOST_NUMBERS else bounds


def _alike(bounds: Array, axes: tuple[int, ...]) -> Array:
    """Return the bounds that each place along axes has at most, or 0 where one has no table."""
    every = (bounds > 0).all(axes, keepdims=True)
    return np.where(every, bounds.max(axes, keepdims=True), 0)


def _domain(node: onnx.NodeProto) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _axis(node: onnx.NodeProto) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == "axis"), 0)


def _numbers(tensor: onnx.TensorProto) -> int:
    """Return how many numbers a tensor has, or more than `MOST_NUMBERS`; it may state a million axes."""
    count = MOST_NUMBERS + 1 if tensor.data_location == tensor.EXTERNAL else 1
    for size in tensor.dims:
        count *= size
        if not 0 <= count <= MOST_NUMBERS:
            return MOST_NUMBERS + 1
    return count


def _numbers_made(node: onnx.NodeProto) -> int:
    """Return how many numbers a node makes, or more than `MOST_NUMBERS`, as where it isn't a constant of whole ones."""
    if node.op_type == "Constant" and len(node.attribute) == 1:
        (one,) = node.attribute
        if one.name in ("value_int", "value_ints"):
            return len(one.ints) or 1
        if one.name == "value":
            return _numbers(one.t)
    return MOST_NUMBERS + 1


class _Constants:
    """Constants of a graph: tables, and what says how a node moves numbers."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._nodes = proto.graph.node
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._makers = {name: node for node in self._nodes for name in node.output}
        self._sets = {entry.domain: entry.version for entry in proto.opset_import}

    def tables(self) -> Iterator[tuple[str, int]]:
        """Yield each tensor of numbers that are looked up, and the rows of its table; 0 where it isn't constant."""
        for node in self._nodes:
            for numbers, table in _TABLES.get((_domain(node), node.op_type), ()):
                if len(node.input) > max(numbers, table):
                    yield node.input[numbers], self._size(node.input[table], _axis(node))

    def places(self, name: str, own: Array) -> dict[str, Array]:
        """Return the tensors with an input's numbers, each as the places of the input that they are from.

        To a place, `_MOST_PLACES` times what is added to its number is added. Where the order of the places
        isn't known, they have one axis.

        Args:
            name: Name of the input.
            own: Numbers of its places.
        """
        found, left = {name: own}, _MOST_FOLLOWED
        for node in self._nodes:  # ONNX has nodes in the order of their computation
            moved: list[Array] = []
            if not _domain(node) and node.op_type in _SUMS:
                moved = self._added(node, found)
            elif not _domain(node) and node.input and node.input[0] in found:
                moved = self._moved(node, found[node.input[0]])
            left -= sum(array.size for array in moved)
            if left < 0:
                break
            found.update(zip(node.output, moved, strict=False))
        return found

    def _size(self, table: str, axis: int) -> int:
        """Return the size of a constant table along an axis; 0 for another tensor, or no such axis."""
        for _ in range(_MOST_STEPS):
            node, tensor = self._makers.get(table), self._tensors.get(table)
            if node is not None and node.op_type == "Constant":
                tensor = next((one.t for one in node.attribute if one.name == "value"), None)
            if tensor is not None:
                dims = tensor.dims
                return int(dims[axis]) if -len(dims) <= axis < len(dims) else 0
            if node is None or node.op_type not in _OF_A_TABLE or not node.input:
                return 0
            table = node.input[0]
        return 0

    def _constant(self, name: str) -> Array | None:
        """Return a small constant of whole numbers; None for anything else."""
        # Imported here: only a model that adds to numbers before it looks them up needs it.
        from onnx import TensorProto, helper, numpy_helper

        node, value = self._makers.get(name), self._tensors.get(name)
        if node is not None and node.op_type == "Constant" and len(node.attribute) == 1:
            value = helper.get_attribute_value(node.attribute[0])
        if isinstance(value, TensorProto):
            if _numbers(value) > MOST_NUMBERS:
                return None
            try:
                value = numpy_helper.to_array(value)
            except Exception:  # a damaged tensor raises many
                return None
        if not isinstance(value, (int, list, np.ndarray)):
            return None
        array = np.asarray(value)
        small = array.size <= MOST_NUMBERS and array.dtype in (np.int32, np.int64)
        near = small and bool(np.all((array >= -_MOST_ADDED) & (array <= _MOST_ADDED)))
        return array if near else None

    def _added(self, node: onnx.NodeProto, found: Mapping[str, Array]) -> list[Array]:
        """Return the places of a node's output, which adds a constant to numbers; none where it does something else."""
        if len(node.input) != 2:
            return []
        own, other = node.input
        if node.op_type == "Add" and own not in found:
            own, other = other, own
        given = found.get(own)
        constant = None if given is None or other in found else self._constant(other)
        if given is None or constant is None or (given.ndim == 1 and constant.size != 1):
            return []
        with contextlib.suppress(ValueError):  # the shapes don't fit
            if math.prod(np.broadcast_shapes(given.shape, constant.shape)) == given.size:
                moved = given + _SUMS[node.op_type] * _MOST_PLACES * constant.astype(np.int64)
                if np.abs(moved).max(initial=0) <= _MOST_ADDED * _MOST_PLACES:
                    return [moved.ravel() if given.ndim == 1 else moved]
        return []

    def _moved(self, node: onnx.NodeProto, given: Array) -> list[Array]:
        """Return the places that the numbers of a node's outputs are from; none where it calculates with them."""
        kept = node.op_type in _SAME_VALUES
        if not kept and (node.op_type not in _PARTS or given.ndim == 1):
            return []
        if node.op_type == "Cast":
            whole = any(one.name == "to" and one.i in _WHOLE for one in node.attribute)
            return [given] if whole else []
        if node.op_type == "Identity" or given.ndim == 1:
            return [given]
        others = {name for name in node.input[1:] if name}
        makers = [self._makers[name] for name in others if name in self._makers]
        tensors = [self._tensors[name] for name in others if name in self._tensors]
        count = sum(map(_numbers, tensors)) + sum(map(_numbers_made, makers))
        known = len(makers) + len(tensors) == len(others) and count <= MOST_NUMBERS
        with contextlib.suppress(Exception):  # the evaluator raises many, on damaged graphs too
            if node.op_type == "Gather":  # which may repeat numbers
                known = known and given.size // given.shape[_axis(node)] * count <= _MOST_PLACES
            if known:
                return self._evaluated([*makers, node], tensors, given)
        return [given.ravel()] if kept else []

    def _evaluated(
        self, nodes: Sequence[onnx.NodeProto], tensors: Sequence[onnx.TensorProto], given: Array
    ) -> list[Array]:
        # Imported here: only a model that moves numbers before it looks them up needs it.
        from onnx import TensorProto, helper
        from onnx.reference import ReferenceEvaluator

        *_, node = nodes
        taken, *made = (
            helper.make_tensor_value_info(name, TensorProto.INT64, None)
            for name in (node.input[0], *node.output)
        )
        graph = helper.make_graph(nodes, "moved", [taken], made, tensors)
        answers = ReferenceEvaluator(graph, self._sets).run(None, {node.input[0]: given})
        return [np.asarray(answer) for answer in answers]
