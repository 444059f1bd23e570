"""Inputs of an ONNX file that have a default: the data gives them, or the default stays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from hasten.core.model import Model
from hasten.inputs.models import onnx
from hasten.inputs.models.zip_maps import without_maps


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
    without_maps(proto)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in names]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return onnx.write_changed(
        proto, onnx.load(path, custom_ops), workdir / "with_optional_inputs.onnx"
    )
