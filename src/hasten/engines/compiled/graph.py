"""A plan that is being made from an ONNX graph: values with shapes, over the plan's flat tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators import programs
from hasten.engines.compiled.operators.maps import Map
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.tensors import C_TYPES, Access, Tensor, Weights, contiguous, product
from hasten.engines.failures import failed
from hasten.errors import CandidateError, NotCovered, visible

if TYPE_CHECKING:
    import onnx

    from hasten.engines.compiled.nodes.int8.values import Bytes, Levels, Pending
    from hasten.engines.compiled.nodes.int8.words import Words


REFUSES = "the compiled engine doesn't take"
"""Beginning of a refusal of an operator or a type, which another engine may calculate with."""


class TooMuch(NotCovered):
    """There is more to calculate than the engine takes, whatever the operators are."""


@dataclass(frozen=True)
class Value:
    """Value of the ONNX graph: a contiguous tensor of the plan under a shape.

    Attributes:
        tensor: Name of the plan's tensor; a constant gets one when it is first read.
        dtype: Element type by numpy's name.
        shape: Sizes, with one row in a batch.
        batch: Axis of the batch; None where there is none.
        constant: Numbers, where they are known now.
        counts_rows: Whether the numbers are sizes among which the batch's counts as 1.
        bytes: The bytes on which the numbers depend, with what each byte stands for; None for others.
        pending: Sums that nothing has rounded yet.
        levels: Integers that a constant was made of.
        words: The words of 16 bits on which the numbers depend, likewise.
    """

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    batch: int | None = None
    constant: Array | None = None
    counts_rows: bool = False
    bytes: Bytes | None = None
    pending: Pending | None = None
    levels: Levels | None = None
    words: Words | None = None

    @property
    def narrow(self) -> bool:
        """Whether it is known as bytes, words or sums of them."""
        return any(one is not None for one in (self.bytes, self.words, self.pending))


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
class Graph:
    """Plan so far.

    Attributes:
        values: Values by their name in ONNX.
        tensors: Tensors of the plan.
        operations: Operations of the plan.
        weights: Constants of the plan.
        by_row: Whether rows are answered each by itself, as far as is known.
        most_work: Largest number of calculations with floats for one row that the engine takes.
        quantized: Whether nodes quantize something, so that there may be as many calculations with floats
            as with bytes, even if these are more.
        lowerings: Lowering of each operator over any numbers, by its name.
        source: Name of the node that is being lowered.
        turned: Copies of tensors of bytes by the tensor, whether the copy has the channels last, and how
            many channels there are.
        known: Bytes of values by the value's name in ONNX, the zero and the scale.
        rounded: Sums, and the first bytes that they were rounded to, by the sums' id.
        between: Names of bytes that are read only by the DequantizeLinear of their QuantizeLinear, so that
            nothing sees which bytes they are.
    """

    values: dict[str, Value] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    weights: Weights = field(default_factory=lambda: Weights(bytearray()))
    by_row: bool = True
    most_work: int = 1 << 62
    quantized: bool = False
    lowerings: Mapping[str, Callable[[Node], None]] = field(default_factory=dict)
    turned: dict[tuple[str, bool, int], str] = field(default_factory=dict)
    known: dict[tuple[str, int, float], Bytes] = field(default_factory=dict)
    source: str = ""
    _sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rounded: dict[int, tuple[Pending, Bytes]] = field(default_factory=dict)
    between: frozenset[str] = frozenset()
    _work: int = 0
    _stored: dict[int, tuple[Array, str]] = field(default_factory=dict)

    def new(self, dtype: str, shape: tuple[int, ...], batch: int | None) -> Value:
        """Make a tensor that an operation is going to write."""
        if dtype not in C_TYPES:
            raise NotCovered(f"{REFUSES} tensors of {dtype}")
        if product(shape) < 1:
            raise NotCovered(f"{REFUSES} empty tensors: {list(shape)}")
        name = f"t{len(self.tensors)}"
        self.tensors[name] = Tensor(dtype, product(shape))
        return Value(name, dtype, shape, batch)

    def store(self, array: Array) -> str:
        """Keep a constant and return its tensor's name; the same array is kept once."""
        known = self._stored.get(id(array))
        if known is not None:
            return known[1]
        if str(array.dtype) not in C_TYPES or not array.size:
            raise NotCovered(f"{REFUSES} constants of {array.dtype}, shape {list(array.shape)}")
        name = f"t{len(self.tensors)}"
        self.tensors[name] = self.weights.add(array)
        self._stored[id(array)] = (array, name)
        return name

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
        from hasten.engines.compiled.nodes.int8.values import ordered

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

    def tensor(self, value: Value) -> str:
        """Return the name of a value's tensor; a constant is kept first."""
        return value.tensor if value.constant is None else self.store(value.constant)

    def add(self, operation: Operation) -> None:
        """Append an operation.

        Raises:
            NotCovered: there is more to calculate than the engine takes.
        """
        self.operations.append(operation)
        for name in operation.writes:
            self._sources.setdefault(name, ())
            if self.source and self.source not in self._sources[name]:
                self._sources[name] += (self.source,)
        self._work += 0 if operation.narrow else operation.work
        if not self.quantized and self._work > self.most_work:
            self._refuse_work("")

    def _check_work(self, operations: Sequence[Operation]) -> None:
        """Check that a quantized model calculates with bytes for the most part, where it has much to do."""
        narrow = sum(one.work for one in operations if one.narrow)
        floats = sum(one.work for one in operations if not one.narrow)
        if floats > max(self.most_work, narrow):
            said = f" ({floats / 1e6:,.0f} million; with bytes {narrow / 1e6:,.0f} million)"
            self._refuse_work(said)

    def _refuse_work(self, said: str) -> NoReturn:
        raise TooMuch(
            f"the compiled engine takes up to {self.most_work / 1e6:g} million calculations with floats "
            f"for an answer, or as many as with bytes in a quantized model: this model has more{said}"
        )

    def map(
        self,
        steps: Sequence[Step],
        inputs: Sequence[tuple[Value, tuple[int, ...], int]],
        output: Value,
        *,
        into: Access | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        """Append a map.

        Args:
            steps: Program.
            inputs: Values that are read, each with strides and the first element.
            output: Value that is written.
            into: Where it is written; by default everywhere, in order.
            shape: Sizes of the loops; by default the output's.
        """
        shape = output.shape if shape is None else shape
        accesses = tuple(
            Access(self.tensor(value), strides, offset) for value, strides, offset in inputs
        )
        into = Access.whole(output.tensor, shape) if into is None else into
        self.add(Map(tuple(steps), accesses, into, shape))

    def copy(self, value: Value) -> Value:
        """Append a copy of a value and return it."""
        made = self.new(value.dtype, value.shape, value.batch)
        step = Step("copy", (0,), value.dtype)
        self.map([step], [(value, contiguous(value.shape), 0)], made)
        return made

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
        needed = _needed(self.operations, set(taken))
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


def _needed(operations: Sequence[Operation], needed: set[str]) -> list[Operation]:
    """Return the operations that the outputs depend on."""
    kept = []
    for operation in reversed(operations):
        if needed.intersection(operation.writes):
            kept.append(operation)
            needed.update(operation.reads)
    return kept[::-1]


def fused(
    operations: Sequence[Operation],
    outputs: frozenset[str],
    sources: dict[str, tuple[str, ...]],
    dtypes: Mapping[str, str],
) -> list[Operation]:
    """Join operations with those that make their inputs, where nothing else reads these.

    Args:
        operations: Operations in order.
        outputs: Tensors that are given as answers.
        sources: Names of nodes by the tensor that is written; those of joined operations are joined.
        dtypes: Types of the tensors by name.
    """
    result = list(operations)
    changed = True
    while changed:
        changed = False
        readers: dict[str, list[int]] = {}
        writers: dict[str, list[int]] = {}
        for number, operation in enumerate(result):
            for name in operation.reads:
                readers.setdefault(name, []).append(number)
            for name in operation.writes:
                writers.setdefault(name, []).append(number)
        for number, operation in enumerate(result):
            for name in operation.reads:
                source = writers.get(name, [])
                if name in outputs or len(source) != 1 or readers[name] != [number]:
                    continue
                part = any(len(writers[made]) > 1 for made in operation.writes)
                own = not part and all(dtypes[made] == dtypes[name] for made in operation.writes)
                joined = _joined(result[source[0]], operation, name, own=own)
                if joined is None:
                    continue
                kept = sources[joined.writes[0]]
                sources[joined.writes[0]] = tuple(dict.fromkeys((*sources[name], *kept)))
                if isinstance(result[source[0]], Map) or not isinstance(operation, Map):
                    # It reads what may be written between the two.
                    result[number] = joined
                    del result[source[0]]
                else:
                    result[source[0]] = joined
                    del result[number]
                changed = True
                break
            if changed:
                break
    return result


def _joined(first: Operation, second: Operation, between: str, *, own: bool) -> Operation | None:
    """Return one operation that does both; None where there is none.

    Args:
        first: Operation that makes an input of the other.
        second: Operation that alone reads it.
        between: That input.
        own: Whether the second one's output has the type of that input, and nothing else writes to it, as to the
            parts of a Concat.
    """
    if not isinstance(second, Map):
        precede = getattr(second, "preceded", None)
        return precede(first) if precede and isinstance(first, Map) else first.joined(second)
    place = second.reads.index(between)
    if not second.inputs[place].is_whole(second.shape):
        return None
    if isinstance(first, Map):
        return _joined_maps(first, second, place)
    follow = getattr(first, "followed", None)
    whole = second.output.is_whole(second.shape) and own
    return follow(second) if follow and whole and len(second.inputs) == 1 else None


def _joined_maps(first: Map, second: Map, place: int) -> Map | None:
    if product(first.shape) != product(second.shape) or not first.output.is_whole(first.shape):
        return None
    if len(first.steps) + len(second.steps) > programs.MOST_STEPS // 4:
        return None
    accesses = first.inputs
    if first.shape != second.shape:
        if not all(access.is_whole(first.shape) for access in accesses):
            return None
        accesses = tuple(Access.whole(access.tensor, second.shape) for access in accesses)
    inputs = tuple(dict.fromkeys((*accesses, *_without(second.inputs, place))))
    behind = len(inputs)
    own = [inputs.index(access) for access in accesses]
    own += range(behind, behind + len(first.steps))
    result = own[-1]
    others = [
        result if number == place else inputs.index(access)
        for number, access in enumerate(second.inputs)
    ]
    others += range(result + 1, result + 1 + len(second.steps))
    moved = [
        Step(step.op, tuple(names[arg] for arg in step.args), step.dtype, step.value)
        for steps, names in ((first.steps, own), (second.steps, others))
        for step in steps
    ]
    return Map(tuple(moved), inputs, second.output, second.shape)


def _without(accesses: tuple[Access, ...], place: int) -> tuple[Access, ...]:
    return accesses[:place] + accesses[place + 1 :]


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
