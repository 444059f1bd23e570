"""Quantize matrix products dynamically to int8 with ONNX Runtime's quantizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import onnx

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.words import in_float, listed
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.already_quantized import check_mostly_float
from hasten.passes.base import Selective, Skipped, Stage
from hasten.passes.onnx_files import (
    check_nodes,
    op_counts,
    read_onnx,
    saturates,
    weights_of,
    write_onnx,
)
from hasten.passes.silence import first_line, silenced
from hasten.passes.upgrading import upgraded

DYNAMIC_OPS = ("Gemm", "MatMul")
"""Operators to quantize; not Conv, since ONNX Runtime's ConvInteger is slower than float Conv."""


@dataclass(frozen=True)
class DynamicQuantization(Selective):
    """Store the weights of matrix products as int8, and quantize activations at run time.

    This needs no calibration data. An activation has one scale for the whole batch, so an answer
    depends on the other samples of its batch: such a model is certified and served at batch 1.

    Attributes:
        per_channel: Whether weights have a scale per output channel, not one per tensor.
        reduce_range: Whether weights have 7 bits, for processors with neither VNNI nor AMX.
        keep_float: Names of ONNX nodes to leave in float.

    Source: affine scheme r = S(q - Z), Jacob et al., arXiv:1712.05877, eq. 1.
    """

    stage: ClassVar[Stage | None] = "lossy"
    rank: ClassVar[int] = 50

    per_channel: bool = True
    reduce_range: bool = False
    keep_float: tuple[str, ...] = ()

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield both kinds of scales, unless convolutions, which stay in float, have more weights than products."""
        if target.family == "cuda":  # TensorRT lacks the operators of dynamic quantization
            return
        proto = read_onnx(model, weights=False)
        if weights_of(proto, DYNAMIC_OPS) >= weights_of(proto, ("Conv", "ConvTranspose")):
            for per_channel in (True, False):
                yield cls(per_channel=per_channel, reduce_range=saturates(target))

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        proto = read_onnx(model)
        check_nodes(proto, self.keep_float)
        check_mostly_float(proto)
        weights = {tensor.name for tensor in proto.graph.initializer}
        names = [
            node.name
            for node in proto.graph.node
            if node.op_type in DYNAMIC_OPS
            and node.input[1] in weights
            and node.name not in self.keep_float
        ]
        if not names:
            raise Skipped("nothing to quantize: there is no matrix product with constant weights")
        source = upgraded(model, calibration, workdir)
        raw = workdir / "raw.onnx"
        try:
            with silenced():
                self._quantize(source, raw)
        except Exception as error:
            raise CandidateError(f"ONNX Runtime's quantizer failed: {first_line(error)}") from error
        result = onnx.load(str(raw))
        if not op_counts(result)["MatMulInteger"]:
            raise CandidateError(
                f"ONNX Runtime's quantizer left all {len(names)} matrix products in float"
            )
        for file in workdir.iterdir():
            file.unlink()
        return write_onnx(result, model, workdir / "quantized.onnx")

    def _quantize(self, model: Model, path: Path) -> None:
        from onnxruntime import quantization as ort

        ort.quantize_dynamic(
            model.path,
            path,
            op_types_to_quantize=list(DYNAMIC_OPS),
            per_channel=self.per_channel,
            reduce_range=self.reduce_range,
            weight_type=ort.QuantType.QInt8,
            nodes_to_exclude=list(self.keep_float),
            use_external_data_format=bool(model.files),
        )

    def words(self) -> str:
        settings = listed(
            "per channel" if self.per_channel else "per tensor",
            "7-bit weights" if self.reduce_range else "",
            in_float(self.keep_float),
        )
        return f"dynamic int8 (ONNX Runtime, {settings})"
