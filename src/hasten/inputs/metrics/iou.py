"""Metric for segmentation: how well the classes of a picture's places overlap the true ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import last_is_least, number, of_samples, one_output


@dataclass(frozen=True)
class Iou(Metric):
    """Mean over a sample's classes of intersection over union, between its places and the true ones.

    A class counts where the answer or the truth has it. A place whose label is `ignored` or below
    0 counts for nothing; a sample without any other place scores 1. Without labels, the exact
    model's classes are the truth, and the last axis of scores must not be the shortest. It is
    the mean of each sample's own IoU: the mean IoU that benchmarks quote adds up the places of
    all samples first, and is another figure.

    The output is scores `(n, classes, h, w)`, of which the highest class is taken; or classes `(n,
    h, w)`, integers; or a score of one class, `(n, 1, h, w)` or `(n, h, w)`. Labels are classes
    `(n, h, w)` or `(n, 1, h, w)`, at the output's own height and width.

    Attributes:
        threshold: Score of a single class from which on a place is of class 1; else it is of class
            0.
        last: Whether the classes are on the last axis, `(n, h, w, classes)`.
        ignored: Label of places that don't count.
        output: Name of the output to read; None for a model with a single output.
    """

    threshold: float = 0.5
    last: bool = False
    ignored: int = 255
    output: str | None = None
    needs_labels: ClassVar[bool] = False
    binary: ClassVar[bool | None] = False
    noun: ClassVar[str] = "mean IoU"
    title: ClassVar[str] = "mean IoU of a sample"
    spellings: ClassVar[tuple[str, ...]] = ("iou[:THRESHOLD|last]",)
    answers: ClassVar[Literal["classes", "values"] | None] = "values"

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read "iou", "iou:0.3" with the threshold of a single class, or "iou:last"."""
        if setting in ("", "last"):
            return cls(last=bool(setting))
        return cls(number(text, setting))

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        found = self._classes(outputs)
        if labels is None:
            self._check_axis(one_output(outputs, self.output, "iou"))
        truth = self._classes(exact) if labels is None else self._labelled(labels, found)
        return np.array([self._overlap(*pair) for pair in zip(found, truth, strict=True)])

    def check_labels(self, labels: Array) -> None:
        """Refuse masks of 0 and 255: their 255 would count for nothing, and the rest would be background alone."""
        ignored = labels == self.ignored if labels.dtype.kind in "iu" else np.zeros(1, bool)
        if ignored.any() and not (ignored | (labels < 0)).all() and (ignored | (labels <= 0)).all():
            raise InputError(
                f"iou: the labels are 0 and {self.ignored} alone, and {self.ignored} doesn't count: give class 1 as 1, "
                "as labels // 255; or give -1 for places that don't count"
            )

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where every place has the same class, on either axis where that is uncertain."""
        mine, theirs = self._classes(outputs), self._classes(others)
        if mine.shape != theirs.shape:
            return np.zeros(len(mine), bool)
        same = np.asarray((mine == theirs).reshape(len(mine), -1).all(axis=1))
        if not self.last and last_is_least(one_output(outputs, self.output, "iou")):
            return same & replace(self, last=True).unchanged(outputs, others)
        return same

    def _check_axis(self, output: Array) -> None:
        """Refuse scores whose classes seem to be on the last axis."""
        if not self.last and last_is_least(output):
            raise InputError(
                f"iou: the output is {of_samples(output)}, so its classes seem to be on the last axis: write "
                "iou:last; or give labels, if they are on the second"
            )

    def _classes(self, outputs: Tensors) -> Array:
        """Return the class of each place, `(n, h, w)`."""
        output = one_output(outputs, self.output, "iou")
        if output.ndim == 3 and output.dtype.kind in "iub":
            return output
        scores = output[:, np.newaxis] if output.ndim == 3 else output
        if scores.ndim == 4 and self.last:
            scores = np.moveaxis(scores, 3, 1)
        if scores.ndim != 4 or output.dtype.kind != "f":
            raise InputError(
                "iou reads scores (n, classes, h, w) or integers (n, h, w); the output is "
                f"{output.dtype} {of_samples(output)}"
            )
        if scores.shape[1] == 1:
            return np.asarray(scores[:, 0] >= self.threshold)
        if scores.shape[3] == 1 and not self.last:
            raise InputError(
                f"iou: the output is {of_samples(output)}, so its classes seem to be on the last axis: write "
                "iou:last"
            )
        return np.asarray(scores.argmax(axis=1))

    def _labelled(self, labels: Array, found: Array) -> Array:
        """Return the true class of each place, `(n, h, w)`."""
        truth = labels[:, 0] if labels.ndim == 4 and labels.shape[1] == 1 else labels
        if truth.shape != found.shape or labels.dtype.kind not in "iub":
            sides = found.shape[1:]
            raise InputError(
                f"iou reads labels that are classes: integers (n, {', '.join(map(str, sides))}), as in "
                f"the output; got {labels.dtype} {of_samples(labels, len(found))}"
            )
        return truth

    def _overlap(self, found: Array, truth: Array) -> float:
        """Return the mean IoU of one sample's classes."""
        counted = np.ones(truth.shape, bool)
        if truth.dtype.kind != "b":
            counted = (truth != self.ignored) & (truth >= 0)
        mine, true = found[counted].astype(np.int64), truth[counted].astype(np.int64)
        if not mine.size:
            return 1.0
        kinds, place = np.unique(np.concatenate([mine, true]), return_inverse=True)
        own, other = np.split(place.reshape(-1), 2)
        both = np.bincount(own[own == other], minlength=len(kinds))
        either = np.bincount(own, minlength=len(kinds)) + np.bincount(other, minlength=len(kinds))
        return float((both / (either - both)).mean())
