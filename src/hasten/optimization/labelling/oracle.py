"""A user's own function that labels samples: called with a few at a time, and held to its word."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.core.words import amount, type_in_words
from hasten.errors import HastenError, InputError, told
from hasten.inputs.data.missing import unlabelled
from hasten.optimization.labelling.answers import Form
from hasten.optimization.labelling.samples import Sample

AT_ONCE = 32
"""Largest number of samples of one call."""


def labels_of(
    function: Callable[[Sequence[Sample]], Any],
    name: str,
    samples: Sequence[Sample],
    form: Form,
    limit_s: float,
) -> list[Array | None]:
    """Ask a function for the labels of some samples.

    Args:
        function: Function of samples that returns a label of each, or None where it can't tell.
        name: Place of the function, for messages.
        samples: Samples to label.
        form: Form of a label, for classes.
        limit_s: Longest time of the call, in seconds.

    Returns:
        Label of each sample; None where it can't tell.

    Raises:
        InputError: the function failed, took too long, or didn't return one label for each sample.
    """
    given = _called(function, name, samples, limit_s)
    if isinstance(given, (str, bytes)) or not hasattr(given, "__len__"):
        raise InputError(
            f"{name} returned {type_in_words(given)}; return a list with a label for each sample"
        )
    if len(given) != len(samples):
        raise InputError(
            f"{name} returned {amount(len(given), 'label')} for {amount(len(samples), 'sample')}"
        )
    return [
        _label(one, form, f"{name}: sample {s.id}") for one, s in zip(given, samples, strict=True)
    ]


def _called(
    function: Callable[..., Any], name: str, samples: Sequence[Sample], limit_s: float
) -> Any:
    """Call the function in a thread of its own, which nobody waits for once it is late."""
    ended: list[Any] = []
    failed: list[BaseException] = []

    def call() -> None:
        try:
            ended.append(function(samples))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=call, name="oracle", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise InputError(
            f"{name} gave no labels for {amount(len(samples), 'sample')} in {limit_s:g} s; repair it, or raise "
            "trial_limit_s="
        )
    if failed:
        if isinstance(failed[0], HastenError):
            raise failed[0]
        raise InputError(f"{name} failed: {told(failed[0])}") from failed[0]
    return ended[0]


def _label(value: Any, form: Form, where: str) -> Array | None:
    """Return one label as an array of numbers.

    Raises:
        InputError: it is none.
    """
    if value is None:
        return None
    if isinstance(value, str):
        try:
            number = form.read(value)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        return None if number is None else np.asarray(number)
    try:
        label = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except Exception as error:  # anything may be called a label
        raise InputError(f"{where}: a {type(value).__name__} isn't a label") from error
    if label.dtype.kind not in "biuf":
        raise InputError(f"{where}: a label consists of numbers: got {label.dtype}")
    classes = bool(form.classes)
    if unlabelled(label.reshape(1, *label.shape), classes=classes)[0]:
        return None
    if classes and label.size == 1:
        try:
            return np.asarray(form.read_number(float(label.reshape(()))))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    if not np.isfinite(label).all():
        raise InputError(f"{where}: a label isn't finite")
    return label
