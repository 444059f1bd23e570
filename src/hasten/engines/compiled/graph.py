"""A plan that is being made from an ONNX graph: its nodes, and its values by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.fusion import fused, needed_of
from hasten.engines.compiled.operators import programs
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.tensors import C_TYPES, contiguous
from hasten.engines.compiled.values import REFUSES, Bytes, Draft, Pending, Value, ordered
from hasten.engines.failures import failed
from hasten.errors import CandidateError, NotCovered, visible

if TYPE_CHECKING:
    import onnx


@dataclass
class Node:
    """Node of the ONNX graph that is being turned into operations.

    Attributes:
        graph: Plan so far.
        proto: The node.
        attributes: Attributes by name; texts are decoded.
        opset: Version of the operator's set.
    """

    graph: Graph
    proto: onnx.NodeProto
    attributes: Mapping[str, Any]
    opset: int

    def refuse(self, why: str) -> NoReturn:
        """Leave the model to other engines."""
        proto = self.proto
        named = (
            f"{proto.name!r:.80}" if proto.name else f"that gives {''.join(proto.output[:1])!r:.80}"
        )
        operator = visible(proto.op_type[:80])
        raise NotCovered(f"{REFUSES} {operator} (node {named}): {why}")

    def has(self, place: int) -> bool:
        """Whether an input, which may be left out, is there."""
        return len(self.proto.input) > place and bool(self.proto.input[place])

    def peek(self, place: int) -> Value:
        """Return an input, which may have no tensor of its own."""
        if not self.has(place):
            self.refuse(f"its input {place} is missing")
        return self.graph.values[self.proto.input[place]]

    def input(self, place: int) -> Value:
        """Return an input as a tensor or a constant, of which nothing else is known.

        What is known of bytes holds for their shape alone, and operators give inputs under other shapes.
        """
        self.peek(place)
        found = self.graph.plain(self.proto.input[place])
        return replace(found, bytes=None, words=None, pending=None, levels=None)

    @property
    def inputs(self) -> list[Value]:
        """All inputs, none of which is left out."""
        return [self.input(place) for place in range(len(self.proto.input))]

    def constant(self, place: int, what: str) -> Array:
        """Return an input that must be known now."""
        found = self.input(place).constant
        if found is None:
            self.refuse(f"its {what} must be constant")
        return found

    def axis(self, axis: int, rank: int) -> int:
        """Return an axis that may count from the end, from the start."""
        if not -rank <= axis < rank:
            self.refuse(f"it uses axis {axis} of a tensor with {rank} axes")
        return axis % rank

    def give(self, value: Value, place: int = 0) -> None:
        """Say what an output is."""
        if len(self.proto.output) > place and self.proto.output[place]:
            self.graph.values[self.proto.output[place]] = value

    def wants(self, place: int) -> bool:
        """Whether an output is used."""
        return len(self.proto.output) > place and bool(self.proto.output[place])

    def computed(
        self, dtype: str, shape: Sequence[int], batch: int | None, place: int = 0
    ) -> Value:
        """Make an output that an operation is going to write; return it."""
        value = self.graph.new(dtype, tuple(shape), batch)
        self.give(value, place)
        return value

    def evaluated(self, named: Mapping[str, Array]) -> list[Array] | None:
        """Return the node's outputs as the standard's evaluator computes them; None where it can't.

        Args:
            named: Its inputs by name.
        """
        import onnx
        from onnx.reference import ReferenceEvaluator

        proto = self.proto
        inputs = [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in named.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
        made = onnx.helper.make_graph([proto], "constant", inputs, outputs)
        model = onnx.helper.make_model(
            made, opset_imports=[onnx.helper.make_opsetid(proto.domain, self.opset)]
        )
        try:
            return list(ReferenceEvaluator(model).run(None, dict(named)))
        except Exception:  # it knows few versions of operators; a lowering may know this one
            return None

    def mixes_rows(self) -> None:
        """Say that rows of a batch aren't answered each by itself."""
        self.graph.by_row = False


