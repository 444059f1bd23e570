"""Implement the classification extension, which sends the highest scores instead of a tensor."""

from __future__ import annotations

import numpy as np

from hasten.core.tensors import Array
from hasten.serving.protocol.datatypes import datatype_of_array
from hasten.serving.protocol.errors import Kind, ProtocolError

_MOST_CLASSES = 1 << 16


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
    order = np.argsort(~rows if whole else -rows, axis=1, kind="stable")[:, :count]
    found = np.empty(order.shape, object)
    for row, places in enumerate(order):
        for rank, place in enumerate(places):
            score = rows[row, place]
            found[row, rank] = f"{score}:{place}".encode() if whole else b"%f:%d" % (score, place)
    return found if batched and array.ndim > 1 else found[0]
