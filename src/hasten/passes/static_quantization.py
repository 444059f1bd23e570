"""Quantize a model statically to int8 with explicit QDQ, using ONNX Runtime's quantizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import onnx

from hasten.core.model import Model, libraries
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.core.words import in_float, listed
from hasten.errors import CandidateError, HastenError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.already_quantized import check_mostly_float
from hasten.passes.base import Selective, Skipped, Stage
from hasten.passes.calibration import CalibrationRequests
from hasten.passes.onnx_files import (
    COMPUTE_OPS,
    check_nodes,
    compute_nodes,
    is_transformer,
    name_nodes,
    nothing_words,
    pixel_nodes,
    quantized_nodes,
    read_onnx,
    saturates,
    write_onnx,
)
from hasten.passes.silence import first_line, silenced
from hasten.passes.upgrading import upgraded
from hasten.passes.weight_rounding import Rounding, round_weights, roundings_for

if TYPE_CHECKING:
    from hasten.engines.base import Engine

_TYPES = {"asymmetric": "QUInt8", "symmetric": "QInt8", "wide": "QUInt16"}
"""ONNX Runtime's name of each type of activations."""
HISTOGRAM_SAMPLES = 32
"""Number of samples for percentile and entropy, which read every activation: 0.15 s per sample for
a network of 0.4 GFLOP."""


