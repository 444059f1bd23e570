"""Removal of boxes that overlap a better one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline.base import BOXES, Origin, PostStep
from hasten.inputs.pipeline.boxes import MOST_BOXES, Boxes
from hasten.inputs.pipeline.outputs import check_between

_BLOCK = 64
"""Boxes that are compared at a time: few calls of numpy, and memory that grows with the boxes only."""


@dataclass(frozen=True)
class Nms(PostStep):
    """Leave out boxes that overlap a better one, and tell the others in the source's own pixels.

    The decision is a list of `{"class", "label", "score", "box"}`, best first; a box is x0, y0, x1, y1.

    Attributes:
        overlap: IoU above which the worse of two boxes is left out.
        agnostic: Whether a box is left out for a better one of another class, too.
        most: Largest number of boxes that are told.
    """

    overlap: float = 0.45
    agnostic: bool = False
    most: int = 100
    takes: ClassVar[str] = BOXES
    decides: ClassVar[str] = "boxes"

    def __post_init__(self) -> None:
        """Check the limits."""
        check_between("nms.overlap", self.overlap, 0, 1)
        check_between("nms.most", self.most, 1, MOST_BOXES)

    def __call__(self, value: Any, origin: Origin) -> list[dict[str, Any]]:
        if not isinstance(value, Boxes):
            raise InputError(
                f"nms takes boxes; got {type(value).__name__}: put yolo_boxes before it"
            )
        classes = None if self.agnostic else value.classes
        kept = standing(value.corners, classes, self.overlap, self.most)
        best = Boxes(value.corners[kept], value.scores[kept], value.classes[kept], value.labels)
        return best.told(origin)


def standing(corners: Array, classes: Array | None, overlap: float, most: int) -> Array:
    """Return the positions of the boxes that no better one suppresses, best first.

    Args:
        corners: x0, y0, x1, y1 of each box, `(n, 4)` float32, best box first.
        classes: Class of each box, `(n,)`, where boxes of other classes suppress none; None where
            they do.
        overlap: IoU above which the worse of two boxes is suppressed, by a box that stands itself.
        most: Largest number of positions.
    """
    x0, y0, x1, y1 = sides = np.ascontiguousarray(corners.T)
    areas = np.maximum(x1 - x0, 0) * np.maximum(y1 - y0, 0)
    left = np.arange(len(corners))
    kept: list[Array] = []
    room = most
    while len(left) and room > 0:
        block = _Some(
            sides[:, :_BLOCK], areas[:_BLOCK], classes if classes is None else classes[:_BLOCK]
        )
        # One integer per box, whose bit i says that the box suppresses box i of the block.
        bits = np.packbits(block.suppress(block, overlap), axis=1, bitorder="little")
        gone, stand = 0, []
        for i, row in enumerate(bits):
            if not gone >> i & 1:
                stand.append(i)
                gone |= int.from_bytes(row.tobytes(), "little")
        stand = stand[:room]
        kept.append(left[stand])
        room -= len(stand)
        left, sides, areas = left[_BLOCK:], sides[:, _BLOCK:], areas[_BLOCK:]
        classes = classes if classes is None else classes[_BLOCK:]
        if len(left) and room > 0:
            stay = ~block.at(stand).suppress(_Some(sides, areas, classes), overlap).any(axis=0)
            left, sides, areas = left[stay], sides[:, stay], areas[stay]
            classes = classes if classes is None else classes[stay]
    return np.concatenate(kept) if kept else left


class _Some(NamedTuple):
    """Some boxes: x0, y0, x1, y1 `(4, n)`, areas `(n,)`, and classes `(n,)` where they count."""

    sides: Array
    areas: Array
    classes: Array | None

    def at(self, places: Sequence[int]) -> _Some:
        """Return the boxes at these places."""
        classes = None if self.classes is None else self.classes[places]
        return _Some(self.sides[:, places], self.areas[places], classes)

    def suppress(self, others: _Some, overlap: float) -> Array:
        """Whether each box overlaps each of others too much, `(n, others)`."""
        (a0, b0, a1, b1), (c0, d0, c1, d1) = self.sides[:, :, None], others.sides
        shared = np.minimum(a1, c1)
        shared -= np.maximum(a0, c0)
        np.maximum(shared, 0, out=shared)
        height = np.minimum(b1, d1)
        height -= np.maximum(b0, d0)
        shared *= np.maximum(height, 0, out=height)
        union = np.add(self.areas[:, None], others.areas, out=height)
        union -= shared
        union *= overlap
        over: Array = shared > union
        if self.classes is not None and others.classes is not None:
            over &= self.classes[:, None] == others.classes
        return over
