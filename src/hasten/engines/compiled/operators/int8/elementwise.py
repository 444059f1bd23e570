"""Operations of bytes one by one, and between bytes and floats."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.numbers import (
    MOST_RESULT,
    Gate,
    Rounding,
    Sum8,
    check_sums,
    whole_steps,
)
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.layers import Kind

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_LEAST_STEP = float(np.finfo(np.float32).smallest_subnormal)
_MOST_STEP = float(np.finfo(np.float32).max)
_TURNED = 16
"""Channels that change places with pixels together."""
_LINE, _FLOATS = 64, 16
"""Bytes, and floats, of a line of the cache."""
_BOUND = 1 << 20
"""Steps beyond which all floats become the same byte."""
_PLACES = np.array(
    [
        [at // 3 if at % 3 == plane else 128 for at in range(part * 16, part * 16 + 16)]
        for part in range(3)
        for plane in range(3)
    ],
    np.uint8,
)
"""Place in 16 bytes of each of three planes of each byte of 16 pixels, 128 where it is of another plane."""


def _inverse(step: np.float32) -> np.float32:
    """Return the float by which, with two corrections, a division is exact; 0 where there is none.

    Source: Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990,
    theorem 8.5: the reciprocal must be the nearest one, and the divisor's mantissa not all ones.
    """
    exact = 1 / Fraction(float(step))
    with np.errstate(over="ignore"):
        near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(end)) for end in (0, np.inf)]
    if not np.isfinite([near, *around]).all() or not 2.0**-100 < near < 2.0**100:
        return np.float32(0)
    if np.frexp(step)[0] == np.float32(1 - 2.0**-24):
        return np.float32(0)
    return min((near, *around), key=lambda one: abs(Fraction(float(one)) - exact))


def _float(value: np.float32) -> str:
    """Return a float as C spells it exactly."""
    return f"{float(value).hex()}f"


@dataclass(frozen=True)
class Quantize(Operation):
    """Bytes of floats: `clamp(rint(x / step) + zero, low, high)`, channels first to channels last.

    The quotient is rounded to float32, then to the nearest integer, halves to even. NaN gives `low`; see `Plan.rounded_inputs`.

    Attributes:
        input: Tensor of `channels x pixels` float32.
        output: Tensor of `pixels x channels` uint8.
        channels: Number of channels.
        pixels: Number of pixels.
        step: Real number that one step of a byte stands for.
        rounding: Zero and bounds.
    """

    task: ClassVar[Kind] = "conversion"
    narrow: ClassVar[bool] = True
    splits: ClassVar[bool] = True
    rounds: ClassVar[bool] = True

    input: str
    output: str
    channels: int
    pixels: int
    step: float
    rounding: Rounding

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.input,)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def work(self) -> int:
        return 8 * self.channels * self.pixels

    def check(self, plan: Plan) -> None:
        self.rounding.check()
        if min(self.channels, self.pixels) < 1:
            self.refuse("a size is out of bounds")
        if not _LEAST_STEP <= self.step <= _MOST_STEP:  # NaN isn't either
            self.refuse(f"a step of {self.step}")
        size = self.channels * self.pixels
        self.check_sizes(plan, "float32", (self.input, size))
        self.check_sizes(plan, "uint8", (self.output, size))

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.output] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        given = tensors[self.input].reshape(self.channels, self.pixels).T
        whole = whole_steps(given, self.step)
        found: Array = np.clip(whole + self.rounding.zero, self.rounding.low, self.rounding.high)
        return found.astype(np.uint8).ravel()

    def emit(self, writer: Writer) -> None:
        x, y = writer.read(self.input), writer.write(self.output)
        step = np.float32(self.step)
        wide = min(32, writer.byte_width(self.pixels))
        with np.errstate(over="ignore"):
            bound = step * np.float32(_BOUND)
        if wide and self.channels in (1, 3) and np.isfinite(bound):
            arguments = f"{', '.join(map(_float, (step, _inverse(step), bound)))}, {self.rounding.arguments}"
            with (
                shared_bytes(writer, self.pixels, wide) as (begin, size),
                writer.block(f"for (long i = 0; i < {size}; i += {wide})"),
            ):
                last = f"{size} - {wide}"
                writer.line(f"const long at = {begin} + (i < {last} ? i : {last});")
                planes = [
                    f"quantized_{wide}({x} + {plane * self.pixels} + at, {arguments})"
                    for plane in range(self.channels)
                ]
                if self.channels == 1:
                    writer.line(f"*(vb_u_{wide} *)({y} + at) = {planes[0]};")
                else:
                    places = writer.table(_PLACES.ravel())
                    writer.line(f"woven_{wide}({y} + 3 * at, {', '.join(planes)}, {places});")
            return
        if (
            self.channels >= _TURNED
            and (wide := writer.byte_width(self.pixels))
            and np.isfinite(bound)
        ):
            arguments = f"{', '.join(map(_float, (step, _inverse(step), bound)))}, {self.rounding.arguments}"
            with turned_blocks(writer, self.pixels, wide, self.channels):
                writer.line(
                    f"gathered_{wide}({y} + p * {self.channels} + c, {x} + c * {self.pixels} + p, "
                    f"{self.pixels}, {self.channels}, {arguments});"
                )
            return
        self._emit_plainly(writer, x, y)

    def _emit_plainly(self, writer: Writer, x: str, y: str) -> None:
        with writer.loops((self.pixels, self.channels), split=True):
            step = _float(np.float32(self.step))
            writer.line(f"float v = {x}[i1 * {self.pixels} + i0] / {step};")
            most = f"{MOST_RESULT:.0f}.f"
            writer.line(f"v = v > -{most} ? v : -{most}; v = v < {most} ? v : {most};")
            writer.line(f"{y}[i0 * {self.channels} + i1] = byte_of(v, {self.rounding.arguments});")


@dataclass(frozen=True)
class Dequantize(Operation):
    """Floats of bytes by a table, channels last to channels first.

    Attributes:
        input: Tensor of `pixels x channels` uint8.
        table: Constant of 256 float32.
        output: Tensor of `channels x pixels` float32.
        channels: Number of channels.
        pixels: Number of pixels.
    """

    task: ClassVar[Kind] = "conversion"
    narrow: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    input: str
    table: str
    output: str
    channels: int
    pixels: int

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.input, self.table)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def work(self) -> int:
        return self.channels * self.pixels

    def check(self, plan: Plan) -> None:
        if min(self.channels, self.pixels) < 1:
            self.refuse("a size is out of bounds")
        self.constant(plan, self.table)
        size = self.channels * self.pixels
        self.check_sizes(plan, "uint8", (self.input, size))
        self.check_sizes(plan, "float32", (self.table, 256), (self.output, size))

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.output] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        given = tensors[self.input].reshape(self.pixels, self.channels).T
        return tensors[self.table][given.ravel()]

    def emit(self, writer: Writer) -> None:
        x, t, y = writer.read(self.input), writer.read(self.table), writer.write(self.output)
        channels, pixels = self.channels, self.pixels
        blocks = (-(-channels // _LINE), -(-pixels // _FLOATS))
        with writer.loops(blocks, name="block", split=True):
            for name, block, size, step in (
                *(("c", "block0", channels, _LINE), ("p", "block1", pixels, _FLOATS)),
            ):
                writer.line(f"const long {name} = {block} * {step};")
                writer.line(
                    f"const long {name}_end = {size} - {name} < {step} ? {size} : {name} + {step};"
                )
            with writer.block("for (long i = c; i < c_end; i++)"):
                with writer.block("for (long j = p; j < p_end; j++)"):
                    writer.line(f"{y}[i * {pixels} + j] = {t}[{x}[j * {channels} + i]];")


@dataclass(frozen=True)
class Table8(Operation):
    """Each byte replaced by one of a table.

    Attributes:
        input: Tensor of `size` uint8.
        table: Constant of 256 uint8.
        output: Tensor of `size` uint8.
        size: Number of bytes.
    """

    narrow: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    input: str
    table: str
    output: str
    size: int

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.input, self.table)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def work(self) -> int:
        return self.size

    def check(self, plan: Plan) -> None:
        self.constant(plan, self.table)
        given = (self.input, self.size), (self.table, 256), (self.output, self.size)
        self.check_sizes(plan, "uint8", *given)

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.output] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        return tensors[self.table][tensors[self.input]]

    def emit(self, writer: Writer) -> None:
        x, t, y = writer.read(self.input), writer.read(self.table), writer.write(self.output)
        if wide := writer.byte_width(self.size):
            with shared_bytes(writer, self.size, wide) as (at, size):
                writer.line(f"tabled_{wide}({y} + {at}, {x} + {at}, {size}, {t});")
            return
        with writer.loops((self.size,), split=True):
            writer.line(f"{y}[i0] = {t}[{x}[i0]];")


@dataclass(frozen=True)
class Add8(Operation):
    """Sum of two tensors of bytes.

    Attributes:
        first: Tensor of `size` uint8.
        second: Tensor of `size` uint8.
        output: Tensor of `size` uint8.
        size: Number of bytes.
        sum: Factors and rounding.
    """

    narrow: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    first: str
    second: str
    output: str
    size: int
    sum: Sum8

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.first, self.second)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def work(self) -> int:
        return 2 * self.size

    def check(self, plan: Plan) -> None:
        self.sum.check()
        names = (self.first, self.second, self.output)
        self.check_sizes(plan, "uint8", *((name, self.size) for name in names))

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.output] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        return self.sum.of(tensors[self.first], tensors[self.second])

    def emit(self, writer: Writer) -> None:
        x, z, y = writer.read(self.first), writer.read(self.second), writer.write(self.output)
        if wide := writer.byte_width(self.size):
            with shared_bytes(writer, self.size, wide) as (at, size):
                pointers = f"{y} + {at}, {x} + {at}, {z} + {at}"
                writer.line(f"added_{wide}({pointers}, {size}, {self.sum.arguments});")
            return
        with writer.loops((self.size,), split=True):
            writer.line(f"{y}[i0] = {self.sum.expression(f'{x}[i0]', f'{z}[i0]')};")


@dataclass(frozen=True)
class Multiply8(Operation):
    """Product of two tensors of bytes, or of each pixel's channels with a factor for each channel.

    The sum that is rounded is `(x - zeros[0]) * (y - zeros[1])`.

    Attributes:
        first: Tensor of `pixels x channels` uint8.
        second: Tensor of as many uint8; of `channels` where `gate` is true.
        scale: Constant of one float32 above 0.
        output: Tensor of `pixels x channels` uint8.
        pixels: Number of pixels.
        channels: Number of channels.
        gate: Whether the second has one number for each channel.
        zeros: Byte that stands for 0, of each.
        rounding: Rule by which products become bytes.
    """

    narrow: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    first: str
    second: str
    scale: str
    output: str
    pixels: int
    channels: int
    gate: bool
    zeros: tuple[int, int]
    rounding: Rounding

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.first, self.second, self.scale)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def work(self) -> int:
        return self.pixels * self.channels

    def check(self, plan: Plan) -> None:
        self.rounding.check()
        if min(self.channels, self.pixels) < 1 or not all(0 <= z <= 255 for z in self.zeros):
            self.refuse("a size or a zero is out of bounds")
        size = self.channels * self.pixels
        self.constant(plan, self.scale)
        self.check_sizes(plan, "float32", (self.scale, 1))
        second = self.channels if self.gate else size
        self.check_sizes(
            plan, "uint8", (self.first, size), (self.second, second), (self.output, size)
        )

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.output] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        first = tensors[self.first].reshape(self.pixels, self.channels).astype(np.int64)
        second = tensors[self.second].reshape(-1, self.channels).astype(np.int64)
        sums = (first - self.zeros[0]) * (second - self.zeros[1])
        return self.rounding.of(sums, tensors[self.scale][0]).ravel()

    def check_constants(self, writer: Writer) -> None:
        """Check that no product overflows with the scale that there is.

        Raises:
            IntegrityError: one may.
        """
        check_sums(writer, np.array([255 * 255]), self.scale)

    def emit(self, writer: Writer) -> None:
        self.check_constants(writer)
        x, z, y = writer.read(self.first), writer.read(self.second), writer.write(self.output)
        scale = writer.read(self.scale)
        wide = writer.byte_width(self.channels if self.gate else self.pixels * self.channels)
        if wide and self.gate:
            self._emit_gate(writer, wide, x, z, y, scale)
            return
        if wide:
            zeros = f"{self.zeros[0]}.f, {self.zeros[1]}.f"
            end = f"{scale}[0], {self.rounding.arguments}"
            with shared_bytes(writer, self.pixels * self.channels, wide) as (at, size):
                pointers = f"{y} + {at}, {x} + {at}, {z} + {at}"
                writer.line(f"multiplied_{wide}({pointers}, {size}, {zeros}, {end});")
            return
        with writer.loops((self.pixels, self.channels), split=True):
            place = f"i0 * {self.channels} + i1"
            second = f"{z}[{'i1' if self.gate else place}]"
            product = f"({x}[{place}] - {self.zeros[0]}) * ({second} - {self.zeros[1]})"
            scaled = f"(float)({product}) * {scale}[0]"
            writer.line(f"{y}[{place}] = byte_of({scaled}, {self.rounding.arguments});")

    def _emit_gate(self, writer: Writer, wide: int, x: str, z: str, y: str, scale: str) -> None:
        """Write the product with each channel's factor, which becomes a float once."""
        factors = writer.scratch("float32", self.channels, apart=True)
        less = writer.scratch("float32", self.channels, apart=True)
        with writer.share(self.pixels) as (first, last):
            with writer.loops((self.channels,)):
                writer.line(f"{factors}[i0] = {z}[i0] - {self.zeros[1]};")
                writer.line(f"{less}[i0] = {factors}[i0] * {self.zeros[0]}.f;")
            with writer.block(f"for (long i = {first}; i < {last}; i++)"):
                place = f"i * {self.channels}"
                writer.line(
                    f"gated_{wide}({y} + {place}, {x} + {place}, {factors}, {less}, {self.channels}, "
                    f"{scale}[0], {self.rounding.arguments});"
                )


