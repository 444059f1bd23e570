"""Metric for scores that rank: the AUROC, by disjoint comparisons that a certificate can count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import equal_numbers
from hasten.inputs.metrics.pairs import Pairing
from hasten.inputs.set_metrics.scores import classes_of, ranking, score_columns


@dataclass(frozen=True)
class Auroc(Metric):
    """Share of comparisons in which a sample of class 1 has a higher score than one of class 0.

    Equal scores count half. No two comparisons share a sample or a group, so that each is an
    independent draw, and their mean is an unbiased estimate of the AUROC: see
    `hasten.inputs.metrics.pairs`.

    Attributes:
        output: Name of the output with scores `(n,)`, `(n, 1)` or `(n, 2)`; None for the only one that
            fits. Of two columns the difference ranks, for probabilities and logits alike.
    """

    output: str | None = None
    needs_labels: ClassVar[bool] = True
    noun: ClassVar[str] = "AUROC"
    title: ClassVar[str] = "AUROC"
    spellings: ClassVar[tuple[str, ...]] = ("auroc[:OUTPUT]",)
    over_set: ClassVar[bool] = True
    draw: ClassVar[str] = "disjoint comparison"

    @property
    def reads_classes(self) -> bool:
        """Whether labels are classes: they are."""
        return True

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read the metric's name alone, or with an output: "auroc" or "auroc:OUTPUT"."""
        return cls(setting or None)

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        """Return a number for each sample that is higher where class 1 is likelier, `(n,)`."""
        scores = score_columns(outputs, self.output, "auroc")
        if scores.shape[1] > 2:
            raise InputError(
                f"auroc can be certified for two classes, but the model has {scores.shape[1]}: "
                "report='auroc' states the mean over the classes instead"
            )
        classes_of(labels, 1, len(scores), "auroc")
        return ranking(scores)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where the readings are equal numbers, so that every comparison is."""
        mine, theirs = (
            ranking(score_columns(given, self.output, "auroc")) for given in (outputs, others)
        )
        return equal_numbers(mine, theirs)

    def checked(self, scores: object, count: int) -> Array:
        """Return readings as they are: `score` has checked that they are finite."""
        return np.asarray(scores, np.float64).reshape(count)

    def draws(self, labels: Array | None, units: Array) -> Array:
        return Pairing.of(classes_of(labels, 1, len(units), "auroc"), units).blocks

    def over(self, readings: Array, labels: Array | None, units: Array) -> Array:
        classes = classes_of(labels, 1, len(units), "auroc")
        pairing = Pairing.of(classes, units)
        return pairing.scores(readings, classes)[pairing.blocks]
