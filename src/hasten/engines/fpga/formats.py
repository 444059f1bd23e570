"""Fixed-point formats: how many bits of a number stand where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hasten.core.tensors import Array


@dataclass(frozen=True)
class Format:
    """Formats of a tensor's elements: each array of its shape, without an axis for samples.

    Attributes:
        signed: 1 where there is a sign bit.
        integer: Bits before the point, the sign's not counted; negative where the first are left out.
        fraction: Bits behind the point; negative where the last before it are left out.
    """

    signed: Array
    integer: Array
    fraction: Array

    @property
    def bits(self) -> int:
        """Bits of all elements together."""
        return int(np.maximum(0, self.signed + self.integer + self.fraction).sum())

    def rounded(self, values: Array) -> Array:
        """Round to the nearest (half up) number of the format, the largest or smallest beyond it.

        Args:
            values: Shape `(..., *shape of the format)`, any float type.

        Returns:
            float64 of the same shape.
        """
        step = np.exp2(-self.fraction.astype(np.float64))
        high = np.exp2(self.integer.astype(np.float64)) - step
        low = -np.exp2(self.integer.astype(np.float64)) * self.signed
        whole = np.floor(values.astype(np.float64) / step + 0.5) * step
        kept = self.signed + self.integer + self.fraction > 0
        return np.where(kept, np.clip(whole, low, high), 0.0)


def format_for(low: Array, high: Array, bits: int, *, alike: bool) -> Format:
    """Return formats of so many bits that reach over these ranges.

    Args:
        low: The least of each element.
        high: The greatest of each.
        bits: Of an element with the widest range, its sign bit included.
        alike: Whether all have one step, so that narrower ranges take fewer bits; else each has
            all the bits, and its own step.
    """
    signed = (low < 0).astype(np.int64)
    largest = np.maximum(np.abs(low), np.abs(high))
    # A range that ends just below a power of two would be rounded onto it.
    reach = np.maximum(largest * (1 + 2.0**-bits), 2.0**-30)
    integer = np.ceil(np.log2(reach)).astype(np.int64)
    if not alike:
        return Format(signed, integer, bits - signed - integer)
    fraction = int((bits - signed - integer).min())
    narrow = np.where(largest == 0, -fraction, np.maximum(integer, -fraction))
    return Format(signed, narrow, np.full_like(narrow, fraction))


def rounded_weights(weights: Array, bits: int, axis: int) -> Array:
    """Round weights to so many bits, with a step of its own for each output, a power of two.

    Of two steps, the one that reaches the largest weight and the one below that cuts it off, the
    one with the smaller squared error is taken.

    Args:
        weights: Any shape.
        bits: Of the largest weight of an output, its sign included.
        axis: Of the outputs.

    Returns:
        float64 of the same shape, each a multiple of its output's step.
    """
    moved = np.moveaxis(weights.astype(np.float64), axis, 0)
    flat = moved.reshape(len(moved), -1)
    largest = np.maximum(np.abs(flat).max(axis=1, initial=0), 2.0**-30)
    reach = np.ceil(np.log2(largest))
    best, least = np.zeros_like(flat), np.full(len(flat), np.inf)
    for shift in (0, 1):
        step = np.exp2(reach - shift - (bits - 1))[:, None]
        most = 2.0 ** (bits - 1)
        tried = np.clip(np.round(flat / step), -most, most - 1) * step
        error = ((tried - flat) ** 2).sum(axis=1)
        better = error < least
        best[better], least[better] = tried[better], error[better]
    return np.moveaxis(best.reshape(moved.shape), 0, axis)
