"""Decoding of JPEG files at a part of their size, in place of decoding them whole."""

from __future__ import annotations

from dataclasses import replace

from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import Decode, Resize
from hasten.inputs.pipeline.letterbox import Letterbox


def pixels_needed(pipeline: Pipeline) -> int:
    """Return the pixels that a picture's shorter side needs so that the step after `decode` enlarges nothing.

    Args:
        pipeline: Steps of preprocessing.

    Returns:
        The number of pixels; 0 where the pipeline doesn't begin with `decode` and a step that scales to a size.
    """
    match pipeline.steps:
        case (Decode(), Resize() | Letterbox() as scale, *_):
            return scale.size if isinstance(scale.size, int) else max(scale.size)
    return 0


def decoded_smaller(pipeline: Pipeline | None, least: int) -> Pipeline | None:
    """Return a pipeline that decodes JPEG files smaller than another, as far as that leaves enough pixels.

    Args:
        pipeline: The other pipeline.
        least: Pixels of the shorter side that are enough, as `Decode.least`.

    Returns:
        The pipeline; None where the other one doesn't begin with `decode`.
    """
    first = pipeline.steps[0] if pipeline is not None and pipeline.steps else None
    if pipeline is None or not isinstance(first, Decode):
        return None
    return replace(pipeline, steps=(replace(first, least=least), *pipeline.steps[1:]))
