"""Pipelines of the metadata that Ultralytics writes into an ONNX file."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hasten.core.extras import missing_extra
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, Resize, ToLayout
from hasten.inputs.pipeline.letterbox import Letterbox
from hasten.inputs.pipeline.nms import Nms
from hasten.inputs.pipeline.resample import OPENCV
from hasten.inputs.pipeline.yolo import YoloBoxes

_FRAMED = ("detect", "segment", "pose", "obb")
MAX_CHARACTERS = 2**20
_NO_LITERAL = (ValueError, SyntaxError, TypeError, OverflowError)


def from_ultralytics(path: Path) -> Pipeline:
    """Build the pipeline of an ONNX file that Ultralytics exported, from its metadata.

    Pictures for detection, segmentation, poses and turned boxes are framed by a letterbox; those for
    classification are resized by the shorter side and cropped; all are scaled to [0, 1]. The letterbox
    resizes as OpenCV does, which Ultralytics uses. A
    classifier gets `top_k` with its names, a detector `yolo_boxes` and `nms`.

    Args:
        path: The ONNX file, with `imgsz`, `task` and `names` in its metadata.

    Raises:
        InputError: the file can't be read or lacks the metadata, or its task isn't known here.
    """
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("an ONNX model", "optimize") from error
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except Exception as error:  # protobuf's own errors share no base that it makes public
        raise InputError(f"{path} can't be read as an ONNX file") from error
    try:
        return from_metadata({entry.key: entry.value for entry in model.metadata_props})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def from_metadata(metadata: Mapping[str, str]) -> Pipeline:
    """Build the pipeline of Ultralytics' metadata, whose values are Python literals.

    Raises:
        InputError: an entry is missing or can't be read, or the task isn't known here.
    """
    missing = [key for key in ("imgsz", "task") if key not in metadata]
    if missing:
        raise InputError(
            f"the metadata lacks {', '.join(missing)}, which Ultralytics writes: state the "
            "pipeline "
            "yourself"
        )
    size, task = _size(_literal(metadata, "imgsz")), metadata["task"]
    names = _names(_literal(metadata, "names")) if "names" in metadata else ()
    scaling = (Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), ToLayout())
    if task == "classify":
        if size[0] != size[1]:
            raise InputError(f"imgsz={list(size)}: classification is supported only for squares")
        steps = (Decode(), Resize(size[0], "bilinear"), CenterCrop(size[0]), *scaling)
        return Pipeline(steps, (TopK(labels=names, softmax=False),))
    if task not in _FRAMED:
        raise InputError(
            f"the task {task!r:.100} isn't supported; the supported ones are classify, {', '.join(_FRAMED)}"
        )
    after = (YoloBoxes(labels=names), Nms()) if task == "detect" else ()
    return Pipeline((Decode(), Letterbox(size, interpolation=OPENCV), *scaling), after)


def _literal(metadata: Mapping[str, str], key: str) -> Any:
    text = metadata[key]
    try:
        if len(text) > MAX_CHARACTERS:
            raise ValueError("too long")
        value = ast.literal_eval(text)
        repr(value)  # raises where a number in hex has more digits than Python prints
        return value
    except (*_NO_LITERAL, MemoryError, RecursionError) as error:
        raise InputError(f"the metadata's {key}={text!r:.100} can't be read") from error


def _size(value: Any) -> tuple[int, int]:
    sides = [value, value] if type(value) is int else value
    if not isinstance(sides, list) or [type(n) for n in sides] != [int, int]:
        raise InputError(f"the metadata's imgsz={value!r:.100}: give one side, or height and width")
    return sides[0], sides[1]


def _names(value: Any) -> tuple[str, ...]:
    listed = value
    if isinstance(value, dict):
        listed = [value.get(number) for number in range(len(value))]
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise InputError("the metadata's names aren't one text for each class, numbered from 0")
    return tuple(listed)
