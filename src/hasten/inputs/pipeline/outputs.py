"""Selection of the output that a step after the model reads, and checks of values and settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.core.words import amount
from hasten.errors import InputError

UNKNOWN = ("...",)
"""Shape of an output whose number of axes the model doesn't state."""
_LARGE = np.float32(88)
"""Largest whole number whose exponential float32 holds."""
_FEW = 32
"""Largest count of numbers that Python looks at in less time than a call of numpy takes."""


def output_of(outputs: Sequence[TensorSpec], name: str, step: str) -> TensorSpec:
    """Return a model's output by name, or its only one where the name is empty.

    Raises:
        InputError: there is no such output, or there are several and none is named.
    """
    there = ", ".join(spec.name for spec in outputs)
    if not name and len(outputs) > 1:
        raise InputError(
            f"{step} must state in `output` which output it reads; the outputs are {there}"
        )
    for spec in outputs:
        if spec.name == name or not name:
            return spec
    raise InputError(f"{step} reads the output {name!r}; the model has {there}")


def array_of(value: Mapping[str, Any], name: str, step: str) -> Array:
    """Return an output's array by name, or the only one where the name is empty.

    Raises:
        InputError: there is no such output, or there are several and none is named.
    """
    if name in value:
        return np.asarray(value[name])
    if name:
        raise InputError(f"{step} reads the output {name!r}; the model has {', '.join(value)}")
    if len(value) != 1:
        raise InputError(
            f"{step} must state in `output` which output it reads; the outputs are "
            f"{', '.join(value)}"
        )
    return np.asarray(next(iter(value.values())))


def check_shape(spec: TensorSpec, wanted: Sequence[int | None], words: str) -> None:
    """Check that an output has these axes after its batch axis.

    Args:
        spec: The output; open dimensions fit any size, and an unknown number of axes fits too.
        wanted: Size of each axis after the batch axis; None where any size will do.
        words: Words for what is needed, for the message: "top_k needs scores of shape [batch, classes]".

    Raises:
        InputError: it hasn't; the message gives `words` and the output.
    """
    if spec.shape == UNKNOWN:
        return
    given = spec.shape[1:]
    fits = len(spec.shape) == len(wanted) + 1 and all(
        want is None or isinstance(size, str) or size == want
        for want, size in zip(wanted, given, strict=True)
    )
    if not fits:
        raise InputError(f"{words}; the model gives {spec}")


def check_labels(labels: Sequence[str], classes: int | str, step: str, output: str) -> None:
    """Check that there is one label for each class, where there are labels and the number is known.

    Raises:
        InputError: there are more or fewer labels than classes.
    """
    if labels and isinstance(classes, int) and classes != len(labels):
        raise InputError(
            f"{step} has {amount(len(labels), 'label')}; the model's output {output!r} has {amount(classes, 'class', 'classes')}"
        )


def check_between(name: str, value: float, low: float, high: float) -> None:
    """Check that a setting lies in [low, high]; NaN doesn't.

    Raises:
        InputError: it lies outside; the message names it.
    """
    if not low <= value <= high:
        raise InputError(f"{name}={value!r}: give a number from {low:g} to {high:g}")


def check_finite(array: Array, step: str, output: str = "") -> None:
    """Check that numbers are finite.

    Raises:
        InputError: a number is NaN or infinite.
    """
    few = array.size <= _FEW and array.dtype.kind == "f"
    finite = all(map(math.isfinite, array.ravel().tolist())) if few else np.isfinite(array).all()
    if not finite:
        which = f" {output!r}" if output else ""
        raise InputError(
            f"{step} needs finite numbers: the model's output{which} has NaN or infinite ones for "
            "this sample"
        )


def probabilities(scores: Array) -> Array:
    """Return the softmax of class scores over the last axis, as float32 of the same shape."""
    scores = scores.astype(np.float32)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def sigmoid(scores: Array) -> Array:
    """Return 1 / (1 + exp(-x)) of each number, as float32, precise for small probabilities too."""
    return np.asarray(1 / (1 + np.exp(np.minimum(-scores.astype(np.float32), _LARGE))))
