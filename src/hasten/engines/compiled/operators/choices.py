"""Choices by computed places: rows of a table, elements along an axis, the largest ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.maps import place, seen
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.tensors import C_TYPES, Access, product
from hasten.errors import BeyondRange

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer


@dataclass(frozen=True)
class Pick(Operation):
    """Elements at computed places along one axis.

    A negative place counts from the end. What lies outside even so isn't read, and the request is refused: the
    places are a request's, so they may be anything.

    Attributes:
        input: Elements that are read, at place 0 of the axis.
        places: Whole numbers, over the loops.
        output: Tensor of the loops' shape, contiguous.
        shape: Sizes of the loops.
        size: Elements along the axis.
        stride: Distance of the axis's elements.
    """

    input: Access
    places: Access
    output: str
    shape: tuple[int, ...]
    size: int
    stride: int

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.input.tensor, self.places.tensor)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def work(self) -> int:
        return product(self.shape)

    def check(self, plan: Plan) -> None:
        whole = Access(self.input.tensor, (*self.input.strides, self.stride), self.input.offset)
        dtype = self.check_access(plan, whole, (*self.shape, self.size)).dtype
        if self.check_access(plan, self.places, self.shape).dtype not in ("int64", "int32"):
            self.refuse("its places aren't whole numbers")
        self.check_sizes(plan, dtype, (self.output, product(self.shape)))

    def same_bits(self, plan: Plan) -> bool:
        """True: it only moves elements."""
        return True

    def calculate(self, tensors: dict[str, Array]) -> None:
        places = seen(tensors, self.places, self.shape).astype(np.int64)
        outside = places[(places < -self.size) | (places >= self.size)]
        if outside.size:
            raise BeyondRange(
                f"the model looks up place {outside[0]} of {self.size} for this request: give numbers for which its "
                f"places are from {-self.size} to {self.size - 1}"
            )
        places = np.where(places < 0, places + self.size, places)
        along = Access(self.input.tensor, (*self.input.strides, self.stride), self.input.offset)
        read = seen(tensors, along, (*self.shape, self.size))
        found = np.take_along_axis(read, places[..., np.newaxis], -1)
        tensors[self.output] = found.ravel()

    def emit(self, writer: Writer) -> None:
        source, places = writer.read(self.input.tensor), writer.read(self.places.tensor)
        target = writer.write(self.output)
        strides = tuple(product(self.shape[at + 1 :]) for at in range(len(self.shape)))
        inner = sum(1 for stride in self.places.strides if stride)
        while inner and any(self.places.strides[inner:]):
            inner += 1
        with writer.loops(self.shape[:inner]):
            writer.line(
                f"i64 at = {places}[{place(Access('', self.places.strides[:inner], self.places.offset))}];"
            )
            writer.line("HERE(at);")  # a compiler that knows what a place can be drops its bounds
            writer.line("const i64 asked = at;")
            writer.line(f"at = at < 0 ? at + {self.size} : at;")
            with writer.block(f"if ((u64)at >= {self.size})"):
                keep = f"c->beyond[0] = asked, c->beyond[1] = {self.size};"
                writer.line(f"if (!c->beyond[1]) {keep}")
                writer.line("at = 0;")
            for axis in range(inner, len(self.shape)):
                if axis == len(self.shape) - 1:
                    writer.line("#pragma GCC ivdep")
                writer.line(f"for (long i{axis} = 0; i{axis} < {self.shape[axis]}; i{axis}++) {{")
            where = f"{place(self.input)} + at * {self.stride}"
            writer.line(f"{target}[{place(Access('', strides))}] = {source}[{where}];")
            writer.line("}" * (len(self.shape) - inner))


@dataclass(frozen=True)
class Largest(Operation):
    """The largest or smallest numbers of each line, in order, with their places; NaN is larger than all others.

    Attributes:
        input: Tensor of `lines x size` numbers.
        values: Tensor of `lines x count` numbers.
        places: Tensor of `lines x count` places as int64.
        lines: Number of lines.
        size: Numbers of a line.
        count: Numbers that are given for each line.
        smallest: Whether the smallest ones are asked for.
    """

    input: str
    values: str
    places: str
    lines: int
    size: int
    count: int
    smallest: bool

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.input,)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.values, self.places)

    @property
    def work(self) -> int:
        return self.lines * self.size * (1 + self.count)

    def check(self, plan: Plan) -> None:
        if min(self.lines, self.count) < 1 or self.count > self.size:
            self.refuse(f"{self.count} of {self.size}")
        if self.values == self.places:
            self.refuse("its results are one tensor")
        dtype = plan.tensor(self.input).dtype
        made = self.lines * self.count
        self.check_sizes(plan, dtype, (self.input, self.lines * self.size), (self.values, made))
        self.check_sizes(plan, "int64", (self.places, made))

    def same_bits(self, plan: Plan) -> bool:
        """True: it only compares and moves."""
        return True

    def calculate(self, tensors: dict[str, Array]) -> None:
        lines = tensors[self.input].reshape(self.lines, self.size)
        places = np.stack([self._places(line) for line in lines])
        tensors[self.values] = np.take_along_axis(lines, places, 1).ravel()
        tensors[self.places] = places.ravel()

    def _places(self, line: Array) -> Array:
        """Return the places of a line's largest numbers; of equal ones, the first comes first."""
        if self.smallest:  # in both, NaN is sorted behind all others
            return np.argsort(line, kind="stable")[: self.count]
        return self.size - 1 - np.argsort(line[::-1], kind="stable")[::-1][: self.count]

    def emit(self, writer: Writer) -> None:
        kind = C_TYPES[writer.plan.tensor(self.input).dtype]
        source = writer.read(self.input)
        values, places = writer.write(self.values), writer.write(self.places)
        floats = kind in ("float", "double")

        def better(one: str, other: str) -> str:
            larger, smaller = (other, one) if self.smallest else (one, other)
            unknown = f" || ({larger} != {larger} && {smaller} == {smaller})" if floats else ""
            return f"({larger} > {smaller}{unknown})"

        with writer.block(f"for (long i = 0; i < {self.lines}; i++)"):
            writer.line(f"{kind} *best = {values} + i * {self.count};")
            writer.line(f"i64 *at = {places} + i * {self.count};")
            with writer.block(f"for (long j = 0, held = 0; j < {self.size}; j++)"):
                writer.line(f"const {kind} one = {source}[i * {self.size} + j];")
                writer.line(
                    f"if (held == {self.count} && !{better('one', 'best[held - 1]')}) continue;"
                )
                writer.line(f"long to = held < {self.count} ? held++ : held - 1;")
                with writer.block(f"for (; to > 0 && {better('one', 'best[to - 1]')}; to--)"):
                    writer.line("best[to] = best[to - 1]; at[to] = at[to - 1];")
                writer.line("best[to] = one; at[to] = j;")


