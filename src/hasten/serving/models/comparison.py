"""Compare answers: of batches with lone requests, of two models, of a bundle and its replacement."""

from __future__ import annotations

import math

import numpy as np

from hasten.core.tensors import Array, Tensors

_TOLERANCE = 0.02
"""Allowed difference between int8 kernels for one row and for many, relative to the row's largest
number."""

_FLOATS = "fV"
"""numpy's kinds of dtypes whose numbers may be NaN: bfloat16 is "V"."""
_FAR = 0.05
"""Difference that makes another answer if there are no classes, relative to the row's largest number."""


def unlike_rows(answers: Tensors, others: Tensors, tolerance: float = _TOLERANCE) -> Array:
    """Find the rows in which two answers differ.

    Args:
        answers: Arrays by output name; the first axis counts the rows.
        others: Arrays by output name from another model or another batch, to compare with.
        tolerance: Allowed difference, relative to the largest absolute number in a row of `others`.

    Returns:
        bool of shape `(rows,)`: True if floats differ by more than the tolerance, integers differ
        at all, or only one of two numbers is NaN.
    """
    rows = _rows(others)
    unlike = np.zeros(rows, bool)
    for name, other in others.items():
        mine = answers[name]
        if mine.shape != other.shape:
            return np.ones(rows, bool)
        pair = mine.reshape(rows, -1), other.reshape(rows, -1)
        if other.dtype.kind != "f":
            unlike |= (pair[0] != pair[1]).any(axis=1)
        elif pair[0].size:
            one, two = (np.asarray(array, np.float64) for array in pair)
            same = (one == two) | (np.isnan(one) & np.isnan(two))
            largest = np.abs(np.where(np.isfinite(two), two, 0)).max(axis=1, keepdims=True)
            with np.errstate(invalid="ignore"):
                near = np.abs(one - two) <= tolerance * largest
            unlike |= ~(same | near).all(axis=1)
    return unlike


def _rows(outputs: Tensors) -> int:
    """Return the number of rows that all outputs have; 1 if their first axes differ."""
    first = {array.shape[:1] for array in outputs.values()}
    (sizes,) = first if len(first) == 1 else ((1,),)
    return sizes[0] if sizes else 1


def disagreeing_rows(answers: Tensors, exact: Tensors) -> Array:
    """Find the rows with another decision: another class, or numbers that differ by more than 5%.

    Args:
        answers: Arrays by output name; the first axis counts the rows.
        exact: The exact model's arrays by output name, for the same request.

    Returns:
        bool of shape `(rows,)`: True if the decisions differ.
    """
    rows = _rows(exact)
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
    rows = _rows(tensors)
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
