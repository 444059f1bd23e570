"""Quantize a model statically to int8 OpenVINO IR with NNCF."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import onnx

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.telemetry import telemetry_off
from hasten.core.words import in_float, listed
from hasten.errors import CandidateError, HastenError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.already_quantized import check_mostly_float
from hasten.passes.base import Selective, Skipped, Stage
from hasten.passes.calibration import CalibrationRequests
from hasten.passes.fake_quantize import round_everywhere
from hasten.passes.onnx_files import (
    check_nodes,
    compute_nodes,
    is_transformer,
    nothing_words,
    quantized_nodes,
    read_onnx,
    saturates,
)
from hasten.passes.openvino_graphs import PRODUCTS, behind_products, converted, operations_of
from hasten.passes.silence import first_line, silenced
from hasten.passes.weight_rounding import round_weights

if TYPE_CHECKING:
    from hasten.engines.base import Engine

_DRAFT_SAMPLES = 2
_LESS_SMOOTHING = {0.8: 0.65, 0.65: 0.5}
"""Strengths of smoothing that follow those that `variants` yields."""


@dataclass(frozen=True)
class NncfQuantization(Selective):
    """Quantize weights and activations to int8, and correct the biases for the rounding error.

    The result is in OpenVINO's own format and for OpenVINO alone, where it is faster than an
    equivalent ONNX file. Operations after the last product stay in float.

    Attributes:
        preset: Ranges of activations: with a zero point ("mixed") or around 0 ("performance").
        fast_bias_correction: Whether the error is estimated from channel means; if not, the
            quantized model is run layer by layer, which is more accurate and much slower to build.
        transformer: Whether operations that attention is sensitive to stay in float, and
            activations are smoothed into weights.
        smoothing: Share of an activation's range that smoothing moves into the weights, from 0 to 1;
            None for NNCF's own, 0.95. Only for transformers.
        rounding: Rounding of the weights of convolutions and Gemm: "nearest" integer, or by "layer"
            such that the layer's output changes least; see `weight_rounding`. "layer" needs 8-bit
            weights.
        keep_float: Names of ONNX nodes to leave in float.
        samples: Largest number of calibration samples.
        reduce_range: Whether weights have 7 bits, for processors with neither VNNI nor AMX; NNCF
            keeps 8 bits in depthwise convolutions.

    Source: bias correction, Nagel et al., arXiv:1906.04721, section 4.2; smoothing, Xiao et al.,
    arXiv:2211.10438.
    """

    gives: ClassVar[Format] = "openvino"
    stage: ClassVar[Stage | None] = "lossy"
    rank: ClassVar[int] = 20
    families: ClassVar[frozenset[str]] = frozenset({"igpu", "npu"})
    modules: ClassVar[tuple[str, ...]] = ("nncf", "openvino")
    needless: ClassVar[frozenset[str]] = frozenset({"torch"})

    preset: Literal["mixed", "performance"] = "mixed"
    fast_bias_correction: bool = True
    transformer: bool = False
    smoothing: float | None = None
    rounding: Literal["nearest", "layer"] = "nearest"
    keep_float: tuple[str, ...] = ()
    samples: int = 100
    reduce_range: bool = False

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield the settings that proved fastest, then the most accurate ones."""
        narrow = saturates(target)
        for value in cls._likeliest(read_onnx(model, weights=False), narrow):
            yield replace(value, reduce_range=narrow)

    @classmethod
    def _likeliest(cls, proto: onnx.ModelProto, narrow: bool) -> Iterator[Self]:
        if is_transformer(proto):
            yield cls("mixed", transformer=True)
            yield cls("mixed", transformer=True, smoothing=0.8)
            yield cls("performance", transformer=True)
            yield cls("performance")
            return
        yield cls("performance")
        yield cls("performance", False, samples=300)
        if narrow:
            yield cls("mixed", False, samples=300)
        else:
            yield cls("performance", rounding="layer")

    def suited(self, engine: Engine) -> Self:
        """Return the pass with 8-bit weights for an engine whose sums never saturate."""
        return replace(self, reduce_range=self.reduce_range and not engine.sums_exactly)

    def further(self) -> Self | None:
        """Return the pass with activations of a transformer smoothed less."""
        weaker = _LESS_SMOOTHING.get(self.smoothing or 0.0)
        return None if weaker is None or not self.transformer else replace(self, smoothing=weaker)

    def draft(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        """Insert roundings where NNCF does, in a tenth of its time; if that isn't known, call NNCF.

        For convolutional networks, a draft took 0.9 to 1.05 times the final latency. With attention
        it was too far off: NNCF smooths attention, and how much of it is fused depends on sizes.
        """
        import openvino

        proto = read_onnx(model)
        self._to_quantize(proto)
        quick = replace(self, samples=_DRAFT_SAMPLES, rounding="nearest", fast_bias_correction=True)
        if self.transformer:
            return quick(model, calibration, workdir)
        with silenced(), telemetry_off():
            try:
                graph = converted(model)
            except Exception as error:
                raise CandidateError(f"OpenVINO failed: {first_line(error)}") from error
            kept = [*operations_of(graph, proto, self.keep_float), *behind_products(graph)]
            kept += _brought(graph, proto)
            try:
                done = round_everywhere(graph, kept=kept, symmetric=self.preset == "performance")
            except Exception:  # an unusual graph: NNCF may succeed where this failed
                done = 0
            if done:
                path = workdir / "draft.xml"
                openvino.save_model(graph, path, compress_to_fp16=False)
                files = (path.with_suffix(".bin"),)
                return replace(model, path=path, format="openvino", files=files)
        return quick(model, calibration, workdir)

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        proto = read_onnx(model)
        self._to_quantize(proto)
        path = workdir / "quantized.xml"
        source = model
        if self.rounding == "layer":
            if self.reduce_range:
                raise CandidateError("weights rounded by layer need 8 bits")
            source = round_weights(model, calibration, workdir, self.keep_float)
        try:
            with silenced(), telemetry_off():
                self._quantize(source, proto, calibration, path)
        except HastenError:
            raise
        except Exception as error:
            raise CandidateError(f"NNCF failed: {first_line(error)}") from error
        if source is not model:
            for file in (source.path, *source.files):
                file.unlink()
        return replace(model, path=path, format="openvino", files=(path.with_suffix(".bin"),))

    def _to_quantize(self, proto: onnx.ModelProto) -> list[str]:
        """Return the names of the nodes to quantize; raise Skipped if there are none."""
        check_nodes(proto, self.keep_float)
        check_mostly_float(proto)
        names = compute_nodes(proto, self.keep_float)
        if not names:
            raise Skipped(nothing_words(proto))
        return names

    def _quantize(
        self, model: Model, proto: onnx.ModelProto, calibration: Dataset, path: Path
    ) -> None:
        import nncf
        import openvino

        graph = converted(model)
        kept = operations_of(graph, proto, self.keep_float)
        brought = _brought(graph, proto)
        alone = list(dict.fromkeys([*kept, *brought, *behind_products(graph)]))
        requests = CalibrationRequests(model, calibration, self.samples)
        advanced = nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE if self.reduce_range else nncf.OverflowFix.DISABLE
        )
        if self.smoothing is not None:
            alphas = nncf.AdvancedSmoothQuantParameters(matmul=self.smoothing)
            advanced = replace(advanced, smooth_quant_alphas=alphas)
        quantized = nncf.quantize(
            graph,
            nncf.Dataset(requests),
            preset=nncf.QuantizationPreset(self.preset),
            subset_size=len(requests),
            fast_bias_correction=self.fast_bias_correction,
            model_type=nncf.ModelType.TRANSFORMER if self.transformer else None,
            ignored_scope=nncf.IgnoredScope(names=alone) if alone else None,
            advanced_parameters=advanced,
        )
        _prove(quantized, kept, brought, len(compute_nodes(proto, self.keep_float)))
        openvino.save_model(quantized, path, compress_to_fp16=False)

    def words(self) -> str:
        settings = listed(
            "NNCF",
            "zero points" if self.preset == "mixed" else "",
            "" if self.fast_bias_correction else "accurate biases",
            "transformer" if self.transformer else "",
            "" if self.smoothing is None else f"smoothed by {self.smoothing:g}",
            "rounded by layer" if self.rounding == "layer" else "",
            "7-bit weights" if self.reduce_range else "",
            in_float(self.keep_float),
        )
        return f"int8 ({settings})"


def _brought(graph: Any, proto: onnx.ModelProto) -> list[str]:
    """Return OpenVINO's names for the products that were quantized before."""
    return operations_of(graph, proto, [node.name for node in quantized_nodes(proto.graph)])


def _prove(quantized: Any, kept: list[str], brought: list[str], wanted: int) -> None:
    """Check that products were quantized, and kept ones weren't.

    Whether biases changed says nothing: NNCF keeps each whose shift is large beside it, in an encoder all.

    Raises:
        CandidateError: one of these doesn't hold.
    """
    fed = {
        operation.get_friendly_name()
        for operation in quantized.get_ordered_ops()
        if operation.get_type_name() in PRODUCTS
        and operation.input_value(0).get_node().get_type_name() == "FakeQuantize"
    } - {*brought}
    if not fed:
        raise CandidateError(f"NNCF left all {wanted} convolutions and matrix products in float")
    if disobeyed := fed.intersection(kept):
        raise CandidateError(f"NNCF quantized {min(disobeyed)!r} despite keep_float")
