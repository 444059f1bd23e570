"""Every class that is likely enough, where several may hold at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.core.tensors import TensorSpec
from hasten.core.words import amount
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, PostStep
from hasten.inputs.pipeline.outputs import (
    array_of,
    check_finite,
    check_labels,
    check_shape,
    output_of,
    sigmoid,
)


@dataclass(frozen=True)
class MultiLabel(PostStep):
    """Every class whose score reaches its threshold: a list of `{"class", "label", "score"}`.

    The highest score comes first; the list is empty where no class is likely enough. Scores and
    thresholds are compared in float32.

    Attributes:
        thresholds: Least score of each class; or one for all classes.
        labels: Name of each class; without names the answers have no `label`.
        sigmoid: Whether to turn the model's numbers into probabilities; False where the model did.
        output: Name of the model's output with one score per class; by default its only one.
    """

    thresholds: float | tuple[float, ...] = 0.5
    labels: tuple[str, ...] = ()
    sigmoid: bool = True
    output: str = ""
    decides: ClassVar[str] = "classes"

    def __post_init__(self) -> None:
        """Check the thresholds."""
        several = self.thresholds if isinstance(self.thresholds, tuple) else (self.thresholds,)
        for one in several:
            if not math.isfinite(one):
                raise InputError(f"multi_label.thresholds has {one!r}: give finite numbers")
        if isinstance(self.thresholds, tuple) and self.labels and len(self.labels) != len(several):
            raise InputError(
                f"multi_label has {amount(len(several), 'threshold')} and {amount(len(self.labels), 'label')}: give one of "
                "each per class, or one threshold for all"
            )

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that there is an output with one score per class.

        Raises:
            InputError: there is none, or there are more or fewer labels or thresholds than classes.
        """
        spec = output_of(outputs, self.output, "multi_label")
        check_shape(spec, (None,), "multi_label needs scores of shape [batch, classes]")
        check_labels(self.labels, spec.shape[-1], "multi_label", spec.name)
        classes, several = spec.shape[-1], self.thresholds
        if isinstance(several, tuple) and isinstance(classes, int) and classes != len(several):
            raise InputError(
                f"multi_label has {amount(len(several), 'threshold')}; the model's output {spec.name!r} has "
                f"{classes} classes"
            )

    def __call__(self, value: Any, origin: Origin) -> list[dict[str, Any]]:
        scores = array_of(value, self.output, "multi_label")
        counts = {len(self.labels)} if self.labels else set()
        counts |= {len(self.thresholds)} if isinstance(self.thresholds, tuple) else set()
        if scores.ndim != 1 or counts - {len(scores)}:
            raise InputError(
                f"multi_label needs one score for each of {max(counts, default='some')} classes; got "
                f"{list(scores.shape)}"
            )
        check_finite(scores, "multi_label", self.output)
        scores = sigmoid(scores) if self.sigmoid else scores.astype(np.float32)
        found = np.flatnonzero(scores >= np.asarray(self.thresholds, np.float32))
        found = found[np.argsort(-scores[found], kind="stable")]
        return [
            {"class": i, **({"label": self.labels[i]} if self.labels else {}), "score": score}
            for i, score in zip(found.tolist(), scores[found].tolist(), strict=True)
        ]

    def agrees(self, decision: Any, exact: Any) -> bool:
        """Whether both name the same classes, in any order."""
        return {one["class"] for one in decision} == {one["class"] for one in exact}
