"""Brier score: the mean squared distance of probabilities from what happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.inputs.set_metrics.scores import Cases, ScoreMetric


@dataclass(frozen=True)
class SetBrier(ScoreMetric):
    """Mean squared distance of the probability of class 1 from 0 or 1.

    Of more classes it is half the sum over classes, so that it lies in [0, 1] too.
    """

    noun: ClassVar[str] = "Brier score"
    spellings: ClassVar[tuple[str, ...]] = ("brier[:OUTPUT|sigmoid|softmax]",)
    higher_is_better: ClassVar[bool] = False

    def figure(self, cases: Cases, counts: Array) -> float:
        return float(counts @ cases.squared / counts.sum())

    def draws(self, outputs: Tensors, labels: Array, units: Array) -> Array | None:
        cases = self.cases(outputs, labels)
        _, index = np.unique(units, return_inverse=True)
        return np.asarray(np.bincount(index, weights=1 - cases.squared) / np.bincount(index))
