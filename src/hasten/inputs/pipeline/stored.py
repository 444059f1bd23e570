"""The pipeline that an ONNX file states for itself, in an entry of its metadata."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

from hasten.core.extras import missing_extra
from hasten.core.protobufs import parse_errors
from hasten.core.records import from_record
from hasten.errors import InputError, IntegrityError
from hasten.inputs.pipeline.base import Pipeline

PIPELINE_KEY = "hasten.pipeline"
"""Key in an ONNX file's `metadata_props`; the value is a pipeline's JSON, as in a bundle."""
_MOST_CHARACTERS = 2**26


def stated_in(path: Path) -> Pipeline | None:
    """Return the pipeline that an ONNX file states; None for one that states none.

    Raises:
        InputError: what it states can't be read as a pipeline.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if (
                data.find(PIPELINE_KEY.encode()) < 0
            ):  # so that large files aren't parsed for nothing
                return None
    except (OSError, ValueError):  # a missing or an empty file is reported by who opens the model
        return None
    try:
        import onnx

        damaged = parse_errors()
    except ImportError as error:
        raise missing_extra("an ONNX model", "optimize") from error
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except damaged:
        return None
    text = {entry.key: entry.value for entry in model.metadata_props}.get(PIPELINE_KEY)
    if text is None:
        return None
    try:
        if len(text) > _MOST_CHARACTERS:
            raise ValueError("it is too long")
        return from_record(Pipeline, json.loads(text))
    except (ValueError, RecursionError, IntegrityError) as error:
        raise InputError(f"{path}: its {PIPELINE_KEY} can't be read: {error}") from error
