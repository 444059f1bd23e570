"""Brier score: the mean squared distance of probabilities from what happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.inputs.set_metrics.scores import Cases, ScoreMetric


def squared_distances(probabilities: Array, classes: Array) -> Array:
    """Return each sample's squared distance from its class, halved, in [0, 1], shape `(n,)`.

    For two classes that is the squared distance of the probability of class 1 from 0 or 1.

    Args:
        probabilities: Probabilities `(n, classes)`, in [0, 1].
        classes: Class of each sample, integers `(n,)`.
    """
    apart = probabilities.copy()
    apart[np.arange(len(classes)), classes] -= 1
    return np.asarray(np.minimum(np.square(apart).sum(axis=1) / 2, 1.0))


@dataclass(frozen=True)
class SetBrier(ScoreMetric):
    """Mean squared distance of the probability of class 1 from 0 or 1.

    Of more classes it is half the sum over classes, so that it lies in [0, 1] too.
    """

    noun: ClassVar[str] = "Brier score"
    spellings: ClassVar[tuple[str, ...]] = ("brier[:OUTPUT]",)
    higher_is_better: ClassVar[bool] = False

    def figure(self, cases: Cases, counts: Array) -> float:
        apart = squared_distances(cases.probabilities, cases.classes)
        return float(counts @ apart / counts.sum())

    def draws(self, outputs: Tensors, labels: Array, units: Array) -> Array | None:
        cases = self.cases(outputs, labels)
        kept = 1 - squared_distances(cases.probabilities, cases.classes)
        _, index = np.unique(units, return_inverse=True)
        return np.asarray(np.bincount(index, weights=kept) / np.bincount(index))
