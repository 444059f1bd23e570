"""Compare answers: of batches with lone requests, of two models, of a bundle and its replacement."""

from __future__ import annotations

import math

import numpy as np

from hasten.core.tensors import Array, Tensors, rows_of, unlike_rows

_FLOATS = "fV"
"""numpy's kinds of dtypes whose numbers may be NaN: bfloat16 is "V"."""
_FAR = 0.05
"""Difference that makes another answer if there are no classes, relative to the row's largest number."""


def disagreeing_rows(answers: Tensors, exact: Tensors) -> Array:
    """Find the rows with another decision: another class, or numbers that differ by more than 5%.

    Args:
        answers: Arrays by output name; the first axis counts the rows.
        exact: The exact model's arrays by output name, for the same request.

    Returns:
        bool of shape `(rows,)`: True if the decisions differ.
    """
    rows = rows_of(exact)
    unlike = np.zeros(rows, bool)
    for name, other in exact.items():
        mine = answers[name]
        scores = other.shape[:1] == (rows,) and other.ndim == 2 and other.shape[1] > 1
        scores = scores and other.dtype.kind == "f"
        if scores and mine.shape == other.shape:
            unlike |= mine.argmax(axis=1) != other.argmax(axis=1)
        else:
            unlike |= unlike_rows({name: mine}, {name: other}, _FAR)
    return unlike


def broken_rows(tensors: Tensors) -> Array:
    """Find the rows that contain NaN: bool of shape `(rows,)`."""
    rows = rows_of(tensors)
    broken = np.zeros(rows, bool)
    for array in tensors.values():
        if array.dtype.kind in _FLOATS:
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
