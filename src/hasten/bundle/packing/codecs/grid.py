"""Rows and columns of a matrix whose elements are larger in some than in others: a code for each class of them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.bundle.packing.codecs.base import Codec, Inner, Outer, behind_lengths, first_block
from hasten.bundle.packing.codecs.tables import counts_of, entropy_bytes
from hasten.core.tensors import Array
from hasten.errors import IntegrityError

_LENGTH = struct.Struct("<I")
_LEAST = 4096
"""Size in bytes below which the tables of several codes take more than they save."""
_SHORTEST = 8
"""Least number of rows, and of elements in a row."""
_CLASS_BITS = 3.5
"""About what the class of a row takes, and what classes that are chosen by chance seem to save."""
_TABLE_BITS = 300.0
"""About what another code takes: its table and its states."""
_DENSE_BITS = 5.0
"""Entropy of an element above which it isn't tried: scales make rows of dense int8 weights alike."""
_WORTH = 0.99
"""Share of the bytes that others made, below which it is worth its slower decoding."""
_STEPS = (1.0, 0.5)
"""Widths of a class, in doublings of the mean magnitude."""
_ROUNDS = 2
_MOST = 12
"""Largest number of classes of rows, and of columns."""


@dataclass(frozen=True)
class Grid(Codec):
    """The chunk as rows of some length: an element's class is the sum of its row's and of its column's.

    The coded bytes:

        4 bytes  length of a row, little-endian: it divides the number of elements
        ...      block of the rows' classes, one byte each
        ...      block of the columns' classes, one byte each
        ...      a block for each class that occurs, in ascending order: its elements, in their order

    The largest class is at most 255. Blocks stand behind their lengths: see
    `hasten.bundle.packing.codecs.base.behind_lengths`. Rows and columns of a difference between two states of
    a network have magnitudes of their own: how much training moved an output, and an input.
    """

    nested: ClassVar[bool] = True
    outermost: ClassVar[bool] = True
    widths: ClassVar[frozenset[int]] = frozenset({1})
    slow: ClassVar[bool] = True
    cost: ClassVar[float] = 6.0

    def promising(self, data: Array, width: int, least: int) -> bool:
        if len(data) < _LEAST:
            return False
        bound = entropy_bytes(counts_of(data))
        if bound > _DENSE_BITS / 8 * len(data):
            return False
        _, gain_bits = _row_length(data)
        return bound - gain_bits / 8 < _WORTH * least

    def encode(self, data: Array, width: int, inner: Inner) -> bytes | None:
        length, _ = _row_length(data)
        if not length:
            return None
        rows, columns = _classes(data.reshape(-1, length))
        classes = (rows[:, None] + columns).ravel()
        order = np.argsort(classes, kind="stable")
        ends = np.cumsum(np.bincount(classes))
        parts = [part for part in np.split(data[order], ends[:-1]) if len(part)]
        blocks = [inner(part, 1) for part in (rows, columns, *parts)]
        return _LENGTH.pack(length) + behind_lengths(blocks)

    def decode(self, coded: memoryview, out: Array, width: int, inner: Outer) -> None:
        if len(coded) < _LENGTH.size or width != 1:
            raise IntegrityError(f"it states no rows of elements of {width} bytes")
        (length,) = _LENGTH.unpack_from(coded)
        if not length or len(out) % length:
            raise IntegrityError(f"{len(out):,} elements are no rows of {length:,}")
        rest, sides = coded[_LENGTH.size :], []
        for count in (len(out) // length, length):
            block, rest = first_block(rest)
            sides.append(np.empty(count, np.uint8))
            inner(block, sides[-1], 1)
        rows, columns = sides
        if (most := int(rows.max()) + int(columns.max())) > 255:
            raise IntegrityError(f"its classes reach {most}, but at most 255 are possible")
        classes = (rows[:, None] + columns).ravel()
        found, begin = np.empty(len(out), np.uint8), 0
        for count in np.bincount(classes).tolist():
            if count:
                block, rest = first_block(rest)
                inner(block, found[begin : begin + count], 1)
                begin += count
        if len(rest):
            raise IntegrityError(f"{len(rest):,} bytes follow its last class")
        out[np.argsort(classes, kind="stable")] = found


def _magnitudes(data: Array) -> Array:
    """Return how far each byte is from the most frequent one: int64, 0 to 128; byte 0 follows byte 255."""
    apart = data - np.uint8(np.argmax(counts_of(data)))
    return np.abs(apart.view(np.int8).astype(np.int64))


def _row_length(data: Array) -> tuple[int, float]:
    """Return the length of rows with which classes save most by far estimate, and that in bits; or 0 and 0.

    Magnitudes are taken to be geometric within each row and each column.
    """
    sizes = _magnitudes(data)
    count, best = len(data), (0, 0.0)
    before, whole = np.cumsum(sizes), count * float(_entropy(sizes.mean()))
    for length in _divisors(count):
        sums = np.diff(before[length - 1 :: length], prepend=0)
        rows = whole - length * float(_entropy(sums / length).sum())
        across = sizes.reshape(-1, length).sum(axis=0) * (length / count)
        columns = whole - count / length * float(_entropy(across).sum())
        gains = (rows - _CLASS_BITS * count / length, columns - _CLASS_BITS * length)
        gain = sum(max(0.0, each) for each in gains)
        if gain > best[1]:
            best = (length, gain)
    return best


def _divisors(count: int) -> list[int]:
    """Return the lengths of rows that a number of elements may have."""
    found = [each for each in range(1, int(count**0.5) + 1) if not count % each]
    found += [count // each for each in found]
    return sorted({each for each in found if min(each, count // each) >= _SHORTEST})


def _entropy(mean: Array) -> Array:
    """Return the entropy in bits of a geometric magnitude of a mean, and of its sign where it has one."""
    mean = np.maximum(mean, 1e-6)
    return (1 + mean) * np.log2(1 + mean) - mean * np.log2(mean) + mean / (1 + mean)


def _classes(grid: Array) -> tuple[Array, Array]:
    """Return the class of each row and of each column: uint8, so that their sums make few bytes.

    Args:
        grid: Bytes of shape (rows, elements in each).
    """
    values, symbols = np.unique(grid, return_inverse=True)
    symbols = symbols.reshape(grid.shape).astype(np.int64)
    sizes = _magnitudes(grid.ravel()).reshape(grid.shape)
    tried = [_sorted_out(symbols, sizes, len(values), step) for step in _STEPS]
    _, rows, columns = min(tried, key=lambda one: one[0])
    return (rows - rows.min()).astype(np.uint8), (columns - columns.min()).astype(np.uint8)


def _sorted_out(
    symbols: Array, sizes: Array, count: int, step: float
) -> tuple[float, Array, Array]:
    """Return classes that begin with a width, about how many bits they take, and what is coded by them."""
    sides = [_by_size(sizes.mean(axis=axis), step) for axis in (1, 0)]
    for _ in range(_ROUNDS):
        for side, other, grid in ((0, 1, symbols), (1, 0, symbols.T)):
            bits = _lengths(sides[0][:, None] + sides[1], symbols, count)
            least, most = int(sides[side].min()), int(sides[side].max())
            costs = np.stack(
                [
                    bits[each + sides[other], grid].sum(axis=1)
                    for each in range(least, most + 1)
                ],
                axis=1,
            )
            shares = np.bincount(sides[side], minlength=most + 1)[least:] + 0.1
            sides[side] = least + np.argmin(costs - np.log2(shares / shares.sum()), axis=1)
    return _expected_bits(sides, symbols, count), *sides


def _by_size(means: Array, step: float) -> Array:
    levels = np.rint(np.log2(means + 0.05) / step).astype(np.int64)
    low, high = np.quantile(levels, (0.02, 0.98)).astype(int)
    high = min(high, low + _MOST - 1)
    return np.clip(levels, low, high) - low


def _counts(classes: Array, symbols: Array, count: int) -> Array:
    flat = np.bincount((classes * count + symbols).ravel(), minlength=count * (int(classes.max()) + 1))
    return flat.reshape(-1, count)


def _lengths(classes: Array, symbols: Array, count: int) -> Array:
    """Return about how many bits each symbol takes in each class: floats of shape (classes, symbols)."""
    found = _counts(classes, symbols, count)
    smooth = found + 4 * found.sum(axis=0) / found.sum()
    return -np.log2(smooth / smooth.sum(axis=1, keepdims=True))


def _expected_bits(sides: list[Array], symbols: Array, count: int) -> float:
    found = _counts(sides[0][:, None] + sides[1], symbols, count)
    total = sum(8 * entropy_bytes(each) + _TABLE_BITS for each in found if each.any())
    return total + sum(8 * entropy_bytes(np.bincount(side)) for side in sides)
