"""Metrics for keypoints: how near the places that a model finds lie to the true ones."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np

from hasten.core.records import type_name
from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.data.missing import lacking
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import (
    equal_numbers,
    last_is_least,
    number,
    of_samples,
    one_output,
)

_COCO_TENTHS = (
    *(0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72),
    *(0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89),
)
COCO_SIGMAS = np.array(_COCO_TENTHS) / 10
"""Spread of each of COCO's 17 keypoints, as in pycocotools' `Params.kpt_oks_sigmas`."""


@dataclass(frozen=True)
class Keypoints(Metric):
    """Shared part of the metrics of keypoints: the mean over a sample's visible points of how near each is.

    The output is points `(n, points, 2)` or `(n, points, 3)`, x and y first, also as `(n, 1,
    points, 2)` or `(n, 1, points, 3)`; or flat, `(n, 2 * points)`; or heatmaps `(n, points, h,
    w)`, of which the place of the highest number is taken, x and y in places. Labels are `(n,
    points, 2)`, or `(n, points, 3)` whose third number is 0 for a point that isn't visible, in
    the unit of the output. Without labels, the exact model's points are the truth. A sample
    without a visible point scores 1.

    Attributes:
        output: Name of the output to read; None for a model with a single output.
    """

    needs_labels: ClassVar[bool] = False
    binary: ClassVar[bool | None] = False
    answers: ClassVar[Literal["classes", "values"] | None] = "values"

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        found = self._points(outputs)
        if labels is None:
            self._check_axis(one_output(outputs, self.output, type_name(self)))
        visible = np.ones(found.shape[:2], bool)
        if labels is None:
            truth = self._points(exact)
        else:
            truth, visible = self._labelled(labels, found.shape[1], len(found))
        if truth.shape != found.shape:
            raise InputError(
                f"{type_name(self)}: the model gives {found.shape[1]} points, but the truth has "
                f"{truth.shape[1]}"
            )
        each = self._near(np.square(found - truth).sum(axis=2), _extents(truth, visible))
        count = visible.sum(axis=1)
        near = np.where(visible, each, 0).sum(axis=1)
        return np.where(count > 0, near / np.maximum(count, 1), 1.0)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where all points are equal; of heatmaps with points on an unknown axis, on either."""
        same = equal_numbers(self._points(outputs), self._points(others))
        own, other = (one_output(o, self.output, type_name(self)) for o in (outputs, others))
        if last_is_least(own) and own.shape == other.shape:
            return same & equal_numbers(*(_highest(np.moveaxis(a, 3, 1)) for a in (own, other)))
        return same

    def _check_axis(self, output: Array) -> None:
        """Refuse heatmaps whose points seem to be on the last axis."""
        if last_is_least(output):
            raise InputError(
                f"{type_name(self)}: the output is {of_samples(output)}, so the points of its "
                "heatmaps seem to be on the last axis, but this metric reads them on the second: "
                "give labels if they are on the second, or else a function of your own, my.py:score"
            )

    @abstractmethod
    def _near(self, squared: Array, extents: Array) -> Array:
        """Return how near each point is, in [0, 1], `(n, points)`.

        Args:
            squared: Squared distances from the true points, `(n, points)`.
            extents: Width and height of the box around the visible true points, `(n, 2)`.
        """

    def _points(self, outputs: Tensors) -> Array:
        """Return the points that a model finds, float64 `(n, points, 2)`."""
        array = one_output(outputs, self.output, type_name(self))
        if array.dtype.kind in "iuf" and array.size:
            if array.ndim == 2 and array.shape[1] % 2 == 0:
                return array.reshape(len(array), -1, 2).astype(np.float64)
            if array.ndim == 3 and array.shape[2] in (2, 3):
                return array[:, :, :2].astype(np.float64)
            if array.ndim == 4 and array.shape[3] in (2, 3):
                if array.shape[1] == 1:
                    return array[:, 0, :, :2].astype(np.float64)
                raise InputError(
                    f"{type_name(self)} reads the points of one object, (n, points, 2) or (n, 1, "
                    f"points, 2), or 3; the output is {of_samples(array)}, which looks like "
                    f"{array.shape[1]} objects: use a function of your own, my.py:score"
                )
            if array.ndim == 4:
                return _highest(array)
        raise InputError(
            f"{type_name(self)} reads points (n, points, 2), (n, points, 3) or (n, 2 * points), or "
            f"heatmaps (n, points, h, w); the output is {array.dtype} {of_samples(array)}"
        )

    def _labelled(self, labels: Array, points: int, count: int) -> tuple[Array, Array]:
        """Return the true points, float64 `(n, points, 2)`, and which are visible, `(n, points)`."""
        wide = labels.shape[2] if labels.ndim == 3 else 0
        if (
            labels.dtype.kind not in "iuf"
            or labels.shape != (count, points, wide)
            or wide not in (2, 3)
        ):
            raise InputError(
                f"{type_name(self)} reads labels (n, {points}, 2), or (n, {points}, 3) with "
                f"whether each is visible; got {labels.dtype} {of_samples(labels, count)}"
            )
        visible = labels[:, :, 2] > 0 if wide == 3 else np.ones(labels.shape[:2], bool)
        if lacking(labels[:, :, :2])[visible].any():
            raise InputError(
                f"{type_name(self)} reads x and y of each visible point, but one has None, NaN or a masked value there: "
                f"repair it, or give labels (n, {points}, 3) whose third number is 0 for a point that isn't visible"
            )
        return labels[:, :, :2].astype(np.float64), visible


