"""Definition of a convolution of bytes: its sizes, their bounds, and its results as numpy computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.numbers import (
    Rounding,
    Sum8,
    check_slopes,
    check_sums,
    most_sums,
)
from hasten.engines.compiled.operators.int8.numbers16 import Rounding16
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.tensors import product
from hasten.engines.layers import Kind

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

MOST_SIZE = 1 << 16
"""Largest number of channels, step or pad, and largest side of a kernel."""
MOST_LENGTH = 1 << 22
"""Largest height or width of a picture, or length of a signal: an average of so many bytes fits in 32 bits."""
MOST_PADDED = 1 << 28
"""Largest number of bytes of a picture with its pads."""


@dataclass(frozen=True)
class Convolution(Operation):
    """Convolution of bytes, channels last, with all but the input and the residual constant.

    The sum of a channel is `bias + sum((x - zero) * weight)`, over the taps within the picture. `rounding`
    makes a byte of it, `table` another byte of that; `residual` is added then, and `last` makes a byte of
    that byte. Without a rounding, the result is `float32(sum) * scale`, a float32.

    Attributes:
        input: Tensor of `size[0] x size[1] x channels[0]` uint8.
        weight: Constant of `channels[1] x kernel[0] x kernel[1] x (channels[0] / groups)` int8.
        bias: Constant of `channels[1]` int32.
        scale: Constant of `channels[1]` float32, each above 0.
        output: Tensor of `output_size[0] x output_size[1] x channels[1]` uint8, or float32.
        channels: Channels that are read and written.
        groups: Groups of channels, each of which sees its own only.
        size: Height and width of the picture.
        kernel: Height and width of the kernel.
        strides: Steps down and to the right.
        dilations: Distances of the kernel's taps.
        pads: Taps outside the picture at the top, left, bottom and right.
        zero: Byte of the input that stands for 0.
        rounding: Rule by which sums become bytes; None for float32.
        slope: Constant of `channels[1]` float32, each at most 1, that results below 0 are multiplied by
            before they are rounded; "" for none.
        table: Constant of 256 uint8 that replace each byte; "" for none.
        residual: Tensor like the output that is added; "" for none.
        sum: Rule by which the residual is added; None if there is none.
        last: Constant of 256 uint8 that replace each byte after that; "" for none.
    """

    task: ClassVar[Kind] = "arithmetic"

    narrow: ClassVar[bool] = True
    splits: ClassVar[bool] = True

    input: str
    weight: str
    bias: str
    scale: str
    output: str
    channels: tuple[int, int]
    groups: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    zero: int
    rounding: Rounding | None
    slope: str = ""
    table: str = ""
    residual: str = ""
    sum: Sum8 | None = None
    last: str = ""

    @property
    def reads(self) -> tuple[str, ...]:
        names = (self.input, self.weight, self.bias, self.scale)
        return (*names, *filter(None, (self.slope, self.table, self.residual, self.last)))

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.output,)

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the result."""
        high, wide = (
            (padded - (self.kernel[at] - 1) * self.dilations[at] - 1) // self.strides[at] + 1
            for at, padded in enumerate(self.padded_size)
        )
        return high, wide

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width of the picture with its pads."""
        return (
            self.size[0] + self.pads[0] + self.pads[2],
            self.size[1] + self.pads[1] + self.pads[3],
        )

    @property
    def taps(self) -> int:
        """Products in each sum."""
        return product(self.kernel) * (self.channels[0] // self.groups)

    @property
    def work(self) -> int:
        return product(self.output_size) * self.channels[1] * self.taps

    @property
    def within_bounds(self) -> bool:
        """Whether no size is too large."""
        ones = (*self.channels, self.groups, *self.kernel, *self.strides, *self.dilations)
        padded = product(self.padded_size) * self.channels[0]
        small = max(*ones, *self.pads) <= MOST_SIZE
        return small and max(self.size) <= MOST_LENGTH and padded <= MOST_PADDED

    @property
    def given_type(self) -> str:
        """Element type of the input."""
        return "uint8"

    @property
    def made_type(self) -> str:
        """Element type of the result."""
        return "float32" if self.rounding is None else "uint8"

    @property
    def zeros(self) -> tuple[int, int]:
        """Smallest and largest number of the input."""
        return 0, 255

    @property
    def words(self) -> Rounding16 | None:
        """Rule by which sums become numbers of 16 bits; None for other results."""
        return None

    def most_sums(self, weight: Array, bias: Array) -> Array:
        """Return the largest magnitude that each channel's sum can have; see `numbers.most_sums`."""
        return most_sums(weight, bias, self.zero)

    @property
    def depthwise(self) -> bool:
        """Whether each channel sees itself alone."""
        return self.groups == self.channels[0] == self.channels[1]

    @property
    def pointwise(self) -> bool:
        """Whether each result depends on one pixel, and the results are in the order of these."""
        return product((*self.kernel, *self.strides)) == 1 and not any(self.pads)

    def check(self, plan: Plan) -> None:
        ones = (*self.channels, self.groups, *self.kernel, *self.strides, *self.dilations)
        if min(*ones, *self.size) < 1 or min(self.pads) < 0 or not self.within_bounds:
            self.refuse("a size is out of bounds")
        if min(self.output_size) < 1 or any(one % self.groups for one in self.channels):
            self.refuse(f"{self.channels} channels in {self.groups} groups, or a large kernel")
        if not self.zeros[0] <= self.zero <= self.zeros[1]:
            self.refuse(f"a zero of {self.zero}")
        outs = self.channels[1]
        result = product(self.output_size) * outs
        for name, dtype, size in (
            (self.weight, "int8", outs * self.taps),
            (self.bias, "int32", outs),
            (self.scale, "float32", outs),
            *((name, "float32", outs) for name in (self.slope,) if name),
            *((name, "uint8", 256) for name in (self.table, self.last) if name),
        ):
            self.constant(plan, name)
            self.check_sizes(plan, dtype, (name, size))
        picture = product(self.size) * self.channels[0]
        self.check_sizes(plan, self.given_type, (self.input, picture))
        self.check_sizes(plan, self.made_type, (self.output, result))
        if self.slope and self.made_type == "float32":
            self.refuse("a result of float32 has no slope")
        if self.rounding is None:
            if self.table or self.residual or self.last or self.sum:
                self.refuse(f"a result of {self.made_type} goes through no table")
            return
        self.rounding.check()
        if bool(self.residual) != (self.sum is not None):
            self.refuse("a residual without its factors")
        if self.sum is not None:
            self.sum.check()
            self.check_sizes(plan, "uint8", (self.residual, result))

    def check_constants(self, writer: Writer) -> None:
        """Check that no sum overflows with the constants that there are.

        Raises:
            IntegrityError: one may.
        """
        weight = writer.constant(self.weight).reshape(self.channels[1], -1)
        bias = writer.constant(self.bias)
        most = self.most_sums(weight, bias)
        check_sums(writer, most, self.scale)
        if self.slope:
            check_slopes(most, writer.constant(self.scale), writer.constant(self.slope))

    def calculate(self, tensors: dict[str, Array]) -> None:
        tensors[self.output] = self.compute(tensors)

    def compute(self, tensors: dict[str, Array]) -> Array:
        """Return the result for one row, as numpy computes it: what every kernel must equal.

        Args:
            tensors: Flat arrays of all that it reads, by name.
        """
        ins, outs = (channels // self.groups for channels in self.channels)
        picture = tensors[self.input].reshape(*self.size, self.channels[0]).astype(np.int64)
        pads = self.pads
        picture = np.pad(picture - self.zero, ((pads[0], pads[2]), (pads[1], pads[3]), (0, 0)))
        weight = tensors[self.weight].reshape(self.groups, outs, *self.kernel, ins)
        high, wide = self.output_size
        sums = np.zeros((high, wide, self.groups, outs), np.int64)
        for down in range(self.kernel[0]):
            for right in range(self.kernel[1]):
                top, left = down * self.dilations[0], right * self.dilations[1]
                part = picture[
                    top : top + (high - 1) * self.strides[0] + 1 : self.strides[0],
                    left : left + (wide - 1) * self.strides[1] + 1 : self.strides[1],
                ].reshape(high, wide, self.groups, ins)
                taps = weight[:, :, down, right].astype(np.int64)
                sums += np.einsum("hwgi,goi->hwgo", part, taps, optimize=True)
        flat = sums.reshape(high, wide, -1) + tensors[self.bias]
        return self.finish(flat, tensors)

    def finish(self, sums: Array, tensors: dict[str, Array]) -> Array:
        """Return the results of sums of shape (height, width, channels), flat."""
        scale = tensors[self.scale]
        if self.rounding is None:
            return (sums.astype(np.float32) * scale).ravel()
        slope = tensors[self.slope] if self.slope else None
        found = self.rounding.of(sums, scale, slope).ravel()
        if self.table:
            found = tensors[self.table][found]
        if self.sum is not None:
            found = self.sum.of(found, tensors[self.residual])
        if self.last:
            found = tensors[self.last][found]
        return found
