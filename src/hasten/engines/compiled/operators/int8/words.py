"""Operations of numbers of 16 bits one by one, and the C that all operations of such share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.numbers import MOST_RESULT
from hasten.engines.compiled.operators.int8.numbers16 import HIGHEST, LOWEST, WORDS, Rounding16
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.writer import byte_widths, spelled_dots

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

MOST_RATIO = 64.0
"""Largest magnitude of a factor in a sum of two words."""
MOST_PRODUCT = MOST_RESULT / WORDS**2
"""Largest ratio of scales in a product of two words."""
_PART_BITS = 8
"""Bits behind the point of a word in a sum of two."""
_LINE = 64
"""Words that stay in one share."""


def include(writer: Writer, words: bool = True) -> None:
    """Include the C of dense convolutions of bytes, and what calculates with words if that is needed."""
    wide = byte_widths(writer.isa)[0]
    writer.part("dense8.c", WIDE=wide, QUADS=int(spelled_dots(writer.isa) != 0))
    if words:
        writer.part("words.c")


@dataclass(frozen=True)
class Table16(Operation):
    """Each word replaced by one of a table.

    Attributes:
        input: Tensor of `size` int16.
        table: Constant of 65,536 int16, those of words from 0 to 32767 first, then those from -32768 to -1.
        output: Tensor of `size` int16.
        size: Number of words.
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
        given = (self.input, self.size), (self.table, WORDS), (self.output, self.size)
        self.check_sizes(plan, "int16", *given)

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.output] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        return tensors[self.table][tensors[self.input].view(np.uint16)]

    def emit(self, writer: Writer) -> None:
        x, t, y = writer.read(self.input), writer.read(self.table), writer.write(self.output)
        with writer.loops((self.size,), split=True):
            writer.line(f"{y}[i0] = {t}[(unsigned short){x}[i0]];")


@dataclass(frozen=True)
class Add16(Operation):
    """Sum of two tensors of words.

    With `part(q, zero, ratio) = rint(float32(q - zero) * float32(256 * ratio))` it is
    `clamp((part(x) + part(y) + 128 >> 8) + zero, low, high)`: no addition follows a product, so nothing can be
    contracted.

    Attributes:
        first: Tensor of `size` int16.
        second: Tensor of `size` int16.
        output: Tensor of `size` int16.
        size: Number of words.
        zeros: Word that stands for 0, of each.
        ratios: Scale of each over the result's; the second may be below 0.
        rounding: Zero and bounds of the result.
    """

    narrow: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    first: str
    second: str
    output: str
    size: int
    zeros: tuple[int, int]
    ratios: tuple[float, float]
    rounding: Rounding16

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
        self.rounding.check()
        if not all(abs(ratio) <= MOST_RATIO for ratio in self.ratios):  # NaN isn't either
            self.refuse(f"ratios of {self.ratios}")
        if not all(LOWEST <= zero <= HIGHEST for zero in self.zeros):
            self.refuse(f"zeros of {self.zeros}")
        names = (self.first, self.second, self.output)
        self.check_sizes(plan, "int16", *((name, self.size) for name in names))

    @property
    def _factors(self) -> tuple[np.float32, ...]:
        return tuple(np.float32(ratio * (1 << _PART_BITS)) for ratio in self.ratios)

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.output] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        whole = np.zeros(self.size, np.int64)
        names = (self.first, self.second)
        for name, zero, factor in zip(names, self.zeros, self._factors, strict=True):
            given = (tensors[name].astype(np.int64) - zero).astype(np.float32)
            whole += np.rint(given * factor).astype(np.int64)
        return self.rounding.cut(whole + (1 << _PART_BITS - 1) >> _PART_BITS)

    def emit(self, writer: Writer) -> None:
        include(writer)
        x, z, y = writer.read(self.first), writer.read(self.second), writer.write(self.output)
        factors = ", ".join(f"{float(factor).hex()}f" for factor in self._factors)
        zeros = f"{self.zeros[0]}, {self.zeros[1]}"
        with writer.share(self.size, _LINE) as (first, last):
            pointers = f"{y} + {first}, {x} + {first}, {z} + {first}"
            writer.line(
                f"add16({pointers}, {last} - {first}, {zeros}, {factors}, {self.rounding.arguments});"
            )


@dataclass(frozen=True)
class Multiply16(Operation):
    """Product of two tensors of words, or of each pixel's channels with a factor for each channel.

    It is `clamp(rint(float32(x - zeros[0]) * (float32(y - zeros[1]) * float32(ratio))) + zero, low, high)`,
    each product rounded to float32.

    Attributes:
        first: Tensor of `pixels x channels` int16.
        second: Tensor of as many int16; of `channels` where `gate` is true.
        output: Tensor of `pixels x channels` int16.
        pixels: Number of pixels.
        channels: Number of channels.
        gate: Whether the second has one number for each channel.
        zeros: Word that stands for 0, of each.
        ratio: Product of the two scales over the result's.
        rounding: Zero and bounds of the result.
    """

    narrow: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    first: str
    second: str
    output: str
    pixels: int
    channels: int
    gate: bool
    zeros: tuple[int, int]
    ratio: float
    rounding: Rounding16

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.first, self.second)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def work(self) -> int:
        return self.pixels * self.channels

    def check(self, plan: Plan) -> None:
        self.rounding.check()
        if not all(LOWEST <= zero <= HIGHEST for zero in self.zeros):
            self.refuse(f"zeros of {self.zeros}")
        if min(self.channels, self.pixels) < 1 or not 0 < self.ratio <= MOST_PRODUCT:
            self.refuse(f"a size is out of bounds, or a ratio of {self.ratio}")
        size = self.channels * self.pixels
        second = self.channels if self.gate else size
        sizes = ((self.first, size), (self.second, second), (self.output, size))
        self.check_sizes(plan, "int16", *sizes)

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.output] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        first, second = (
            (tensors[name].reshape(-1, self.channels).astype(np.int32) - zero).astype(np.float32)
            for name, zero in zip((self.first, self.second), self.zeros, strict=True)
        )
        scaled = first * (second * np.float32(self.ratio))
        return self.rounding.cut(np.rint(scaled).astype(np.int64)).ravel()

    def emit(self, writer: Writer) -> None:
        include(writer)
        x, z, y = writer.read(self.first), writer.read(self.second), writer.write(self.output)
        factors = writer.scratch("float32", self.channels, apart=True)
        ratio = f"{float(np.float32(self.ratio)).hex()}f"
        count = self.channels
        made = f"factors16({factors}, {z}%s, {count}, {self.zeros[1]}, {ratio});"
        with writer.share(self.pixels) as (first, last):
            if self.gate:
                writer.line(made % "")
            with writer.block(f"for (long i = {first}; i < {last}; i++)"):
                if not self.gate:
                    writer.line(made % f" + i * {count}")
                pointers = f"{y} + i * {count}, {x} + i * {count}, {factors}"
                writer.line(
                    f"multiply16({pointers}, {count}, {self.zeros[0]}, {self.rounding.arguments});"
                )
