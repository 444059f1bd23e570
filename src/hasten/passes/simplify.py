"""Fold constants and simplify a graph with onnxslim."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import onnx

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.base import Pass, Skipped, Stage
from hasten.passes.onnx_files import graphs, has_functions, op_counts, read_onnx, write_onnx
from hasten.passes.silence import first_line, silenced


@dataclass(frozen=True)
class Simplify(Pass):
    """Fold constants, drop nodes without effect and fuse nodes that can be one.

    Open dimensions stay open. Answers keep their precision; only the order of float operations may differ, when a
    normalization is folded into a convolution. A model's own functions, which not every runtime takes, become the
    nodes that they consist of.
    """

    exact: ClassVar[bool] = True
    stage: ClassVar[Stage | None] = "exact"
    rank: ClassVar[int] = 10
    modules: ClassVar[tuple[str, ...]] = ("onnxslim",)

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        yield cls()

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        proto = read_onnx(model)
        before = op_counts(proto)
        with silenced():
            import onnxslim

            try:
                slim = onnxslim.slim(proto, no_shape_infer=_has_own_shapes(proto))
            except Exception as error:
                raise CandidateError(f"onnxslim failed: {first_line(error)}") from error
        if op_counts(slim) == before and not has_functions(model):
            raise Skipped(f"nothing to simplify: all {before.total()} nodes are needed")
        return write_onnx(slim, model, workdir / "simplified.onnx")

    def words(self) -> str:
        return "simplified"


def _has_own_shapes(proto: onnx.ModelProto) -> bool:
    """Whether shapes that ONNX infers can't be trusted, by which reshapes would go and files state wrong ones.

    It infers one axis for the single column that ArrayFeatureExtractor takes, and runtimes give two.
    """
    return any(
        node.op_type == "ArrayFeatureExtractor"
        for graph in graphs(proto.graph)
        for node in graph.node
    )
