"""Mean average precision of detections, as COCO defines it: matched by pycocotools, box by box."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.words import amount
from hasten.errors import InputError
from hasten.inputs.data.missing import lacking
from hasten.inputs.metrics.detections import detections, steps_to_boxes
from hasten.inputs.pipeline.base import Pipeline, PostStep
from hasten.inputs.set_metrics.base import SetMetric

_MOST_FOUND = 100
"""Largest number of detections of a class in one picture, those with the best scores, as COCO counts them."""
_RECALLS = np.linspace(0.0, 1.0, 101)
_LIBRARY = "pycocotools"


class Boxes(NamedTuple):
    """Boxes of one picture: corners `(k, 4)`, classes `(k,)`, and scores, or whether they are crowds, `(k,)`."""

    corners: Array
    classes: Array
    marks: Array


@dataclass(frozen=True)
class MeanAp(SetMetric):
    """COCO's mAP50-95: the mean over classes, and over least overlaps from 0.5 to 0.95, of the average precision.

    The model's outputs are `boxes` `(n, k, 4)`, corners x0, y0, x1, y1 in any unit; `scores` `(n, k)`;
    and `labels` `(n, k)`, which a model of one class may lack, as `detection_f1` reads them. Rows with a
    score of 0 or less, or a class below 0, are padding. Where a pipeline's steps make boxes of other
    outputs, these boxes count, in pixels of the prepared picture.

    Labels of the data are `(n, k, 5)`: x0, y0, x1, y1, class, in the unit of the boxes; a row with a
    class below 0 is padding. A sixth column marks crowds by 1: their boxes may be found or not.

    Attributes:
        steps: Steps of the pipeline after the model; none where the model gives boxes itself.
    """

    steps: tuple[PostStep, ...] = ()
    noun: ClassVar[str] = "mAP50-95"
    spellings: ClassVar[tuple[str, ...]] = ("map50_95",)
    overlaps: ClassVar[tuple[float, ...]] = tuple(np.linspace(0.5, 0.95, 10).tolist())
    """Least intersections over union of a match, over which the mean is taken."""

    @classmethod
    def suggested(
        cls, labels: Array | None, outputs: Sequence[TensorSpec], pipeline: Pipeline | None
    ) -> Self | None:
        names = {spec.name for spec in outputs}
        boxes = labels is not None and labels.ndim == 3 and labels.shape[2] in (5, 6)
        metric = cls().around(pipeline)
        return metric if boxes and (metric.steps or {"boxes", "scores"} <= names) else None

    def around(self, pipeline: Pipeline | None) -> Self:
        steps = steps_to_boxes(pipeline)
        return replace(self, steps=steps) if steps else self

    @property
    def reading(self) -> str:
        """Words that name the steps whose boxes count; empty where the model gives boxes itself."""
        if not self.steps:
            return ""
        names = " and ".join(PostStep.registry.name_of(type(one)) or "a step" for one in self.steps)
        return f"boxes of {names}"

    def value(self, outputs: Tensors, labels: Array) -> float:
        coco = self._matched(outputs, labels)
        with contextlib.redirect_stdout(io.StringIO()):
            coco.accumulate()
        precision = coco.eval["precision"]
        return float(precision[precision > -1].mean())

    def values(self, outputs: Tensors, labels: Array, counts: Array) -> Array:
        classes = list(_classes(self._matched(outputs, labels), len(labels)))
        return np.array([_mean_precision(classes, count) for count in counts])

    def _matched(self, outputs: Tensors, labels: Array) -> Any:
        """Return the library's evaluation, with each picture's boxes matched.

        Raises:
            InputError: the library isn't installed, or outputs or labels aren't of the forms that it reads.
        """
        true = _true(labels, self._name)
        found = _found(outputs, self.steps, self._name)
        if len(found) != len(true):
            raise InputError(
                f"{self._name} reads labels of {amount(len(found), 'picture')}; got {len(true)}"
            )
        return _evaluated(found, true, self.overlaps)

    @property
    def _name(self) -> str:
        return self.registry.name_of(type(self)) or self.noun


@dataclass(frozen=True)
class MeanAp50(MeanAp):
    """COCO's mAP50: the mean over classes of the average precision, where boxes match from an overlap of a half on."""

    noun: ClassVar[str] = "mAP50"
    spellings: ClassVar[tuple[str, ...]] = ("map50",)
    overlaps: ClassVar[tuple[float, ...]] = (0.5,)

    @classmethod
    def suggested(
        cls, labels: Array | None, outputs: Sequence[TensorSpec], pipeline: Pipeline | None
    ) -> Self | None:
        # Without the library, the line of the other one says what is missing.
        return super().suggested(labels, outputs, pipeline) if find_spec(_LIBRARY) else None


def _found(outputs: Tensors, steps: Sequence[PostStep], who: str) -> list[Boxes]:
    """Return the detections in each picture, without padding."""
    found = detections(outputs, steps, who)
    pictures = []
    for picture, (corners, kind, score) in enumerate(found):
        there = ~(score <= 0) & ~(kind < 0)
        one = Boxes(corners[there].astype(np.float64), kind[there], score[there].astype(np.float64))
        if not (np.isfinite(one.marks).all() and np.isfinite(one.corners).all()):
            raise InputError(
                f"{who}: a score or a corner of sample {picture} of {len(found)} isn't finite"
            )
        pictures.append(one)
    return pictures


