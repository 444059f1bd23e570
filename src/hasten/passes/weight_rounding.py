"""Round weights to int8 such that their layer's output changes least, not each by itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.errors import CandidateError, HastenError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.base import Skipped
from hasten.passes.calibration import CalibrationRequests
from hasten.passes.onnx_files import PROTOBUF_LIMIT_BYTES, graphs, read_onnx, write_onnx
from hasten.passes.sensitivity import session_of, with_outputs
from hasten.passes.silence import first_line, silenced

Floats = npt.NDArray[np.float64]
Rounding: TypeAlias = Literal["nearest", "layer"]

HIGHEST = 127
_SAMPLES = 32
_PLACES = 256
"""Largest number of random positions per sample at which a layer's inputs are read."""
_WIDEST = 1536
"""Largest number of inputs per output; layers with more are skipped, since the time grows with the
cube of that number and many rounding errors cancel out anyway."""
_DAMPING = 0.01
_BLOCK = 128


@dataclass(frozen=True)
class _Layer:
    """Convolution or matrix product with constant weights.

    Attributes:
        node: Node of the graph.
        weights: Grouped weights, `(groups, outputs, inputs)`.
        settings: Attributes of the node.
        shape: Shape of the constant.
        turned: Whether outputs are the last axis of the constant.
    """

    node: onnx.NodeProto
    weights: Floats
    settings: dict[str, Any]
    shape: tuple[int, ...]
    turned: bool

    def stored(self, weights: Floats) -> Array:
        """Return grouped weights in the shape of the graph's constant."""
        flat = weights.reshape(-1, weights.shape[-1])
        values = flat.T if self.turned else flat
        return np.ascontiguousarray(values.reshape(self.shape), np.float32)

    def inputs(self, array: Array, rng: np.random.Generator) -> Array:
        """Return the inputs of outputs at random positions, `(groups, inputs, positions)`."""
        if self.node.op_type == "Gemm":
            return array.T[None]
        height, width = self.shape[2:]
        down, right = self.settings.get("strides", (1, 1))
        top, left, bottom, end = self.settings.get("pads", (0, 0, 0, 0))
        padded = np.pad(array, ((0, 0), (0, 0), (top, bottom), (left, end)))
        rows = (padded.shape[2] - height) // down + 1
        columns = (padded.shape[3] - width) // right + 1
        places = rng.permutation(len(array) * rows * columns)[:_PLACES]
        n, y, x = np.unravel_index(places, (len(array), rows, columns))
        looks = [
            padded[n, :, y * down + i, x * right + j] for i in range(height) for j in range(width)
        ]  # each (places, channels)
        groups = len(self.weights)
        return np.stack(looks, -1).reshape(len(n), groups, -1).transpose(1, 2, 0)


def round_weights(
    model: Model, calibration: Dataset, workdir: Path, keep_float: Iterable[str] = ()
) -> Model:
    """Return the model with float weights that int8 represents exactly.

    They lie on the grid of a quantizer that gives each output channel its own scale, the largest
    weight over 127. Weights are rounded one after another, and each error is compensated by the
    remaining weights of the output, as far as the inputs correlate.

    Args:
        model: ONNX model with its `request` settled.
        calibration: Samples that give the layers' inputs; never those that judge.
        workdir: Folder for the result.
        keep_float: Names of ONNX nodes to leave in float.

    Raises:
        Skipped: there is no two-dimensional convolution without dilation, and no Gemm, that has up
            to 1,536 constant weights per output which no other node uses.
        CandidateError: the model can't be run, or a layer's inputs aren't finite.

    Source: Frantar et al., arXiv:2210.17323 (GPTQ), after Hassibi and Stork 1993.
    """
    proto = read_onnx(model)
    if proto.ByteSize() > PROTOBUF_LIMIT_BYTES:
        raise CandidateError("can't round the weights: the model is larger than 2 GiB")
    found = _layers(proto, set(keep_float))
    if not found:
        raise Skipped("nothing to round: there is no suitable convolution or Gemm")
    try:
        with silenced():
            moments = _second_moments(model, proto, found, calibration)
    except HastenError:
        raise
    except Exception as error:
        raise CandidateError(f"can't round the weights: {first_line(error)}") from error
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for layer in found:
        name = layer.node.input[1]
        values = layer.stored(rounded(layer.weights, moments[layer.node.output[0]]))
        constants[name].CopyFrom(numpy_helper.from_array(values, name))
    return write_onnx(proto, model, workdir / "rounded.onnx")


def roundings_for(model: Model) -> tuple[Rounding, ...]:
    """Return the ways to round a model's weights, the best last: "layer" if `round_weights` finds any."""
    found = any(True for _ in _suitable(read_onnx(model, weights=False), set()))
    return ("nearest", "layer") if found else ("nearest",)


