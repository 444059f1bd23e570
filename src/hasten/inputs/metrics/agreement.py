"""Metric that compares a model's class with the exact model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.inputs.metrics.classes import ClassMetric
from hasten.inputs.metrics.outputs import (
    class_output,
    class_scores,
    decided_classes,
    decided_output,
    equal_numbers,
    one_output,
)


@dataclass(frozen=True)
class Agreement(ClassMetric):
    """Score 1 where the model's highest class is the exact model's highest class, else 0.

    An output that is named and holds integers or truth values has been decided by the model
    itself: there all numbers of a sample must be the exact model's. Without a name that is the model's only
    output, if it has one such number for each sample.
    """

    needs_labels: ClassVar[bool] = False
    noun: ClassVar[str] = "agreement"
    spellings: ClassVar[tuple[str, ...]] = ("agreement[:OUTPUT]",)
    of_changes: ClassVar[bool] = True

    @classmethod
    def default_for(cls, labels: Array | None, outputs: Sequence[TensorSpec]) -> Self | None:
        """Return the metric if there are no labels, and one output has class scores or classes."""
        scores = class_output(outputs) or decided_output(outputs)
        if scores is None or labels is not None:
            return None
        return cls(None if len(outputs) == 1 else scores.name)

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        if self.output is not None:
            decided, others = (one_output(a, self.output, "agreement") for a in (outputs, exact))
            if decided.dtype.kind in "biu":
                return equal_numbers(decided, others).astype(np.float64)
        chosen = [decided_classes(a, self.output) for a in (outputs, exact)]
        if chosen[0] is not None and chosen[1] is not None:
            return equal_numbers(chosen[0], chosen[1]).astype(np.float64)
        mine = class_scores(outputs, self.output, "agreement").argmax(axis=1)
        theirs = class_scores(exact, self.output, "agreement").argmax(axis=1)
        return np.asarray(mine == theirs, np.float64)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        return np.asarray(self.score(outputs, others, None) == 1)
