"""Scores of samples of which some have no label: what is known is scored, the rest by its changes."""

from __future__ import annotations

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.data.missing import unlabelled
from hasten.inputs.metrics.base import Metric


def missing_labels(metric: Metric, labels: Array | None) -> Array | None:
    """Return which samples lack the label that a metric reads, bool `(n,)`; None where none does.

    Args:
        metric: Metric that reads the labels.
        labels: Labels of the samples, `(n, ...)`; None where the data has no labels at all.
    """
    if labels is None:
        return None
    missing = unlabelled(labels, classes=metric.reads_classes)
    return missing if missing.any() else None


def check_labelled(metric: Metric, labels: Array | None, name: str) -> None:
    """Check that a metric reads the labels, and that none is missing where it compares samples with each other.

    Raises:
        InputError: it would misread them, or one is missing.
    """
    if labels is not None:
        metric.check_labels(labels)
    missing = missing_labels(metric, labels)
    if missing is not None and metric.over_set:
        raise InputError(
            f"{name} compares samples with each other, so it needs every label: {int(missing.sum()):,} of "
            f"{len(missing):,} are missing; label them, or leave those samples out"
        )


def scored_where_known(
    metric: Metric, outputs: Tensors, exact: Tensors, labels: Array | None
) -> Array:
    """Score samples; the metric sees those alone that have a label.

    A sample without a label scores 1 where the answer is the exact model's, whatever the label, and
    else 0. The exact model itself so scores 1, and the difference between the two is the largest that
    any label could make it: a bound on it bounds the true drop.

    Args:
        metric: Metric that is scored.
        outputs: Outputs of the judged model by name, each of shape `(n, ...)`.
        exact: Outputs of the exact model for these samples.
        labels: Labels of the samples, `(n, ...)`, or None.

    Returns:
        What `Metric.score` returns, `(n,)`.

    Raises:
        InputError: the outputs or labels aren't of the form that the metric reads.
    """
    missing = missing_labels(metric, labels)
    if labels is None or missing is None:
        return metric.score(outputs, exact, labels)
    scores = np.asarray(metric.unchanged(outputs, exact), np.float64)
    known = np.flatnonzero(~missing)
    if len(known):
        told = metric.score(rows_of(outputs, known), rows_of(exact, known), labels[known])
        scores[known] = metric.checked(told, len(known))
    return scores


def rows_of(outputs: Tensors, rows: Array) -> Tensors:
    """Return a model's outputs on some samples."""
    return {name: array[rows] for name, array in outputs.items()}
