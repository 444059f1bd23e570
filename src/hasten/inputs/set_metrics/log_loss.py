"""Log loss: the mean surprise at what happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core.tensors import Array
from hasten.inputs.set_metrics.scores import Cases, ScoreMetric


@dataclass(frozen=True)
class LogLoss(ScoreMetric):
    """Mean of -log of the probability of each sample's own class, in nats.

    Probabilities are at least the precision of the output's type, as in scikit-learn, so that one
    certain and wrong answer doesn't make the mean infinite.
    """

    noun: ClassVar[str] = "log loss"
    spellings: ClassVar[tuple[str, ...]] = ("log_loss[:OUTPUT|sigmoid|softmax]",)
    higher_is_better: ClassVar[bool] = False

    def figure(self, cases: Cases, counts: Array) -> float:
        own = np.take_along_axis(cases.probabilities, cases.classes[:, None], axis=1)[:, 0]
        return float(-(counts @ np.log(np.clip(own, cases.eps, 1 - cases.eps))) / counts.sum())
