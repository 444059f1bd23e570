"""Boxes of objects: the value that detection steps hand on, and the step that reads finished ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.core.words import amount
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, PostStep
from hasten.inputs.pipeline.outputs import (
    array_of,
    check_between,
    check_finite,
    check_shape,
    output_of,
)

Form: TypeAlias = Literal["xyxy", "yxyx", "cxcywh"]
MOST_BOXES = 30_000
"""Largest number of boxes that any step keeps."""
_FAR = 1e9
"""Largest position in pixels, either way; the areas of such boxes are finite in float32."""
_SIX = 6
"""Columns of an output with finished boxes: x0, y0, x1, y1, score, class."""


@dataclass(frozen=True)
class Boxes:
    """Boxes that were found in one sample, best score first.

    Attributes:
        corners: x0, y0, x1, y1 in pixels of the sample, `(n, 4)`; a pixel's own corners are whole
            numbers.
        scores: Score of each box, `(n,)`.
        classes: Class of each box, `(n,)`, from 0.
        labels: Name of each class; empty where classes have none.
    """

    corners: Array
    scores: Array
    classes: Array
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.scores)

    def told(self, origin: Origin) -> list[dict[str, Any]]:
        """Return the boxes in the source picture's own pixels, as JSON can represent them.

        Boxes are clipped to the source; one that lies outside of it, in a border that was added, is
        left out.
        """
        if not len(self):
            return []
        corners = self.corners.astype(np.float64)
        corners *= (*origin.scale[::-1], *origin.scale[::-1])
        corners += (*origin.offset[::-1], *origin.offset[::-1])
        if origin.height:
            np.clip(corners, 0, (origin.width, origin.height) * 2, out=corners)
        rows = zip(corners.tolist(), self.scores.tolist(), self.classes.tolist(), strict=True)
        labels = self.labels
        if labels:
            return [
                {"class": kind, "label": labels[kind], "score": score, "box": box}
                for box, score, kind in rows
                if box[0] < box[2] and box[1] < box[3]
            ]
        return [
            {"class": kind, "score": score, "box": box}
            for box, score, kind in rows
            if box[0] < box[2] and box[1] < box[3]
        ]


def chosen(
    corners: Array, scores: Array, classes: Array, labels: tuple[str, ...], most: int, step: str
) -> Boxes:
    """Return the best boxes, best first; of equal scores, the earlier box comes first.

    Args:
        corners: x0, y0, x1, y1 in pixels of the sample, `(n, 4)`.
        scores: Score of each box, `(n,)`.
        classes: Class of each box, `(n,)`.
        labels: Name of each class, or none.
        most: Largest number of boxes to keep.
        step: Name of the step, for messages.

    Raises:
        InputError: a corner isn't finite, or a class has no label.
    """
    order = np.argsort(-scores, kind="stable")[:most]
    corners = corners[order].astype(np.float32, copy=False)
    check_finite(corners, step)
    corners = corners.clip(-_FAR, _FAR)
    classes = classes[order]
    if labels and len(classes) and classes.max() >= len(labels):
        raise InputError(
            f"{step} has {amount(len(labels), 'label')}, for classes from 0, but the model returns class "
            f"{int(classes.max())}"
        )
    return Boxes(corners, scores[order], classes, labels)


def corners_of(boxes: Array, form: Form, size: tuple[int, int] | None) -> Array:
    """Return boxes of any form as corners x0, y0, x1, y1 in pixels of the sample.

    Args:
        boxes: Boxes `(n, 4)`.
        form: Meaning of the four numbers: corners, corners with the rows first, or the center with
            width and height.
        size: Height and width of the sample in pixels, where the numbers are shares of it; None
            where they are pixels.
    """
    boxes = boxes.astype(np.float32)
    with np.errstate(over="ignore"):  # `chosen` refuses what became infinite
        if form == "yxyx":
            boxes = boxes[:, [1, 0, 3, 2]]
        elif form == "cxcywh":
            halves = boxes[:, 2:] / 2
            boxes = np.concatenate([boxes[:, :2] - halves, boxes[:, :2] + halves], axis=1)
        if size is not None:
            boxes = boxes * np.array(size[::-1] * 2, np.float32)
    return boxes


def check_detection(
    step: str, least: float, most: int, size: tuple[int, int] | None = None
) -> None:
    """Check the settings that all steps to boxes have.

    Raises:
        InputError: a setting can't be used; the message names it.
    """
    check_between(f"{step}.least", least, 0, 1)
    check_between(f"{step}.most", most, 1, MOST_BOXES)
    if size is not None and min(size) < 1:
        raise InputError(f"{step}.size={size!r}: give the sample's height and width in pixels")


@dataclass(frozen=True)
class GivenBoxes(PostStep):
    """Read boxes that the model itself has finished, and tell them in the source's own pixels.

    The model gives either one output of shape [boxes, 6] whose columns are the box, its score and
    its class, as "end to end" exports of YOLO do, or one output each for boxes, scores and classes.
    Rows with a score below `least`, or a class below 0, are padding.

    The decision is a list of `{"class", "label", "score", "box"}`, best first; a box is x0, y0, x1, y1.

    Attributes:
        labels: Name of each class, from class 0; without names the answers have no `label`.
        least: Least score of a box that is told.
        most: Largest number of boxes that are told.
        form: Meaning of a box's numbers: "xyxy", "yxyx", or "cxcywh" (center, width, height).
        size: Height and width of the sample in pixels, where the model gives shares of it; None
            where it gives pixels.
        output: Name of the output of shape [boxes, 6]; by default the model's only one.
        boxes: Name of the output of shape [boxes, 4]; empty where there is one output for all.
        scores: Name of the output with a score for each box.
        classes: Name of the output with a class for each box; empty where there is one class.
        count: Name of the output with the number of boxes; empty where every row counts.
    """

    labels: tuple[str, ...] = ()
    least: float = 0.25
    most: int = 100
    form: Form = "xyxy"
    size: tuple[int, int] | None = None
    output: str = ""
    boxes: str = ""
    scores: str = "scores"
    classes: str = ""
    count: str = ""
    decides: ClassVar[str] = "boxes"

    def __post_init__(self) -> None:
        """Check the limits."""
        check_detection("boxes", self.least, self.most, self.size)

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that there are outputs of these names and shapes.

        Raises:
            InputError: there are none; the message says what is needed.
        """
        if not self.boxes:
            spec = output_of(outputs, self.output, "boxes")
            check_shape(spec, (None, _SIX), "boxes needs an output of shape [batch, boxes, 6]")
            return
        spec = output_of(outputs, self.boxes, "boxes")
        check_shape(spec, (None, 4), "boxes needs boxes of shape [batch, boxes, 4]")
        for name in filter(None, (self.scores, self.classes)):
            spec = output_of(outputs, name, "boxes")
            check_shape(spec, (None,), f"boxes needs {name} of shape [batch, boxes]")
        if self.count:
            output_of(outputs, self.count, "boxes")

    def __call__(self, value: Any, origin: Origin) -> list[dict[str, Any]]:
        boxes, scores, classes = self._read(value)
        if self.count:
            count = array_of(value, self.count, "boxes")
            if count.size != 1:
                raise InputError(
                    f"boxes needs one number of boxes in {self.count!r}; got {list(count.shape)}"
                )
            check_finite(count, "boxes", self.count)
            rows = max(0, int(count.reshape(())))
            boxes, scores, classes = boxes[:rows], scores[:rows], classes[:rows]
        check_finite(scores, "boxes", self.scores if self.boxes else self.output)
        check_finite(classes, "boxes", self.classes if self.boxes else self.output)
        there = np.flatnonzero((scores >= self.least) & (classes >= 0))
        corners = corners_of(boxes[there], self.form, self.size)
        found = classes[there].astype(np.int64)
        return chosen(corners, scores[there], found, self.labels, self.most, "boxes").told(origin)

    def _read(self, value: Any) -> tuple[Array, Array, Array]:
        """Return boxes `(n, 4)`, scores `(n,)` and classes `(n,)` as the model gives them."""
        if not self.boxes:
            rows = array_of(value, self.output, "boxes")
            if rows.ndim != 2 or rows.shape[1] != _SIX:
                raise InputError(
                    f"boxes needs an output of shape [boxes, 6]; got {list(rows.shape)}"
                )
            return rows[:, :4], rows[:, 4], rows[:, 5]
        boxes = array_of(value, self.boxes, "boxes")
        scores = array_of(value, self.scores, "boxes")
        classes = (
            array_of(value, self.classes, "boxes")
            if self.classes
            else np.zeros(scores.shape, np.int64)
        )
        if boxes.shape != (*scores.shape, 4) or scores.ndim != 1 or classes.shape != scores.shape:
            raise InputError(
                "boxes needs boxes [k, 4], scores [k] and classes [k]; the model gives "
                f"{list(boxes.shape)}, {list(scores.shape)} and {list(classes.shape)}"
            )
        return boxes, scores, classes
