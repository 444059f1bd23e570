"""Whether the answer is the exact model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import class_scores


@dataclass(frozen=True)
class Agreement(Metric):
    """1 where the highest score is the class that the exact model puts highest.

    Attributes:
        output: The output with class scores `(n, classes)`; None where there is one such.
    """

    output: str | None = None
    needs_labels: ClassVar[bool] = False
    noun: ClassVar[str] = "agreement"

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        mine = class_scores(outputs, self.output, "agreement").argmax(axis=1)
        theirs = class_scores(exact, self.output, "agreement").argmax(axis=1)
        return np.asarray(mine == theirs, np.float64)
