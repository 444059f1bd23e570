"""Boxes that metrics judge: those of the pipeline's steps, or of the model's own outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, Pipeline, PostStep


class Detections(NamedTuple):
    """Boxes of one picture: corners x0, y0, x1, y1 `(k, 4)`, classes `(k,)` and scores `(k,)`."""

    corners: Array
    classes: Array
    scores: Array


def steps_to_boxes(pipeline: Pipeline | None) -> tuple[PostStep, ...]:
    """Return the steps after the model where their decision is boxes; none for another pipeline."""
    after = () if pipeline is None else pipeline.after
    return after if after and after[-1].decides == "boxes" else ()


def detections(outputs: Tensors, steps: Sequence[PostStep], who: str) -> list[Detections]:
    """Return the boxes of each picture.

    Args:
        outputs: Outputs of a model by name, each of shape `(n, ...)`.
        steps: Steps that make boxes of the outputs, in pixels of the prepared picture. Without
            steps, the outputs are `boxes` `(n, k, 4)`, `scores` `(n, k)` and `labels` `(n, k)`;
            without `labels`, all classes are 0.
        who: Name of the metric, for messages.

    Raises:
        InputError: the outputs aren't of that form, or aren't what a step needs.
    """
    if steps:
        return _told(outputs, steps)
    if "boxes" not in outputs or "scores" not in outputs:
        raise InputError(
            f"{who} reads the outputs boxes, scores and labels; the model has {', '.join(outputs)}. "
            "If the outputs aren't boxes yet, give a pipeline whose steps after the model make boxes, "
            "such as yolo_boxes and nms"
        )
    boxes, scores = outputs["boxes"], outputs["scores"]
    classes = outputs.get("labels", np.zeros(scores.shape, np.int64))
    if boxes.shape != (*scores.shape, 4) or scores.ndim != 2 or classes.shape != scores.shape:
        raise InputError(
            f"{who} reads boxes (n, k, 4), scores (n, k) and labels (n, k); the model "
            f"gives {list(boxes.shape)}, {list(scores.shape)} and {list(classes.shape)}"
        )
    return [Detections(*rows) for rows in zip(boxes, classes, scores, strict=True)]


def _told(outputs: Tensors, steps: Sequence[PostStep]) -> list[Detections]:
    """Return the boxes that the steps make of each picture's outputs."""
    pictures = []
    for row in range(len(next(iter(outputs.values())))):
        told: Any = {name: array[row] for name, array in outputs.items()}
        for step in steps:
            told = step(told, Origin())
        corners = np.array([one["box"] for one in told], np.float64).reshape(-1, 4)
        classes = np.array([one["class"] for one in told], np.int64)
        pictures.append(
            Detections(corners, classes, np.array([one["score"] for one in told], np.float64))
        )
    return pictures
