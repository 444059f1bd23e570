"""Upgrade models of old operator sets, for passes whose result needs a newer one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset
from hasten.passes.calibration import CalibrationRequests
from hasten.passes.onnx_files import (
    COMPUTE_OPS,
    PROTOBUF_LIMIT_BYTES,
    graphs,
    name_nodes,
    read_onnx,
    write_onnx,
)
from hasten.passes.silence import first_line, silenced

OPSET = 13
"""Oldest operator set with scales per channel, and the least that an upgrade must bridge."""
_NEW_RESIZE = 11
_SAMPLES = 4
_TOLERANCE = 1e-5
"""Largest difference of an output, relative to its largest value, that float32 sums in another order
explain."""


def upgraded(model: Model, calibration: Dataset, workdir: Path) -> Model:
    """Return a model in operator set 13 or newer, with the names of nodes and weights that it had.

    Args:
        model: ONNX model with its `request` settled; a new enough one is returned as it is.
        calibration: Samples on which the upgraded model must answer as the old one does.
        workdir: Folder to write to.

    Raises:
        CandidateError: onnx's converter fails, or the upgraded model answers otherwise.
    """
    proto = read_onnx(model)
    if opset_of(proto) >= OPSET:
        return model
    requests = CalibrationRequests(model, calibration, _SAMPLES)
    return write_onnx(
        upgraded_graph(proto, model, list(requests)), model, workdir / "upgraded.onnx"
    )


def opset_of(proto: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators; 1 where the file states none."""
    return max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)


def upgraded_graph(
    proto: onnx.ModelProto, model: Model, requests: Sequence[dict[str, Array]]
) -> onnx.ModelProto:
    """Return a graph in operator set 13 or newer that answers as the old one on some requests.

    Args:
        proto: Graph with its weights, each node named.
        model: Model that the graph was read from.
        requests: Inputs by name, with which both graphs are run.

    Raises:
        CandidateError: onnx's converter fails, or the new graph answers otherwise.
    """
    old = opset_of(proto)
    if old >= OPSET:
        return proto
    asked = f"the model has operator set {old}, but this pass needs {OPSET}"
    if proto.ByteSize() > PROTOBUF_LIMIT_BYTES:
        raise CandidateError(
            f"{asked}: a model larger than 2 GiB can't be upgraded here; export it again"
        )
    try:
        with silenced():
            new = onnx.version_converter.convert_version(proto, OPSET)
    except Exception as error:
        raise CandidateError(f"{asked}; onnx's converter failed: {first_line(error)}") from error
    name_nodes(new)
    if old < _NEW_RESIZE:
        _resize_as_before(new)
    _check_names(proto, new, asked)
    _prove_equal(proto, new, model, requests, asked)
    return new


def _resize_as_before(proto: onnx.ModelProto) -> None:
    """State how Upsample, and Resize before operator set 11, placed pixels; the converter doesn't.

    Source: https://github.com/onnx/onnx/blob/main/docs/Changelog.md#Resize-11
    """
    before = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    for graph in graphs(proto.graph):
        for node in graph.node:
            if node.op_type == "Resize":
                stated = {attribute.name for attribute in node.attribute}
                node.attribute.extend(
                    onnx.helper.make_attribute(name, value)
                    for name, value in before.items()
                    if name not in stated
                )


def _check_names(old: onnx.ModelProto, new: onnx.ModelProto, asked: str) -> None:
    """Check that products are still called what they were, since people keep some in float."""
    before, after = (
        {node.name for node in proto.graph.node if node.op_type in COMPUTE_OPS}
        for proto in (old, new)
    )
    if lost := before - after:
        raise CandidateError(f"{asked}; onnx's converter renamed the node {min(lost)!r}")


def _prove_equal(
    old: onnx.ModelProto,
    new: onnx.ModelProto,
    model: Model,
    requests: Sequence[dict[str, Array]],
    asked: str,
) -> None:
    """Check that two graphs give the same answers.

    Raises:
        CandidateError: they don't, or one can't be run; the message says which.
    """
    from hasten.passes.sensitivity import session_of  # which upgrades graphs itself

    names = [value.name for value in old.graph.output]
    try:
        with silenced():
            before, after = session_of(old, model), session_of(new, model)
            pairs = [(before.run(names, one), after.run(names, one)) for one in requests]
    except Exception as error:
        raise CandidateError(
            f"{asked}; the upgraded model can't be compared: {first_line(error)}"
        ) from error
    for wanted, got in pairs:
        for name, own, other in zip(names, wanted, got, strict=True):
            off = _difference(own, other)
            if not off <= _TOLERANCE:
                raise CandidateError(
                    f"{asked}; the model that onnx's converter wrote differs in {name!r}, by "
                    f"{off:.2g} of its largest value"
                )


def _difference(own: Array, other: Array) -> float:
    """Return the largest difference relative to the largest value; infinite for another shape."""
    if own.shape != other.shape or own.dtype != other.dtype:
        return float("inf")
    if own.dtype.kind != "f":
        return 0.0 if np.array_equal(own, other) else float("inf")
    if np.array_equal(own, other, equal_nan=True):
        return 0.0
    apart = np.abs(own.astype(np.float64) - other.astype(np.float64))
    return float(apart.max(initial=0) / max(float(np.abs(own).max(initial=0)), 1e-30))
