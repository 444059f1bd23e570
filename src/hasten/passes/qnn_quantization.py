"""Quantize a model statically to explicit QDQ for Qualcomm's HTP with ONNX Runtime's quantizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.words import in_float, listed
from hasten.inputs.data.dataset import Dataset
from hasten.passes.base import Selective, Stage
from hasten.passes.static_quantization import Reader, quantized
from hasten.passes.weight_rounding import Rounding, roundings_for


@dataclass(frozen=True)
class QnnQuantization(Selective):
    """Quantize weights to int8 and activations to unsigned integers of 8 or 16 bits.

    Convolutions and Gemm have a weight scale per output channel. MatMul has one per tensor, since
    QNN's supports no other. A 16-bit sigmoid or tanh has the range that its operator expects.

    Attributes:
        activations: Type of activations: "uint8" is fastest; "uint16" is 256 times as fine, for
            models that lose too much with 8 bits.
        rounding: Rounding of the weights of convolutions and Gemm: "nearest" integer, or by "layer"
            such that the layer's output changes least; see `weight_rounding`.
        keep_float: Names of ONNX nodes to leave in float; the HTP computes them in float16.
        samples: Largest number of calibration samples.

    Source: affine scheme r = S(q - Z), Jacob et al., arXiv:1712.05877, eq. 1.
    """

    stage: ClassVar[Stage | None] = "lossy"
    rank: ClassVar[int] = 40
    families: ClassVar[frozenset[str]] = frozenset({"qnn"})

    activations: Literal["uint8", "uint16"] = "uint8"
    rounding: Rounding = "nearest"
    keep_float: tuple[str, ...] = ()
    samples: int = 100

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield the fastest settings, then more accurate ones, for the HTP alone."""
        if target.family != "qnn":
            return
        roundings = roundings_for(model)
        for rounding in roundings:
            yield cls(rounding=rounding)
        yield cls("uint16", roundings[-1])

    def draft(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        """Quantize with the ranges of a single sample."""
        return replace(self, samples=1, rounding="nearest")(model, calibration, workdir)

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        return quantized(
            model,
            calibration,
            workdir,
            self._quantize,
            rounding=self.rounding,
            keep_float=self.keep_float,
            samples=self.samples,
        )

    def _quantize(self, source: Path, path: Path, reader: Reader) -> None:
        from onnxruntime import quantization as ort
        from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

        wide = self.activations == "uint16"
        config = get_qnn_qdq_config(
            str(source),
            reader,
            activation_type=ort.QuantType.QUInt16 if wide else ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            per_channel=True,
            stride=1,  # one sample at a time, else all samples' activations are kept in memory
            nodes_to_exclude=list(self.keep_float),
        )
        ort.quantize(str(source), str(path), config)

    def words(self) -> str:
        settings = listed(
            "QNN",
            "16-bit activations" if self.activations == "uint16" else "",
            "rounded by layer" if self.rounding == "layer" else "",
            in_float(self.keep_float),
        )
        return f"int8 ({settings})"
