"""Metric for probabilities: one minus the Brier score, which is a mean over samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import equal_numbers
from hasten.inputs.set_metrics.brier import SetBrier
from hasten.inputs.set_metrics.scores import score_columns


@dataclass(frozen=True)
class Brier(Metric):
    """Score 1 - d, where d is the squared distance of the probability of class 1 from the label.

    Of more than two classes d is half the sum over classes, so that it lies in [0, 1] too.

    Attributes:
        activation: Function that turns outputs into probabilities: "none", "sigmoid" or "softmax". A chunk of
            the data can't tell, so it is never guessed.
        output: Name of the output with scores `(n,)`, `(n, 1)` or `(n, classes)`; None for the only one
            that fits.
    """

    activation: str = "none"
    output: str | None = None
    needs_labels: ClassVar[bool] = True
    noun: ClassVar[str] = "1 - Brier score"
    title: ClassVar[str] = "1 - Brier score"
    spellings: ClassVar[tuple[str, ...]] = ("brier[:OUTPUT|sigmoid|softmax]",)

    @property
    def reads_classes(self) -> bool:
        """Whether labels are classes: they are."""
        return True

    def __post_init__(self) -> None:
        """Check the activation."""
        if self.activation not in ("none", "sigmoid", "softmax"):
            raise InputError(
                f"activation={self.activation!r}: give 'sigmoid' or 'softmax', which turns "
                "outputs into probabilities; leave it out if outputs are probabilities"
            )

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read "brier", "brier:sigmoid", "brier:softmax" or "brier:OUTPUT"."""
        if setting in ("", "sigmoid", "softmax"):
            return cls(setting or "none")
        return cls(output=setting)

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        reader = SetBrier(self.output, self.activation)  # type: ignore[arg-type]
        if self.activation == "none" and (guess := SetBrier(self.output).settled(exact)).reading:
            raise InputError(
                "brier reads probabilities, but the exact model's outputs aren't probabilities: "
                f"name the activation, as in brier:{guess.activation}"
            )
        return np.asarray(1 - reader.cases(outputs, labels).squared)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where the outputs are equal numbers, so that the probabilities are."""
        mine, theirs = (score_columns(given, self.output, "brier") for given in (outputs, others))
        return equal_numbers(mine, theirs)
