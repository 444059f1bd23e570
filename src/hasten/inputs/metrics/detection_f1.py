"""Metric for object detection: how well the boxes found in an image match the true ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.data.missing import lacking
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.detections import detections, steps_to_boxes
from hasten.inputs.metrics.outputs import number, of_samples
from hasten.inputs.pipeline.base import Pipeline, PostStep

_PAIRS = 1 << 14
"""Largest number of pairs of boxes that are compared at once: some arrays of 256 KiB."""


class Found(NamedTuple):
    """Detections in one image, best score first: boxes `(k, 4)` and classes `(k,)`."""

    boxes: Array
    classes: Array


@dataclass(frozen=True)
class DetectionF1(Metric):
    """F1 in each image between the boxes found and the true boxes of their class.

    Boxes found are matched in order of their scores: each takes the free true box of its class that
    it overlaps most, if their IoU is at least `iou`. F1 = 2 * matched / (found + true). An image
    without true boxes in which none are found scores 1.

    The model's outputs are `boxes` `(n, k, 4)`, corners x0, y0, x1, y1 in any unit; `scores` `(n,
    k)`; and `labels` `(n, k)`, which a model of one class may lack. Where a pipeline's steps make
    boxes of other outputs, these boxes count, in pixels of the prepared picture. Rows with a score
    below `threshold` are no detections. Labels of the data are `(n, k, 5)`: x0, y0, x1, y1, class; a row
    with a class below 0 is padding. Without labels, the exact model's detections are the truth.

    Attributes:
        iou: Least overlap of a match, as intersection over union, in (0, 1].
        threshold: Least score of a detection.
        steps: Steps of the pipeline that make boxes; none where the model gives boxes itself.
    """

    iou: float = 0.5
    threshold: float = 0.5
    steps: tuple[PostStep, ...] = ()
    needs_labels: ClassVar[bool] = False
    noun: ClassVar[str] = "F1"
    title: ClassVar[str] = "F1 of the boxes found"
    spellings: ClassVar[tuple[str, ...]] = ("detection_f1[:IOU]",)
    binary: ClassVar[bool] = False
    answers: ClassVar[Literal["classes", "values"] | None] = "values"

    def __post_init__(self) -> None:
        """Check the least overlap."""
        if not 0 < self.iou <= 1:
            raise InputError(
                f"detection_f1:{self.iou:g}: the least IoU must be above 0 and at most 1"
            )

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read "detection_f1", or "detection_f1:0.5" with the least overlap."""
        return cls(number(text, setting)) if setting else cls()

    def around(self, pipeline: Pipeline | None) -> Self:
        """Return the metric with the pipeline's steps that make boxes, where it has such steps."""
        steps = steps_to_boxes(pipeline)
        return replace(self, steps=steps) if steps else self

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        found = self._found(outputs)
        true = self._found(exact) if labels is None else _labelled(labels, len(found))
        pairs = zip(found, true, strict=True)
        return np.array([_f1(mine, theirs, self.iou) for mine, theirs in pairs], np.float64)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where the same boxes of the same classes are found, in the same order."""
        pairs = zip(self._found(outputs), self._found(others), strict=True)
        return np.array([_same(mine, theirs) for mine, theirs in pairs], bool)

    def _found(self, outputs: Tensors) -> list[Found]:
        """Return the detections in each image, from a model's outputs."""
        images = []
        for boxes, classes, scores in detections(outputs, self.steps, "detection_f1"):
            order = np.argsort(-scores, kind="stable")
            order = order[scores[order] >= self.threshold]
            images.append(Found(boxes[order].astype(np.float64), classes[order]))
        return images


def _same(one: Found, other: Found) -> bool:
    """Whether two models found the same, so that they match the same true boxes, whatever these are."""
    return np.array_equal(one.boxes, other.boxes, equal_nan=True) and np.array_equal(
        one.classes, other.classes
    )


def _labelled(labels: Array, count: int) -> list[Found]:
    """Return the true boxes in each image, from the data's labels."""
    if labels.ndim != 3 or labels.shape[0] != count or labels.shape[2] != 5:
        raise InputError(
            f"detection_f1 reads labels (n, k, 5): x0, y0, x1, y1, class; got {of_samples(labels, count)}"
        )
    kept = [rows[rows[:, 4] >= 0] for rows in labels]
    if any(lacking(rows[:, :4]).any() for rows in kept):
        raise InputError(
            "detection_f1 reads x0, y0, x1 and y1 of each true box, but one has None, NaN or a masked value there: "
            "repair it, or give the box a class below 0, which is padding"
        )
    return [Found(rows[:, :4].astype(np.float64), rows[:, 4]) for rows in kept]


def overlaps(one: Array, other: Array) -> Array:
    """Return the IoU of every box of one list with every box of another.

    Args:
        one: Boxes `(a, 4)`, corners x0, y0, x1, y1.
        other: Boxes `(b, 4)`, corners x0, y0, x1, y1.

    Returns:
        IoU of shape `(a, b)`, in [0, 1]. A box without area, or with swapped corners, overlaps
        nothing.
    """
    rows = _rows_at_once(other)
    if len(one) > rows:
        parts = [overlaps(one[row : row + rows], other) for row in range(0, len(one), rows)]
        return np.concatenate(parts)
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(np.clip(b[:, 2:] - b[:, :2], 0, None), axis=1) for b in (one, other)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def _f1(found: Found, true: Found, iou: float) -> float:
    """Match boxes greedily, and return the F1 of one image."""
    total = len(found.classes) + len(true.classes)
    if not total:
        return 1.0
    if not len(true.classes):
        return 0.0
    taken: list[int] = []
    rows = _rows_at_once(true.boxes)
    for begin in range(0, len(found.classes), rows):
        part = slice(begin, begin + rows)
        overlap = overlaps(found.boxes[part], true.boxes)
        same = found.classes[part, None] == true.classes[None, :]
        overlap = np.where(same, overlap, 0.0)
        if taken:
            overlap[:, taken] = 0
        for row in range(len(overlap)):
            best = int(overlap[row].argmax())
            if overlap[row, best] >= iou:
                taken.append(best)
                overlap[:, best] = 0
    return 2 * len(taken) / total


def _rows_at_once(boxes: Array) -> int:
    """Return with how many boxes all of these are compared at once."""
    return max(1, _PAIRS // max(1, len(boxes)))
