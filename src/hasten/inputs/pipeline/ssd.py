"""Boxes from the two heads of an SSD network: positions and class scores at every prior."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import BOXES, Origin, PostStep
from hasten.inputs.pipeline.boxes import Boxes, Form, check_detection, chosen, corners_of
from hasten.inputs.pipeline.outputs import (
    array_of,
    check_finite,
    check_labels,
    check_shape,
    output_of,
    probabilities,
)

_MOST_PRIORS = 1 << 20


@dataclass(frozen=True)
class Priors:
    """Boxes that an SSD network's positions are relative to, from a grid for each head.

    At each place of a grid lie, in this order, a square of the grid's own scale, a square of the
    geometric mean of this scale and the next one, and for each aspect ratio r two boxes, r and 1/r
    times as wide as they are high, of the square's area.

    Source: Liu et al., SSD, arXiv:1512.02325, section 2.2, "choosing scales and aspect ratios".

    Attributes:
        grids: Height and width of each grid, in places.
        scales: Scale of each grid's square as a share of the sample, and one more after the last.
        ratios: Aspect ratios of each grid, without 1.
        steps: Pixels of the sample per place of each grid; empty where a grid spans the sample.
        variances: Factors of the centers and of the logarithms of the sides.
        clip: Whether priors are cut off at the sample's borders.
    """

    grids: tuple[tuple[int, int], ...]
    scales: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...]
    steps: tuple[int, ...] = ()
    variances: tuple[float, float] = (0.1, 0.2)
    clip: bool = True

    def __post_init__(self) -> None:
        """Check that there is one of each for each grid, and that the priors fit into memory."""
        count = len(self.grids)
        steps = len(self.steps) or count
        if not count or (len(self.scales), len(self.ratios), steps) != (count + 1, count, count):
            raise InputError(
                f"ssd_boxes.priors has {count} grids, {len(self.scales)} scales, {len(self.ratios)} "
                f"lists of ratios and {len(self.steps)} steps: give one of each per grid, and one scale "
                "more"
            )
        ratios = [ratio for several in self.ratios for ratio in several]
        positive = (*self.scales, *ratios, *self.steps, *self.variances)
        if not all(0 < number < math.inf for number in positive):
            raise InputError("ssd_boxes.priors: give numbers above 0")
        if min(min(grid) for grid in self.grids) < 1 or self.count > _MOST_PRIORS:
            raise InputError(
                f"ssd_boxes.priors: give grids of at least 1 place, with at most {_MOST_PRIORS} priors"
            )

    @property
    def count(self) -> int:
        """Number of priors."""
        pairs = zip(self.grids, self.ratios, strict=True)
        return sum(height * width * (2 + 2 * len(ratios)) for (height, width), ratios in pairs)

    def centers(self, size: tuple[int, int]) -> Array:
        """Return the priors as center x, center y, width and height, float32 `(count, 4)`.

        Args:
            size: Height and width of the sample in pixels, which the numbers are in.
        """
        parts = []
        for i, (height, width) in enumerate(self.grids):
            scale, following = self.scales[i], self.scales[i + 1]
            sides = [(scale, scale), (math.sqrt(scale * following),) * 2]
            for ratio in self.ratios[i]:
                root = math.sqrt(ratio)
                sides += [(scale * root, scale / root), (scale / root, scale * root)]
            down, across = (
                (size[0] / self.steps[i], size[1] / self.steps[i])
                if self.steps
                else (
                    height,
                    width,
                )
            )
            rows, columns = np.mgrid[:height, :width] + 0.5
            grid = np.empty((height, width, len(sides), 4))
            grid[..., 0], grid[..., 1] = (columns / across)[..., None], (rows / down)[..., None]
            grid[..., 2:] = np.clip(sides, 0, 1) if self.clip else sides
            parts.append(grid.reshape(-1, 4))
        return (np.concatenate(parts) * (size[::-1] * 2)).astype(np.float32)


_centers = lru_cache(maxsize=4)(Priors.centers)


@dataclass(frozen=True)
class SsdBoxes(PostStep):
    """Find the boxes of likely classes in the two heads of an SSD network.

    A place may hold boxes of several classes. With `priors` the positions are offsets from them, as
    a network's heads give them; without, they are boxes.

    Attributes:
        labels: Name of each class, the background's too where it has a column; without names the
            answers have no `label`.
        least: Least score of a box.
        most: Largest number of boxes that are handed on, best first.
        boxes: Name of the output with a position at each prior, [priors, 4].
        scores: Name of the output with scores at each prior, [priors, classes].
        softmax: Whether to turn the scores into probabilities; False where the model did.
        background: Class that stands for no object; None where there is none.
        form: Meaning of a box's numbers without `priors`: "xyxy", "yxyx", or "cxcywh".
        size: Height and width of the sample in pixels; None where the model gives pixels already.
        priors: Boxes that the positions are relative to; None where the model has decoded them.
    """

    labels: tuple[str, ...] = ()
    least: float = 0.25
    most: int = 1000
    boxes: str = "boxes"
    scores: str = "scores"
    softmax: bool = True
    background: int | None = 0
    form: Form = "xyxy"
    size: tuple[int, int] | None = None
    priors: Priors | None = None
    gives: ClassVar[str] = BOXES

    def __post_init__(self) -> None:
        """Check the limits, and that priors have a size."""
        check_detection("ssd_boxes", self.least, self.most, self.size)
        if self.priors is not None and self.size is None:
            raise InputError("ssd_boxes.priors needs the sample's height and width: give size")

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that there are positions and scores at every prior.

        Raises:
            InputError: there aren't, or there are more or fewer labels than classes.
        """
        count = None if self.priors is None else self.priors.count
        number = "priors" if count is None else count
        spec = output_of(outputs, self.boxes, "ssd_boxes")
        check_shape(spec, (count, 4), f"ssd_boxes needs positions of shape [batch, {number}, 4]")
        spec = output_of(outputs, self.scores, "ssd_boxes")
        words = f"ssd_boxes needs scores of shape [batch, {number}, classes]"
        check_shape(spec, (count, None), words)
        check_labels(self.labels, spec.shape[-1], "ssd_boxes", spec.name)

    def __call__(self, value: Any, origin: Origin) -> Boxes:
        boxes = array_of(value, self.boxes, "ssd_boxes")
        scores = array_of(value, self.scores, "ssd_boxes")
        count = len(scores) if self.priors is None else self.priors.count
        classes = len(self.labels) or scores.shape[-1]
        if scores.ndim != 2 or boxes.shape != (count, 4) or scores.shape != (count, classes):
            raise InputError(
                f"ssd_boxes needs positions [{count}, 4] and scores [{count}, {classes}]; the model "
                f"gives {list(boxes.shape)} and {list(scores.shape)}"
            )
        check_finite(scores, "ssd_boxes", self.scores)
        scores = probabilities(scores) if self.softmax else scores.astype(np.float32)
        likely = scores >= self.least
        if self.background is not None and self.background < classes:
            likely[:, self.background] = False
        place, kinds = np.nonzero(likely)
        corners = self._corners(boxes[place].astype(np.float32), place)
        return chosen(corners, scores[place, kinds], kinds, self.labels, self.most, "ssd_boxes")

    def _corners(self, boxes: Array, place: Array) -> Array:
        """Return corners in pixels of the sample, `(n, 4)`, of the positions at some priors."""
        if self.priors is None or self.size is None:
            return corners_of(boxes, self.form, self.size)
        priors = _centers(self.priors, self.size)[place]
        shift, stretch = self.priors.variances
        with np.errstate(over="ignore"):  # `chosen` refuses what became infinite
            centers = priors[:, :2] + boxes[:, :2] * shift * priors[:, 2:]
            sides = priors[:, 2:] * np.exp(boxes[:, 2:] * stretch)
        return corners_of(np.concatenate([centers, sides], axis=1), "cxcywh", None)
