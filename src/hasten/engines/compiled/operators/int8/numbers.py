"""Meaning of the integer arithmetic: how sums and bytes become bytes again.

A byte `q` stands for the real number `(q - zero) * scale`; plans hold zeros and ratios of scales alone.
Every answer here is exact, so that it is the same on every processor and for any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import IntegrityError

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

MOST_SUM = (1 << 31) - 1
"""Largest magnitude of a sum."""
MOST_RESULT = float(1 << 30)
"""Largest magnitude of a scaled sum, before it is cut to a byte."""
_MOST_FACTOR = (1 << 15) - 1
_MOST_SHIFT = 30
_GATE_BITS = 15
"""Bits of a gate's factor."""
_LEAST_GATE_SHIFT = 9
"""Bits that a product with a gate loses at least: a byte that was moved to the left still fits in 16 bits."""
_BLOCK = 1 << 16
"""Weights that are looked at together."""
_FAR = 1e6
"""Number of steps that is beyond all bytes and words, whatever the zero."""


def steps_of(numbers: Array, zero: int, scale: float) -> Array:
    """Return real numbers in steps of a scale from a zero, as int64; NaN gives the zero.

    Numbers beyond a million steps give a million, which is more than a byte or a word holds.
    """
    with np.errstate(all="ignore"):
        scaled = np.nan_to_num(numbers / np.float32(scale))
    found: Array = np.rint(np.clip(scaled, -_FAR, _FAR)).astype(np.int64) + zero
    return found


def whole_steps(floats: Array, step: float) -> Array:
    """Return floats in whole steps, as int64: the quotient is rounded to float32, then to the nearest integer.

    NaN, and what is below `-MOST_RESULT` steps, gives that; what is above `MOST_RESULT` steps gives that.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.nan_to_num(floats / np.float32(step), nan=-MOST_RESULT)
    found: Array = np.rint(np.clip(scaled, -MOST_RESULT, MOST_RESULT)).astype(np.int64)
    return found


@dataclass(frozen=True)
class Rounding:
    """Rule by which a sum becomes a byte: `clamp(rint(float32(sum) * scale) + zero, low, high)`.

    The product is rounded to float32, then to the nearest integer, halves to even. With a slope, a product
    below 0 is first multiplied by the slope, and rounded to float32 again. That is a leaky ReLU. A slope is
    at most 1, so the larger of the product and of its multiple is the same number.

    Attributes:
        zero: Byte that stands for 0.
        low: Smallest byte that comes out.
        high: Largest byte that comes out.
    """

    zero: int
    low: int = 0
    high: int = 255

    def check(self) -> None:
        """Check that all are bytes.

        Raises:
            IntegrityError: one isn't.
        """
        if not (0 <= self.zero <= 255 and 0 <= self.low <= self.high <= 255):
            raise IntegrityError(f"the plan is damaged: rounding to {self.low} to {self.high}")

    @property
    def arguments(self) -> str:
        """Arguments of C's `byte_of` behind the scaled sum."""
        return f"{self.zero}, {self.low}, {self.high}"

    def of(self, sums: Array, scale: Array | np.float32, slope: Array | None = None) -> Array:
        """Return the bytes of sums, as numpy computes them.

        Args:
            sums: int32 or int64 of any shape.
            scale: float32, for all or for each number along the last axis.
            slope: float32, what products below 0 are multiplied by, likewise; None for 1.
        """
        scaled = sums.astype(np.float32) * scale
        if slope is not None:
            scaled = np.where(scaled < 0, scaled * slope, scaled)
        whole = np.rint(scaled).astype(np.int64) + self.zero
        found: Array = np.clip(whole, self.low, self.high).astype(np.uint8)
        return found


