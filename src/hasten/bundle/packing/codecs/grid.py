"""Matrices whose elements are larger in some rows and columns than in others: a code for each class."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.bundle.packing.codecs.base import Codec, Inner, Outer, behind_lengths, first_block
from hasten.bundle.packing.codecs.rows import (
    TABLE_BITS,
    coded_bits,
    divisors,
    magnitudes,
    row_classes,
    row_length,
)
from hasten.bundle.packing.codecs.tables import counts_of, entropy_bytes
from hasten.core.tensors import Array
from hasten.errors import IntegrityError

_LENGTH = struct.Struct("<I")
_LEAST = 2048
"""Size in bytes below which the tables of several codes take more than they save."""
_CLASS_BITS = 3.5
"""About what the class of a row takes, and what classes that are chosen by chance seem to save."""
_DENSE_BITS = 5.0
"""Entropy of an element above which it isn't tried: scales make rows of dense int8 weights alike."""
_REPEATS = 0.75
"""Share of the entropy bound: where another codec takes less, bytes repeat, as in text, and classes help little."""
_WORTH = 0.995
"""Share of what one code takes, from which codecs that decode faster are preferred anyway."""
_STEPS = (1.0, 0.5)
"""Widths of a class, in doublings of the mean magnitude."""
_SOME = 1 << 18
"""Number of elements that are counted, or put where they belong, at a time."""
_WHOLE = 8
"""Length from which rows of one class are put where they belong as they are: sorting takes 8 bytes for each."""
_ROUNDS = 2
_MOST = 12
"""Largest number of classes of rows, and of columns."""
_OUTER = 0.02
"""Share of rows at each end that have no classes of their own."""
_LEAST_MEAN = 0.05
"""Mean magnitude that is added to each, since rows near to zero differ by chance."""
_SMOOTH = 4.0
"""Number of elements whose values are as frequent as everywhere, and that are added to each class."""


@dataclass(frozen=True)
class Grid(Codec):
    """Rows of some length: an element's class is the sum of its row's and its column's, modulo 256.

    The coded bytes:

        4 bytes  length of a row, little-endian: it divides the number of elements
        ...      block of the rows' classes, one byte each
        ...      block of the columns' classes, one byte each
        ...      a block for each class that occurs, in ascending order: its elements, in their order

    Blocks stand behind their lengths: see `hasten.bundle.packing.codecs.base.behind_lengths`. Between two
    states of a network, weights of some outputs and of some inputs differ more than others.
    """

    nested: ClassVar[bool] = True
    outermost: ClassVar[bool] = True
    widths: ClassVar[frozenset[int]] = frozenset({1})
    slow: ClassVar[bool] = True
    cost: ClassVar[float] = 14.0

    def promising(self, data: Array, width: int, least: int) -> bool:
        if len(data) < _LEAST:
            return False
        bound = entropy_bytes(counts_of(data))
        return bound <= _DENSE_BITS / 8 * len(data) and least > _REPEATS * bound

    def encode(self, data: Array, width: int, inner: Inner) -> bytes | None:
        sides = _sides(data)
        if sides is None:
            return None
        rows, columns = sides
        classes = (rows[:, None] + columns).ravel()
        ends = np.cumsum(np.bincount(classes))
        parts = np.split(data[np.argsort(classes, kind="stable")], ends[:-1])
        blocks = [inner(part, 1) for part in (rows, columns, *parts) if len(part)]
        return _LENGTH.pack(len(columns)) + behind_lengths(blocks)

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
        found, begin = np.empty(len(out), np.uint8), 0
        counts = _class_sizes(*sides)
        for count in counts.tolist():
            if count:
                block, rest = first_block(rest)
                inner(block, found[begin : begin + count], 1)
                begin += count
        if len(rest):
            raise IntegrityError(f"{len(rest):,} bytes follow its last class")
        rows, columns = sides
        if length >= _WHOLE and (columns == columns[0]).all():
            order = np.argsort(rows + columns[0], kind="stable")
            out.reshape(-1, length)[order] = found.reshape(-1, length)
        else:
            _put(found, np.cumsum(counts) - counts, np.add.outer(rows, columns).ravel(), out)


def _class_sizes(rows: Array, columns: Array) -> Array:
    """Return how many elements each class has: int64 of shape (256,).

    Args:
        rows: Class of each row: uint8.
        columns: Class of each column: uint8.
    """
    counts = [np.zeros(256, np.int64), np.zeros(256, np.int64)]
    for side, count in zip((rows, columns), counts, strict=True):
        for begin in range(0, len(side), _SOME):  # counting takes 8 bytes for each, too
            count += np.bincount(side[begin : begin + _SOME], minlength=256)
    sums = np.add.outer(np.arange(256), np.arange(256)).ravel() % 256
    found = np.zeros(256, np.int64)
    np.add.at(found, sums, np.outer(*counts).ravel())
    return found