@dataclass
class Graph(Draft):
    """Plan so far, with the names of an ONNX graph.

    Attributes:
        values: Values by their name in ONNX.
        by_row: Whether rows are answered each by itself, as far as is known.
        lowerings: Lowering of each operator over any numbers, by its name.
        known: Bytes of values by the value's name in ONNX, the zero and the scale.
        rounded: Sums, and the first bytes that they were rounded to, by the sums' id.
        between: Names of bytes that are read only by the DequantizeLinear of their QuantizeLinear, so that
            nothing sees which bytes they are.
    """

    values: dict[str, Value] = field(default_factory=dict)
    by_row: bool = True
    lowerings: Mapping[str, Callable[[Node], None]] = field(default_factory=dict)
    known: dict[tuple[str, int, float], Bytes] = field(default_factory=dict)
    rounded: dict[int, tuple[Pending, Bytes]] = field(default_factory=dict)
    between: frozenset[str] = frozenset()

    def plain(self, name: str) -> Value:
        """Return a value as a tensor or a constant; bytes become floats, sums are computed.

        Args:
            name: Its name in ONNX.
        """
        value = self.values[name]
        if not value.narrow or value.tensor or value.constant is not None:
            return value
        if value.pending is not None:
            made = replace(value.pending.floats(), shape=value.shape, batch=value.batch)
        elif value.dtype == "float32":
            narrow = value.bytes or value.words
            assert narrow is not None
            made = narrow.floats(self, value)
        else:
            made = self._as_given(value)
        self.values[name] = made
        return made

    def _as_given(self, value: Value) -> Value:
        """Return bytes or words, which something else than a DequantizeLinear reads, as a tensor."""
        if value.words is not None:
            if value.dtype != "int16":  # stored words are 32768 lower
                raise NotCovered(f"{REFUSES} tensors of {value.dtype}")
            tensor = ordered(self, value.words.tensor, value.words.last, value.shape, False)
            return replace(value, tensor=tensor)
        assert value.bytes is not None
        tensor = ordered(self, value.bytes.tensor, value.bytes.last, value.shape, False)
        if value.dtype == "uint8":
            return replace(value, tensor=tensor)
        made = self.new(value.dtype, value.shape, value.batch)
        wide = Step("cast", (0,), "int32")
        steps = [wide, Step("value", (), "int32", "128"), Step("subtract", (1, 2), "int32")]
        steps.append(Step("cast", (3,), value.dtype))
        self.map(
            steps,
            [(replace(value, dtype="uint8", tensor=tensor), contiguous(value.shape), 0)],
            made,
        )
        return replace(made, bytes=value.bytes)

    def _check_work(self, operations: Sequence[Operation]) -> None:
        """Check that a quantized model calculates with bytes for the most part, where it has much to do."""
        narrow = sum(one.work for one in operations if one.narrow)
        floats = sum(one.work for one in operations if not one.narrow)
        if floats > max(self.most_work, narrow):
            said = f" ({floats / 1e6:,.0f} million; with bytes {narrow / 1e6:,.0f} million)"
            self._refuse_work(said)

    def plan(self, inputs: Sequence[str], outputs: Sequence[str]) -> Plan:
        """Return the plan, without what nothing reads.

        Args:
            inputs: Tensors of the inputs.
            outputs: Names of the outputs in ONNX.
        """
        given = tuple(inputs)
        taken: list[str] = []
        shapes = []
        for name in outputs:
            if name not in self.values:
                raise CandidateError(f"the output {name!r} isn't computed")
            value = self.plain(name)
            if value.dtype not in C_TYPES:
                raise NotCovered(
                    f"the compiled engine returns only numbers: the output {name!r} is "
                    f"{value.dtype}"
                )
            written = {one for operation in self.operations for one in operation.writes}
            if value.constant is not None or value.tensor not in written or value.tensor in taken:
                value = self.copy(value)
            taken.append(value.tensor)
            shapes.append(value.shape)
            self.by_row = self.by_row and value.batch == 0 and value.shape[:1] == (1,)
        needed = needed_of(self.operations, set(taken))
        self._check_work(needed)
        dtypes = {name: tensor.dtype for name, tensor in self.tensors.items()}
        operations = fused(needed, frozenset(taken), self._sources, dtypes)
        used = {*given, *taken}
        used.update(name for one in operations for name in (*one.reads, *one.writes))
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in used}
        sources = {
            name: self._sources[name]
            for one in operations
            for name in one.writes
            if self._sources[name]
        }
        return Plan(
            tensors, tuple(operations), given, tuple(taken), tuple(shapes), self.by_row, sources
        )


def broadcast(value: Value, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides by which a value is read over loops of a shape that it is broadcast to."""
    strides = contiguous(value.shape)
    lead = len(shape) - len(value.shape)
    return (0,) * lead + tuple(
        0 if size == 1 else stride for size, stride in zip(value.shape, strides, strict=True)
    )


def scalar(value: Value) -> str | None:
    """Return the text of a constant's only number; None for anything else."""
    if value.constant is None or value.constant.size != 1 or value.dtype not in C_TYPES:
        return None
    return programs.number(value.constant.reshape(-1)[0], value.dtype)


def as_array(tensor: Any) -> Array:
    """Return a constant of an ONNX file as a read-only array.

    Raises:
        CandidateError: the file is damaged there.
    """
    import onnx

    try:
        array = np.asarray(onnx.numpy_helper.to_array(tensor), order="C")
    except (KeyError, TypeError, ValueError) as error:
        raise failed(f"the constant {tensor.name!r:.100} can't be read", error) from error
    array.flags.writeable = False
    return array