def _true(labels: Array, who: str) -> list[Boxes]:
    """Return the true boxes in each picture, from the data's labels."""
    if labels.ndim != 3 or labels.shape[2] not in (5, 6) or labels.dtype.kind not in "biuf":
        raise InputError(
            f"{who} reads labels (n, k, 5): x0, y0, x1, y1, class, and a sixth column if there "
            f"are crowds; got {labels.dtype} {list(labels.shape)}"
        )
    pictures = []
    for picture, rows in enumerate(labels):
        there = rows[~(rows[:, 4] < 0)]
        kept = np.where(lacking(there), np.nan, there.astype(np.float64))
        crowds = kept[:, 5] if labels.shape[2] == 6 else np.zeros(len(kept))
        whole = kept[:, 4] == np.floor(kept[:, 4])
        if not (np.isfinite(kept[:, :5]).all() and whole.all() and np.isin(crowds, (0, 1)).all()):
            raise InputError(
                f"{who}: a label of sample {picture} of {len(labels)} isn't a box with finite corners, a "
                "whole number for its class, and 0 or 1 for a crowd"
            )
        pictures.append(Boxes(kept[:, :4], kept[:, 4], crowds))
    if not any((one.marks == 0).any() for one in pictures):
        raise InputError(f"{who} needs true boxes, but none of the {len(labels)} pictures has any")
    return pictures


def _evaluated(found: Sequence[Boxes], true: Sequence[Boxes], overlaps: Sequence[float]) -> Any:
    """Have the library match the boxes of each picture and class."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise InputError(
            f"it needs {_LIBRARY}, which isn't installed: pip install 'hasten[detection]'"
        ) from error
    with contextlib.redirect_stdout(io.StringIO()):  # it reports each step there
        sides = []
        for pictures, mark in ((true, "iscrowd"), (found, "score")):
            index = COCO()
            index.dataset = {
                "images": [{"id": number} for number in range(len(true))],
                "categories": [
                    {"id": kind} for kind in sorted({int(k) for one in true for k in one.classes})
                ],
                "annotations": list(_annotations(pictures, mark)),
            }
            index.createIndex()
            sides.append(index)
        coco = COCOeval(*sides, "bbox")
        coco.params.iouThrs = np.array(overlaps)
        coco.params.recThrs = _RECALLS
        coco.params.maxDets = [_MOST_FOUND]
        coco.params.areaRng, coco.params.areaRngLbl = [[0, np.inf]], ["all"]
        coco.evaluate()
    return coco


def _annotations(pictures: Sequence[Boxes], mark: str) -> Iterator[dict[str, Any]]:
    """Yield boxes in the library's form; its numbers begin with 1, since 0 means no match."""
    number = 1
    for picture, (corners, classes, marks) in enumerate(pictures):
        sizes = np.clip(corners[:, 2:] - corners[:, :2], 0, None)
        rows = np.hstack([corners[:, :2], sizes]).tolist()
        for box, kind, value in zip(rows, classes.tolist(), marks.tolist(), strict=True):
            yield {
                "id": number,
                "image_id": picture,
                "category_id": int(kind),
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                mark: int(value) if mark == "iscrowd" else value,
            }
            number += 1


class _Class(NamedTuple):
    """One class's detections over all pictures, best score first.

    Attributes:
        picture: Picture of each detection, `(d,)`.
        right: Whether it matches, at each least overlap, `(t, d)`.
        wrong: Whether it matches nothing and counts, `(t, d)`.
        true: Number of true boxes of each picture, `(n,)`.
    """

    picture: Array
    right: Array
    wrong: Array
    true: Array


def _classes(coco: Any, pictures: int) -> Iterator[_Class]:
    """Yield each class's matches, in the order in which the library accumulates them."""
    for number in range(len(coco.params.catIds)):
        rows = coco.evalImgs[number * pictures : (number + 1) * pictures]
        there = [row for row in rows if row is not None]
        true = np.zeros(pictures, np.int64)
        for row in there:
            true[row["image_id"]] = np.count_nonzero(np.asarray(row["gtIgnore"]) == 0)
        if not there:
            continue
        scores = np.concatenate([row["dtScores"] for row in there])
        order = np.argsort(-scores, kind="stable")
        matched = np.concatenate([row["dtMatches"] for row in there], axis=1)[:, order] > 0
        counts = ~np.concatenate([row["dtIgnore"] for row in there], axis=1)[:, order].astype(bool)
        picture = np.repeat(
            [row["image_id"] for row in there], [len(row["dtScores"]) for row in there]
        )
        yield _Class(picture[order].astype(np.int64), matched & counts, ~matched & counts, true)


def _mean_precision(classes: Sequence[_Class], count: Array) -> float:
    """Return the mean average precision where each picture counts a number of times, `(n,)`.

    A picture that is drawn twice gives each of its detections twice. Of these, the last one decides: after
    a match, precision only rises with its copies, and after none, recall doesn't. Each class's curve is
    the library's, read at the same recalls; classes without a true box are left out.
    """
    found = []
    for one in classes:
        true = count @ one.true
        if not true:
            continue
        weights = count[one.picture]
        if not weights.any():
            found.append(np.zeros(len(one.right)))
            continue
        right = np.cumsum(one.right * weights, axis=1)
        wrong = np.cumsum(one.wrong * weights, axis=1)
        precision = right / (right + wrong + np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.hstack([best, np.zeros((len(best), 1))])
        # One search for all least overlaps: those of the next one begin above all numbers of this one.
        above = (int(true) + 1) * np.arange(len(right))[:, None]
        rows = len(weights) * np.arange(len(right))[:, None]
        places = np.searchsorted((right + above).ravel(), _needed(int(true)) + above) - rows
        found.append(np.take_along_axis(padded, places, axis=1).mean(axis=1))
    return float(np.mean(found)) if found else np.nan


def _needed(true: int) -> Array:
    """Return the fewest matches that reach each recall, `(101,)`, as floating-point division has it."""
    about = np.ceil(_RECALLS * true)
    about -= (about - 1) / true >= _RECALLS
    return (about + (about / true < _RECALLS)).astype(np.int64)
