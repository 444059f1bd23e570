"""Share of an answer that another model changed: the monitor and the certificate count it alike."""

from __future__ import annotations

import numpy as np

from hasten.core.tensors import Array, Tensors, rows_of, unlike_rows
from hasten.inputs.metrics.base import Metric

_FAR = 0.05
"""Difference that makes another answer if there are no classes, relative to the row's largest number."""


def tells_changes(metric: Metric | None) -> bool:
    """Whether a metric itself tells changed answers, without labels and without running a user's code.

    Args:
        metric: Metric of a bundle; None where it isn't known.
    """
    if metric is None or metric.function is not None or metric.over_set:
        return False
    return metric.binary is not False or not metric.needs_labels


def changes_wholly(metric: Metric | None) -> bool:
    """Whether an answer counts as changed or not, and never in part.

    Of a metric that can't tell, what is changed in part counts as changed, so that a bound stays one.
    """
    return metric is None or not tells_changes(metric) or metric.binary is not False


def changed_parts(
    metric: Metric | None, outputs: Tensors, exact: Tensors, own: Array | None = None
) -> Array:
    """Return how much of each answer is changed.

    Where the metric needs labels, an answer is changed if a label may give it another score. Where it
    needs none, an answer is changed as far as its score against the exact model's answer falls. Where the
    metric can't tell, an answer is changed if its decision is another one.

    Args:
        metric: Metric of the bundle; None where it isn't known.
        outputs: Outputs of the model by name, each of shape `(n, ...)`.
        exact: Outputs of the exact model for these samples.
        own: Result of `own_scores` for them, where several models are compared with it.

    Returns:
        float64 of shape `(n,)`, each in [0, 1].

    Raises:
        InputError: the outputs aren't of the form that the metric reads.
    """
    if metric is None or not tells_changes(metric):
        return disagreeing_rows(outputs, exact).astype(np.float64)
    if metric.needs_labels:
        return (~np.asarray(metric.unchanged(outputs, exact), bool)).astype(np.float64)
    if own is None:
        own = own_scores(metric, exact)
    other = metric.checked(metric.score(outputs, exact, None), rows_of(exact))
    return np.asarray(np.maximum(own - other, 0), np.float64)


def own_scores(metric: Metric | None, exact: Tensors) -> Array | None:
    """Return the exact model's scores against its own answers, `(n,)`; None where changes don't depend on them.

    Raises:
        InputError: the outputs aren't of the form that the metric reads.
    """
    if metric is None or not tells_changes(metric) or metric.needs_labels:
        return None
    return metric.checked(metric.score(exact, exact, None), rows_of(exact))


def disagreeing_rows(answers: Tensors, exact: Tensors) -> Array:
    """Find the rows with another decision: another class, or numbers that differ by more than 5%.

    Args:
        answers: Arrays by output name; the first axis counts the rows.
        exact: The exact model's arrays by output name, for the same request.

    Returns:
        bool of shape `(rows,)`: True if the decisions differ. Outputs with unlike first axes are one row together.
    """
    rows = rows_of(exact)
    unlike = np.zeros(rows, bool)
    for name, other in exact.items():
        mine = answers[name]
        scores = other.shape[:1] == (rows,) and other.ndim == 2 and other.shape[1] > 1
        scores = scores and other.dtype.kind == "f"
        if scores and mine.shape == other.shape:
            unlike |= mine.argmax(axis=1) != other.argmax(axis=1)
        elif mine.shape != other.shape:
            unlike[:] = True
        else:
            found = unlike_rows({name: mine}, {name: other}, _FAR)
            unlike |= found if len(found) == rows else found.any()
    return unlike
