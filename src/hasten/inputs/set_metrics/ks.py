"""Kolmogorov-Smirnov distance between the scores of two classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core.tensors import Array
from hasten.inputs.set_metrics.scores import Cases, ScoreMetric


@dataclass(frozen=True)
class Ks(ScoreMetric):
    """Largest distance between the distributions of the scores of class 1 and of class 0, in [0, 1].

    Of more than two classes it is the mean over classes, each against the rest.
    """

    noun: ClassVar[str] = "KS"
    spellings: ClassVar[tuple[str, ...]] = ("ks[:OUTPUT]",)
    every_class: ClassVar[bool] = True

    def figure(self, cases: Cases, counts: Array) -> float:
        distances = []
        for ranked in cases.ranked:
            own, others = ranked.weights(counts)
            apart = np.cumsum(own) / own.sum() - np.cumsum(others) / others.sum()
            distances.append(np.abs(apart).max())
        return float(np.mean(distances))
