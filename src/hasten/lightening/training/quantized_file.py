"""Read the ranges of an int8 ONNX file, and replace them by learned ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import numpy_helper

from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.errors import CandidateError
from hasten.passes.onnx_files import read_onnx, write_onnx

_LIMITS = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}
_MOST = 2**31 - 1
_ASIDE = "_QuantizeLinear_Input"
"""Suffix that ONNX Runtime's quantizer gives to the name of an output before its rounding."""


@dataclass(frozen=True)
class Int8Range:
    """Range of some tensors in int8, whose values are (integer - zero) * scale.

    Attributes:
        scale_name: Name of the scale in the int8 file.
        zero_name: Name of the zero point in the int8 file.
        tensors: Names in the float file of the tensors that are rounded to this range.
        scale: Width of one step.
        zero: Integer that stands for 0.
        lowest: Lowest integer.
        highest: Highest integer.
        largest_scale: Largest scale that still clips as tightly as a Clip that the quantizer
            replaced by the rounding; None if it replaced none.
    """

    scale_name: str
    zero_name: str
    tensors: tuple[str, ...]
    scale: float
    zero: int
    lowest: int
    highest: int
    largest_scale: float | None = None


@dataclass(frozen=True)
class Weights:
    """Constant that is rounded symmetrically around 0.

    Attributes:
        name: Name in the float file.
        values: Values in float.
        axis: Axis whose positions have a scale each; None for a single scale.
    """

    name: str
    values: Array
    axis: int | None


def ranges(quantized: Model, exact: Model) -> tuple[Int8Range, ...]:
    """Return the ranges to which the activations of a quantized file are rounded.

    Args:
        quantized: File that ONNX Runtime's quantizer wrote.
        exact: Float file that was quantized.
    """
    proto = read_onnx(quantized)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    tensors: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants:
            tensors[node.input[1], node.input[2]].append(node.input[0].removesuffix(_ASIDE))
    clips = _clips(read_onnx(exact), proto)
    found = []
    for (scale_name, zero_name), names in tensors.items():
        zero = numpy_helper.to_array(constants[zero_name])
        lowest, highest = _LIMITS[zero.dtype]
        bounds = [clips[name] for name in names if name in clips]
        up, down = highest - zero.item(), zero.item() - lowest
        limits = [high / up for _, high in bounds if up] + [
            -low / down for low, _ in bounds if down
        ]
        found.append(
            Int8Range(
                scale_name,
                zero_name,
                tuple(names),
                numpy_helper.to_array(constants[scale_name]).item(),
                zero.item(),
                lowest,
                highest,
                min((limit for limit in limits if limit > 0), default=None),
            )
        )
    return tuple(found)


def _clips(exact: onnx.ModelProto, quantized: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    """Return the bounds of clips that a quantizer removed, by the names of their outputs."""
    values = {t.name: numpy_helper.to_array(t) for t in exact.graph.initializer}
    for node in exact.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    kept = {node.name for node in quantized.graph.node}
    found = {}
    for node in exact.graph.node:
        if node.op_type == "Clip" and node.name not in kept:
            low, high = (values.get(name) for name in [*node.input, "", ""][1:3])
            found[node.output[0]] = (
                -np.inf if low is None else low.item(),
                np.inf if high is None else high.item(),
            )
    return found


def weights(quantized: Model, exact: Model) -> tuple[Weights, ...]:
    """Return the constants of a quantized file that are rounded around 0 and feed products."""
    proto = read_onnx(quantized)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    originals = {tensor.name: tensor for tensor in read_onnx(exact).graph.initializer}
    found = []
    for node in proto.graph.node:
        stored = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        original = originals.get(node.input[0].removesuffix("_quantized"))
        if stored is None or original is None or stored.data_type != onnx.TensorProto.INT8:
            continue
        if len(stored.dims) < 2 or numpy_helper.to_array(constants[node.input[2]]).any():
            continue
        scales = numpy_helper.to_array(constants[node.input[1]])
        axis = (
            next((a.i for a in node.attribute if a.name == "axis"), 1) if scales.size > 1 else None
        )
        found.append(Weights(original.name, numpy_helper.to_array(original), axis))
    return tuple(found)


def with_ranges(quantized: Model, exact: Model, learned: Sequence[Int8Range]) -> Model:
    """Write other activation ranges into a quantized file, and round its biases to match.

    Args:
        quantized: Newly quantized file, with any ranges.
        exact: Float file that was quantized.
        learned: Ranges from `ranges`, with other scales.

    Raises:
        CandidateError: the file lacks one of the learned ranges.
    """
    proto = read_onnx(quantized)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for one in learned:
        if one.scale_name not in constants or one.zero_name not in constants:
            raise CandidateError(f"the quantized file lacks the learned range {one.scale_name!r}")
        for name, value in ((one.scale_name, one.scale), (one.zero_name, one.zero)):
            _set(constants[name], value)
    _round_biases(proto, constants, read_onnx(exact))
    written = write_onnx(proto, quantized, quantized.path)
    return replace(exact, path=written.path, files=written.files)


def _round_biases(
    proto: onnx.ModelProto, constants: dict[str, onnx.TensorProto], exact: onnx.ModelProto
) -> None:
    """Round each int32 bias again: its step is the input's step times the weights' step."""
    back = {n.output[0]: n for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    originals = {tensor.name: tensor for tensor in exact.graph.initializer}
    for node in proto.graph.node:
        parts = [back.get(name) for name in node.input]
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(parts) < 3:
            continue
        x, weight, bias = parts[:3]
        if x is None or weight is None or bias is None:
            continue
        original = originals.get(bias.input[0].removesuffix("_quantized"))
        if original is None or constants[bias.input[0]].data_type != onnx.TensorProto.INT32:
            continue
        values = numpy_helper.to_array(original).astype(np.float64)
        inputs, own = (constants[part.input[1]] for part in (x, weight))
        step = numpy_helper.to_array(inputs) * _wide_enough(own, inputs, values)
        _set(constants[bias.input[1]], step)
        _set(constants[bias.input[0]], np.clip(np.round(values / step), -_MOST, _MOST))


def _wide_enough(own: onnx.TensorProto, inputs: onnx.TensorProto, biases: Array) -> Array:
    """Return the scales of weights, enlarged where a bias would overflow.

    Such weights are close to 0, so it doesn't matter that their integers aren't changed.
    """
    scales = numpy_helper.to_array(own)
    least = np.abs(biases) / (_MOST * numpy_helper.to_array(inputs))
    if scales.ndim == 0:
        least = least.max(initial=0)
    wide: Array = np.maximum(scales, 1.001 * least).astype(np.float32)
    _set(own, wide)
    return wide


def _set(tensor: onnx.TensorProto, values: float | Array) -> None:
    """Replace a constant's values, keeping its type and shape."""
    old = numpy_helper.to_array(tensor)
    new = np.broadcast_to(np.asarray(values).astype(old.dtype), old.shape)
    tensor.CopyFrom(numpy_helper.from_array(new.copy(), tensor.name))
