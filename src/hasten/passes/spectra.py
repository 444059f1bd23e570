"""Replace short-time Fourier transforms by convolutions, which every runtime has and fuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import onnx
from onnx import helper, numpy_helper

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.inputs.data.dataset import Dataset
from hasten.passes.base import Pass, Skipped, Stage
from hasten.passes.onnx_files import op_counts, read_onnx, write_onnx


@dataclass(frozen=True)
class Spectra(Pass):
    """Compute the spectra of an audio front end by a convolution with windowed waves.

    A frame's spectrum is a product of its samples with cosines and sines, so that frames are the
    positions of a strided convolution. Few runtimes have the operator STFT; all have convolutions,
    and most front ends are so short that a product is no slower than a fast Fourier transform.
    """

    stage: ClassVar[Stage | None] = "exact"
    exact: ClassVar[bool] = True
    rank: ClassVar[int] = 5

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        if op_counts(read_onnx(model, weights=False))["STFT"]:
            yield cls()

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        proto = read_onnx(model)
        constants = _constants(proto)
        real = _real_signals(proto)
        nodes: list[onnx.NodeProto] = []
        replaced = 0
        for node in proto.graph.node:
            filters = _filters(node, constants) if node.input and node.input[0] in real else None
            if filters is None:
                nodes.append(node)
                continue
            replaced += 1
            made, weights = _convolution(node, filters, int(constants[node.input[1]].item()))
            nodes += made
            proto.graph.initializer.extend(weights)
        if not replaced:
            raise Skipped("nothing to replace: there is no STFT of real numbers with fixed frames")
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        return write_onnx(proto, model, workdir / "spectra.onnx")

    def words(self) -> str:
        return "spectra by convolution"


def _constants(proto: onnx.ModelProto) -> dict[str, Array]:
    """Return the graph's constants by name."""
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _real_signals(proto: onnx.ModelProto) -> set[str]:
    """Return the names of float tensors `(batch, samples, 1)`."""
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    found = set()
    for value in (*graph.input, *graph.value_info):
        kind = value.type.tensor_type
        sizes = kind.shape.dim
        real = len(sizes) == 3 and sizes[2].dim_value == 1
        if real and kind.elem_type == onnx.TensorProto.FLOAT:
            found.add(value.name)
    return found


def _filters(node: onnx.NodeProto, constants: dict[str, Array]) -> Array | None:
    """Return the waves of each bin, `(bins, 2, samples)`; None where the frames aren't fixed.

    Source: the definition of STFT in ONNX's operators, version 17.
    """
    _, step, window, length = (*node.input, "", "", "")[:4]
    if node.op_type != "STFT" or step not in constants or (window and window not in constants):
        return None
    if window:
        shape: Any = constants[window].astype(np.float64)
        if length and (length not in constants or int(constants[length].item()) != len(shape)):
            return None
    elif length in constants:
        shape = np.ones(int(constants[length].item()))
    else:
        return None
    samples = len(shape)
    onesided = next((one.i for one in node.attribute if one.name == "onesided"), 1)
    bins = samples // 2 + 1 if onesided else samples
    angles = 2 * np.pi * (np.outer(np.arange(bins), np.arange(samples)) % samples) / samples
    waves: Array = np.stack([np.cos(angles), -np.sin(angles)], axis=1) * shape
    return waves


def _convolution(
    node: onnx.NodeProto, filters: Array, step: int
) -> tuple[Sequence[onnx.NodeProto], Sequence[onnx.TensorProto]]:
    """Return nodes that answer as an STFT does, `(batch, frames, bins, 2)`, and their constants."""
    own, bins = node.output[0], len(filters)
    weights = filters.reshape(2 * bins, 1, -1).astype(np.float32)
    turn = [0, 2, 1]
    nodes = [
        helper.make_node(
            "Transpose", [node.input[0]], [f"{own}/row"], f"{node.name}/row", perm=turn
        ),
        helper.make_node(
            "Conv", [f"{own}/row", f"{own}/waves"], [f"{own}/bins"], node.name, strides=[step]
        ),
        helper.make_node("Transpose", [f"{own}/bins"], [f"{own}/in"], f"{node.name}/in", perm=turn),
        helper.make_node("Reshape", [f"{own}/in", f"{own}/parts"], [own], f"{node.name}/parts"),
    ]
    parts = np.array([0, 0, bins, 2], np.int64)
    return nodes, [
        numpy_helper.from_array(weights, f"{own}/waves"),
        numpy_helper.from_array(parts, f"{own}/parts"),
    ]
