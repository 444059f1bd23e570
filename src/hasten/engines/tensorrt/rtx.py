"""Engine for TensorRT for RTX, which builds plans for NVIDIA's GPUs without one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.artifacts import answer_once
from hasten.engines.base import Artifact, Session
from hasten.engines.cache_keys import cache_key
from hasten.engines.compile_cache import CompileCache
from hasten.engines.cuda.capability import known_part
from hasten.engines.cuda.pins import check_pins, pins_for
from hasten.engines.tensorrt.engine import NAMES
from hasten.engines.tensorrt.kernels import KeptKernels
from hasten.engines.tensorrt.parts import installing_rtx, no_rtx
from hasten.engines.tensorrt.plans import PlanEngine, answering, bindings, built
from hasten.engines.tensorrt.profile import violations
from hasten.errors import CandidateError


@dataclass(frozen=True)
class TensorrtRtx(PlanEngine):
    """TensorRT for RTX, strongly typed: the graph states each precision (int8, half, float32)."""

    distributions: ClassVar[tuple[str, ...]] = (
        "tensorrt-rtx",
        "tensorrt-rtx-cu12-bindings",
        "tensorrt-rtx-cu13-bindings",
        "tensorrt-rtx-cu13-libs",
    )
    extra: ClassVar[str] = "gpu"
    library: ClassVar[str] = "TensorRT for RTX"

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield float32 and, on the device, TF32, which makes no difference elsewhere.

        Nothing for a GPU that the library doesn't take.
        """
        if _reason(target):
            return
        yield cls()
        if target.kind == "attached":
            yield cls(tf32=True)

    @classmethod
    def unsuited(cls, target: Target) -> str:
        """Return why the library doesn't take the target's GPU, and which TensorRT does.

        Empty where that one is here already.
        """
        there = target.kind == "attached" and any(map(find_spec, NAMES))
        return "" if there else _reason(target)

    @classmethod
    def toolkit(cls) -> Any:
        """Return the library's bindings.

        Raises:
            InputError: it isn't installed.
        """
        names = ("tensorrt_rtx", "tensorrt_rtx_bindings")
        return bindings(names, cls.library, installing_rtx())

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Write a plan for the target's GPU, or for this host's, and keep the model beside it.

        Raises:
            CandidateError: the library can't take the model (the message names the operator and
                node), or the target's GPU.
        """
        trt = self.toolkit()
        if target.family != "cuda":
            raise CandidateError(
                f"TensorRT makes plans for NVIDIA's GPUs, but the target is {target.device}"
            )
        if why := _reason(target):
            raise CandidateError(why)
        attached = target.kind == "attached"

        def configure(config: Any) -> None:
            known = trt.ComputeCapability.__members__
            part = "CURRENT" if attached else target.part.upper()
            if part not in known:
                those = ", ".join(name.lower() for name in known if name.startswith("SM"))
                raise CandidateError(
                    f"TensorRT for RTX {trt.__version__} builds for {those}, but the target is "
                    f"{target.part}"
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
            pins=pins_for(target, self.library, self.version()),
        )

    @property
    def keeps_compiled(self) -> bool:
        """Whether kernels that the library compiles on the GPU are kept."""
        return True

    @contextmanager
    def open_cached(
        self, artifact: Artifact, target: Target, compiled: CompileCache
    ) -> Iterator[Session]:
        """Load the plan as `open` does, with the kernels that an earlier start compiled for this GPU.

        Raises:
            CandidateError: the plan was made for another GPU or version of the library, or can't be
                loaded.
        """
        if target.kind != "attached":
            with self.open(artifact, target) as session:
                yield session
            return
        trt, here = self.toolkit(), check_pins(artifact, self.library, self.version())
        what = f"kernels for {here.part} and CUDA {here.driver}"
        kept = KeptKernels(compiled, cache_key(compiled, self, artifact, target, what))
        with answering(
            artifact, target, self.largest_batch, trt=trt, graph=self.cuda_graph, kept=kept
        ) as session:
            answer_once(session, artifact)
            kept.keep()
            try:
                yield session
            finally:
                kept.keep()  # those for other sizes, too


def _reason(target: Target) -> str:
    """Return why the library doesn't take the target's GPU; "" where it does, or where nobody can tell."""
    return no_rtx(known_part(target), target) if target.family == "cuda" else ""
