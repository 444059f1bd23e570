"""Boxes from the raw grids of a Darknet YOLO network, as its [yolo] layers take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.core.words import amount
from hasten.errors import InputError
from hasten.inputs.pipeline.base import BOXES, Origin, PostStep
from hasten.inputs.pipeline.boxes import Boxes, check_detection, chosen
from hasten.inputs.pipeline.outputs import (
    array_of,
    check_finite,
    check_labels,
    check_shape,
    output_of,
    sigmoid,
)

_MOST_ANCHORS = 64


@dataclass(frozen=True)
class DarknetBoxes(PostStep):
    """Find the boxes whose class is likely enough in the grids of YOLOv3, v3-tiny and v4.

    Each output is a grid [anchors * (5 + classes), height, width] of numbers before any sigmoid.
    Only places whose score of any object reaches `least` are decoded.

    Source: Redmon and Farhadi, YOLOv3, arXiv:1804.02767, section 2.1; `scale_x_y`: Bochkovskiy et
    al., YOLOv4, arXiv:2004.10934, section 3.4, "eliminate grid sensitivity".

    Attributes:
        outputs: Names of the grids.
        anchors: Width and height of each grid's anchors, in pixels of the sample: those of the
            .cfg file that the [yolo] layer's `mask` selects.
        size: Height and width of the sample, in pixels.
        labels: Name of each class; without names the answers have no `label`.
        least: Least score of a box.
        most: Largest number of boxes that are handed on, best first.
        multi_label: Whether a place may hold boxes of several classes; otherwise the likeliest only.
        scale_x_y: The [yolo] layer's setting of that name; 1 in YOLOv3.
    """

    outputs: tuple[str, ...]
    anchors: tuple[tuple[tuple[float, float], ...], ...]
    size: tuple[int, int]
    labels: tuple[str, ...] = ()
    least: float = 0.25
    most: int = 1000
    multi_label: bool = False
    scale_x_y: float = 1.0
    gives: ClassVar[str] = BOXES

    def __post_init__(self) -> None:
        """Check that there are anchors for each grid, and the limits."""
        check_detection("darknet_boxes", self.least, self.most, self.size)
        if not self.least:
            raise InputError(
                "darknet_boxes.least=0: give a number above 0, so that few boxes remain"
            )
        if not self.outputs or len(self.outputs) != len(self.anchors):
            raise InputError(
                f"darknet_boxes has {amount(len(self.outputs), 'output')} and anchors for {len(self.anchors)}: "
                "give a list of anchors for each grid"
            )
        for grid in self.anchors:
            if not 0 < len(grid) <= _MOST_ANCHORS or not all(
                0 < side < math.inf for anchor in grid for side in anchor
            ):
                raise InputError(
                    f"darknet_boxes.anchors={grid!r:.200}: give 1 to {_MOST_ANCHORS} pairs of width "
                    "and height in pixels for each grid"
                )
        if not 0 < self.scale_x_y < math.inf:
            raise InputError(f"darknet_boxes.scale_x_y={self.scale_x_y!r}: give a number above 0")

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that there are grids of these names, and as many numbers as anchors and labels need.

        Raises:
            InputError: there aren't; the message says what is needed.
        """
        for name, grid in zip(self.outputs, self.anchors, strict=True):
            spec = output_of(outputs, name, "darknet_boxes")
            words = (
                f"darknet_boxes needs {len(grid)} * (5 + classes) numbers at each place of a grid"
            )
            check_shape(spec, (None, None, None), words)
            if len(spec.shape) == 4 and isinstance(numbers := spec.shape[1], int):
                if numbers % len(grid) or numbers // len(grid) <= 5:
                    raise InputError(f"{words}; the model gives {spec}")
                check_labels(self.labels, numbers // len(grid) - 5, "darknet_boxes", name)

    def __call__(self, value: Any, origin: Origin) -> Boxes:
        parts = [
            self._found(array_of(value, name, "darknet_boxes"), name, anchors)
            for name, anchors in zip(self.outputs, self.anchors, strict=True)
        ]
        corners, scores, classes = (np.concatenate(part) for part in zip(*parts, strict=True))
        return chosen(corners, scores, classes, self.labels, self.most, "darknet_boxes")

    def _found(
        self, grid: Array, name: str, anchors: tuple[tuple[float, float], ...]
    ) -> tuple[Array, Array, Array]:
        """Return corners `(n, 4)`, scores `(n,)` and classes `(n,)` of one grid."""
        numbers, over = divmod(grid.shape[0], len(anchors)) if grid.ndim == 3 else (0, 0)
        if numbers <= 5 or over or (self.labels and numbers - 5 != len(self.labels)):
            raise InputError(
                f"darknet_boxes needs {len(anchors)} * (5 + {len(self.labels) or 'classes'}) numbers at "
                f"each place of {name!r}; got {list(grid.shape)}"
            )
        height, width = grid.shape[1:]
        grid = grid.reshape(len(anchors), numbers, height, width)
        objects = grid[:, 4]
        check_finite(objects, "darknet_boxes", name)
        # A box's score is at most its score of any object, so only few places need a sigmoid.
        least = math.log(self.least / (1 - self.least)) if self.least < 1 else math.inf
        anchor, row, column = np.nonzero(objects >= np.float32(least) - _ROUNDING)
        there = grid[anchor, :, row, column].astype(np.float32)
        check_finite(there, "darknet_boxes", name)
        scores = sigmoid(there[:, 4:5]) * sigmoid(there[:, 5:])
        if self.multi_label:
            place, classes = np.nonzero(scores >= self.least)
            best = scores[place, classes]
        else:
            kinds = scores.argmax(axis=1)
            top = scores[np.arange(len(scores)), kinds]
            place = np.flatnonzero(top >= self.least)
            classes, best = kinds[place], top[place]
        step = np.array([self.size[1] / width, self.size[0] / height], np.float32)
        cells = np.stack([column, row], axis=1)[place].astype(np.float32)
        reach = self.scale_x_y
        there, wide = there[place], np.array(anchors, np.float32)[anchor[place]]
        centers = (sigmoid(there[:, :2]) * reach - (reach - 1) / 2 + cells) * step
        with np.errstate(over="ignore"):  # `chosen` refuses what became infinite
            halves = np.exp(there[:, 2:4]) * wide / 2
        return np.concatenate([centers - halves, centers + halves], axis=1), best, classes


_ROUNDING = np.float32(1e-3)
"""Slack of the first choice of places, since the sigmoid of a number is rounded."""
