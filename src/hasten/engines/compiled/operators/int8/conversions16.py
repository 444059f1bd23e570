"""Conversions between numbers of 16 bits, channels last, and floats, channels first; see `words`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.numbers import whole_steps
from hasten.engines.compiled.operators.int8.numbers16 import HIGHEST, LOWEST, WORDS, Rounding16
from hasten.engines.compiled.operators.int8.words import include
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.layers import Kind

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_LEAST_STEP = float(np.finfo(np.float32).smallest_subnormal)
_MOST_STEP = float(np.finfo(np.float32).max)
_BLOCK = (64, 16)
"""Channels and pixels that change places together."""


@dataclass(frozen=True)
class Quantize16(Operation):
    """Words of floats: `clamp(rint(x / step) + zero, low, high)`, channels first to channels last.

    All is as with `Quantize`, which makes bytes.

    Attributes:
        input: Tensor of `channels x pixels` float32.
        output: Tensor of `pixels x channels` int16.
        channels: Number of channels.
        pixels: Number of pixels.
        step: Real number that one step of a word stands for.
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
    rounding: Rounding16

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
        self.check_sizes(plan, "int16", (self.output, size))

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.output] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        given = tensors[self.input].reshape(self.channels, self.pixels).T
        return self.rounding.cut(whole_steps(given, self.step)).ravel()

    def emit(self, writer: Writer) -> None:
        include(writer)
        x, y = writer.read(self.input), writer.write(self.output)
        step = f"{float(np.float32(self.step)).hex()}f"
        value = f"word_of({x}[i * {self.pixels} + j], {step}, {self.rounding.arguments})"
        _turned(writer, self.channels, self.pixels, f"{y}[j * {self.channels} + i] = {value};")


@dataclass(frozen=True)
class Dequantize16(Operation):
    """Floats of words, `float32(x - zero) * scale`, channels last to channels first.

    Attributes:
        input: Tensor of `pixels x channels` int16.
        output: Tensor of `channels x pixels` float32.
        channels: Number of channels.
        pixels: Number of pixels.
        zero: Word that stands for 0.
        scale: Real number that one step of a word stands for.
    """

    task: ClassVar[Kind] = "conversion"
    narrow: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    input: str
    output: str
    channels: int
    pixels: int
    zero: int
    scale: float

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
        if min(self.channels, self.pixels) < 1 or not LOWEST <= self.zero <= HIGHEST:
            self.refuse("a size or a zero is out of bounds")
        if not _LEAST_STEP <= self.scale <= _MOST_STEP:
            self.refuse(f"a step of {self.scale}")
        size = self.channels * self.pixels
        self.check_sizes(plan, "int16", (self.input, size))
        self.check_sizes(plan, "float32", (self.output, size))

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.output] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        given = tensors[self.input].reshape(self.pixels, self.channels).T.astype(np.int32)
        with np.errstate(over="ignore"):
            found: Array = (given - self.zero).astype(np.float32) * np.float32(self.scale)
        return found.ravel()

    def emit(self, writer: Writer) -> None:
        x, y = writer.read(self.input), writer.write(self.output)
        scale = f"{float(np.float32(self.scale)).hex()}f"
        value = f"(float)({x}[j * {self.channels} + i] - ({self.zero})) * {scale}"
        _turned(writer, self.channels, self.pixels, f"{y}[i * {self.pixels} + j] = {value};")


@dataclass(frozen=True)
class Numbers16(Operation):
    """Floats of words by a table, channels last to channels first.

    Attributes:
        input: Tensor of `pixels x channels` int16.
        table: Constant of 65,536 float32, in the order of `Table16`.
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
        self.check_sizes(plan, "int16", (self.input, size))
        self.check_sizes(plan, "float32", (self.table, WORDS), (self.output, size))

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.output] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        given = tensors[self.input].reshape(self.pixels, self.channels).T
        return tensors[self.table][given.ravel().view(np.uint16)]

    def emit(self, writer: Writer) -> None:
        x, t, y = writer.read(self.input), writer.read(self.table), writer.write(self.output)
        value = f"{t}[(unsigned short){x}[j * {self.channels} + i]]"
        _turned(writer, self.channels, self.pixels, f"{y}[i * {self.pixels} + j] = {value};")


def _turned(writer: Writer, channels: int, pixels: int, statement: str) -> None:
    """Write a statement for each channel `i` and pixel `j`, in blocks that a cache holds."""
    if channels == 1 or pixels == 1:
        with writer.loops((channels * pixels,), split=True):
            place = "const long i = i0, j = 0;" if pixels == 1 else "const long i = 0, j = i0;"
            writer.line(f"{place} {statement}")
        return
    blocks = (-(-channels // _BLOCK[0]), -(-pixels // _BLOCK[1]))
    with writer.loops(blocks, name="block", split=True):
        for name, at, size, step in (
            *(("c", "block0", channels, _BLOCK[0]), ("p", "block1", pixels, _BLOCK[1])),
        ):
            writer.line(f"const long {name} = {at} * {step};")
            writer.line(f"const long {name}_end = MIN({name} + {step}, {size});")
        with writer.block("for (long i = c; i < c_end; i++)"):
            with writer.block("for (long j = p; j < p_end; j++)"):
                writer.line(statement)
