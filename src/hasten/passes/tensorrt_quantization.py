"""Static int8 quantization to the QDQ that TensorRT takes, by ONNX Runtime's quantizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from hasten.model import Model
from hasten.passes.onnx_files import COMPUTE_OPS, is_transformer, read_onnx
from hasten.passes.static_quantization import StaticQuantization
from hasten.target import Target


@dataclass(frozen=True)
class TensorrtQuantization(StaticQuantization):
    """Quantize to int8 around 0, in pairs of QuantizeLinear and DequantizeLinear, biases in float.

    What a product reads is quantized, and not what it gives: an activation behind it is then fused with it,
    and rounds once. Weights stay in float in the file, each with a pair of its own and one scale per output
    channel, and TensorRT stores them as int8.

    Source: NVIDIA TensorRT documentation, "Working with Quantized Types", "Q/DQ Placement Recommendations".
    """

    activations: Literal["asymmetric", "symmetric"] = "symmetric"
    quantize_bias: bool = False
    compute_only: bool = True

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield both ways to round weights, for NVIDIA's GPUs alone; by layer only in convolutional networks."""
        if target.family != "cuda":
            return
        yield cls()
        if not is_transformer(read_onnx(model, weights=False)):
            yield replace(cls(), rounding="layer")

    def _options(self) -> dict[str, Any]:
        return super()._options() | {
            "AddQDQPairToWeight": True,
            "OpTypesToExcludeOutputQuantization": sorted(COMPUTE_OPS),
        }
