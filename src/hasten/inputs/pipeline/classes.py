"""The most likely classes of a classifier, or that it isn't sure enough to name one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, PostStep
from hasten.inputs.pipeline.outputs import (
    array_of,
    check_between,
    check_finite,
    check_labels,
    check_shape,
    output_of,
    probabilities,
)

_MOST = 1 + 1e-3
"""Largest probability that a model's own rounding may give."""
_FEW = 32
"""Largest number of classes that Python sorts faster than numpy, whose calls cost more than that."""


@dataclass(frozen=True)
class TopK(PostStep):
    """The most likely classes, most likely first: a list of `{"class", "label", "score"}`.

    With `least` the step may abstain, and the decision says so in either case. It is
    `{"abstained": false, "classes": [...]}`, or `{"abstained": true, "least", "likeliest": [...]}`: the
    classes stand under another name, so that no program takes a guess for an answer.

    Attributes:
        count: Number of classes, at most as many as there are.
        labels: Name of each class; without names the answers have no `label`.
        softmax: Whether to turn the scores into probabilities; False where the model did.
        output: Name of the model's output with one score per class; by default its only one.
        least: Least probability of the likeliest class, in [0, 1], below which the step abstains; 0
            for a step that never does.
    """

    count: int = 1
    labels: tuple[str, ...] = ()
    softmax: bool = True
    output: str = ""
    least: float = 0.0
    decides: ClassVar[str] = "classes"

    def __post_init__(self) -> None:
        """Check the count and the least probability."""
        if self.count < 1:
            raise InputError(f"top_k.count={self.count!r}: give at least 1")
        check_between("top_k.least", self.least, 0, 1)

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that there is an output with one score per class.

        Raises:
            InputError: there is none, or there are more or fewer labels than classes.
        """
        spec = output_of(outputs, self.output, "top_k")
        check_shape(spec, (None,), "top_k needs scores of shape [batch, classes]")
        check_labels(self.labels, spec.shape[-1], "top_k", spec.name)

    def __call__(self, value: Any, origin: Origin) -> Any:
        scores = array_of(value, self.output, "top_k")
        if scores.ndim != 1 or (self.labels and len(scores) != len(self.labels)):
            raise InputError(
                f"top_k needs one score for each of {len(self.labels) or 'some'} classes; "
                f"got {list(scores.shape)}"
            )
        masked = np.isneginf(scores)
        if self.softmax and not masked.all():  # a class that a model masks has the probability 0
            check_finite(np.where(masked, 0, scores), "top_k", self.output)
        else:
            check_finite(scores, "top_k", self.output)
        if self.softmax:
            scores = probabilities(scores)
        elif scores.dtype != np.float64:
            scores = scores.astype(np.float32)
        best = _highest(scores, self.count)
        named = [{"label": self.labels[i]} if self.labels else {} for i in best]
        found = [
            {"class": i, **name, "score": float(scores[i])}
            for i, name in zip(best, named, strict=True)
        ]
        if not self.least:
            return found
        if not (scores.min() >= 0 and scores.max() <= _MOST):
            raise InputError(
                f"top_k.least={self.least:g} needs probabilities; the model's scores are "
                f"{scores.min():g} to {scores.max():g}: set softmax=True"
            )
        if scores[best[0]] < self.least:
            return {"abstained": True, "least": self.least, "likeliest": found}
        return {"abstained": False, "classes": found}

    def agrees(self, decision: Any, exact: Any) -> bool:
        """Whether both name the same most likely class, and both abstain or neither does."""
        if not self.least:
            return bool(decision[0]["class"] == exact[0]["class"])
        if decision["abstained"] != exact["abstained"]:
            return False
        named = "likeliest" if exact["abstained"] else "classes"
        return bool(decision[named][0]["class"] == exact[named][0]["class"])


def _highest(scores: Array, count: int) -> list[int]:
    """Return the places of the highest scores, highest first; of equal ones, the first comes first."""
    if count == 1:
        return [int(scores.argmax())]
    if len(scores) <= _FEW:
        numbers = scores.tolist()
        return sorted(range(len(numbers)), key=numbers.__getitem__, reverse=True)[:count]
    places = np.arange(len(scores))
    if count < len(scores):  # so that few are sorted
        places = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    best: list[int] = places[np.argsort(-scores[places], kind="stable")][:count].tolist()
    return best
