"""Ranges of the values in every tensor of a graph, as seen on calibration samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime

from hasten.core.tensors import Array, Tensors
from hasten.errors import CandidateError


@dataclass(frozen=True)
class ElementRange:
    """Least and greatest value of each element, as arrays of a tensor's shape with batch 1."""

    low: Array
    high: Array

    def by_channel(self) -> ElementRange:
        """Return each channel's range, spread over its elements; a vector's stay as they are."""
        if self.low.ndim < 3:
            return self
        axes = tuple(a for a in range(self.low.ndim) if a != 1)
        return ElementRange(
            np.broadcast_to(self.low.min(axis=axes, keepdims=True), self.low.shape),
            np.broadcast_to(self.high.max(axis=axes, keepdims=True), self.high.shape),
        )


def observed(proto: onnx.ModelProto, requests: Iterable[Tensors]) -> Mapping[str, ElementRange]:
    """Run a float graph on samples, and record the range of every tensor.

    Args:
        proto: Float graph with all shapes settled.
        requests: Calibration samples, each a batch of 1.

    Raises:
        CandidateError: ONNX Runtime can't run the graph, or a value isn't finite.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    known = {value.name for value in watched.graph.output}
    inner = [name for node in proto.graph.node for name in node.output if name]
    watched.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in inner if name not in known
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        ranges: dict[str, ElementRange] = {}
        for request in requests:
            values = dict(zip(names, session.run(names, dict(request)), strict=True))
            for name, value in (*request.items(), *values.items()):
                array = np.asarray(value)
                if array.dtype.kind not in "fiub":
                    continue
                if not np.isfinite(array).all():
                    raise CandidateError(f"a calibration sample makes {name!r} infinite or NaN")
                so_far = ranges.get(name)
                wide = array.astype(np.float64)
                ranges[name] = (
                    ElementRange(wide, wide)
                    if so_far is None
                    else ElementRange(np.minimum(so_far.low, wide), np.maximum(so_far.high, wide))
                )
    except CandidateError:
        raise
    except Exception as error:
        raise CandidateError(
            f"ONNX Runtime can't run the model to observe its ranges: {error}"
        ) from error
    return ranges
