"""Resize pictures as OpenCV's bilinear filter does, without smoothing, in its whole numbers.

A pixel is a weighted sum of the four source pixels around its place. Weights have 11 bits behind the point. First
rows become narrower or wider, and 4 of the sum's bits are dropped; then columns. Source: OpenCV's
`cv::resize(INTER_LINEAR)` of 8-bit pictures, in modules/imgproc/src/resize.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hasten.core.tensors import Array

_ONE = np.float32(2**11)


@dataclass(frozen=True)
class Pairs:
    """Sums that make the outputs along one axis, each of two neighbors.

    Attributes:
        first: Index of each output's first source pixel, `(outputs,)` int32.
        second: Index of its second.
        weights: Their weights with 11 bits behind the point, `(2, outputs)` int32.
    """

    first: Array
    second: Array
    weights: Array

    @cached_property
    def begin(self) -> int:
        """Index of the first source pixel that any output takes."""
        return int(self.first.min())

    @cached_property
    def end(self) -> int:
        """Index behind the last source pixel that any output takes."""
        return int(self.second.max()) + 1

    def part(self, begin: int, end: int) -> Pairs:
        """Return some of the outputs."""
        return Pairs(self.first[begin:end], self.second[begin:end], self.weights[:, begin:end])

    def table(self, begin: int, size: int) -> Array:
        """Return a row of four numbers for each output, as the code in C reads them.

        Args:
            begin: Index of the source pixel that is at 0.
            size: Factor of the places, as the bytes of a pixel.
        """
        first, second = (size * (places - np.int32(begin)) for places in (self.first, self.second))
        return np.ascontiguousarray(np.stack([first, second, *self.weights], axis=1), np.int32)


def pairs(old: int, new: int, *, columns: bool) -> Pairs:
    """Return how the outputs along an axis are made where `old` pixels become `new`.

    Args:
        old: Number of source pixels.
        new: Number of outputs.
        columns: Whether these are columns: beyond a row's last pixel all weight is on that pixel, but above the first
            row and below the last both weights are, each rounded for itself.
    """
    places = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    first = np.floor(places)
    beyond = places - first
    if columns:
        beyond[(first < 0) | (first >= old - 1)] = 0
    weights = np.rint(np.stack([np.float32(1) - beyond, beyond]) * _ONE).astype(np.int32)
    at = first.astype(np.int32)
    return Pairs(np.clip(at, 0, old - 1), np.clip(at + 1, 0, old - 1), weights)


def linear(source: Array, rows: Pairs, columns: Pairs) -> Array:
    """Return a part of a resized picture, `(rows, columns, channels)` uint8.

    Args:
        source: Pixels, `(height, width, channels)` uint8, from the row `rows.begin` on.
        rows: Sums that make its rows.
        columns: Sums that make its columns.
    """
    needed, where = np.unique(np.stack([rows.first, rows.second]), return_inverse=True)
    upper, lower = where.reshape(2, -1)
    lines = source[needed - rows.begin]
    left, right = columns.weights[:, np.newaxis, :, np.newaxis]
    narrow = np.take(lines, columns.first, axis=1) * left
    narrow += np.take(lines, columns.second, axis=1) * right
    narrow >>= 4
    above, below = rows.weights[:, :, np.newaxis, np.newaxis]
    sums = (narrow[upper] * above >> 16) + (narrow[lower] * below >> 16)
    found: Array = ((sums + 2) >> 2).astype(np.uint8)
    return found