@dataclass(frozen=True)
class Sum8:
    """Sum of two bytes as a byte: `clamp((a * x + b * y + offset) >> shift, low, high)`.

    Attributes:
        factors: Factors a and b, of 16 bits.
        offset: Number of 32 bits, with half a unit for rounding.
        shift: Bits that are shifted out, arithmetically.
        low: Smallest byte that comes out.
        high: Largest byte that comes out.
    """

    factors: tuple[int, int]
    offset: int
    shift: int
    low: int = 0
    high: int = 255

    def check(self) -> None:
        """Check that nothing overflows, whatever the bytes are.

        Raises:
            IntegrityError: a sum might.
        """
        most = 255 * sum(map(abs, self.factors)) + abs(self.offset)
        fits = max(map(abs, self.factors)) <= _MOST_FACTOR and most <= MOST_SUM
        if not (fits and 0 <= self.shift <= _MOST_SHIFT and 0 <= self.low <= self.high <= 255):
            raise IntegrityError("the plan is damaged: a sum of two bytes overflows")

    @property
    def arguments(self) -> str:
        """Arguments of C's `added` behind the size."""
        return f"{self.factors[0]}, {self.factors[1]}, {self.offset}, {self.shift}, {self.low}, {self.high}"

    def expression(self, first: str, second: str) -> str:
        """Return C for the byte of two bytes, which are C expressions."""
        a, b = self.factors
        total = f"({a} * {first} + {b} * {second} + ({self.offset})) >> {self.shift}"
        return f"clamp_byte({total}, {self.low}, {self.high})"

    def of(self, first: Array, second: Array) -> Array:
        """Return the bytes of two arrays of uint8, as numpy computes them."""
        a, b = self.factors
        total = first.astype(np.int64) * a + second.astype(np.int64) * b + self.offset
        found: Array = np.clip(total >> self.shift, self.low, self.high).astype(np.uint8)
        return found

    @classmethod
    def near(
        cls,
        ratios: tuple[float, float],
        zeros: tuple[int, int],
        rounding: Rounding,
    ) -> Sum8:
        """Return the sum `ratios[0] * (x - zeros[0]) + ratios[1] * (y - zeros[1])`, to 15 bits.

        Args:
            ratios: Scale of each byte over the result's.
            zeros: Byte that stands for 0, of each.
            rounding: Zero and bounds of the result.

        Raises:
            IntegrityError: a ratio is too large, or no number.
        """
        largest = max(map(abs, ratios))
        if not 0 < largest < 1 << 14:
            raise IntegrityError(f"ratios of scales of {ratios[0]:g} and {ratios[1]:g}")
        shift = min(_MOST_SHIFT - 8, max(0, 14 - int(np.ceil(np.log2(largest)))))
        a, b = (round(ratio * (1 << shift)) for ratio in ratios)
        half = (1 << shift) >> 1
        offset = (rounding.zero << shift) + half - a * zeros[0] - b * zeros[1]
        return cls((a, b), offset, shift, rounding.low, rounding.high)


@dataclass(frozen=True)
class Gate:
    """Product of a byte with its channel's gate, a byte too: `clamp(((x - zeros[0]) * f >> shift) + zero, low, high)`.

    `f = (gate - zeros[1]) * factor >> 15` has 16 bits and is computed once for each channel. Both shifts are
    arithmetic, and round to the nearest integer, halves up.

    Attributes:
        zeros: Byte that stands for 0, of what is multiplied and of the gates.
        factor: Ratio of the scales, times 2 to the power of `shift + 15`.
        shift: Bits that are shifted out, from 9 to 15.
        rounding: Zero and bounds of the result.
    """

    zeros: tuple[int, int]
    factor: int
    shift: int
    rounding: Rounding

    def check(self) -> None:
        """Check that nothing overflows, whatever the bytes are.

        Raises:
            IntegrityError: a product might.
        """
        self.rounding.check()
        fits = all(0 <= zero <= 255 for zero in self.zeros) and 0 <= self.factor <= 1 << 30
        most = max(self.zeros[1], 255 - self.zeros[1]) * self.factor
        if not (fits and _LEAST_GATE_SHIFT <= self.shift <= _GATE_BITS) or (
            _shifted(most, _GATE_BITS) > _MOST_FACTOR
        ):
            raise IntegrityError("the plan is damaged: a product with a gate overflows")

    @property
    def arguments(self) -> str:
        """Arguments of C's `gated8` behind the number of channels."""
        return f"{self.zeros[0]}, {_GATE_BITS - self.shift}, {self.rounding.arguments}"

    def expression(self, first: str, gate: str) -> str:
        """Return C for the byte of a byte and its gate, which are C expressions."""
        factor = f"((({gate} - {self.zeros[1]}) * {self.factor} + {1 << _GATE_BITS - 1}) >> {_GATE_BITS})"
        product = (
            f"(({first} - {self.zeros[0]}) * {factor} + {1 << self.shift - 1}) >> {self.shift}"
        )
        low, high = self.rounding.low, self.rounding.high
        return f"clamp_byte(({product}) + {self.rounding.zero}, {low}, {high})"

    def of(self, first: Array, gates: Array) -> Array:
        """Return the bytes of an array of uint8 of shape (pixels, channels) and of one gate for each channel."""
        factors = _shifted((gates.astype(np.int64) - self.zeros[1]) * self.factor, _GATE_BITS)
        whole = _shifted((first.astype(np.int64) - self.zeros[0]) * factors, self.shift)
        bounds = (self.rounding.low, self.rounding.high)
        found: Array = np.clip(whole + self.rounding.zero, *bounds).astype(np.uint8)
        return found

    @classmethod
    def near(cls, ratio: float, zeros: tuple[int, int], rounding: Rounding) -> Gate | None:
        """Return the product `ratio * (x - zeros[0]) * (gate - zeros[1])`, to 15 bits of the largest gate.

        Args:
            ratio: Product of the two scales over the result's, above 0.
            zeros: Byte that stands for 0, of each.
            rounding: Zero and bounds of the result.

        Returns:
            The product; None where the largest gate multiplies a byte by more than 64.
        """
        most = max(zeros[1], 255 - zeros[1]) * ratio
        if not 0 < most <= _MOST_FACTOR / (1 << _LEAST_GATE_SHIFT):
            return None
        shift = min(_GATE_BITS, int(np.floor(np.log2(_MOST_FACTOR / most))))
        return cls(zeros, round(ratio * (1 << shift + _GATE_BITS)), shift, rounding)


