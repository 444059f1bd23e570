"""Engine for LiteRT's reference kernels, as interpreters on microcontrollers use them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from hasten.core.target import Target
from hasten.engines.base import Artifact
from hasten.engines.checked import content
from hasten.engines.estimates import Estimate
from hasten.engines.failures import failed
from hasten.engines.litert.engine import LiteRt


@dataclass(frozen=True)
class LiteRtReference(LiteRt):
    """LiteRT's interpreter with its reference kernels, for devices with another interpreter.

    The bundle ships the .tflite file. A device's answers may differ from those given here: LiteRT's
    own three sets of int8 kernels give three different answers, some of them off by one
    quantization step.
    """

    families: ClassVar[frozenset[str]] = frozenset({"litert"})
    kernels: ClassVar[str] = "BUILTIN_REF"
    faithful: ClassVar[bool] = False
    copied_into: ClassVar[tuple[str, ...] | None] = None

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield nothing: these kernels don't use threads."""
        yield from ()

    def estimate(self, artifact: Artifact, target: Target, workdir: Path) -> Estimate:
        """Return the least memory that a device needs, from the file; its time stays unknown.

        Raises:
            CandidateError: the file can't be read.
        """
        from ai_edge_litert import schema_py_generated as schema

        model = content(artifact, artifact.path)
        try:
            graph = schema.ModelT.InitFromPackedBuf(model).subgraphs[0]
        except Exception as error:
            raise failed("LiteRT can't read the model", error) from error
        widths = {
            number: np.dtype(name.lower()).itemsize
            for name, number in vars(schema.TensorType).items()
            if name in ("FLOAT32", "INT32", "INT64", "INT16", "INT8", "UINT8", "BOOL")
        }
        figures = {
            "file_size_bytes": float(len(model)),
            "activations_peak_size_bytes": float(_peak(graph, widths)),
        }
        return Estimate("none", figures=figures)

    def words(self) -> str:
        return "LiteRT reference kernels"


def _peak(graph: Any, widths: dict[int, int]) -> int:
    """Return the peak size in bytes of the tensors alive at once, in the file's order."""
    computed = {int(t) for operator in graph.operators for t in operator.outputs}
    computed |= set(map(int, graph.inputs))
    last = dict.fromkeys(map(int, graph.outputs), len(graph.operators))
    for step, operator in reversed(list(enumerate(graph.operators))):
        for tensor in map(int, operator.inputs):
            last.setdefault(tensor, step)
    sizes = {
        tensor: int(np.prod(graph.tensors[tensor].shape)) * widths[graph.tensors[tensor].type]
        for tensor in computed
    }
    alive, peak = set(map(int, graph.inputs)), 0
    for step, operator in enumerate(graph.operators):
        alive |= set(map(int, operator.outputs))
        peak = max(peak, sum(sizes[tensor] for tensor in alive))
        alive = {tensor for tensor in alive if last.get(tensor, -1) > step}
    return peak
