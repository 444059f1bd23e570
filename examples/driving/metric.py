"""How well the boxes that a frame's grids become agree with those of the exact network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.inputs.metrics.detection_f1 import DetectionF1
from hasten.inputs.pipeline.config import from_yaml

PIPELINE = from_yaml(Path(__file__).with_name("driving.yaml"))
FRAME = (480, 640, 3)
"""Shape of the stream's frames."""


def score(outputs: Tensors, labels: Array | None, exact: Tensors) -> Array:
    """Return the F1 of each frame's boxes at an IoU of 0.5, the exact network's being the truth.

    Both are decoded by the steps after the model, so that what is judged is the decision.
    """
    return DetectionF1(iou=0.5, threshold=0.0).score(boxes(outputs), boxes(exact), None)


def boxes(grids: Tensors) -> dict[str, Array]:
    """Return the decisions on some frames as arrays, filled up with rows of a score below 0.

    Args:
        grids: The network's outputs by name, each `(n, ...)`.

    Returns:
        `boxes` `(n, k, 4)` in pixels of the frame, `scores` `(n, k)` and `labels` `(n, k)`.
    """
    _, origin = PIPELINE.prepared(np.zeros(FRAME, np.uint8))
    count = len(next(iter(grids.values())))
    told: list[list[dict[str, Any]]] = [
        PIPELINE.decided({name: grid[i] for name, grid in grids.items()}, origin)
        for i in range(count)
    ]
    shape = (count, max(map(len, told), default=0))
    found = {
        "boxes": np.zeros((*shape, 4)),
        "scores": np.full(shape, -1.0),
        "labels": np.full(shape, -1),
    }
    for i, decision in enumerate(told):
        for j, one in enumerate(decision):
            found["boxes"][i, j] = one["box"]
            found["scores"][i, j] = one["score"]
            found["labels"][i, j] = one["class"]
    return found
