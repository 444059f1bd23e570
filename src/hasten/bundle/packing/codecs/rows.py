"""Rows of a matrix that hold other numbers than the rest: how long they are, and which may share a code."""

from __future__ import annotations

import numpy as np

from hasten.bundle.packing.codecs.tables import counts_of
from hasten.core.tensors import Array

_SHORTEST = 8
"""Least number of rows, and of elements in a row."""
_CHANCE = 3.0
"""Standard deviations by which rows must differ more than chance would make them."""
_MOST, _EACH = 12, 4
"""Largest number of classes, and least number of rows for each of the first ones."""
_ROUNDS = 2
_SMOOTH = 4.0
"""Number of elements whose values are as frequent as everywhere, and that are added to each class."""
TABLE_BITS = 200.0
"""About what another code takes: its table and its states."""
_VALUE_BITS = 5.0
"""About what each value takes in a table, more than that."""
_UNIT = 256.0
"""Bits are rounded to whole ones of this part, so that sums are the same in any order."""


def magnitudes(data: Array) -> Array:
    """Return how far each byte is from the most frequent one: int64, 0 to 128; byte 0 follows byte 255."""
    apart = data - np.uint8(np.argmax(counts_of(data)))
    return np.abs(apart.view(np.int8).astype(np.int64))


def divisors(count: int) -> list[int]:
    """Return the lengths of rows that a number of elements may have."""
    found = [each for each in range(1, int(count**0.5) + 1) if not count % each]
    found += [count // each for each in found]
    return sorted({each for each in found if min(each, count // each) >= _SHORTEST})


def row_length(data: Array) -> int:
    """Return the length of rows that differ most beyond chance from each other; 0 if those of none do.

    Rows differ in how many elements aren't the most frequent value, or in how large those are. Pieces of the
    real rows, and several rows together, differ less beyond chance than the real ones.

    Args:
        data: Bytes of all rows: uint8 of shape (n,).
    """
    sizes = magnitudes(data)
    held = (sizes > 0).astype(np.int64)
    doublings = np.rint(_UNIT * np.log2(np.maximum(sizes, 1))).astype(np.int64)
    spreads = (_spread(held), _spread(doublings[sizes > 0]))
    before = [np.cumsum(held), np.cumsum(doublings)]
    best, most = 0, _CHANCE
    for length in divisors(len(data)):
        count, total = (np.diff(each[length - 1 :: length], prepend=0) for each in before)
        beyond = max(
            _beyond_chance(count, np.full(len(count), length), spreads[0]),
            _beyond_chance(total, count, spreads[1]),
        )
        if beyond > most:
            best, most = length, beyond
    return best


def _spread(values: Array) -> float:
    return float(values.var()) if len(values) else 0.0


def _beyond_chance(sums: Array, counts: Array, spread: float) -> float:
    """Return by how many standard deviations the means of rows vary more than by chance.

    Args:
        sums: Sum of a row's values: integers of shape (rows,).
        counts: Number of a row's values: integers of shape (rows,).
        spread: Variance of all values.
    """
    some = counts > 0
    free = np.count_nonzero(some) - 1
    if free < 1 or not spread:
        return 0.0
    means = sums[some] / counts[some]
    whole = sums.sum() / counts.sum()
    between = float((counts[some] * (means - whole) ** 2).sum()) / free
    return float((between / spread - 1) * np.sqrt(free / 2))


def row_classes(data: Array, length: int) -> tuple[Array, float]:
    """Return a class for each row, and about how many bits elements, tables and classes take.

    Rows are sorted by their magnitude into a few classes. Rounds give each row the class in which it takes the
    fewest bits, and two classes become one where that saves a table.

    Args:
        data: Bytes of all rows: uint8 of shape (n,).
        length: Length of a row, which divides n.

    Returns:
        Classes from 0: uint8 of shape (rows,); and the number of bits.
    """
    counts = _counts_by_row(data, length)
    rows = len(counts)
    order = np.argsort(magnitudes(data).reshape(rows, length).sum(axis=1), kind="stable")
    classes = np.empty(rows, np.int64)
    classes[order] = np.arange(rows) * max(1, min(_MOST, rows // _EACH)) // rows
    for _ in range(_ROUNDS):
        classes = _assigned(counts, classes)
    classes = _merged(counts, classes)
    for _ in range(_ROUNDS):
        classes = _assigned(counts, classes)
    bits = coded_bits(_summed(counts, classes)) + _said_bits(np.bincount(classes), rows)
    return classes.astype(np.uint8), float(bits.sum()) + TABLE_BITS


def coded_bits(counts: Array) -> Array:
    """Return about how many bits the elements of each class take with their table: whole floats of shape (...).

    Args:
        counts: Number of times that each value occurs in each class: shape (..., values).
    """
    whole = counts.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(counts > 0, counts * np.log2(whole / counts), 0)
    tables = TABLE_BITS + _VALUE_BITS * (counts > 0).sum(axis=-1)
    found: Array = np.rint(each.sum(axis=-1) + tables)
    return found


def _counts_by_row(data: Array, length: int) -> Array:
    """Return how often each row has each value that occurs: floats of shape (rows, values)."""
    held = counts_of(data) > 0
    values, rows = int(held.sum()), len(data) // length
    numbers = (np.cumsum(held) - 1)[data].reshape(rows, length)
    places = (numbers + values * np.arange(rows)[:, None]).ravel()
    return np.bincount(places, minlength=rows * values).reshape(rows, values).astype(float)


def _summed(counts: Array, classes: Array) -> Array:
    """Return how often each class has each value: floats of shape (classes, values)."""
    ends = np.cumsum(np.bincount(classes))
    begins = np.concatenate([[0], ends[:-1]])
    found: Array = np.add.reduceat(counts[np.argsort(classes, kind="stable")], begins, axis=0)
    return found


def _assigned(counts: Array, classes: Array) -> Array:
    """Return the classes by which each row takes the fewest bits, numbered anew."""
    sums = _summed(counts, classes)
    whole = sums.sum(axis=0)
    smooth = sums + _SMOOTH * whole / whole.sum()
    bits = np.rint(-_UNIT * np.log2(smooth / smooth.sum(axis=1, keepdims=True)))
    stated = np.rint(-_UNIT * np.log2((np.bincount(classes) + 0.1) / len(classes)))
    return _numbered(np.argmin(counts @ bits.T + stated, axis=1))


def _numbered(classes: Array) -> Array:
    """Return classes from 0 of which each occurs."""
    return np.unique(classes, return_inverse=True)[1].ravel()


def _said_bits(counts: Array, rows: int) -> Array:
    """Return about how many bits it takes to say which rows are of a class, by the number of its rows."""
    found: Array = np.rint(counts * np.log2(rows / counts))
    return found


def _merged(counts: Array, classes: Array) -> Array:
    """Return fewer classes: the two that save most bits together become one, as long as any do."""
    rows, sums, held = len(classes), _summed(counts, classes), np.bincount(classes)
    while len(held) > 1:
        own = coded_bits(sums) + _said_bits(held, rows)
        one, other = np.triu_indices(len(held), 1)
        both = coded_bits(sums[one] + sums[other]) + _said_bits(held[one] + held[other], rows)
        saved = own[one] + own[other] - both
        best = int(np.argmax(saved))
        if saved[best] <= 0:
            break
        kept, gone = int(one[best]), int(other[best])
        classes = _numbered(np.where(classes == gone, kept, classes))
        sums[kept] += sums[gone]
        held[kept] += held[gone]
        sums, held = np.delete(sums, gone, axis=0), np.delete(held, gone)
    return classes
