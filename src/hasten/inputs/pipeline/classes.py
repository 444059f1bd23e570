"""Steps from a classifier's scores to a decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, PostStep


@dataclass(frozen=True)
class TopK(PostStep):
    """The most likely classes, most likely first: a list of `{"class", "label", "score"}`.

    Attributes:
        count: Number of classes, at most as many as there are.
        labels: Name of each class; without names the answers have no `label`.
        softmax: Whether to turn the scores into probabilities; False where the model did.
        output: Name of the model's output with one score per class; by default its only one.
    """

    count: int = 1
    labels: tuple[str, ...] = ()
    softmax: bool = True
    output: str = ""
    gives: ClassVar[str] = "classes"

    def __post_init__(self) -> None:
        """Check the count."""
        if self.count < 1:
            raise InputError(f"top_k.count={self.count!r}: give at least 1")

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that there is an output with one score per class.

        Raises:
            InputError: there is none, or there are more or fewer labels than classes.
        """
        spec = output_of(outputs, self.output, "top_k")
        if len(spec.shape) != 2:
            raise InputError(
                f"top_k needs scores of shape [batch, classes]; the model gives {spec}"
            )
        classes = spec.shape[1]
        if self.labels and isinstance(classes, int) and classes != len(self.labels):
            raise InputError(
                f"top_k has {len(self.labels)} labels; the model's output {spec.name!r} has "
                f"{classes} classes"
            )

    def __call__(self, value: Any, origin: Origin) -> list[dict[str, Any]]:
        scores = np.asarray(value[self.output] if self.output else only(value, "top_k"))
        if scores.ndim != 1 or (self.labels and len(scores) != len(self.labels)):
            raise InputError(
                f"top_k needs one score for each of {len(self.labels) or 'some'} classes; "
                f"got {list(scores.shape)}"
            )
        scores = scores.astype(np.float32)
        if self.softmax:
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        best = np.argsort(-scores, kind="stable")[: self.count]
        named = [{"label": self.labels[i]} if self.labels else {} for i in best]
        return [
            {"class": int(i), **name, "score": float(scores[i])}
            for i, name in zip(best, named, strict=True)
        ]


def output_of(outputs: Sequence[TensorSpec], name: str, step: str) -> TensorSpec:
    """Return a model's output by name, or its only one where the name is empty.

    Raises:
        InputError: there is no such output, or there are several and none is named.
    """
    there = ", ".join(spec.name for spec in outputs)
    if not name and len(outputs) > 1:
        raise InputError(f"{step} must say which output it reads, by `output`: there are {there}")
    for spec in outputs:
        if spec.name == name or not name:
            return spec
    raise InputError(f"{step} reads the output {name!r}; the model has {there}")


def only(value: Any, step: str) -> Array:
    """Return the only output of a model.

    Raises:
        InputError: there are several.
    """
    if len(value) != 1:
        raise InputError(
            f"{step} must say which output it reads, by `output`: there are {', '.join(value)}"
        )
    return next(iter(value.values()))
