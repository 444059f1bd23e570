"""TensorRT for RTX: plans for NVIDIA's GPUs that are built without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.estimates import Estimate
from hasten.engines.tensorrt_plans import answering, built, estimated, toolkit
from hasten.engines.tensorrt_profile import violations
from hasten.errors import CandidateError
from hasten.model import Format, Model
from hasten.target import Target


@dataclass(frozen=True)
class TensorrtRtx(Engine):
    """TensorRT for RTX, strongly typed: the graph says what is in int8, in half precision and in float32.

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
        """Yield float32 as it is, and where the device is, TF32: elsewhere the two answer and cost the same."""
        yield cls()
        if target.kind == "attached":
            yield cls(tf32=True)

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield one request at a time."""
        if target.kind == "attached" and self.largest_batch > 1:
            yield replace(self, largest_batch=1)

    @classmethod
    def version(cls) -> str:
        """Return the library's version.

        Raises:
            InputError: it isn't installed.
        """
        return str(_toolkit().__version__)

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Write a plan for the target's GPU, or for this host's, and keep the model beside it.

        Raises:
            CandidateError: the library can't take the model: which operator, which node.
        """
        trt = _toolkit()
        if target.family != "cuda":
            raise CandidateError(
                f"TensorRT makes plans for NVIDIA's GPUs; the target is {target.device}"
            )
        attached = target.kind == "attached"

        def configure(config: Any) -> None:
            known = trt.ComputeCapability.__members__
            part = "CURRENT" if attached else target.part.upper()
            if part not in known:
                those = ", ".join(name.lower() for name in known if name.startswith("SM"))
                raise CandidateError(
                    f"TensorRT for RTX {trt.__version__} builds for {those}; the target is {target.part}"
                )
            config.num_compute_capabilities = 1
            config.set_compute_capability(known[part], 0)

        return built(
            trt,
            model,
            workdir,
            refused=lambda path: violations(path, "" if attached else target.part),
            tf32=self.tf32,
            largest_batch=self.largest_batch,
            configure=configure,
        )

    def open(self, artifact: Artifact, target: Target) -> AbstractContextManager[Session]:
        """Load the plan where the device is; elsewhere answer from the model on this host.

        Raises:
            CandidateError: it can't be loaded.
        """
        trt = _toolkit() if target.kind == "attached" else None
        return answering(artifact, target, self.largest_batch, trt=trt, graph=self.cuda_graph)

    def estimate(self, artifact: Artifact, target: Target, workdir: Path) -> Estimate:
        """Return the plan's sizes: the library says nothing of its time without the device."""
        return estimated(artifact)


def _toolkit() -> Any:
    return toolkit(
        ("tensorrt_rtx", "tensorrt_rtx_bindings"),
        "TensorRT for RTX",
        "pip install 'hasten[gpu]'",
    )
