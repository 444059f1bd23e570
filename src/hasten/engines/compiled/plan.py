"""Plan of a model: typed steps over numbered tensors, as data, from which C is written.

A bundle carries the plan and the weights, never native code. Both are untrusted: `check` refuses
what would read or write outside a tensor, or take too much memory, before any C is written.
"""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from hasten.core.records import Value, check_integers, from_record, to_record
from hasten.core.registry import Registry
from hasten.core.tensors import Array
from hasten.engines.compiled.tensors import (
    ALIGNMENT,
    C_TYPES,
    MOST_AXES,
    MOST_BYTES,
    Access,
    Tensor,
    product,
    whole_numbers,
)
from hasten.engines.layers import Kind
from hasten.errors import CandidateError, IntegrityError

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

FORMAT = 2
"""Number to raise when a plan means something else than before."""
_WITHOUT_CONSTANTS = 1
"""Number of plans without constant inputs, which earlier versions read too."""
MOST_OPERATIONS = 20_000
MOST_GIVEN = 1_000
"""Largest number of inputs and outputs together: a call keeps something for each of them on its stack."""
_MOST_NUMBER = 1 << 62
_MOST_WORK = 10**12
_MOST_READ = 4 * MOST_BYTES
"""Largest number of bytes of constants that all operations look at together before C is written."""
_MOST_JSON_BYTES = 64 << 20


