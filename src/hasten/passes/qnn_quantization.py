"""Static quantization to explicit QDQ as Qualcomm's HTP takes it, by ONNX Runtime's quantizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import onnx

from hasten.data.dataset import Dataset
from hasten.errors import CandidateError, HastenError
from hasten.model import Model
from hasten.passes.base import Pass, Skipped
from hasten.passes.calibration import CalibrationRequests
from hasten.passes.onnx_files import check_nodes, compute_nodes, read_onnx, write_onnx
from hasten.passes.silence import first_line, silenced
from hasten.passes.static_quantization import Reader, prepare, prove_quantized, registered
from hasten.passes.weight_rounding import round_weights
from hasten.target import Target


@dataclass(frozen=True)
class QnnQuantization(Pass):
    """Quantize weights to int8 and activations to unsigned integers of 8 or 16 bits.

    Convolutions and Gemm have one weight scale per output channel, MatMul one per tensor: QNN's takes
    no other. A sigmoid's or tanh's range of 16 bits is the one that its operator is made for.

    Attributes:
        activations: "uint8", the fastest; "uint16", 256 times as fine, for what 8 bits cost too much.
        rounding: Of the weights of convolutions and Gemm: each to the nearest integer, or so that what the
            layer gives moves least; see `weight_rounding`.
        keep_float: Names of nodes to leave alone; the HTP computes them in float16.
        samples: How many samples to calibrate on at most.

    Source: affine scheme r = S(q - Z), Jacob et al., arXiv:1712.05877, eq. 1.
    """

    activations: Literal["uint8", "uint16"] = "uint8"
    rounding: Literal["nearest", "layer"] = "nearest"
    keep_float: tuple[str, ...] = ()
    samples: int = 100

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield the fastest, then the more accurate, for the HTP; nothing for any other device."""
        if target.family == "qnn":
            yield cls()
            yield cls(rounding="layer")
            yield cls("uint16", "layer")

    def draft(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        """Quantize by the ranges of one sample."""
        return replace(self, samples=1, rounding="nearest")(model, calibration, workdir)

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        proto = read_onnx(model)
        check_nodes(proto, self.keep_float)
        names = compute_nodes(proto, self.keep_float)
        if not names:
            raise Skipped(
                "nothing to quantize: there is no convolution or matrix product to take on"
            )
        source = model
        if self.rounding == "layer":
            source = round_weights(model, calibration, workdir, self.keep_float)
        prepared, raw = workdir / "prepared.onnx", workdir / "raw.onnx"
        reader = Reader(CalibrationRequests(model, calibration, self.samples))
        try:
            with silenced(), registered(model.custom_ops):
                prepare(source, prepared)
                self._quantize(prepared, raw, reader)
        except HastenError:
            raise
        except Exception as error:
            raise CandidateError(f"ONNX Runtime's quantizer failed: {first_line(error)}") from error
        result = onnx.load(str(raw))
        prove_quantized(result, len(names), self.keep_float)
        for file in workdir.iterdir():
            file.unlink()
        return write_onnx(result, model, workdir / "quantized.onnx")

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
            stride=1,  # one sample at a time, else every activation of every sample is held
            nodes_to_exclude=list(self.keep_float),
        )
        ort.quantize(str(source), str(path), config)
