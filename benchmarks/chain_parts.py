"""A chain's models called one after another, as in `chains.py`: what lies between a detector and a classifier."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from hasten.bundle import Loaded
from hasten.bundle.chains.batches import run_rows
from hasten.inputs.chains.nodes import Crop
from hasten.inputs.pipeline.base import as_request

_CROP = Crop("crop", "detector")


def by_hand(detect: Loaded, classify: Loaded, data: bytes, sizes: Sequence[int] = ()) -> list[Any]:
    """Decide with the two bundles one after another.

    Args:
        detect: The detector.
        classify: The classifier.
        data: A picture's bytes.
        sizes: Sizes of the batches in which the classifier is asked; none to ask about a crop at a time.
    """
    found = detect.decide(data)
    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    crops = [cut(picture, box) for box in found]
    answers = classified(classify, sizes, crops) if sizes else map(classify.decide, crops)
    for box, answer in zip(found, answers, strict=True):
        box["classifier"] = answer
    return found  # type: ignore[no-any-return]


def cut(picture: np.ndarray, box: dict[str, Any]) -> np.ndarray:
    """Return the part of a picture that a box cuts out, as a chain cuts it."""
    area = _CROP.area(box["box"], *picture.shape[:2])
    assert area is not None
    top, bottom, left, right = area
    return np.ascontiguousarray(picture[top:bottom, left:right])


def classified(classify: Loaded, sizes: Sequence[int], crops: Sequence[np.ndarray]) -> list[Any]:
    """Decide on crops with the classifier alone, in the batches in which a chain asks it."""
    pipeline = classify.manifest.pipeline
    assert pipeline is not None
    prepared = [pipeline.prepared(crop) for crop in crops]
    requests = [as_request(one, classify.inputs) for one, _ in prepared]
    return [
        pipeline.decided({name: array[0] for name, array in outputs.items()}, origin)
        for outputs, (_, origin) in zip(run_rows(classify, requests, sizes), prepared, strict=True)
    ]
