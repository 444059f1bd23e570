"""Class of every pixel of the source picture, as run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.core.words import amount
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, PostStep
from hasten.inputs.pipeline.memory import make_room
from hasten.inputs.pipeline.outputs import (
    array_of,
    check_finite,
    check_labels,
    check_shape,
    output_of,
)

_OUTSIDE = -1
_PIXEL_BYTES, _RUN_BYTES = 4, 200
"""Memory for each pixel of the source, and for each run of the answer."""

_MOST_CHANGED, _LEAST_IOU = 0.05, 0.5
"""Share of pixels, and overlap of a class's pixels, at which two masks still are one decision."""


@dataclass(frozen=True)
class Mask(PostStep):
    """Tell the likeliest class of every pixel of the source: `{"height", "width", "runs", "labels"}`.

    `runs` is a list of [class, number of pixels], along the rows from the upper left corner; they go on
    from the end of a row to the start of the next. The class is null for pixels that were cropped
    away before the model. Each pixel takes the class of the place that its middle lies in.

    Attributes:
        labels: Name of each class, from class 0; without names the answer has no `labels`.
        size: Height and width of the sample in pixels, where the model's places are larger than a
            pixel; None where they are pixels of the sample.
        decided: Whether the model gives classes [height, width], and not scores [classes, height,
            width].
        output: Name of the model's output; by default its only one.
    """

    labels: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    decided: bool = False
    output: str = ""
    scored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the size."""
        if self.size is not None and min(self.size) < 1:
            raise InputError(
                f"mask.size={self.size!r}: give the sample's height and width in pixels"
            )

    @property
    def _needs(self) -> str:
        return f"mask needs {'classes [' if self.decided else 'scores [classes, '}height, width]"

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that there is an output with scores or classes for each place.

        Raises:
            InputError: there is none, or there are more or fewer labels than classes.
        """
        spec = output_of(outputs, self.output, "mask")
        axes = 2 if self.decided else 3
        check_shape(spec, (None,) * axes, f"{self._needs} after the batch axis")
        if not self.decided and len(spec.shape) == axes + 1:
            check_labels(self.labels, spec.shape[1], "mask", spec.name)

    def __call__(self, value: Any, origin: Origin) -> dict[str, Any]:
        classes = self._classes(array_of(value, self.output, "mask"))
        size = classes.shape if self.size is None else self.size
        shape = (origin.height, origin.width) if origin.height else size
        rows, columns = (
            _places(shape[axis], origin.offset[axis], origin.scale[axis], size[axis], count)
            for axis, count in enumerate(classes.shape)
        )
        make_room(_PIXEL_BYTES * shape[0] * shape[1])
        # A row and a column more than the places have: what lies outside of the sample.
        framed = np.pad(classes, ((0, 1), (0, 1)), constant_values=_OUTSIDE)
        told = framed[:, columns][rows].reshape(-1)
        ends = np.append(np.flatnonzero(told[1:] != told[:-1]) + 1, told.size)
        make_room(_PIXEL_BYTES * told.size + _RUN_BYTES * len(ends))
        counts = np.diff(ends, prepend=0).tolist()
        kinds = [None if kind == _OUTSIDE else kind for kind in told[ends - 1].tolist()]
        answer: dict[str, Any] = {"height": int(shape[0]), "width": int(shape[1])}
        if self.labels:
            answer["labels"] = list(self.labels)
        return {**answer, "runs": [list(run) for run in zip(kinds, counts, strict=True)]}

    def agrees(self, decision: Any, exact: Any) -> bool:
        """Whether few pixels differ, and each class that either mask has is in the same place in both.

        At most 5% of the pixels may have another class, and each class's pixels in the two masks
        overlap by an IoU of 0.5 or more.
        """
        sides = ("height", "width")
        if any(decision[side] != exact[side] for side in sides):
            return False
        (mine, ends), (theirs, other) = _runs(decision), _runs(exact)
        both = np.union1d(ends, other)  # between two of these, each mask has one class
        mine, theirs = mine[np.searchsorted(ends, both)], theirs[np.searchsorted(other, both)]
        pixels = np.diff(both, prepend=0)
        same = mine == theirs
        if pixels[~same].sum() > _MOST_CHANGED * pixels.sum():
            return False
        kinds = np.unique(np.concatenate([mine, theirs]))
        sums = (pixels, pixels * same)
        first, shared = (np.bincount(np.searchsorted(kinds, mine), one, len(kinds)) for one in sums)
        second = np.bincount(np.searchsorted(kinds, theirs), pixels, len(kinds))
        return bool((shared >= _LEAST_IOU * (first + second - shared)).all())

    def _classes(self, array: Array) -> Array:
        """Return the class of each place, int16 `(height, width)`."""
        if array.ndim != (2 if self.decided else 3) or not array.size:
            raise InputError(f"{self._needs}; got {list(array.shape)}")
        if not self.decided:
            if self.labels and len(array) != len(self.labels):
                raise InputError(
                    f"mask has {amount(len(self.labels), 'label')}, but the model has {amount(len(array), 'class', 'classes')}"
                )
            classes, best = _likeliest(array)
            check_finite(best, "mask", self.output)
            return classes
        check_finite(array, "mask", self.output)
        most = len(self.labels) or np.iinfo(np.int16).max
        if array.min() < 0 or array.max() >= most:
            raise InputError(
                f"mask needs classes from 0 to {most - 1}; the model gives {array.min()} to {array.max()}"
            )
        return array.astype(np.int16)


def _runs(decision: Any) -> tuple[Array, Array]:
    """Return a decision's runs: the class of each, and the number of pixels up to its end."""
    kinds = [_OUTSIDE if kind is None else kind for kind, _ in decision["runs"]]
    return np.array(kinds), np.cumsum([count for _, count in decision["runs"]])


def _likeliest(scores: Array) -> tuple[Array, Array]:
    """Return the likeliest class of each place, int16, and its score; NaN where any score is.

    Class by class, which numpy does several times as fast as `argmax` over the first axis.

    Args:
        scores: Scores `(classes, height, width)`.
    """
    best, classes = scores[0].copy(), np.zeros(scores.shape[1:], np.int16)
    for i, one in enumerate(scores[1:], start=1):
        np.copyto(classes, i, where=one > best)
        np.maximum(best, one, out=best)
    return classes, best


def _places(pixels: int, offset: float, scale: float, size: int, count: int) -> Array:
    """Return the place of each pixel of the source along one axis; `count` outside of the sample.

    Args:
        pixels: Pixels of the source.
        offset: Position of the sample's start in the source.
        scale: Pixels of the source per pixel of the sample.
        size: Pixels of the sample.
        count: Places that the model gives.
    """
    middles = (np.arange(pixels) + 0.5 - offset) / scale
    places = np.floor(middles * (count / size)).astype(np.int64)
    return np.where((places < 0) | (places >= count), count, places)
