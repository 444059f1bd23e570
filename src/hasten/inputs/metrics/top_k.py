"""Metrics that check whether the labelled class is among the highest scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import InputError
from hasten.inputs.metrics.classes import ClassMetric
from hasten.inputs.metrics.outputs import (
    class_labels,
    class_output,
    class_scores,
    decided_classes,
    decided_labels,
    decided_output,
    equal_highest,
    equal_numbers,
    whole,
)
from hasten.inputs.metrics.suggestions import hint_of_chosen


def _among_highest(scores: Array, labels: Array, k: int) -> Array:
    """Return 1 where fewer than `k` classes come before the labelled one, else 0.

    Of classes with equal scores, the one with the lower number comes first, as in argmax; so a
    model that gives all classes the same score isn't right about everything.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    lower = np.arange(scores.shape[1]) < labels[:, None]
    before = (scores > own) | ((scores == own) & lower)
    return np.asarray(before.sum(axis=1) < k, np.float64)


def _single_numbers(labels: Array) -> bool:
    """Whether labels are one whole number for each sample, not negative."""
    single = labels.dtype.kind in "iuf" and labels.shape[1:] in ((), (1,))
    return single and bool(((labels >= 0) & (labels == np.floor(labels))).all())


def _fit_scores(labels: Array, classes: int | str) -> bool:
    """Whether labels may be classes of scores `(n, classes)`; floats must be whole, or one-hot rows."""
    if labels.ndim == 2 and labels.shape[1] != 1:
        if labels.shape[1] != classes:
            return False
        one_hot = ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()
        return labels.dtype.kind != "f" or bool(one_hot)
    if labels.ndim not in (1, 2) or labels.dtype.kind != "f":
        return labels.ndim in (1, 2)
    return whole(labels) and not (isinstance(classes, int) and (labels > classes).any())


@dataclass(frozen=True)
class Top1(ClassMetric):
    """Score 1 where the labelled class has the highest score, else 0.

    An output with one integer or truth value for each sample holds the class that the model has chosen.
    """

    needs_labels: ClassVar[bool] = True
    noun: ClassVar[str] = "accuracy"
    title: ClassVar[str] = "top-1 accuracy"
    spellings: ClassVar[tuple[str, ...]] = ("top1[:OUTPUT]",)

    @classmethod
    def default_for(cls, labels: Array | None, outputs: Sequence[TensorSpec]) -> Self | None:
        """Return the metric for labels that are classes and a single output of class scores.

        The model's only output may also be the class of each sample, as an integer.
        """
        if labels is None or labels.dtype.kind not in "biuf":
            return None
        found = class_output(outputs)
        if found is not None:
            fits = _fit_scores(labels, found.shape[1])
        elif (found := decided_output(outputs)) is not None:
            fits = (labels.ndim == 1 or labels.shape[1:] == (1,)) and whole(labels)
        if found is None or not fits:
            return None
        return cls(None if len(outputs) == 1 else found.name)

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        """Score samples; labels are class numbers `(n,)` or one-hot `(n, classes)`."""
        decided = decided_classes(outputs, self.output)
        if decided is not None:
            told = decided_labels(labels, len(decided), "top1")
            return np.asarray(decided == told, np.float64)
        scores = class_scores(outputs, self.output, "top1")
        try:
            told = class_labels(labels, scores, "top1")
        except InputError as error:
            if labels is None or not _single_numbers(labels):
                raise
            given = {name: (str(one.dtype), one.shape) for name, one in outputs.items()}
            raise InputError(f"{error}{hint_of_chosen(given)}") from error
        return _among_highest(scores, told, 1)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where both models have the same highest class."""
        decided = [decided_classes(given, self.output) for given in (outputs, others)]
        if decided[0] is not None and decided[1] is not None:
            return equal_numbers(decided[0], decided[1])
        mine, theirs = (class_scores(given, self.output, "top1") for given in (outputs, others))
        return equal_highest(mine, theirs, 1)


@dataclass(frozen=True)
class Top5(ClassMetric):
    """Score 1 where the labelled class is among the five highest scores, else 0."""

    needs_labels: ClassVar[bool] = True
    noun: ClassVar[str] = "top-5 accuracy"
    title: ClassVar[str] = "top-5 accuracy"
    spellings: ClassVar[tuple[str, ...]] = ("top5[:OUTPUT]",)
    margin_rank: ClassVar[int | None] = 5

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        """Score samples; labels are class numbers `(n,)` or one-hot `(n, classes)`."""
        scores = class_scores(outputs, self.output, "top5")
        if scores.shape[1] <= 5:
            raise InputError(f"top5 of {scores.shape[1]} classes is always right; use top1")
        return _among_highest(scores, class_labels(labels, scores, "top5"), 5)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where both models have the same five highest classes, in any order."""
        mine, theirs = (class_scores(given, self.output, "top5") for given in (outputs, others))
        return equal_highest(mine, theirs, 5)
