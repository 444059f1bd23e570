"""Whether two models gave the same answer: for batch mates, for the shadow, for a swap."""

from __future__ import annotations

import math

import numpy as np

from hasten.core.tensors import Array, Tensors

_TOLERANCE = 0.02
"""Of the largest number in a row: what int8 kernels for one row and for many may differ by."""

_FLOATS = "fV"
"""numpy's kinds of numbers that may be NaN: bfloat16 is "V"."""
_FAR = 0.05
"""Of the largest number in a row: what counts as another answer where there are no classes."""


def unlike_rows(answers: Tensors, others: Tensors, tolerance: float = _TOLERANCE) -> Array:
    """Say which rows differ.

    Args:
        answers: Arrays by output name, the first axis the rows'.
        others: The same outputs of another model or another batch.
        tolerance: Of the largest absolute number in the other's row.

    Returns:
        bool of shape `(rows,)`: numbers differ by more, or integers at all, or only one is NaN.
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
    """How many rows all outputs have; 1 where their first axes aren't the rows'."""
    first = {array.shape[:1] for array in outputs.values()}
    (sizes,) = first if len(first) == 1 else ((1,),)
    return sizes[0] if sizes else 1


def disagreeing_rows(answers: Tensors, exact: Tensors) -> Array:
    """Say which rows decide otherwise: another class, or numbers that are further off than 5%.

    Args:
        answers: Arrays by output name, the first axis the rows'.
        exact: The exact model's answers to the same.

    Returns:
        bool of shape `(rows,)`.
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
    """Say which rows have a NaN in them: bool of shape `(rows,)`."""
    rows = _rows(tensors)
    broken = np.zeros(rows, bool)
    for array in tensors.values():
        if array.dtype.kind in _FLOATS:
            broken |= np.isnan(array.astype(np.float32).reshape(rows, -1)).any(axis=1)
    return broken


def is_broken(answers: Tensors) -> bool:
    """Whether an answer has a NaN in it.

    A sum tells in one pass over the memory; only where it isn't a number, each element is looked at.
    """
    for array in answers.values():
        suspect = array.dtype.kind in _FLOATS and not math.isfinite(array.sum())
        if suspect and np.isnan(array.astype(np.float32)).any():
            return True
    return False
