"""Labels that aren't there: -1 for a class, NaN for a number, None or an empty text for either.

Among whole numbers None is `NO_NUMBER`, since -1 may be a number of a regression, or meant as a class.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError

NO_CLASS = -1
"""Class of a sample without a label."""
NO_NUMBER = int(np.iinfo(np.int64).min)
"""Whole number of a sample without a label, as data are opened."""


def unlabelled(labels: Array, *, classes: bool) -> Array:
    """Return which samples have no label, bool of shape `(n,)`.

    A sample has none where all of its label is NaN, an empty text or `NO_NUMBER`, or -1 where labels are
    classes.

    Args:
        labels: Labels of the samples, `(n, ...)`.
        classes: Whether labels are classes, which are never below 0.
    """
    rows = labels.reshape(len(labels), -1)
    if rows.shape[1] == 0:
        return np.zeros(len(labels), bool)
    kind = labels.dtype.kind
    if kind in "US":
        return np.asarray((rows == rows.dtype.type()).all(axis=1))
    missing = lacking(rows)
    if classes and kind in "if":
        missing = missing | (rows == NO_CLASS)
    return np.asarray(missing.all(axis=1))


def lacking(labels: Array) -> Array:
    """Return where a number of labels isn't there, bool of their shape: NaN, or `NO_NUMBER` among whole numbers."""
    if labels.dtype.kind in "fc":
        return np.isnan(labels)
    return labels == NO_NUMBER if labels.dtype == np.int64 else np.zeros(labels.shape, bool)


def with_no_class(labels: Array) -> Array:
    """Return labels that are classes with -1 for each that is missing among whole numbers."""
    return np.where(lacking(labels), NO_CLASS, labels) if labels.dtype == np.int64 else labels


def none_for(labels: Array | None, count: int, *, classes: bool) -> Array:
    """Return labels of samples of which none has one, `(count, ...)` in the form of other labels.

    Args:
        labels: Labels of other samples, whose form is kept; None for one label each.
        count: Number of samples.
        classes: Whether labels are classes.
    """
    shape = (count,) if labels is None else (count, *labels.shape[1:])
    if classes and (labels is None or labels.dtype.kind != "f"):
        return np.full(shape, NO_CLASS, np.int64)
    return np.full(shape, np.nan)


def filled(labels: Any) -> Array:
    """Return labels as an array of numbers or texts, where None, NA and numpy's mask stand for no label.

    Whole numbers and truth values become int64 with `NO_NUMBER` in these places, other numbers float64
    with NaN, and texts keep an empty one. What is none of these stays as it is, for the caller to refuse.

    Args:
        labels: Array of any type, or a list.
    """
    if not isinstance(labels, np.ndarray) and is_masked(labels):
        labels = _with_none(labels)
    given = labels if isinstance(labels, np.ndarray) else array_of(labels)
    if given is not labels and given.dtype.kind == "U":
        given = np.array(labels, object)  # else NaN beside texts becomes the text "nan"
    if isinstance(given, np.ma.MaskedArray):
        mask, given = np.ma.getmaskarray(given), given.data
        if mask.any():
            given = given.astype(object)
            given[mask] = None
    if given.dtype.kind != "O":
        return given
    values = [one.item() if isinstance(one, np.generic) else one for one in given.reshape(-1)]
    known = [one for one in values if not _absent(one)]
    if not known:
        return np.full(given.shape, np.nan)
    if all(isinstance(one, str) for one in known):
        texts = ["" if _absent(one) else one for one in values]
        return np.array(texts).reshape(given.shape)
    if all(isinstance(one, (bool, int)) for one in known):
        numbers = [NO_NUMBER if _absent(one) else int(one) for one in values]
        return np.array(numbers, np.int64).reshape(given.shape)
    if all(isinstance(one, (bool, int, float)) for one in known):
        floats = [np.nan if _absent(one) else float(one) for one in values]
        return np.array(floats).reshape(given.shape)
    return given


def array_of(values: Any) -> Array:
    """Return a list, or anything else that numpy takes, as an array.

    Raises:
        InputError: it has lists of different lengths.
    """
    try:
        return np.asarray(values)
    except ValueError as error:
        if not isinstance(values, (list, tuple)):
            raise
        raise InputError(
            "a list of the data has lists or arrays of different lengths: pad them to one length, or give inputs that "
            "differ in shape as a list of arrays"
        ) from error


def is_masked(values: Any) -> bool:
    """Whether a value is masked in an array of numpy, or in one of those in a list, whatever lists it is in."""
    if isinstance(values, np.ma.MaskedArray):
        return bool(np.ma.is_masked(values))
    return isinstance(values, (list, tuple)) and any(map(is_masked, values))


def _with_none(values: Any) -> Any:
    """Return a list of masked arrays as one of lists, with None for each value that is masked."""
    if isinstance(values, np.ndarray):
        return values.tolist()
    return [_with_none(one) for one in values] if isinstance(values, (list, tuple)) else values


def _absent(value: Any) -> bool:
    """Whether a value of a list or a data frame stands for one that isn't there."""
    if value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value


def _is_nan(label: Array | None) -> bool:
    return label is not None and label.dtype.kind == "f" and bool(np.isnan(label).all())


def stacked(labels: list[Array | None]) -> Array | None:
    """Return labels of single samples as one array, `(n, ...)`; None where no sample has one.

    Args:
        labels: Label of each sample, all of one shape; None where it is missing.

    Raises:
        InputError: a label of several outputs is missing, or some labels are texts and others numbers.
    """
    texts = [one is not None and one.dtype.kind in "US" for one in labels]
    if any(texts):  # beside texts NaN is a missing one, as pandas has it
        labels = [
            None if not text and _is_nan(one) else one
            for one, text in zip(labels, texts, strict=True)
        ]
        if any(one is not None and not text for one, text in zip(labels, texts, strict=True)):
            raise InputError("some labels are texts, and others are numbers: give one or the other")
    first = next((one for one in labels if one is not None), None)
    if first is None:
        return None
    if all(one is not None for one in labels):
        return np.stack([one for one in labels if one is not None])
    if first.dtype.names is not None:
        raise InputError(
            "a sample has no label, but labels of several outputs can't be missing: give every "
            "sample the labels of all outputs"
        )
    whole = all(one is None or one.dtype.kind in "biu" for one in labels)
    nothing = np.full(first.shape, NO_NUMBER) if whole else np.full(first.shape, np.nan)
    if first.dtype.kind in "US":
        nothing = np.full(first.shape, "")
    rows = np.stack([nothing if one is None else one for one in labels])
    return rows.astype(np.int64) if whole else rows
