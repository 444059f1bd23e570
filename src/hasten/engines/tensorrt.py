"""TensorRT: plans for the NVIDIA GPU of this host, chosen by timing kernels on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.estimates import Estimate
from hasten.engines.tensorrt_plans import answering, built, estimated, toolkit
from hasten.errors import CandidateError
from hasten.model import Format, Model
from hasten.target import Target

_OLDEST = 10
"""Strongly typed networks, explicit QDQ and `execute_async_v3` are in all since."""


@dataclass(frozen=True)
class Tensorrt(Engine):
    """TensorRT, strongly typed: the graph says what is in int8, in half precision and in float32.

    Attributes:
        tf32: Whether products of float32 may round their operands to 10 bits.
        largest_batch: The most requests at once, where the model's first axis is open.
        cuda_graph: Whether a request's copies and kernels go as one CUDA graph.
    """

    formats: ClassVar[frozenset[Format]] = frozenset({"onnx"})
    settles: ClassVar[bool] = True
    faithful: ClassVar[bool] = False

    tf32: bool = False
    largest_batch: int = 32
    cuda_graph: bool = True

    @property
    def exact(self) -> bool:
        """Without TF32."""
        return not self.tf32

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield float32 as it is, and TF32; nothing without the device, which it builds on."""
        if target.kind == "attached":
            yield cls()
            yield cls(tf32=True)

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield one request at a time."""
        if target.kind == "attached" and self.largest_batch > 1:
            yield replace(self, largest_batch=1)

    @classmethod
    def version(cls) -> str:
        """Return the library's version.

        Raises:
            InputError: it isn't installed, or too old.
        """
        return str(_toolkit().__version__)

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Write a plan for this host's GPU, and keep the model beside it.

        Raises:
            CandidateError: there is no GPU, or the library can't take the model: which operator, which node.
        """
        trt = _toolkit()
        if target.family != "cuda" or target.kind != "attached":
            raise CandidateError(
                f"TensorRT builds on the GPU that it builds for, and {target.device} isn't here: "
                "TensorRT for RTX builds without it"
            )
        return built(
            trt,
            model,
            workdir,
            refused=lambda path: (),  # the profile's rules are those of TensorRT for RTX
            tf32=self.tf32,
            largest_batch=self.largest_batch,
            configure=lambda config: None,
        )

    def open(self, artifact: Artifact, target: Target) -> AbstractContextManager[Session]:
        """Load the plan; elsewhere than on its GPU answer from the model on this host.

        Raises:
            CandidateError: it can't be loaded.
        """
        trt = _toolkit() if target.kind == "attached" else None
        return answering(artifact, target, self.largest_batch, trt=trt, graph=self.cuda_graph)

    def estimate(self, artifact: Artifact, target: Target, workdir: Path) -> Estimate:
        """Return the plan's sizes."""
        return estimated(artifact)


def _toolkit() -> Any:
    return toolkit(
        ("tensorrt", "tensorrt_bindings"),
        "TensorRT",
        f"take version {_OLDEST} or newer from NVIDIA's own index, or TensorRT for RTX: "
        "pip install 'hasten[gpu]'",
    )