def _shifted(number: Any, bits: int) -> Any:
    """Return integers without their last bits, rounded to the nearest, halves up."""
    return number + (1 << bits - 1) >> bits


def most_sums(weight: Array, bias: Array, zero: int) -> Array:
    """Return the largest magnitude that each channel's sum can have, as int64.

    Args:
        weight: int8 of shape (channels, ...).
        bias: int32 of shape (channels,).
        zero: Byte that stands for 0 in what is read.
    """
    flat = weight.reshape(len(weight), -1)
    rows = 1 + _BLOCK // max(1, flat.shape[1])
    blocks = (flat[at : at + rows].astype(np.int16) for at in range(0, len(flat), rows))
    sums = np.concatenate([np.abs(block).sum(1, np.int64) for block in blocks])
    found: Array = sums * max(zero, 255 - zero) + np.abs(bias.astype(np.int64))
    return found


def check_sums(writer: Writer, most: Array, scale: str) -> None:
    """Check that sums fit 32 bits, and their products with the scales the range for rounding.

    Args:
        writer: Writer with the plan's constants.
        most: Largest magnitude of each channel's sum.
        scale: Name of the scales, one for each channel or for all.

    Raises:
        IntegrityError: a sum or a result may overflow, or a scale is no positive number.
    """
    check_scales(most, writer.constant(scale))


def check_scales(most: Array, scale: Array) -> None:
    """Check that sums fit 32 bits, and their products with the scales the range for rounding.

    Args:
        most: Largest magnitude of each channel's sum.
        scale: float32, one for each channel or for all.

    Raises:
        IntegrityError: a sum or a result may overflow, or a scale is no positive number.
    """
    scales = scale.astype(np.float64)
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise IntegrityError("the plan is damaged: a scale isn't a positive number")
    if most.max() > MOST_SUM or (most * scales).max() > MOST_RESULT:
        raise IntegrityError("the plan is damaged: a sum of products may overflow")


def check_slopes(most: Array, scale: Array, slope: Array) -> None:
    """Check that what becomes of sums below 0 fits the range for rounding.

    Args:
        most: Largest magnitude of each channel's sum.
        scale: float32, scale of each channel.
        slope: float32, slope of each channel.

    Raises:
        IntegrityError: a slope is above 1 or isn't a number, or a result may overflow.
    """
    if not (np.isfinite(slope).all() and (slope <= 1).all()):
        raise IntegrityError("the plan is damaged: a slope isn't a number up to 1")
    if (most * scale.astype(np.float64) * np.abs(slope)).max() > MOST_RESULT:
        raise IntegrityError("the plan is damaged: a sum of products may overflow")
