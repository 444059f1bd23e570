"""Prepared samples: how large they are, and several of them as one request or as a few."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.serving.protocol.errors import Kind, ProtocolError


def row_bytes(inputs: Sequence[TensorSpec]) -> int:
    """Return the bytes of one row of a model's inputs, as far as their shapes are fixed."""
    return sum(
        math.prod(size for size in spec.shape[1:] if isinstance(size, int))
        * np.dtype(spec.dtype).itemsize
        for spec in inputs
    )


def together(rows: list[dict[str, Array]]) -> dict[str, Array]:
    """Return one request with the rows of several; those of a single one aren't copied.

    Raises:
        ProtocolError: the rows have different shapes.
    """
    if len(rows) == 1:
        return rows[0]
    tensors = {}
    for name in rows[0]:
        arrays = [row[name] for row in rows]
        if len({array.shape for array in arrays}) > 1:
            raise ProtocolError(
                Kind.INVALID,
                "the samples of one request have different shapes once they are prepared: send "
                "one request per sample",
            )
        tensors[name] = np.concatenate(arrays)
    return tensors


def parts_of(requests: Sequence[dict[str, Array]], most: int) -> list[dict[str, Array]]:
    """Return requests of one row together, in requests of at most `most` rows of one shape."""
    parts: list[list[dict[str, Array]]] = []
    for request in requests:
        last = parts[-1] if parts else None
        if last is None or len(last) == most or _shapes(last[0]) != _shapes(request):
            parts.append([request])
        else:
            last.append(request)
    return [
        part[0]
        if len(part) == 1
        else {name: np.concatenate([one[name] for one in part]) for name in part[0]}
        for part in parts
    ]


def _shapes(request: Mapping[str, Array]) -> list[tuple[int, ...]]:
    return [array.shape for array in request.values()]
