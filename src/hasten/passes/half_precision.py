"""Convert a model to half precision with ONNX Runtime's converter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import onnx

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.words import in_float
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.already_quantized import check_in_float
from hasten.passes.base import Selective, Skipped, Stage
from hasten.passes.onnx_files import check_nodes, compute_nodes, read_onnx, write_onnx
from hasten.passes.silence import first_line, silenced

_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class HalfPrecision(Selective):
    """Compute in float16, with inputs and outputs of the original types.

    TensorRT's networks are strongly typed: the graph sets the precision, not a flag. Weights beyond
    float16's range stay in float32 with the node that reads them. bfloat16 isn't offered: no
    supported runtime runs such graphs on a CPU, so they couldn't be judged before they ship.

    Attributes:
        keep_float: Names of ONNX nodes to leave in float32.
    """

    stage: ClassVar[Stage | None] = "lossy"
    rank: ClassVar[int] = 70

    keep_float: tuple[str, ...] = ()

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield the default settings, for NVIDIA's GPUs alone."""
        if target.family == "cuda":
            yield cls()

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        proto = read_onnx(model)
        check_nodes(proto, self.keep_float)
        check_in_float(proto)
        wanted = compute_nodes(proto, self.keep_float)
        if not wanted:
            raise Skipped("nothing to halve: there is no convolution or matrix product to convert")
        result = halved(proto, self.keep_float)
        self._prove(result, wanted)
        return write_onnx(result, model, workdir / "half.onnx")

    def _prove(self, result: onnx.ModelProto, wanted: list[str]) -> None:
        """Check that some products compute in float16 and kept ones don't.

        Raises:
            CandidateError: one of these doesn't hold.
        """
        types = _types(result)
        half = {
            node.name
            for node in result.graph.node
            if any(types.get(name) == onnx.TensorProto.FLOAT16 for name in node.output)
        }
        if half.isdisjoint(wanted):
            raise CandidateError(
                f"ONNX Runtime's float16 converter left all {len(wanted)} convolutions and "
                "matrix products in float32"
            )
        for name in self.keep_float:
            if name in half:
                raise CandidateError(
                    f"ONNX Runtime's float16 converter converted {name!r} despite keep_float"
                )

    def words(self) -> str:
        kept = in_float(self.keep_float)
        return f"f16 weights ({kept})" if kept else "f16 weights"


def halved(proto: onnx.ModelProto, keep_float: Iterable[str]) -> onnx.ModelProto:
    """Return a graph in float16 except for some nodes, and for those with weights too large for it.

    Raises:
        CandidateError: the converter failed.
    """
    left = sorted({*keep_float, *_beyond(proto)})
    try:
        with silenced():
            result: onnx.ModelProto = _converted(proto, left)
    except Exception as error:
        raise CandidateError(
            f"ONNX Runtime's float16 converter failed: {first_line(error)}"
        ) from error
    return result


def _converted(proto: onnx.ModelProto, left: list[str]) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    result = convert_float_to_float16(proto, keep_io_types=True, node_block_list=left)
    OnnxModel.graph_topological_sort(result.graph)  # the converter appends its casts
    return result


def _beyond(proto: onnx.ModelProto) -> Iterator[str]:
    """Yield the names of nodes that read weights too large for float16."""
    large = {
        tensor.name
        for tensor in proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0) > _LARGEST
    }
    for node in proto.graph.node:
        if large.intersection(node.input):
            yield node.name


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    """Return the element types of a graph's values by name, where they can be inferred."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = (*graph.value_info, *graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}
