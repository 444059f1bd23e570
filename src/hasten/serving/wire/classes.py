"""Implement the classification extension, which sends the highest scores instead of a tensor."""

from __future__ import annotations

import numpy as np

from hasten.core.tensors import Array
from hasten.serving.protocol.datatypes import datatype_of_array
from hasten.serving.protocol.errors import Kind, ProtocolError

_MOST_CLASSES = 1 << 16
_LONG = 1 << 16
"""Scores of an output above which the highest aren't found at once."""
_MANY = 1 << 11
"""Scores above which they aren't named at once."""
_MANY_ROWS = 256
_SHORT = 256
"""Scores of a row up to which a whole sort takes less time than a search for the highest."""


def part_of_turn(array: Array, count: int, batched: bool) -> float:
    """Return how much of what the event loop may encode at once an output is.

    If all outputs of an answer add up to more than 1, a thread should encode the answer.

    Args:
        array: Output of the model.
        count: Number of scores to name of each row; 0 to send the output itself.
        batched: Whether the first axis counts the samples.
    """
    if not count:  # texts; numbers are copied as they are
        return array.size / _MANY if array.dtype == object else 0.0
    rows = len(array) if batched and array.ndim > 1 else 1
    named = min(count * rows, array.size)
    return max(array.size / _LONG, named / _MANY, rows / _MANY_ROWS)


def classes_of(array: Array, count: int, batched: bool) -> Array:
    """Return the highest scores as the protocol's classification: "score:index", highest first.

    Raises:
        ProtocolError: the array doesn't hold numbers, or too many are asked for.
    """
    whole = array.dtype.kind in "iu"
    if not whole and array.dtype.kind != "f":
        raise ProtocolError(
            Kind.INVALID, f"classification needs numbers; the output is {datatype_of_array(array)}"
        )
    rows = array.reshape(len(array), -1) if batched and array.ndim > 1 else array.reshape(1, -1)
    count = min(count, rows.shape[1])
    if count * len(rows) > _MOST_CLASSES:
        raise ProtocolError(
            Kind.INVALID,
            f"classification names at most {_MOST_CLASSES:,} scores of an output; got {len(rows):,} rows of "
            f"{count:,}: ask for fewer, or for the output itself",
        )
    # The complement of whole numbers reverses their order and, unlike negation, never overflows.
    keys = ~rows if whole else -rows
    if rows.shape[1] <= _SHORT or not len(rows):
        highest = np.argsort(keys, axis=1, kind="stable")[:, :count]
    else:
        highest = np.stack([_lowest(key, count) for key in keys])
    found = np.empty(highest.shape, object)
    for number, (row, places) in enumerate(zip(rows, highest, strict=True)):
        for rank, place in enumerate(places):
            score = row[place]
            found[number, rank] = (
                f"{score}:{place}".encode() if whole else b"%f:%d" % (score, place)
            )
    return found if batched and array.ndim > 1 else found[0]


def _lowest(key: Array, count: int) -> Array:
    """Return the places of the lowest keys, lowest first; of equal keys the first, NaN last.

    A whole sort would take 20 times as long where few of many are asked for.
    """
    if count < len(key):
        last = np.partition(key, count - 1)[count - 1]
        if last == last:  # not NaN
            above = np.flatnonzero(key < last)
            equal = np.flatnonzero(key == last)[: count - len(above)]
            return np.concatenate((above[np.argsort(key[above], kind="stable")], equal))
    return np.argsort(key, kind="stable")[:count]
