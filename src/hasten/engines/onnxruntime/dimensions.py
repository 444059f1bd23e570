"""Names for a model's open dimensions, by which ONNX Runtime settles them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hasten.core.model import Model
from hasten.core.tensors import TensorSpec
from hasten.engines.artifacts import place
from hasten.engines.base import Artifact
from hasten.engines.failures import failed

_BATCH = "hasten.batch"
"""Name of a batch axis that has none."""


def requested_sizes(artifact: Artifact) -> dict[str, int]:
    """Return the size of each open dimension of the certified request, by its name."""
    requested = {spec.name: spec.sizes for spec in artifact.request}
    return {
        name: size
        for spec in artifact.inputs
        if spec.name in requested
        for name, size in zip(spec.shape, requested[spec.name], strict=True)
        if isinstance(name, str)
    }


def named(model: Model, folder: Path) -> Model:
    """Return the model with a name for each open dimension of an input that stands for one size.

    A dimension without a name, or with one that stands for another size too, can't be settled by it.
    """
    requested = {spec.name: spec.sizes for spec in model.request}
    named, meant = list[TensorSpec](), dict[str, int]()
    for spec in model.inputs if requested else ():
        shape = list[int | str]()
        for axis, (dim, size) in enumerate(zip(spec.shape, requested[spec.name], strict=True)):
            if isinstance(dim, str) and (dim == "?" or meant.setdefault(dim, size) != size):
                # First axes of one size are the batch, and have one name.
                dim = _BATCH if axis == 0 and size == 1 else f"{spec.name}.{axis}"
            shape.append(dim)
        named.append(replace(spec, shape=tuple(shape)))
    if not named or tuple(named) == model.inputs:
        return model
    return _renamed(model, tuple(named), folder)


def _renamed(model: Model, inputs: tuple[TensorSpec, ...], folder: Path) -> Model:
    """Write a model whose inputs' open dimensions have these names.

    Raises:
        CandidateError: the file can't be read or written.
    """
    import onnx

    placed = place(model, folder)
    try:
        proto = onnx.load(str(placed.path), load_external_data=False)
        wanted = {spec.name: spec.shape for spec in inputs}
        for value in proto.graph.input:
            dims = value.type.tensor_type.shape.dim
            for dim, name in zip(dims, wanted.get(value.name, ()), strict=False):
                if isinstance(name, str):
                    dim.dim_param = name
        del proto.graph.value_info[:]  # they may state other names
        placed.path.write_bytes(proto.SerializeToString())
    except Exception as error:
        raise failed("the open dimensions can't be named", error) from error
    return replace(model, path=placed.path, files=placed.files, inputs=inputs)
