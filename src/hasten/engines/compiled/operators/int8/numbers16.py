"""Words: numbers of 16 bits, and how sums become words.

A word `q`, of int16, stands for the real number `(q - zero) * scale`. Words of uint16 are stored 32768 lower.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import IntegrityError

LOWEST, HIGHEST = -(1 << 15), (1 << 15) - 1
WORDS = 1 << 16
"""Number of words."""


@dataclass(frozen=True)
class Rounding16:
    """Rule by which a sum becomes a word: `clamp(rint(float32(sum) * scale) + zero, low, high)`.

    All is as with `Rounding`, which makes bytes.

    Attributes:
        zero: Word that stands for 0.
        low: Smallest word that comes out.
        high: Largest word that comes out.
    """

    zero: int
    low: int = LOWEST
    high: int = HIGHEST

    def check(self) -> None:
        """Check that all are words.

        Raises:
            IntegrityError: one isn't.
        """
        if not (LOWEST <= self.zero <= HIGHEST and LOWEST <= self.low <= self.high <= HIGHEST):
            raise IntegrityError(f"the plan is damaged: rounding to {self.low} to {self.high}")

    @property
    def arguments(self) -> str:
        """Arguments of C's functions that make words."""
        return f"{self.zero}, {self.low}, {self.high}"

    def cut(self, whole: Array) -> Array:
        """Return the words of whole numbers of steps, of int64."""
        found: Array = np.clip(whole + self.zero, self.low, self.high).astype(np.int16)
        return found

    def of(self, sums: Array, scale: Array | np.float32, slope: Array | None = None) -> Array:
        """Return the words of sums, as numpy computes them; arguments are those of `Rounding.of`."""
        scaled = sums.astype(np.float32) * scale
        if slope is not None:
            scaled = np.where(scaled < 0, scaled * slope, scaled)
        return self.cut(np.rint(scaled).astype(np.int64))


def most_sums(weight: Array, bias: Array, zero: int) -> Array:
    """Return the largest magnitude that each channel's sum of words can have, as int64.

    Args:
        weight: int8 of shape (channels, ...).
        bias: int32 of shape (channels,).
        zero: Word that stands for 0 in what is read.
    """
    flat = weight.reshape(len(weight), -1)
    above = np.maximum(flat, 0).sum(1, np.int64)
    below = above - flat.sum(1, np.int64)
    low, high = LOWEST - zero, HIGHEST - zero
    ends = (bias + above * high - below * low, bias + above * low - below * high)
    found: Array = np.maximum(*map(np.abs, ends))
    return found
