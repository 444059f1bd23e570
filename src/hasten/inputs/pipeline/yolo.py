"""Boxes from the output of a YOLO network whose grid is decoded in the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.core.words import amount
from hasten.errors import InputError
from hasten.inputs.pipeline.base import BOXES, Origin, PostStep
from hasten.inputs.pipeline.boxes import Boxes, check_detection, chosen, corners_of
from hasten.inputs.pipeline.outputs import (
    array_of,
    check_finite,
    check_labels,
    check_shape,
    output_of,
)


@dataclass(frozen=True)
class YoloBoxes(PostStep):
    """Find the boxes whose class is likely enough in the output of a YOLO network.

    Attributes:
        style: "v8", the output [4 + classes, anchors] of YOLOv8 and newer networks; or "v5", the
            output [anchors, 5 + classes] of YOLOv5, v6 and v7, where each class's score is
            multiplied by the fifth column, the score of any object. Boxes are center x, center y,
            width and height in both.
        labels: Name of each class; without names the answers have no `label`.
        least: Least score of a box.
        most: Largest number of boxes that are handed on, best first.
        multi_label: Whether a place may hold boxes of several classes; otherwise the likeliest only.
        size: Height and width of the sample in pixels, where the model gives shares of it; None
            where it gives pixels.
        output: Name of the model's output; by default its only one.
    """

    style: Literal["v8", "v5"] = "v8"
    labels: tuple[str, ...] = ()
    least: float = 0.25
    most: int = 1000
    multi_label: bool = False
    size: tuple[int, int] | None = None
    output: str = ""
    gives: ClassVar[str] = BOXES

    def __post_init__(self) -> None:
        """Check the style and the limits."""
        if self.style not in ("v8", "v5"):
            raise InputError(f"yolo_boxes.style={self.style!r}: give 'v8' or 'v5'")
        check_detection("yolo_boxes", self.least, self.most, self.size)

    @property
    def _before(self) -> int:
        """Numbers of a place before its classes."""
        return 4 if self.style == "v8" else 5

    @property
    def _words(self) -> str:
        last = "4 + classes, anchors" if self.style == "v8" else "anchors, 5 + classes"
        return f"yolo_boxes of style {self.style} needs an output of shape [{last}]"

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that there is an output of this style.

        Raises:
            InputError: there is none, or there are more or fewer labels than classes.
        """
        spec = output_of(outputs, self.output, "yolo_boxes")
        check_shape(spec, (None, None), f"{self._words} after the batch axis")
        numbers = spec.shape[1 if self.style == "v8" else 2] if len(spec.shape) == 3 else "?"
        if isinstance(numbers, int):
            if numbers <= self._before:
                raise InputError(f"{self._words} after the batch axis; the model gives {spec}")
            check_labels(self.labels, numbers - self._before, "yolo_boxes", spec.name)

    def __call__(self, value: Any, origin: Origin) -> Boxes:
        head = array_of(value, self.output, "yolo_boxes")
        if head.ndim != 2:
            raise InputError(f"{self._words}; got {list(head.shape)}")
        classes = head.shape[0 if self.style == "v8" else 1] - self._before
        if classes < 1 or (self.labels and classes != len(self.labels)):
            of = f" with {amount(len(self.labels), 'class', 'classes')}" if self.labels else ""
            raise InputError(f"{self._words}{of}; got {list(head.shape)}")
        boxes, scores, found = self._v8(head) if self.style == "v8" else self._v5(head)
        corners = corners_of(boxes, "cxcywh", self.size)
        return chosen(corners, scores, found, self.labels, self.most, "yolo_boxes")

    def _v8(self, head: Array) -> tuple[Array, Array, Array]:
        """Return boxes `(n, 4)`, scores `(n,)` and classes `(n,)` of an output, classes first."""
        scores = head[4:]
        best = scores.max(axis=0)
        # A maximum is NaN where any number is, and there are as many maxima as anchors only.
        check_finite(best, "yolo_boxes", self.output)
        at = np.flatnonzero(best >= self.least)
        likely = scores[:, at]
        if self.multi_label:
            classes, places = np.nonzero(likely >= self.least)
            return head[:4, at[places]].T, likely[classes, places], classes
        return head[:4, at].T, best[at], likely.argmax(axis=0)

    def _v5(self, head: Array) -> tuple[Array, Array, Array]:
        """Return boxes `(n, 4)`, scores `(n,)` and classes `(n,)` of an output, anchors first."""
        objects = head[:, 4].copy()  # one walk over the rows; what follows reads it twice
        check_finite(objects, "yolo_boxes", self.output)
        rows = head[objects >= self.least]  # a class's score is at most 1, so others can't reach it
        scores = rows[:, 5:] * rows[:, 4:5]
        check_finite(scores, "yolo_boxes", self.output)
        if self.multi_label:
            places, classes = np.nonzero(scores >= self.least)
            return rows[places, :4], scores[places, classes], classes
        classes = scores.argmax(axis=1)
        best = scores[np.arange(len(rows)), classes]
        likely = best >= self.least
        return rows[likely, :4], best[likely], classes[likely]
