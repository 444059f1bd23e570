"""Settle open dimensions to those of one request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import onnx

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.base import Pass, Skipped, Stage
from hasten.passes.onnx_files import read_onnx, write_onnx
from hasten.passes.silence import first_line


@dataclass(frozen=True)
class FixShapes(Pass):
    """Settle every open dimension to the shapes of one request of batch size 1.

    A runtime that knows all shapes plans its memory ahead and drops the nodes that compute them.
    The result accepts no other batch size.
    """

    exact: ClassVar[bool] = True
    settles: ClassVar[bool] = True
    stage: ClassVar[Stage | None] = "exact"
    rank: ClassVar[int] = 20

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        yield cls()

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        if all(spec.static for spec in (*model.inputs, *model.outputs)):
            raise Skipped("every dimension is already fixed")
        if calibration.ragged:
            raise Skipped("samples differ in shape, so dimensions stay open")
        proto = read_onnx(model)
        settled = {spec.name: spec for spec in model.request}
        for value in proto.graph.input:
            if value.name in settled:
                _set_shape(value, settled[value.name].shape)
        for value in proto.graph.output:
            for dim in value.type.tensor_type.shape.dim:
                dim.ClearField("dim_param")
        fixed = write_onnx(proto, model, workdir / "fixed.onnx")
        inferred = _infer(fixed.path)
        outputs = tuple(
            replace(spec, shape=_shape(inferred[spec.name], spec)) for spec in model.outputs
        )
        return replace(fixed, inputs=model.request, outputs=outputs)

    def words(self) -> str:
        return "fixed shapes"


def _infer(path: Path) -> dict[str, onnx.ValueInfoProto]:
    """Infer the shapes of a file in place, and return its outputs by name."""
    try:
        onnx.shape_inference.infer_shapes_path(str(path), str(path), data_prop=True)
    except Exception as error:
        raise CandidateError(
            f"can't infer the shapes from a request's shapes: {first_line(error)}"
        ) from error
    proto = onnx.load(str(path), load_external_data=False)
    return {value.name: value for value in proto.graph.output}


def _set_shape(value: onnx.ValueInfoProto, shape: tuple[int | str, ...]) -> None:
    dims = value.type.tensor_type.shape.dim
    del dims[:]
    for size in shape:
        dims.add().dim_value = int(size)


def _shape(value: onnx.ValueInfoProto, spec: TensorSpec) -> tuple[int | str, ...]:
    """Return an inferred shape, or the known shape if there is none."""
    if not value.type.tensor_type.HasField("shape"):
        return spec.shape
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in value.type.tensor_type.shape.dim
    )