@dataclass(frozen=True)
class Gate8(Operation):
    """Product of each pixel's channels with a factor for each channel, in integers of 16 bits.

    `Multiply8` with a gate does the same in floats: plans that were made before have it.

    Attributes:
        input: Tensor of `pixels x channels` uint8.
        gates: Tensor of `channels` uint8.
        output: Tensor of `pixels x channels` uint8.
        pixels: Number of pixels.
        channels: Number of channels.
        product: Factor and rounding.
    """

    narrow: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    input: str
    gates: str
    output: str
    pixels: int
    channels: int
    product: Gate

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.input, self.gates)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def work(self) -> int:
        return self.pixels * self.channels

    def check(self, plan: Plan) -> None:
        self.product.check()
        if min(self.channels, self.pixels) < 1:
            self.refuse("a size is out of bounds")
        size = self.channels * self.pixels
        sizes = ((self.input, size), (self.gates, self.channels), (self.output, size))
        self.check_sizes(plan, "uint8", *sizes)

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.output] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        given = tensors[self.input].reshape(self.pixels, self.channels)
        return self.product.of(given, tensors[self.gates]).ravel()

    def emit(self, writer: Writer) -> None:
        x, z, y = writer.read(self.input), writer.read(self.gates), writer.write(self.output)
        wide = writer.byte_width(self.channels)
        if not wide:
            with writer.loops((self.pixels, self.channels), split=True):
                place = f"i0 * {self.channels} + i1"
                writer.line(
                    f"{y}[{place}] = {self.product.expression(f'{x}[{place}]', f'{z}[i1]')};"
                )
            return
        factors = writer.scratch("int16", -(-self.channels // wide) * wide, apart=True)
        with writer.share(self.pixels) as (first, last):
            given = f"{self.channels}, {self.product.zeros[1]}, {self.product.factor}"
            writer.line(f"gate_factors_{wide}({factors}, {z}, {given});")
            with writer.block(f"for (long i = {first}; i < {last}; i++)"):
                place = f"i * {self.channels}"
                writer.line(
                    f"gated8_{wide}({y} + {place}, {x} + {place}, {factors}, {self.channels}, "
                    f"{self.product.arguments});"
                )


@contextlib.contextmanager
def turned_blocks(writer: Writer, pixels: int, wide: int, channels: int) -> Iterator[None]:
    """Write loops over blocks of `wide` pixels and 16 channels, from `p` and `c` on; the last ones overlap.

    Args:
        writer: Where to.
        pixels: Number of pixels, at least `wide`; threads share them.
        wide: Pixels of a block.
        channels: Number of channels, at least 16.
    """
    blocks = -(-pixels // wide)
    with (
        writer.shared_loop("block", blocks),
        writer.block(f"for (long part = 0; part < {channels}; part += {_TURNED})"),
    ):
        for name, at, last in (
            ("p", f"block * {wide}", pixels - wide),
            ("c", "part", channels - _TURNED),
        ):
            writer.line(f"const long {name} = {at} < {last} ? {at} : {last};")
        yield


@contextlib.contextmanager
def shared_bytes(writer: Writer, size: int, wide: int) -> Iterator[tuple[str, str]]:
    """Write a block in which threads share some bytes; lend C for the first and the number of a part's.

    No part has fewer than a vector, and none but the last ends within a line of the cache.

    Args:
        writer: Where to.
        size: Number of bytes.
        wide: Bytes of a vector, of which there is one at least.
    """
    vectors = size // wide
    with writer.share(vectors, max(1, _LINE // wide)) as (first, last):
        with writer.block(""):
            writer.line(f"const long begin = {first} * {wide};")
            writer.line(
                f"const long size = ({last} == {vectors} ? {size} : {last} * {wide}) - begin;"
            )
            yield "begin", "size"