@dataclass(frozen=True)
class Accumulate(Operation):
    """Running sums along the last loop.

    Attributes:
        input: Elements that are read over the loops.
        output: Elements that are written over the loops, none of them twice.
        shape: Sizes of the loops.
        exclusive: Whether each sum leaves out the number at its own place.
    """

    input: Access
    output: Access
    shape: tuple[int, ...]
    exclusive: bool

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.input.tensor,)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output.tensor,)

    @property
    def parts(self) -> tuple[tuple[Access, tuple[int, ...]], ...]:
        return ((self.output, self.shape),)

    @property
    def work(self) -> int:
        return product(self.shape)

    def check(self, plan: Plan) -> None:
        dtype = self.check_access(plan, self.input, self.shape).dtype
        if dtype == "bool" or self.check_access(plan, self.output, self.shape).dtype != dtype:
            self.refuse(f"sums of {dtype}")
        if not self.shape:
            self.refuse("it has no axis")

    def emit(self, writer: Writer) -> None:
        kind = C_TYPES[writer.plan.tensor(self.input.tensor).dtype]
        source, target = writer.read(self.input.tensor), writer.write(self.output.tensor)
        last = len(self.shape) - 1
        with writer.loops(self.shape[:-1]):
            writer.line(f"{kind} all = 0;")
            with writer.block(f"for (long i{last} = 0; i{last} < {self.shape[-1]}; i{last}++)"):
                add = f"all += {source}[{place(self.input)}];"
                give = f"{target}[{place(self.output)}] = all;"
                writer.line(f"{give} {add}" if self.exclusive else f"{add} {give}")