def rounded(weights: Floats, moments: Floats) -> Floats:
    """Round weights such that the mean squared error of the outputs is small.

    Each output's largest weight isn't changed, since it sets the scale.

    Args:
        weights: Weights, `(groups, outputs, inputs)`.
        moments: Mean products of the inputs, `(groups, inputs, inputs)`, positive semidefinite.

    Returns:
        Rounded weights, multiples of each output's largest weight over 127.
    """
    largest = np.abs(weights).max(axis=2, keepdims=True)
    scale = np.where(largest > 0, largest, 1.0) / HIGHEST
    top = np.abs(weights).argmax(axis=2)
    inputs = weights.shape[2]
    diagonal = np.einsum("gii->gi", moments).mean(1)
    damping = np.where(diagonal > 0, _DAMPING * diagonal, 1.0)
    inverse = np.linalg.inv(moments + damping[:, None, None] * np.eye(inputs))
    upper = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1)
    left, given = weights / scale, np.zeros_like(weights)
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = np.zeros((*weights.shape[:2], end - start))
        for i in range(start, end):
            nearest = np.clip(np.round(left[..., i]), -HIGHEST, HIGHEST)
            given[..., i] = np.where(top == i, np.sign(weights[..., i]) * HIGHEST, nearest)
            errors[..., i - start] = (left[..., i] - given[..., i]) / upper[:, None, i, i]
            left[..., i + 1 : end] -= errors[..., i - start, None] * upper[:, None, i, i + 1 : end]
        left[..., end:] -= errors @ upper[:, start:end, end:]
    return np.asarray(given * scale)


def _layers(proto: onnx.ModelProto, kept: set[str]) -> list[_Layer]:
    """Return the layers that can be rounded, with their weights."""
    return [
        _layer(node, settings, numpy_helper.to_array(tensor))
        for node, settings, tensor in _suitable(proto, kept)
    ]


def _suitable(
    proto: onnx.ModelProto, kept: set[str]
) -> Iterator[tuple[onnx.NodeProto, dict[str, Any], onnx.TensorProto]]:
    """Yield the nodes that can be rounded, whose weights no other node uses: node, attributes, constant."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    uses = Counter(name for g in graphs(proto.graph) for node in g.node for name in node.input)
    uses.update(value.name for value in proto.graph.output)
    for node in proto.graph.node:
        if node.domain or node.op_type not in ("Conv", "Gemm") or node.name in kept:
            continue
        tensor = constants.get(node.input[1])
        if tensor is None or uses[tensor.name] > 1 or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if 0 < _inputs_of_one_output(node.op_type, settings, tuple(tensor.dims)) <= _WIDEST:
            yield node, settings, tensor


def _inputs_of_one_output(kind: str, settings: dict[str, Any], dims: tuple[int, ...]) -> int:
    """Return the number of weights per output; 0 for kinds of nodes that aren't rounded."""
    if kind == "Gemm":
        usual = not settings.get("transA", 0) and settings.get("alpha", 1.0) == 1.0
        return dims[1 if settings.get("transB", 0) else 0] if usual else 0
    plain = settings.get("auto_pad", b"NOTSET") == b"NOTSET"
    usual = len(dims) == 4 and plain and set(settings.get("dilations", (1,))) == {1}
    return math.prod(dims[1:]) if usual else 0


def _layer(node: onnx.NodeProto, settings: dict[str, Any], values: Array) -> _Layer:
    if node.op_type == "Gemm":
        turned = not settings.get("transB", 0)
        flat = (values.T if turned else values)[None]
        return _Layer(node, flat.astype(np.float64), settings, values.shape, turned)
    groups = settings.get("group", 1)
    grouped = values.reshape(groups, len(values) // groups, -1)
    return _Layer(node, grouped.astype(np.float64), settings, values.shape, False)


def _second_moments(
    model: Model, proto: onnx.ModelProto, found: Sequence[_Layer], calibration: Dataset
) -> dict[str, Floats]:
    """Return each layer's mean products of inputs, by the name of its output.

    Raises:
        CandidateError: a layer's inputs aren't finite, or are too large.
    """
    given = {value.name for value in proto.graph.input}
    names = sorted({layer.node.input[0] for layer in found} - given)
    session = session_of(with_outputs(proto, names), model)
    rng = np.random.default_rng(0)
    moments: dict[str, Floats] = {}
    requests = CalibrationRequests(model, calibration, _SAMPLES)
    for request in requests:
        seen = request | dict(zip(names, session.run(names, request) if names else (), strict=True))
        for layer in found:
            inputs = layer.inputs(seen[layer.node.input[0]], rng)
            own = (inputs @ inputs.transpose(0, 2, 1)).astype(np.float64)
            if not np.isfinite(own).all():
                raise CandidateError(
                    f"can't round the weights: the inputs of the node that makes "
                    f"{layer.node.output[0]!r} aren't finite, or are too large"
                )
            name, share = layer.node.output[0], 1 / (inputs.shape[2] * len(requests))
            moments[name] = moments.get(name, 0.0) + own * share
    return moments
