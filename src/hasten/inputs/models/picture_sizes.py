"""Size of the pictures that a folder of Hugging Face takes, by its processor and its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.hugging_face import IMAGES
from hasten.inputs.pipeline.image import CenterCrop, Resize
from hasten.inputs.pipeline.written import read_json

_LARGEST = 1 << 16


def picture_size(
    folder: Path, known: Mapping[str, Any], pipeline: Pipeline | None
) -> tuple[Any, ...] | None:
    """Return the height and width of the pictures that a folder's model is to take; None if nothing states them.

    What the folder's pipeline makes of each picture counts first, because the bundle keeps that pipeline: a
    configuration may state the size of a training before (DINOv2), or the default of its class (ConvNeXt). Without
    one, the configuration states the size, or else what a processor that isn't supported resizes to.

    Args:
        folder: The folder.
        known: Configuration of the model, or of its part for pictures.
        pipeline: Pipeline that the folder states; None where none is known.
    """
    own, shorter = _of_pipeline(pipeline)
    side = known.get("image_size")
    if own is None and isinstance(side, (int, list)):
        return (side, side) if isinstance(side, int) else tuple(side)
    return own or shorter or _of_processor(folder)


def _of_pipeline(
    pipeline: Pipeline | None,
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Return the size that a pipeline makes of each picture, and a square where only its shorter side is stated."""
    whole = shorter = None
    for step in pipeline.steps if pipeline is not None else ():
        if isinstance(step, (Resize, CenterCrop)):
            square = (step.size, step.size) if isinstance(step.size, int) else step.size
            by_shorter = isinstance(step, Resize) and isinstance(step.size, int)
            whole, shorter = (None, square) if by_shorter else (square, None)
    return whole, shorter


def _of_processor(folder: Path) -> tuple[Any, Any] | None:
    """Return the size that a processor of pictures states, whatever else it does."""
    try:
        written = read_json(folder / IMAGES) if (folder / IMAGES).is_file() else None
    except InputError:
        return None
    if not isinstance(written, Mapping):
        return None
    cropped = bool(written.get("do_center_crop", True))
    for stated in (written.get("crop_size") if cropped else None, written.get("size")):
        sides = (stated, stated)
        if isinstance(stated, Mapping):
            shorter = stated.get("shortest_edge")
            sides = (stated.get("height", shorter), stated.get("width", shorter))
        if all(type(side) is int and 0 < side <= _LARGEST for side in sides):
            return sides
    return None