@dataclass(frozen=True)
class StaticQuantization(Selective):
    """Quantize weights and activations to int8, with activation ranges from calibration samples.

    The default, uint8 activations and int8 weights, is fastest in runtimes on x86-64; int8
    activations run at half that speed in ONNX Runtime. For TensorRT there is another pass,
    `TensorrtQuantization`.

    Attributes:
        per_channel: Whether weights have a scale per output channel, not one per tensor.
        activations: Type of activations: "asymmetric" for uint8 with a zero point, "symmetric" for
            int8 around 0, "wide" for uint16 with a zero point, for engines that calculate with such.
        calibration: Choice of ranges from the observed values: all of them ("minmax"), all but the
            rarest 0.001% ("percentile"), or the range that loses the least information
            ("entropy"). The latter two read every value and take several times as long, so give
            them fewer samples.
        quantize_bias: Whether biases are stored as int32; if not, they stay in float.
        compute_only: Whether only convolutions and matrix products are quantized, without the
            operations between them.
        reduce_range: Whether weights have 7 bits: without VNNI or AMX, products of uint8 and int8
            are summed in 16 bits, which saturate with 8-bit weights.
        rounding: Rounding of the weights of convolutions and Gemm: "nearest" integer, or by "layer"
            such that the layer's output changes least; see `weight_rounding`. "layer" needs
            scales per channel and 8-bit weights.
        keep_float: Names of ONNX nodes to leave in float.
        samples: Largest number of calibration samples.

    Source: affine scheme r = S(q - Z), Jacob et al., arXiv:1712.05877, eq. 1.
    """

    stage: ClassVar[Stage | None] = "lossy"
    rank: ClassVar[int] = 10
    families: ClassVar[frozenset[str]] = frozenset({"igpu", "npu"})

    per_channel: bool = True
    activations: Literal["asymmetric", "symmetric", "wide"] = "asymmetric"
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"
    quantize_bias: bool = True
    compute_only: bool = False
    reduce_range: bool = False
    rounding: Rounding = "nearest"
    keep_float: tuple[str, ...] = ()
    samples: int = 100

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield the settings that proved fastest, then the most accurate ones.

        `compute_only` only suits attention: in a convolutional network it quantizes a convolution's
        output before the activation clips it. Symmetric activations, and a single scale per weight
        tensor, were never fast enough to make up for their loss of accuracy. NVIDIA's GPUs have
        their own pass. Activations of 16 bits come last: engines that calculate with them take about
        twice as long as with bytes, and others would calculate in float.
        """
        if target.family == "cuda":
            return
        proto = read_onnx(model, weights=False)
        first = cls(reduce_range=saturates(target))
        if is_transformer(proto):
            yield replace(first, compute_only=True)
            yield first
            yield replace(first, compute_only=True, activations="wide")
            return
        yield first
        if first.reduce_range:
            yield replace(first, calibration="percentile", samples=HISTOGRAM_SAMPLES)
        else:
            yield replace(first, rounding="layer")
        yield replace(first, activations="wide", rounding=roundings_for(model)[-1])

    def suited(self, engine: Engine) -> Self:
        """Return the pass with 8-bit weights for an engine whose sums never saturate.

        An engine that would calculate with activations of 16 bits in float gets the usual form, of 8 bits.
        """
        usual = self
        if self.activations == "wide" and not engine.sums_words:
            usual = replace(self, activations="asymmetric", rounding="nearest")
        return replace(usual, reduce_range=self.reduce_range and not engine.sums_exactly)

    def draft(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        """Quantize with the ranges of a single sample."""
        quick = replace(self, samples=1, calibration="minmax", rounding="nearest")
        return quick(model, calibration, workdir)

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        if self.rounding == "layer" and (self.reduce_range or not self.per_channel):
            raise CandidateError("weights rounded by layer need one scale per channel and 8 bits")
        return quantized(
            model,
            calibration,
            workdir,
            lambda source, path, reader: self._quantize(
                source, path, reader, external=bool(model.files)
            ),
            rounding=self.rounding,
            keep_float=self.keep_float,
            samples=self.samples,
        )

    def _quantize(self, source: Path, path: Path, reader: Reader, *, external: bool) -> None:
        from onnxruntime import quantization as ort

        prepared = onnx.load(str(source), load_external_data=False)
        methods = {
            "minmax": ort.CalibrationMethod.MinMax,
            "percentile": ort.CalibrationMethod.Percentile,
            "entropy": ort.CalibrationMethod.Entropy,
        }
        ort.quantize_static(
            source,
            path,
            reader,
            quant_format=ort.QuantFormat.QDQ,
            op_types_to_quantize=sorted(COMPUTE_OPS) if self.compute_only else None,
            per_channel=self.per_channel,
            reduce_range=self.reduce_range,
            activation_type=getattr(ort.QuantType, _TYPES[self.activations]),
            weight_type=ort.QuantType.QInt8,
            nodes_to_exclude=[
                *self.keep_float,
                *pixel_nodes(prepared),
                *(node.name for node in quantized_nodes(prepared.graph)),
            ],
            use_external_data_format=external,
            calibrate_method=methods[self.calibration],
            extra_options=self._options(),
        )

    def _options(self) -> dict[str, Any]:
        """Return the quantizer's extra options."""
        symmetric = self.activations == "symmetric"
        return {
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": self.quantize_bias,
            "CalibTensorRangeSymmetric": symmetric,
            # One sample at a time: the histogram calibrators otherwise keep every activation of
            # every sample. CalibMaxIntermediateOutputs doesn't help, since it drops values.
            "CalibStridedMinMax": 1,
        }

    def words(self) -> str:
        return f"int8 ({listed('ONNX Runtime', *self._settings())})"

    def _settings(self) -> Iterator[str]:
        yield "per channel" if self.per_channel else "per tensor"
        yield {"symmetric": "symmetric", "wide": "16-bit activations"}.get(self.activations, "")
        yield self.calibration
        yield "" if self.quantize_bias else "float biases"
        yield "products alone" if self.compute_only else ""
        yield "7-bit weights" if self.reduce_range else ""
        yield "rounded by layer" if self.rounding == "layer" else ""
        yield in_float(self.keep_float)