class Operation(Value, ABC):
    """Step of a plan: a frozen dataclass that names the tensors that it reads and writes.

    Attributes:
        splits: Whether `emit` shares out its loops to several threads, by `Writer.share`; else one
            thread runs all of it.
    """

    splits: ClassVar[bool] = False
    registry: ClassVar[Registry] = Registry(
        "operation",
        "hasten.operations",
        {
            "map": "hasten.engines.compiled.operators.maps:Map",
            "reduce": "hasten.engines.compiled.operators.reductions:Reduce",
            "trees": "hasten.engines.compiled.operators.trees:Trees",
            "dense": "hasten.engines.compiled.operators.dense:Dense",
            "recurrent": "hasten.engines.compiled.operators.recurrent:Recurrent",
            "conv": "hasten.engines.compiled.operators.convolutions:Conv",
            "product": "hasten.engines.compiled.operators.matrices:Product",
            "pick": "hasten.engines.compiled.operators.choices:Pick",
            "largest": "hasten.engines.compiled.operators.choices:Largest",
            "accumulate": "hasten.engines.compiled.operators.choices:Accumulate",
            "couple": "hasten.engines.compiled.operators.couplings:Couple",
            "conv8": "hasten.engines.compiled.operators.int8.convolutions:Conv8",
            "conv16": "hasten.engines.compiled.operators.int8.convolutions16:Conv16",
            "quantize16": "hasten.engines.compiled.operators.int8.conversions16:Quantize16",
            "dequantize16": "hasten.engines.compiled.operators.int8.conversions16:Dequantize16",
            "table16": "hasten.engines.compiled.operators.int8.words:Table16",
            "add16": "hasten.engines.compiled.operators.int8.words:Add16",
            "multiply16": "hasten.engines.compiled.operators.int8.words:Multiply16",
            "numbers16": "hasten.engines.compiled.operators.int8.conversions16:Numbers16",
            "pool8": "hasten.engines.compiled.operators.int8.pools:Pool8",
            "quantize": "hasten.engines.compiled.operators.int8.elementwise:Quantize",
            "dequantize": "hasten.engines.compiled.operators.int8.elementwise:Dequantize",
            "table8": "hasten.engines.compiled.operators.int8.elementwise:Table8",
            "add8": "hasten.engines.compiled.operators.int8.elementwise:Add8",
            "gate8": "hasten.engines.compiled.operators.int8.elementwise:Gate8",
            "multiply8": "hasten.engines.compiled.operators.int8.elementwise:Multiply8",
        },
    )

    task: ClassVar[Kind] = "elementwise"
    """Kind of work in a profile."""
    narrow: ClassVar[bool] = False
    """Whether it calculates with bytes, about ten times as many in the time of floats."""
    rounds: ClassVar[bool] = False
    """Whether it makes bytes of floats, after which NaN can't be told from other numbers."""

    def hands_on(self, plan: Plan) -> tuple[str, ...]:
        """Return the names of tensors whose NaN, wherever it is, is NaN in what it writes."""
        return ()

    @property
    @abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Names of the tensors that it reads."""

    @property
    @abstractmethod
    def writes(self) -> tuple[str, ...]:
        """Names of the tensors that it writes."""

    @property
    def parts(self) -> tuple[tuple[Access, tuple[int, ...]], ...]:
        """Elements that it writes, with the sizes of the loops, of each tensor that it doesn't write whole."""
        return ()

    @property
    @abstractmethod
    def work(self) -> int:
        """Elementary calculations for one row, roughly."""

    @abstractmethod
    def check(self, plan: Plan) -> None:
        """Check that it stays within its tensors, whatever their contents are.

        Raises:
            IntegrityError: it doesn't; the message says where.
        """

    @abstractmethod
    def emit(self, writer: Writer) -> None:
        """Write C statements for one row; see `Writer`."""

    def emit_rows(self, writer: Writer) -> None:
        """Write C statements for the `n` rows of a block; one after the other unless overridden.

        Each row's answer must be the same to the last bit, whatever `n` is.
        """
        with writer.each_row():
            self.emit(writer)

    def joined(self, second: Operation) -> Operation | None:
        """Return one operation that does this and then another, its only reader; None where there is none."""
        return None

    def calculate(self, tensors: dict[str, Array]) -> None:
        """Write the results for one row by numpy: what the C must equal, bit for bit where `same_bits`.

        Args:
            tensors: Flat arrays by name: all that it reads, and what it writes where others write parts
                of that too.

        Raises:
            CandidateError: the operation is of floats, and numpy has no form of it here.
        """
        raise CandidateError(
            f"a step calculates with floats ({type(self).__name__.lower()}), and this engine is the reference "
            "for steps of bytes: run the model on another engine"
        )

    def same_bits(self, plan: Plan) -> bool:
        """Whether its results are the same bits on every processor and by every compiler.

        Then `calculate` gives these bits too.
        """
        return self.narrow

    def refuse(self, why: str) -> NoReturn:
        """Refuse the plan."""
        raise IntegrityError(f"the plan is damaged: {type(self).__name__.lower()}: {why:.200}")

    def check_access(self, plan: Plan, access: Access, shape: tuple[int, ...]) -> Tensor:
        """Check that an access over loops of a shape stays within its tensor, which is returned."""
        tensor = plan.tensor(access.tensor)
        if len(shape) > MOST_AXES:
            self.refuse(f"loops over {len(shape)} axes")
        if len(access.strides) != len(shape) or any(size < 1 for size in shape):
            self.refuse(f"{access.tensor!r} is read over a shape of another rank, or an empty one")
        if max(map(abs, (access.offset, *access.strides, *shape))) > _MOST_NUMBER:
            self.refuse(f"a stride, an offset or a size of {access.tensor!r:.100} is beyond 2^62")
        ends = [stride * (size - 1) for stride, size in zip(access.strides, shape, strict=True)]
        low = access.offset + sum(min(0, end) for end in ends)
        high = access.offset + sum(max(0, end) for end in ends)
        if low < 0 or high >= tensor.size:
            self.refuse(
                f"elements {low} to {high} of {access.tensor!r}, which has {tensor.size}, are asked for"
            )
        return tensor

    def check_sizes(self, plan: Plan, dtype: str, *sizes: tuple[str, int]) -> None:
        """Check that tensors have an element type and exactly these numbers of elements.

        Each size is checked, also where two are of one tensor.
        """
        for name, size in sizes:
            tensor = plan.tensor(name)
            if tensor.size != size or tensor.dtype != dtype:
                self.refuse(
                    f"{name!r} must be {size} x {dtype}: it is {tensor.size} x {tensor.dtype}"
                )

    def constant(self, plan: Plan, name: str) -> Tensor:
        """Return a tensor that must be a constant."""
        tensor = plan.tensor(name)
        if tensor.offset is None:
            self.refuse(f"{name!r} must be a constant")
        return tensor


