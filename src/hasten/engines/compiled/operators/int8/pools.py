"""Pooling of pictures of bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.definition import MOST_LENGTH, MOST_SIZE
from hasten.engines.compiled.operators.int8.elementwise import shared_bytes
from hasten.engines.compiled.operators.int8.numbers import Rounding, check_sums
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.tensors import product

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_MOST_UNROLLED = 25
"""Largest number of pixels of a window for which there is C of its own, with constant bounds."""


@dataclass(frozen=True)
class Pool8(Operation):
    """Largest byte, or scaled sum, of each window of each channel, channels last.

    The sum that is rounded is that of `x - zero` over the taps within the picture.

    Attributes:
        input: Tensor of `size[0] x size[1] x channels` uint8.
        scale: Constant of one float32 above 0; "" for the largest byte.
        output: Tensor of `output_size[0] x output_size[1] x channels` uint8.
        channels: Number of channels.
        size: Height and width of the picture.
        kernel: Height and width of the window.
        strides: Steps down and to the right.
        pads: Taps outside the picture at the top, left, bottom and right, less than the window.
        zero: Byte that stands for 0.
        rounding: Rule by which sums become bytes; None for the largest byte.
    """

    narrow: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    input: str
    scale: str
    output: str
    channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    zero: int
    rounding: Rounding | None

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.input, *((self.scale,) if self.scale else ()))

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the result."""
        high, wide = (
            (self.size[at] + self.pads[at] + self.pads[at + 2] - self.kernel[at])
            // self.strides[at]
            + 1
            for at in (0, 1)
        )
        return high, wide

    @property
    def work(self) -> int:
        return product(self.output_size) * self.channels * product(self.kernel)

    def check(self, plan: Plan) -> None:
        sizes = (*self.size, *self.kernel, *self.strides)
        if min(self.channels, *sizes) < 1 or self.channels > MOST_SIZE or max(sizes) > MOST_LENGTH:
            self.refuse("a size is out of bounds")
        if min(self.output_size) < 1:
            self.refuse("a size is out of bounds")
        # Each window has a tap in the picture: at the end too, where the last one may begin in the pads.
        for at in (0, 1):
            start = (self.output_size[at] - 1) * self.strides[at] - self.pads[at]
            if not 0 <= self.pads[at] < self.kernel[at] or start >= self.size[at]:
                self.refuse("a window lies outside the picture")
            if not 0 <= self.pads[at + 2] <= MOST_SIZE:
                self.refuse("a size is out of bounds")
        if bool(self.scale) != (self.rounding is not None) or not 0 <= self.zero <= 255:
            self.refuse("a rounding without a scale, or a zero that is no byte")
        if self.rounding is not None:
            self.rounding.check()
            self.constant(plan, self.scale)
            self.check_sizes(plan, "float32", (self.scale, 1))
        result = product(self.output_size) * self.channels
        self.check_sizes(
            plan, "uint8", (self.input, product(self.size) * self.channels), (self.output, result)
        )

    def check_constants(self, writer: Writer) -> None:
        """Check that no sum overflows with the scale that there is.

        Raises:
            IntegrityError: one may.
        """
        if self.scale:
            most = product(self.kernel) * max(self.zero, 255 - self.zero)
            check_sums(writer, np.array([most]), self.scale)

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.output] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it."""
        largest = self.rounding is None
        picture = tensors[self.input].reshape(*self.size, self.channels).astype(np.int64)
        pads = ((self.pads[0], self.pads[2]), (self.pads[1], self.pads[3]), (0, 0))
        picture = np.pad(picture - self.zero, pads, constant_values=-256 if largest else 0)
        windows = np.lib.stride_tricks.sliding_window_view(picture, self.kernel, (0, 1))
        windows = windows[:: self.strides[0], :: self.strides[1]]
        if self.rounding is None:
            most: Array = (windows.max((-2, -1)) + self.zero).astype(np.uint8)
            return most.ravel()
        return self.rounding.of(windows.sum((-2, -1)), tensors[self.scale][0]).ravel()

    def emit(self, writer: Writer) -> None:
        self.check_constants(writer)
        x, y = writer.read(self.input), writer.write(self.output)
        if not (vector := writer.byte_width(self.channels)):
            self._emit_plainly(writer, x, y)
            return
        if product(self.output_size) == 1:  # all of a picture: threads share channels
            with shared_bytes(writer, self.channels, vector) as (first, channels):
                self._emit_pixel(writer, vector, f"{x} + {first}", f"{y} + {first}", channels)
            return
        with writer.loops(self.output_size, split=True):
            to = f"{y} + (i0 * {self.output_size[1]} + i1) * {self.channels}"
            self._emit_pixel(writer, vector, x, to, str(self.channels))

    def _emit_pixel(self, writer: Writer, wide: int, x: str, to: str, channels: str) -> None:
        """Write one pixel of the result, `i0` and `i1`, where there are more than one."""
        single = product(self.output_size) == 1
        with writer.block(""):
            for at, (name, size) in enumerate(zip(("v", "h"), self.size, strict=True)):
                place = "0" if single else f"i{at}"
                writer.line(f"const long {name} = {place} * {self.strides[at]} - {self.pads[at]};")
                writer.line(f"const long {name}0 = {name} < 0 ? 0 : {name};")
                end = f"{name} + {self.kernel[at]}"
                writer.line(f"const long {name}s = ({end} < {size} ? {end} : {size}) - {name}0;")
            if product(self.kernel) <= _MOST_UNROLLED:
                with writer.block(f"if (vs == {self.kernel[0]} && hs == {self.kernel[1]})"):
                    self._emit_window(
                        writer, wide, x, to, f"{self.kernel[0]}", f"{self.kernel[1]}", channels
                    )
                writer.line("else")
            with writer.block(""):
                self._emit_window(writer, wide, x, to, "vs", "hs", channels)

    def _emit_window(
        self, writer: Writer, wide: int, x: str, to: str, rows: str, columns: str, channels: str
    ) -> None:
        """Write one pixel's channels from a window of some rows and columns."""
        line = self.size[1] * self.channels
        window = (
            f"{x} + v0 * {line} + h0 * {self.channels}, {rows}, {columns}, {line}, {self.channels}"
        )
        if self.rounding is None:
            writer.line(f"largest_{wide}({to}, {window}, {channels});")
            return
        end = f"{writer.read(self.scale)}[0], {self.rounding.arguments}"
        less = f"{rows} * {columns} * {self.zero}"
        writer.line(f"averaged_{wide}({to}, {window}, {channels}, {less}, {end});")

    def _emit_plainly(self, writer: Writer, x: str, y: str) -> None:
        """Write loops over pixels, channels and taps, which any shape goes through."""
        high, wide = self.output_size
        with writer.loops((high, wide, self.channels), split=True):
            writer.line("i32 sum = 0;")
            with writer.loops(self.kernel, name="k"):
                writer.line(f"const long v = i0 * {self.strides[0]} + k0 - {self.pads[0]};")
                writer.line(f"const long h = i1 * {self.strides[1]} + k1 - {self.pads[1]};")
                writer.line(
                    f"if (v < 0 || v >= {self.size[0]} || h < 0 || h >= {self.size[1]}) continue;"
                )
                writer.line(f"const i32 q = {x}[(v * {self.size[1]} + h) * {self.channels} + i2];")
                if self.rounding is None:
                    writer.line("sum = q > sum ? q : sum;")
                else:
                    writer.line(f"sum += q - {self.zero};")
            place = f"(i0 * {wide} + i1) * {self.channels} + i2"
            if self.rounding is None:
                writer.line(f"{y}[{place}] = sum;")
            else:
                scaled = f"(float)sum * {writer.read(self.scale)}[0]"
                writer.line(f"{y}[{place}] = byte_of({scaled}, {self.rounding.arguments});")