@dataclass(frozen=True)
class Pck(Keypoints):
    """Share of a sample's visible points within `alpha` times the longer side of the box around them.

    Source: Yang and Ramanan, Articulated human detection with flexible mixtures of parts, TPAMI
    2013: the percentage of correct keypoints. The box is that of the visible true points; with a
    single point it has no extent, and the point must be met exactly.

    Attributes:
        alpha: Largest distance, as a share of the box's longer side.
    """

    alpha: float = 0.1
    output: str | None = None
    noun: ClassVar[str] = "PCK"
    title: ClassVar[str] = "share of correct keypoints"
    spellings: ClassVar[tuple[str, ...]] = ("pck[:ALPHA]",)

    def __post_init__(self) -> None:
        """Check the largest distance."""
        if not 0 < self.alpha <= 1:
            raise InputError(
                f"pck:{self.alpha:g}: the largest distance, as a share of the box, must be above 0 and at "
                "most 1"
            )

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read "pck", or "pck:0.05" with the largest distance."""
        return cls(number(text, setting)) if setting else cls()

    def _near(self, squared: Array, extents: Array) -> Array:
        reach = self.alpha * extents.max(axis=1, keepdims=True)
        return np.asarray(np.sqrt(squared) <= reach, np.float64)


@dataclass(frozen=True)
class Oks(Keypoints):
    """Object keypoint similarity: the mean over visible points of exp(-d^2 / (2 * area * (2 * sigma)^2)).

    Source: COCO's keypoint evaluation (cocodataset.org/#keypoints-eval) and pycocotools. There
    `area` is that of the object's segment, which labels of points don't have: here it is the area
    of the box around the visible true points, in which scores are a little lower. A box without
    area counts as one of 1.

    Attributes:
        sigma: Spread of every point; 0 for COCO's own of its 17 points.
    """

    sigma: float = 0.0
    output: str | None = None
    noun: ClassVar[str] = "OKS"
    title: ClassVar[str] = "object keypoint similarity"
    spellings: ClassVar[tuple[str, ...]] = ("oks[:SIGMA]",)

    def __post_init__(self) -> None:
        """Check the spread."""
        if not 0 <= self.sigma < np.inf:
            raise InputError(f"oks:{self.sigma:g}: the spread of a point must be above 0")

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read "oks", or "oks:0.05" with the spread of every point."""
        return cls(number(text, setting)) if setting else cls()

    def _near(self, squared: Array, extents: Array) -> Array:
        points = squared.shape[1]
        if not self.sigma and points != len(COCO_SIGMAS):
            raise InputError(
                f"oks knows the spread of COCO's 17 points, but the model has {points}: give one "
                "spread for all, as in oks:0.05"
            )
        sigmas = COCO_SIGMAS if not self.sigma else np.full(points, self.sigma)
        area = extents.prod(axis=1, keepdims=True)
        area = np.where(area > 0, area, 1.0)
        return np.asarray(np.exp(-squared / (2 * area * np.square(2 * sigmas))))


def _highest(maps: Array) -> Array:
    """Return x and y of the highest number of heatmaps `(n, points, h, w)`: `(n, points, 2)`."""
    highest = maps.reshape(*maps.shape[:2], -1).argmax(axis=2)
    rows, columns = np.divmod(highest, maps.shape[3])
    return np.stack([columns, rows], axis=2).astype(np.float64)


def _extents(points: Array, visible: Array) -> Array:
    """Return width and height of the box around each sample's visible points, `(n, 2)`; 0 for none."""
    low = np.where(visible[:, :, np.newaxis], points, np.inf).min(axis=1)
    high = np.where(visible[:, :, np.newaxis], points, -np.inf).max(axis=1)
    some = visible.any(axis=1, keepdims=True)
    return np.where(some, high - low, 0.0)
