"""Fixed-point formats: the number of bits before and after the binary point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hasten.core.tensors import Array


@dataclass(frozen=True)
class Format:
    """Formats of a tensor's elements, as arrays of its shape without an axis for samples.

    Attributes:
        signed: Number of sign bits, 0 or 1.
        integer: Number of bits before the point, without the sign; negative where leading bits
            after the point are left out.
        fraction: Number of bits after the point; negative where trailing bits before the point are
            left out.
    """

    signed: Array
    integer: Array
    fraction: Array

    @property
    def bits(self) -> int:
        """Number of bits of all elements together."""
        return int(np.maximum(0, self.signed + self.integer + self.fraction).sum())

    def rounded(self, values: Array) -> Array:
        """Round to the format's nearest number (halves up), and clip to its smallest and largest.

        Args:
            values: Numbers of any float type, of shape `(..., *shape of the format)`.

        Returns:
            Rounded numbers as float64, of the shape of `values`.
        """
        step = np.exp2(-self.fraction.astype(np.float64))
        high = np.exp2(self.integer.astype(np.float64)) - step
        low = -np.exp2(self.integer.astype(np.float64)) * self.signed
        whole = np.floor(values.astype(np.float64) / step + 0.5) * step
        kept = self.signed + self.integer + self.fraction > 0
        return np.where(kept, np.clip(whole, low, high), 0.0)


def format_for(low: Array, high: Array, bits: int, *, alike: bool) -> Format:
    """Return formats of a given width that cover a range for each element.

    Args:
        low: Least value of each element.
        high: Greatest value of each element.
        bits: Width of the element with the widest range, sign bit included.
        alike: Whether all elements share one step, so that narrower ranges take fewer bits. If not,
            each element has the full width, and a step of its own.
    """
    signed = (low < 0).astype(np.int64)
    largest = np.maximum(np.abs(low), np.abs(high))
    # Rounding could lift a range that ends just below a power of two onto that power.
    reach = np.maximum(largest * (1 + 2.0**-bits), 2.0**-30)
    integer = np.ceil(np.log2(reach)).astype(np.int64)
    if not alike:
        return Format(signed, integer, bits - signed - integer)
    fraction = int((bits - signed - integer).min())
    narrow = np.where(largest == 0, -fraction, np.maximum(integer, -fraction))
    return Format(signed, narrow, np.full_like(narrow, fraction))


def rounded_weights(weights: Array, bits: int, axis: int) -> Array:
    """Round weights to a width, with a step for each output that is a power of two.

    Two steps are tried: the one that covers the largest weight, and half of it, which clips that
    weight. The one with the smaller squared error is taken.

    Args:
        weights: Weights of any shape.
        bits: Width of an output's largest weight, sign bit included.
        axis: Axis of the outputs.

    Returns:
        Rounded weights as float64, of the shape of `weights`, each a multiple of its output's step.
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
