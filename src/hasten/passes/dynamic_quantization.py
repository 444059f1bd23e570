"""Quantize matrix products and LSTMs dynamically to int8 with ONNX Runtime's quantizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
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

_PRODUCTS, _RECURRENT = ("Gemm", "MatMul"), ("LSTM",)
"""Operators to quantize. Not Conv, since ONNX Runtime's ConvInteger is slower than float Conv, and neither
GRU nor RNN, for which it has no such kernel."""
_RESULTS = ("MatMulInteger", "DynamicQuantizeLSTM")


@dataclass(frozen=True)
class DynamicQuantization(Selective):
    """Store the weights of matrix products and LSTMs as int8, and quantize activations at run time.

    This needs no calibration data. An activation has one scale for the whole batch, so an answer
    depends on the other samples of its batch: such a model is certified and served at batch 1.

    Attributes:
        per_channel: Whether weights have a scale per output channel, not one per tensor.
        reduce_range: Whether weights have 7 bits, for processors with neither VNNI nor AMX.
        keep_float: Names of ONNX nodes to leave in float.
        recurrent: Whether LSTMs are quantized too. Their errors go around with their states.

    Source: affine scheme r = S(q - Z), Jacob et al., arXiv:1712.05877, eq. 1.
    """

    stage: ClassVar[Stage | None] = "lossy"
    rank: ClassVar[int] = 50

    per_channel: bool = True
    reduce_range: bool = False
    keep_float: tuple[str, ...] = ()
    recurrent: bool = True

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield both kinds of scales, and LSTMs in float where there are other products.

        Nothing is yielded if convolutions, which stay in float, have more weights than what is quantized.
        """
        if target.family == "cuda":  # TensorRT lacks the operators of dynamic quantization
            return
        proto = read_onnx(model, weights=False)
        products, recurrent = (weights_of(proto, kinds) for kinds in (_PRODUCTS, _RECURRENT))
        if products + recurrent < weights_of(proto, ("Conv", "ConvTranspose")):
            return
        first = cls(reduce_range=saturates(target))
        yield first
        yield replace(first, per_channel=False)
        if products and recurrent:
            yield replace(first, recurrent=False)

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        proto = read_onnx(model)
        check_nodes(proto, self.keep_float)
        check_mostly_float(proto)
        weights = {tensor.name for tensor in proto.graph.initializer}
        names = [
            node.name
            for node in proto.graph.node
            if node.op_type in self._kinds
            and weights.issuperset(node.input[1 : 3 if node.op_type in _RECURRENT else 2])
            and node.name not in self.keep_float
        ]
        if not names:
            raise Skipped(
                "nothing to quantize: there is no matrix product or LSTM with constant weights"
            )
        source = upgraded(model, calibration, workdir)
        raw = workdir / "raw.onnx"
        try:
            with silenced():
                self._quantize(source, raw)
        except Exception as error:
            raise CandidateError(f"ONNX Runtime's quantizer failed: {first_line(error)}") from error
        result = onnx.load(str(raw))
        if not any(op_counts(result)[kind] for kind in _RESULTS):
            raise CandidateError(
                f"ONNX Runtime's quantizer left all {len(names)} products and LSTMs in float"
            )
        for file in workdir.iterdir():
            file.unlink()
        return write_onnx(result, model, workdir / "quantized.onnx")

    @property
    def _kinds(self) -> tuple[str, ...]:
        return (*_PRODUCTS, *_RECURRENT) if self.recurrent else _PRODUCTS

    def _quantize(self, model: Model, path: Path) -> None:
        from onnxruntime import quantization as ort

        ort.quantize_dynamic(
            model.path,
            path,
            op_types_to_quantize=list(self._kinds),
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
            "" if self.recurrent else "LSTMs in float",
        )
        return f"dynamic int8 (ONNX Runtime, {settings})"