@dataclass(frozen=True)
class Plan:
    """A whole model.

    Attributes:
        tensors: All tensors by name.
        operations: Steps in order.
        inputs: Names of the tensors that are given.
        outputs: Names of the tensors that are the answer.
        shapes: Shape of each output, for one row.
        by_row: Whether rows of a batch are answered each by itself, so that any number may come.
        sources: Names of the nodes behind what an operation writes, by that tensor's name; for people.
        constant_inputs: The only numbers for which the plan was made, by the name of the input's tensor,
            which no step reads; sessions refuse other numbers.
    """

    tensors: dict[str, Tensor]
    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    by_row: bool
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    constant_inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor.

        Raises:
            IntegrityError: there is none of that name.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise IntegrityError(f"the plan is damaged: there is no tensor {name!r:.100}") from None

    @cached_property
    def work(self) -> int:
        """Elementary calculations for one row, roughly."""
        return sum(operation.work for operation in self.operations)

    @property
    def same_bits(self) -> bool:
        """Whether its answers are the same bits on every processor and by every compiler."""
        return all(operation.same_bits(self) for operation in self.operations)

    @cached_property
    def rounded_inputs(self) -> Mapping[str, tuple[str, ...]]:
        """Output of floats -> inputs that become bytes on the way to it: where one has NaN, the output is NaN.

        Outputs that no such input reaches are left out.
        """
        unknown: dict[str, set[str]] = {
            name: {name} for name in self.inputs if self.tensor(name).dtype == "float32"
        }
        """Tensor -> inputs whose NaN is NaN in it."""
        lost: dict[str, set[str]] = {}
        """Tensor -> inputs whose NaN became a number on the way to it."""
        for operation in self.operations:
            origins = operation.reads if operation.rounds else operation.hands_on(self)
            read = set[str]().union(*(unknown.get(name, ()) for name in origins))
            gone = set[str]().union(*(lost.get(name, ()) for name in operation.reads))
            for name in operation.writes:
                if operation.rounds:
                    lost[name] = lost.get(name, set()) | gone | read
                    continue
                lost[name] = lost.get(name, set()) | gone
                unknown[name] = unknown.get(name, set()) | read
        floats = [name for name in self.outputs if self.tensor(name).dtype.startswith("float")]
        return {
            name: tuple(one for one in self.inputs if one in lost[name])
            for name in floats
            if lost.get(name)
        }

    def check(self, weights_bytes: int) -> None:
        """Check that all that C would be written of stays within its memory, and ends.

        Args:
            weights_bytes: Size of the weights in bytes.

        Raises:
            IntegrityError: it doesn't; the message says where.
        """
        self._check_tensors(weights_bytes)
        given_or_made = (*self.inputs, *self.outputs)
        if len(set(given_or_made)) < len(given_or_made) or len(given_or_made) > MOST_GIVEN:
            raise IntegrityError(
                "the plan is damaged: its inputs and outputs aren't different tensors, or there "
                "are too many"
            )
        self._check_constant_inputs()
        if len(self.operations) > MOST_OPERATIONS:
            raise IntegrityError(f"the plan has more than {MOST_OPERATIONS:,} steps")
        constants = {name for name, tensor in self.tensors.items() if tensor.offset is not None}
        known = set(constants)
        for name in self.inputs:
            if self.tensor(name).offset is not None:
                raise IntegrityError(f"the plan is damaged: the input {name!r:.100} is a constant")
        known.update(self.inputs)
        given, read = frozenset(known), 0
        for operation in self.operations:
            operation.check(self)
            read += sum(self.tensor(name).bytes for name in operation.reads if name in constants)
            if unknown := set(operation.reads) - known:
                operation.refuse(f"{min(unknown)!r:.100} is read before it is written")
            if wrong := given.intersection(operation.writes):
                operation.refuse(
                    f"{min(wrong)!r:.100} is an input or a constant, and would be overwritten"
                )
            if both := set(operation.reads).intersection(operation.writes):
                operation.refuse(f"{min(both)!r:.100} is read and written in one step")
            known.update(operation.writes)
        if missing := set(self.outputs) - known | given.intersection(self.outputs):
            raise IntegrityError(f"the plan is damaged: nothing writes {min(missing)!r:.100}")
        sizes = [self.tensor(name).size for name in self.outputs]
        if sizes != [product(shape) for shape in self.shapes]:
            raise IntegrityError(
                "the plan is damaged: the sizes of outputs don't match their shapes"
            )
        if self.by_row and any(shape[:1] != (1,) for shape in self.shapes):
            raise IntegrityError("the plan is damaged: an output has no axis for the batch")
        if read > _MOST_READ:
            raise IntegrityError("the plan is damaged: it reads its constants too often")
        if not self.inputs or not self.outputs or self.work > _MOST_WORK:
            raise IntegrityError(
                "the plan is damaged: it has no input or no output, or it never ends"
            )

    def _check_constant_inputs(self) -> None:
        read = {name for operation in self.operations for name in operation.reads}
        for name, numbers in self.constant_inputs.items():
            tensor = self.tensor(name)
            least, most = whole_numbers(tensor.dtype)
            fits = len(numbers) == tensor.size and all(least <= one <= most for one in numbers)
            if name not in self.inputs or name in read or self.by_row or not fits:
                raise IntegrityError(
                    f"the plan is damaged: {name!r:.100} can't be an input that is constant"
                )

    def _check_tensors(self, weights_bytes: int) -> None:
        whole = 0
        for name, tensor in self.tensors.items():
            if tensor.dtype not in C_TYPES or not 0 < tensor.size <= MOST_BYTES:
                raise IntegrityError(
                    f"the plan is damaged: {name!r:.100} is {tensor.size} x {tensor.dtype!r:.20}"
                )
            whole += tensor.bytes + ALIGNMENT
            if tensor.offset is not None:
                end = tensor.offset + tensor.bytes
                if tensor.offset < 0 or tensor.offset % ALIGNMENT or end > weights_bytes:
                    raise IntegrityError(
                        f"the plan is damaged: the constant {name!r:.100} lies outside the weights"
                    )
        if whole > MOST_BYTES:
            raise IntegrityError(
                f"the plan asks for {whole / 1e6:,.0f} MB, but the limit is "
                f"{MOST_BYTES / 1e6:,.0f} MB"
            )

    @property
    def outline(self) -> Plan:
        """The plan without its steps: what a session knows of it."""
        tensors = {name: self.tensor(name) for name in (*self.inputs, *self.outputs)}
        return replace(self, tensors=tensors, operations=(), sources={})

    def constant(self, name: str, weights: bytes | io.BufferedReader) -> Array:
        """Return a constant's numbers, which can't be written to.

        Args:
            name: Name of its tensor.
            weights: All constants, or the file with them, of which no more is read.

        Raises:
            IntegrityError: the file was cut off.
        """
        tensor = self.tensor(name)
        offset = tensor.offset or 0
        if isinstance(weights, io.BufferedReader):
            weights.seek(offset)
            weights, offset = weights.read(tensor.bytes), 0
            if len(weights) < tensor.bytes:
                raise IntegrityError("the weights were cut off while they were read")
        return np.frombuffer(weights, tensor.dtype, tensor.size, offset)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        number, record = FORMAT, to_record(self)
        if not self.constant_inputs:
            number = _WITHOUT_CONSTANTS
            del record["constant_inputs"]
        path.write_text(json.dumps({"format": number, "plan": record}))

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read it back, unchecked.

        Raises:
            IntegrityError: the file can't be read, or is of a newer version.
        """
        try:
            if path.stat().st_size > _MOST_JSON_BYTES:
                raise IntegrityError("it is too large")
            record: Any = json.loads(path.read_bytes())
            check_integers(record)
        except (OSError, ValueError, RecursionError, IntegrityError) as error:
            raise IntegrityError(f"{path} isn't a plan of a compiled model: {error}") from error
        known = (_WITHOUT_CONSTANTS, FORMAT)
        if not isinstance(record, dict) or record.get("format") not in known:
            raise IntegrityError(f"{path} isn't a plan that this version of hasten can read")
        return from_record(cls, record.get("plan"))
