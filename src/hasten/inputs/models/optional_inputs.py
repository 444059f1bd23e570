"""Inputs of an ONNX file that have a default: the data gives them, or the default stays."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from hasten.core.model import Model
from hasten.inputs.models import onnx


def optional_inputs(path: Path) -> tuple[str, ...]:
    """Return the inputs of a file that have a default, an initializer of their name.

    Raises:
        InputError: the file isn't ONNX.
    """
    graph = onnx.read(path).graph
    defaults = {tensor.name for tensor in graph.initializer}
    return tuple(value.name for value in graph.input if value.name in defaults)


def taking(
    path: Path, names: Collection[str], workdir: Path, custom_ops: Sequence[Path] = ()
) -> Model:
    """Load a file in which some of its optional inputs have no default, so that every engine takes them.

    Args:
        path: Path of the ONNX file.
        names: Optional inputs that the data gives.
        workdir: Folder to write the changed file to.
        custom_ops: Libraries with the user's own operators.

    Raises:
        InputError: the file can't be read.
    """
    proto = onnx.read(path)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in names]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    written = workdir / "with_optional_inputs.onnx"
    written.write_bytes(proto.SerializeToString())
    for file in onnx.load(path, custom_ops).files:
        beside = workdir / file.relative_to(path.absolute().parent)
        beside.parent.mkdir(parents=True, exist_ok=True)
        _linked(file, beside)
    return onnx.load(written, custom_ops)


def _linked(file: Path, beside: Path) -> None:
    """Give a file a second name, or copy it where the file system can't."""
    try:
        os.link(file, beside)
    except OSError:
        shutil.copyfile(file, beside)
