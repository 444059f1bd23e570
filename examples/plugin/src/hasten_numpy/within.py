"""A metric for ordered classes: grades, stages of a disease, stars."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import class_labels, class_scores


@dataclass(frozen=True)
class Within(Metric):
    """1 where the highest score is at most `distance` classes away from the labelled one.

    Attributes:
        distance: Classes, at least 0.
        output: The output with class scores `(n, classes)`; None where there is one such.
    """

    distance: int = 1
    output: str | None = None
    needs_labels: ClassVar[bool] = True
    noun: ClassVar[str] = "share of near hits"
    title: ClassVar[str] = "the share of near hits"
    spellings: ClassVar[tuple[str, ...]] = ("within[:DISTANCE]",)
    answers: ClassVar[Literal["classes", "values"] | None] = "classes"

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read "within" or "within:1"."""
        if setting and not setting.isdecimal():
            raise InputError(f"metric {text!r}: a distance is a whole number, as in within:1")
        return cls(int(setting)) if setting else cls()

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        scores = class_scores(outputs, self.output, "within")
        away = np.abs(scores.argmax(axis=1) - class_labels(labels, scores, "within"))
        return (away <= self.distance).astype(np.float64)
