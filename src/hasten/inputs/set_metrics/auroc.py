"""Area under the receiver operating characteristic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.inputs.metrics.pairs import Pairing
from hasten.inputs.set_metrics.scores import Cases, ScoreMetric, ranking


@dataclass(frozen=True)
class SetAuroc(ScoreMetric):
    """Chance that a sample of class 1 has a higher score than one of class 0; equal scores count half.

    Of more than two classes it is the mean over classes, each against the rest.
    """

    noun: ClassVar[str] = "AUROC"
    spellings: ClassVar[tuple[str, ...]] = ("auroc[:OUTPUT]",)
    every_class: ClassVar[bool] = True

    def figure(self, cases: Cases, counts: Array) -> float:
        areas = []
        for ranked in cases.ranked:
            own, others = ranked.weights(counts)
            below = np.cumsum(others) - others / 2
            areas.append(float(own @ below) / (own.sum() * others.sum()))
        return float(np.mean(areas))

    def draws(self, outputs: Tensors, labels: Array, units: Array) -> Array | None:
        cases = self.cases(outputs, labels)
        if not cases.binary:
            return None
        return Pairing.of(cases.classes, units).scores(ranking(cases.scores), cases.classes)
