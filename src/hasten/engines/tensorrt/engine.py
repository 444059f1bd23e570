"""Engine for TensorRT: plans for the NVIDIA GPU of this host, chosen by timing kernels on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.base import Artifact
from hasten.engines.cuda.pins import pins_for
from hasten.engines.tensorrt.parts import installing
from hasten.engines.tensorrt.plans import PlanEngine, bindings, built
from hasten.errors import CandidateError, InputError

NAMES = ("tensorrt", "tensorrt_bindings")
"""Names of the library's module."""
_OLDEST = (10, 1)
"""Oldest version with strongly typed networks, explicit QDQ, `execute_async_v3` and, since 10.1,
`device_memory_size_v2`."""


@dataclass(frozen=True)
class Tensorrt(PlanEngine):
    """TensorRT, strongly typed: the graph states what is in int8, half precision or float32."""

    distributions: ClassVar[tuple[str, ...]] = (
        "tensorrt",
        "tensorrt-cu12-bindings",
        "tensorrt-cu13-bindings",
    )
    library: ClassVar[str] = "TensorRT"

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield float32 without and with TF32; nothing without the device to build on."""
        if target.kind == "attached":
            yield cls()
            yield cls(tf32=True)

    @classmethod
    def toolkit(cls) -> Any:
        """Return the library's bindings.

        Raises:
            InputError: it isn't installed, or is too old.
        """
        remedy = (
            f"use version {'.'.join(map(str, _OLDEST))} or newer: {installing('')}, which downloads it from NVIDIA's "
            "own index; on a Jetson, JetPack contains it"
        )
        trt = bindings(NAMES, "TensorRT", remedy)
        if tuple(map(int, trt.__version__.split(".")[:2])) < _OLDEST:
            raise InputError(f"TensorRT {trt.__version__} is too old: {remedy}")
        return trt

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Write a plan for this host's GPU, and keep the model beside it.

        Raises:
            CandidateError: there is no GPU, or the library can't take the model; the message names
                the operator and node.
        """
        trt = self.toolkit()
        if target.family != "cuda" or target.kind != "attached":
            raise CandidateError(
                f"TensorRT builds only on the GPU that it builds for, and {target.device} isn't "
                "available: TensorRT for RTX builds without the GPU"
            )
        return built(
            trt,
            model,
            workdir,
            refused=lambda path: (),  # the rules of `profile` are those of TensorRT for RTX
            tf32=self.tf32,
            largest_batch=self.largest_batch,
            configure=lambda config: None,
            pins=pins_for(target, self.library, self.version()),
        )