def quantized(
    model: Model,
    calibration: Dataset,
    workdir: Path,
    quantize: Callable[[Path, Path, Reader], None],
    *,
    rounding: Rounding,
    keep_float: Sequence[str],
    samples: int,
) -> Model:
    """Quantize a model with ONNX Runtime's quantizer, and check that it had an effect.

    Args:
        model: ONNX model.
        calibration: Samples that set ranges.
        workdir: Folder for the result.
        quantize: Function that calls the quantizer with a prepared file, the path of the result and
            the reader of calibration requests.
        rounding: Rounding of the weights, "nearest" or "layer".
        keep_float: Names of ONNX nodes to leave in float.
        samples: Largest number of calibration samples.

    Raises:
        CandidateError: the quantizer failed, or left everything in float.
        Skipped: there is nothing to quantize.
    """
    proto = read_onnx(model)
    check_nodes(proto, keep_float)
    check_mostly_float(proto)
    names = compute_nodes(proto, keep_float)
    brought = [node.name for node in quantized_nodes(proto.graph)]
    if not names:
        raise Skipped(nothing_words(proto))
    source = upgraded(model, calibration, workdir)
    if rounding == "layer":
        source = round_weights(source, calibration, workdir, keep_float)
    prepared, raw = workdir / "prepared.onnx", workdir / "raw.onnx"
    reader = Reader(CalibrationRequests(model, calibration, samples))
    try:
        with silenced(), registered(model.custom_ops):
            prepare(source, prepared)
            quantize(prepared, raw, reader)
    except HastenError:
        raise
    except Exception as error:
        raise CandidateError(f"ONNX Runtime's quantizer failed: {first_line(error)}") from error
    result = onnx.load(str(raw))
    prove_quantized(result, len(names), keep_float, brought)
    for file in workdir.iterdir():
        file.unlink()
    return write_onnx(result, model, workdir / "quantized.onnx")


def prove_quantized(
    result: onnx.ModelProto, wanted: int, keep_float: Sequence[str], brought: Sequence[str] = ()
) -> None:
    """Check that some products read int8 and kept ones don't.

    Args:
        result: Graph that the quantizer wrote.
        wanted: Number of products that were in float and might be quantized.
        keep_float: Names of the nodes to leave in float.
        brought: Names of the nodes that were quantized before.

    Raises:
        CandidateError: one of these doesn't hold.
    """
    dequantized = {
        name
        for node in result.graph.node
        if node.op_type == "DequantizeLinear"
        for name in node.output
    }
    done = {
        node.name
        for node in result.graph.node
        if node.op_type in COMPUTE_OPS and dequantized.issuperset(node.input[:2])
    } - {*brought}
    if not done:
        raise CandidateError(
            f"ONNX Runtime's quantizer left all {wanted} convolutions and matrix products in float"
        )
    for name in keep_float:
        if name in done:
            raise CandidateError(f"ONNX Runtime's quantizer quantized {name!r} despite keep_float")


class Reader:
    """Reader for ONNX Runtime's calibrators: requests of a range, then None."""

    def __init__(self, requests: CalibrationRequests) -> None:
        self._requests = requests
        self._range = iter(range(0))

    def __len__(self) -> int:
        return len(self._requests)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Restart with the requests from `start_index` up to, but excluding, `end_index`."""
        self._range = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, Array] | None:
        """Return the next request of the range; None at its end."""
        position = next(self._range, None)
        return None if position is None else self._requests[position]


@contextlib.contextmanager
def registered(custom_ops: Sequence[Path]) -> Iterator[None]:
    """Give the calibrators' sessions the model's operator libraries, as the quantizer can't."""
    found = list(libraries(custom_ops, "RegisterCustomOps"))
    if not found:
        yield
        return
    import onnxruntime
    from onnxruntime.quantization.calibrate import CalibraterBase

    def create_inference_session(self: Any) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        for library in found:
            options.register_custom_ops_library(str(library))
        self.infer_session = onnxruntime.InferenceSession(
            self.augmented_model_path, options, providers=self.execution_providers
        )

    original = CalibraterBase.create_inference_session
    try:
        CalibraterBase.create_inference_session = create_inference_session
        yield
    finally:
        CalibraterBase.create_inference_session = original


def prepare(model: Model, path: Path) -> None:
    """Infer shapes, without which the quantizer leaves tensors in float, and name all nodes."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    settings: dict[str, Any] = {
        "skip_optimization": True,
        "save_as_external_data": bool(model.files),
    }
    source, result = str(model.path.absolute()), str(path.absolute())
    try:
        # Symbolic inference leaves a copy in the current folder of a model that it can't infer.
        with contextlib.chdir(path.parent):
            quant_pre_process(source, result, auto_merge=True, **settings)
    except Exception:
        # Symbolic inference fails on some operators; ONNX's own inference never does.
        quant_pre_process(source, result, skip_symbolic_shape=True, **settings)
    proto = onnx.load(result, load_external_data=False)
    name_nodes(proto)
    onnx.save(proto, result)