def _put(found: Array, begins: Array, classes: Array, out: Array) -> None:
    """Put the elements of each class where they belong, some at a time: sorting takes 8 bytes for each.

    Args:
        found: Elements, class by class: uint8 of shape (n,).
        begins: Where each class begins in `found`: int64 of shape (256,).
        classes: Class of each element of `out`: uint8 of shape (n,).
        out: Where the elements go: uint8 of shape (n,).
    """
    for begin in range(0, len(out), _SOME):
        some = classes[begin : begin + _SOME]
        ends = begins + np.bincount(some, minlength=256)
        parts = [found[one:end] for one, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        out[begin : begin + _SOME][np.argsort(some, kind="stable")] = np.concatenate(parts)
        begins = ends


def _sides(data: Array) -> tuple[Array, Array] | None:
    """Return a class for each row and for each column, uint8 each; None where they seem to save too little.

    Either both have classes, or rows alone, where most elements are equal and each table takes much of what is left.
    """
    counts = counts_of(data)
    found, least = None, _WORTH * float(coded_bits(counts))
    if alone := row_length(data):
        rows, bits = row_classes(data, alone)
        if bits < least:
            found, least = (rows, np.zeros(alone, np.uint8)), bits
    length, gain_bits = _row_length(data)
    if length and 8 * entropy_bytes(counts) - gain_bits < least:
        both, bits = _classes(data.reshape(-1, length))
        if bits < least:
            found = both
    return found


def _row_length(data: Array) -> tuple[int, float]:
    """Return the length of rows with which classes save most by far estimate, and that in bits; or 0 and 0.

    Magnitudes are taken to be geometric within each row and each column. Where they aren't, so that they would
    take more bits than they do, the saving counts for less.
    """
    sizes = magnitudes(data)
    count, best = len(data), (0, 0.0)
    before, whole = np.cumsum(sizes), count * float(_entropy(sizes.mean()))
    scale = min(1.0, 8 * entropy_bytes(counts_of(data)) / whole)
    mean = sizes.mean()
    class_bits = _CLASS_BITS * max(1.0, float(sizes.var() / max(mean * (1 + mean), 1e-6)))
    for length in divisors(count):
        sums = np.diff(before[length - 1 :: length], prepend=0)
        rows = whole - length * float(_entropy(sums / length).sum())
        across = sizes.reshape(-1, length).sum(axis=0) * (length / count)
        columns = whole - count / length * float(_entropy(across).sum())
        gains = (rows - class_bits * count / length, columns - class_bits * length)
        gain = scale * sum(max(0.0, each) for each in gains)
        if gain > best[1]:
            best = (length, gain)
    return best


def _entropy(mean: Array) -> Array:
    """Return the entropy in bits of a geometric magnitude of a mean, and of its sign where it has one."""
    mean = np.maximum(mean, 1e-6)
    found: Array = (1 + mean) * np.log2(1 + mean) - mean * np.log2(mean) + mean / (1 + mean)
    return found


def _classes(grid: Array) -> tuple[tuple[Array, Array], float]:
    """Return the class of each row and of each column, uint8 each, the least of them 0; and about what bits they take.

    Args:
        grid: Bytes of shape (rows, elements in each).
    """
    values, symbols = np.unique(grid, return_inverse=True)
    symbols = symbols.reshape(grid.shape).astype(np.int64)
    sizes = magnitudes(grid.ravel()).reshape(grid.shape)
    tried = []
    for step in _STEPS:
        sides = [_by_size(sizes.mean(axis=axis), step) for axis in (1, 0)]
        for _ in range(_ROUNDS):
            for side in (0, 1):
                sides[side] = _assigned(sides, side, symbols, len(values))
        tried.append((_expected_bits(sides, symbols, len(values)), sides))
    bits, (rows, columns) = min(tried, key=lambda one: one[0])
    from_zero = [(side - side.min()).astype(np.uint8) for side in (rows, columns)]
    return (from_zero[0], from_zero[1]), bits


def _by_size(means: Array, step: float) -> Array:
    """Return classes by the logarithm of a mean magnitude; the outermost ones take what lies beyond.

    Args:
        means: Mean magnitudes of rows or of columns: floats of shape (n,).
        step: Width of a class in doublings.

    Returns:
        Classes from 0: int64 of shape (n,).
    """
    levels = np.rint(np.log2(means + _LEAST_MEAN) / step).astype(np.int64)
    low, high = np.quantile(levels, (_OUTER, 1 - _OUTER)).astype(int)
    classes: Array = np.clip(levels, low, min(high, low + _MOST - 1)) - low
    return classes


def _assigned(sides: list[Array], side: int, symbols: Array, count: int) -> Array:
    """Return the classes of the rows or of the columns by which each takes the fewest bits.

    Args:
        sides: Classes of the rows and of the columns so far.
        side: 0 for the rows, 1 for the columns.
        symbols: Numbers of the values that occur: int64 of shape (rows, elements in each).
        count: Number of values that occur.
    """
    counts = _counts(sides, symbols, count)
    smooth = counts + _SMOOTH * counts.sum(axis=0) / counts.sum()
    bits = -np.log2(smooth / smooth.sum(axis=1, keepdims=True))
    mine, other, lines = sides[side], sides[1 - side], (symbols, symbols.T)[side]
    tried = np.arange(mine.min(), mine.max() + 1)
    costs = np.stack([bits[each + other, lines].sum(axis=1) for each in tried], axis=1)
    shares = np.bincount(mine - mine.min()) + 0.1
    found: Array = tried[np.argmin(costs - np.log2(shares / len(mine)), axis=1)]
    return found


def _counts(sides: list[Array], symbols: Array, count: int) -> Array:
    """Return how often each value occurs in each class: int64 of shape (classes, count)."""
    classes = sides[0][:, None] + sides[1]
    flat = (classes * count + symbols).ravel()
    found: Array = np.bincount(flat, minlength=(int(classes.max()) + 1) * count)
    return found.reshape(-1, count)


def _expected_bits(sides: list[Array], symbols: Array, count: int) -> float:
    """Return about how many bits the elements and their classes take."""
    counts = _counts(sides, symbols, count)
    elements = float(coded_bits(counts[counts.any(axis=1)]).sum())
    return elements + sum(8 * entropy_bytes(np.bincount(side)) + TABLE_BITS for side in sides)
