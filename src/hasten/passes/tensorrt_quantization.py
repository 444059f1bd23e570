"""Quantize a model statically to the QDQ that TensorRT needs, using ONNX Runtime's quantizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import onnx

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.words import in_float, listed
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.half_precision import halved
from hasten.passes.onnx_files import COMPUTE_OPS, is_transformer, read_onnx, write_onnx
from hasten.passes.silence import first_line
from hasten.passes.static_quantization import StaticQuantization
from hasten.passes.upgrading import opset_of

_HALF_SCALES = 19
"""First ONNX operator set whose quantization operators accept scales in float16."""


@dataclass(frozen=True)
class TensorrtQuantization(StaticQuantization):
    """Quantize to int8 around 0 with QuantizeLinear and DequantizeLinear pairs, biases in float.

    The inputs of products are quantized, not their outputs: an activation after a product is then
    fused with it, and rounds once. Weights stay in float in the file, each with its own pair and a
    scale per output channel, and TensorRT stores them as int8.

    Attributes:
        half: Whether all that isn't quantized, including scales, is in float16.

    Source: NVIDIA TensorRT documentation, "Working with Quantized Types", "Q/DQ Placement
    Recommendations".
    """

    rank: ClassVar[int] = 60
    families: ClassVar[frozenset[str]] = frozenset()

    activations: Literal["asymmetric", "symmetric"] = "symmetric"
    quantize_bias: bool = False
    compute_only: bool = True
    half: bool = False

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield settings for NVIDIA's GPUs alone.

        First comes the rest in half precision, which is fastest; then, for convolutional networks,
        weights rounded by layer; last, except on Turing, which can't run it, the rest in float32.
        """
        if target.family != "cuda":
            return
        yield cls(half=True)
        if not is_transformer(read_onnx(model, weights=False)):
            yield cls(half=True, rounding="layer")
        if target.part != "sm75":
            yield cls()

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        result = super().__call__(model, calibration, workdir)
        if not self.half:
            return result
        proto = halved(_scaled_in_half(read_onnx(result)), self.keep_float)
        for file in workdir.iterdir():
            file.unlink()
        return write_onnx(proto, model, workdir / "quantized.onnx")

    def _options(self) -> dict[str, Any]:
        return super()._options() | {
            "AddQDQPairToWeight": True,
            "OpTypesToExcludeOutputQuantization": sorted(COMPUTE_OPS),
        }

    def words(self) -> str:
        settings = listed(
            "" if self.per_channel else "per tensor",
            "" if self.calibration == "minmax" else self.calibration,
            "rounded by layer" if self.rounding == "layer" else "",
            in_float(self.keep_float),
            "rest in f16" if self.half else "rest in f32",
        )
        return f"int8 (TensorRT, {settings})"


def _scaled_in_half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph in an operator set that can quantize float16.

    Raises:
        CandidateError: the graph can't be converted to such an operator set.
    """
    version = opset_of(proto)
    if version >= _HALF_SCALES:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, _HALF_SCALES)
    except Exception as error:
        raise CandidateError(
            f"half precision together with int8 needs operator set {_HALF_SCALES}, but the "
            f"model's operator set {version} can't be converted: {first_line(error)}"
        ) from error
