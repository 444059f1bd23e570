"""Metrics that check whether the labelled class is among the highest scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import InputError
from hasten.inputs.metrics.classes import ClassMetric
from hasten.inputs.metrics.outputs import class_labels, class_output, class_scores, equal_highest


def _among_highest(scores: Array, labels: Array, k: int) -> Array:
    """Return 1 where fewer than `k` classes come before the labelled one, else 0.

    Of classes with equal scores, the one with the lower number comes first, as in argmax; so a
    model that gives all classes the same score isn't right about everything.
    """
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    lower = np.arange(scores.shape[1]) < labels[:, None]
    before = (scores > own) | ((scores == own) & lower)
    return np.asarray(before.sum(axis=1) < k, np.float64)


@dataclass(frozen=True)
class Top1(ClassMetric):
    """Score 1 where the labelled class has the highest score, else 0."""

    needs_labels: ClassVar[bool] = True
    noun: ClassVar[str] = "accuracy"
    title: ClassVar[str] = "top-1 accuracy"
    spellings: ClassVar[tuple[str, ...]] = ("top1[:OUTPUT]",)

    @classmethod
    def default_for(cls, labels: Array | None, outputs: Sequence[TensorSpec]) -> Self | None:
        """Return the metric for labels that are classes and a single output of class scores."""
        scores = class_output(outputs)
        if scores is None or labels is None or labels.dtype.kind not in "biu":
            return None
        one_hot = labels.ndim == 2 and labels.shape[1] in (1, scores.shape[1])
        if not (labels.ndim == 1 or one_hot):
            return None
        return cls(None if len(outputs) == 1 else scores.name)

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        """Score samples; labels are class numbers `(n,)` or one-hot `(n, classes)`."""
        scores = class_scores(outputs, self.output, "top1")
        return _among_highest(scores, class_labels(labels, scores, "top1"), 1)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where both models have the same highest class."""
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
