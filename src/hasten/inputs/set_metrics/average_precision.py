"""Average precision: the area under the precision-recall curve, without interpolation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core.tensors import Array
from hasten.inputs.set_metrics.scores import Cases, ScoreMetric


@dataclass(frozen=True)
class AveragePrecision(ScoreMetric):
    """Mean of the precision at each score, weighted by the recall that the score adds.

    Of more than two classes it is the mean over classes, each against the rest.
    """

    noun: ClassVar[str] = "average precision"
    spellings: ClassVar[tuple[str, ...]] = ("average_precision[:OUTPUT]",)
    every_class: ClassVar[bool] = True

    def figure(self, cases: Cases, counts: Array) -> float:
        precisions = []
        for ranked in cases.ranked:
            own, others = (weights[::-1] for weights in ranked.weights(counts))
            found = np.cumsum(own)
            all_of_them = found + np.cumsum(others)
            # Resampled sets may leave out the highest scores altogether.
            precision = np.divide(
                found, all_of_them, out=np.zeros_like(found), where=all_of_them > 0
            )
            precisions.append(float(own @ precision) / own.sum())
        return float(np.mean(precisions))
