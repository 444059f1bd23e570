"""Operations of bytes one by one, and between bytes and floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.numbers import (
    MOST_RESULT,
    Rounding,
    Sum8,
    check_sums,
)
from hasten.engines.compiled.plan import Operation, Plan

if TYPE_CHECKING:
    from hasten.engines.compiled.source import Writer

_LEAST_STEP = float(np.finfo(np.float32).smallest_subnormal)
_MOST_STEP = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Quantize(Operation):
    """Bytes of floats: `clamp(rint(x / step) + zero, low, high)`, channels first to channels last.

    The quotient is rounded to float32, then to the nearest integer, halves to even. NaN gives `low`.

    Attributes:
        input: Tensor of `channels x pixels` float32.
        output: Tensor of `pixels x channels` uint8.
        channels: Number of channels.
        pixels: Number of pixels.
        step: Real number that one step of a byte stands for.
        rounding: Zero and bounds.
    """

    narrow: ClassVar[bool] = True

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
        return self.channels * self.pixels

    def check(self, plan: Plan) -> None:
        self.rounding.check()
        if min(self.channels, self.pixels) < 1:
            self.refuse("a size is out of bounds")
        if not _LEAST_STEP <= self.step <= _MOST_STEP:  # NaN isn't either
            self.refuse(f"a step of {self.step}")
        size = self.channels * self.pixels
        self.check_sizes(plan, "float32", (self.input, size))
        self.check_sizes(plan, "uint8", (self.output, size))

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        given = tensors[self.input].reshape(self.channels, self.pixels).T
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = np.nan_to_num(given / np.float32(self.step), nan=-MOST_RESULT)
        whole = np.rint(np.clip(scaled, -MOST_RESULT, MOST_RESULT)).astype(np.int64)
        found = np.clip(whole + self.rounding.zero, self.rounding.low, self.rounding.high)
        return found.astype(np.uint8).ravel()  # type: ignore[no-any-return]

    def emit(self, writer: Writer) -> None:
        x, y = writer.read(self.input), writer.write(self.output)
        with writer.loops((self.pixels, self.channels)):
            step = float(np.float32(self.step)).hex()
            writer.line(f"float v = {x}[i1 * {self.pixels} + i0] / {step}f;")
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

    narrow: ClassVar[bool] = True

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

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        given = tensors[self.input].reshape(self.pixels, self.channels).T
        return tensors[self.table][given.ravel()]

    def emit(self, writer: Writer) -> None:
        x, t, y = writer.read(self.input), writer.read(self.table), writer.write(self.output)
        with writer.loops((self.channels, self.pixels)):
            writer.line(f"{y}[i0 * {self.pixels} + i1] = {t}[{x}[i1 * {self.channels} + i0]];")


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

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        return tensors[self.table][tensors[self.input]]

    def emit(self, writer: Writer) -> None:
        x, t, y = writer.read(self.input), writer.read(self.table), writer.write(self.output)
        with writer.loops((self.size,)):
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

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        return self.sum.of(tensors[self.first], tensors[self.second])

    def emit(self, writer: Writer) -> None:
        x, z, y = writer.read(self.first), writer.read(self.second), writer.write(self.output)
        with writer.loops((self.size,)):
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
        rounding: How products become bytes.
    """

    narrow: ClassVar[bool] = True

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
        with writer.loops((self.pixels, self.channels)):
            place = f"i0 * {self.channels} + i1"
            second = f"{z}[{'i1' if self.gate else place}]"
            product = f"({x}[{place}] - {self.zeros[0]}) * ({second} - {self.zeros[1]})"
            scaled = f"(float)({product}) * {scale}[0]"
            writer.line(f"{y}[{place}] = byte_of({scaled}, {self.rounding.arguments});")
