"""Find answers that are broken."""

from __future__ import annotations

import math

import numpy as np

from hasten.core.tensors import Array, Tensors, rows_of

_FLOATS = "fV"
"""numpy's kinds of dtypes whose numbers may be NaN: bfloat16 is "V"."""


def broken_rows(tensors: Tensors) -> Array:
    """Find the rows that contain NaN: bool of shape `(rows,)`."""
    rows = rows_of(tensors)
    broken = np.zeros(rows, bool)
    for array in tensors.values():
        if array.size and array.dtype.kind in _FLOATS:
            broken |= np.isnan(array.astype(np.float32).reshape(rows, -1)).any(axis=1)
    return broken


def is_broken(answers: Tensors) -> bool:
    """Whether an answer contains NaN.

    A sum takes one pass over the memory; only if it isn't finite is each element checked.
    """
    for array in answers.values():
        suspect = array.dtype.kind in _FLOATS and not math.isfinite(array.sum())
        if suspect and np.isnan(array.astype(np.float32)).any():
            return True
    return False


def broken_of_its_own(others: Tensors, outputs: Tensors) -> bool:
    """Whether an answer has NaN in a row where the request, or the exact answer, has none."""
    asked, answered = broken_rows(others), broken_rows(outputs)
    if asked.shape != answered.shape:
        return bool(answered.any() and not asked.any())
    return bool((answered & ~asked).any())
