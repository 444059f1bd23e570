"""Labels of several outputs, as one structured array with a field for each output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError

PREFIX = "labels@"
"""Beginning of the name of an array that holds the labels of one output: "labels@logits"."""


def joined(labels: Mapping[str, Any]) -> Array:
    """Return labels `(n,)` with a field for each output, in which each sample's are `(...)`.

    Args:
        labels: Labels by output name, each `(n, ...)`.

    Raises:
        InputError: there are none, their counts differ, or they aren't numbers or texts.
    """
    arrays = {str(name): np.asarray(array) for name, array in labels.items()}
    if not arrays:
        raise InputError("the labels are an empty mapping: give an array for each output")
    for name, array in arrays.items():
        if array.ndim == 0 or array.dtype.kind not in "biufUS":
            raise InputError(
                f"labels of {name!r}: {array.dtype} {list(array.shape)}; give numbers or text, "
                "one row for each sample"
            )
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
        raise InputError(f"labels of several outputs have one row for each sample; got {told}")
    whole = np.zeros(
        next(iter(counts.values())), [(n, a.dtype, a.shape[1:]) for n, a in arrays.items()]
    )
    for name, array in arrays.items():
        whole[name] = array
    return whole


def listed(labels: Array) -> str:
    """Return the names of the arrays that labels of several outputs came in, in one line."""
    return ", ".join(f"{PREFIX}{name}" for name in labels.dtype.names or ())


def of_output(labels: Array, output: str | None, who: str) -> Array:
    """Return the labels of one output; labels in one array are every output's.

    Args:
        labels: Labels of the samples, `(n, ...)`.
        output: Name of the output; None where none is named.
        who: Name of the metric, for messages.

    Raises:
        InputError: the labels are of several outputs, and none of them is of this one.
    """
    if labels.dtype.names is None:
        return labels
    if output not in labels.dtype.names:
        raise InputError(
            f"{who} reads labels of one output, but the data has {listed(labels)}: name one, as in "
            f"{who}@{labels.dtype.names[0]}"
        )
    return np.asarray(labels[output])


def named_output(array: str) -> str | None:
    """Return the output whose labels an array of this name holds; None where it holds none."""
    return array.removeprefix(PREFIX) if array.startswith(PREFIX) else None
