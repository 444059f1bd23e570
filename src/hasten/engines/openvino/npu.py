"""Engine for OpenVINO on an Intel neural processing unit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.artifacts import place, settled_request
from hasten.engines.base import Artifact
from hasten.engines.openvino.engine import OpenVino, converted
from hasten.engines.openvino.runtime import new_core
from hasten.errors import InputError


@dataclass(frozen=True)
class OpenVinoNpu(OpenVino):
    """OpenVINO's NPU plugin, set for latency, with settled shapes and floats in f16.

    Attributes:
        device: Name of the device in OpenVINO.
    """

    families: ClassVar[frozenset[str]] = frozenset({"npu"})
    faithful: ClassVar[bool] = False
    copied_into: ClassVar[tuple[str, ...] | None] = None

    precision: Literal["f32", "f16", "bf16"] = "f16"
    device: str = "NPU"

    @property
    def plugin(self) -> str:
        """Name of the device in OpenVINO."""
        return self.device

    @property
    def keeps_compiled(self) -> bool:
        """False: what it compiles depends on the device's driver, too."""
        return False

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the only variant: the NPU has no other float arithmetic."""
        yield cls()

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield nothing: the processor's threads don't matter."""
        yield from ()

    @classmethod
    def version(cls) -> str:
        """Return OpenVINO's version.

        Raises:
            InputError: it isn't installed, or finds no NPU.
        """
        version = super().version()
        there = new_core().available_devices
        if "NPU" not in there:
            raise InputError(
                f"OpenVINO finds no NPU here (it has: {', '.join(there)}); "
                "if this host has one, install Intel's NPU driver"
            )
        return version

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Convert the model to IR, and check that it can be compiled for its request's shapes.

        Raises:
            CandidateError: the model can't be converted or compiled, or a shape is open.
        """
        settled = settled_request(model, "the NPU")
        artifact = (
            place(model, workdir) if model.format == "openvino" else converted(model, workdir)
        )
        artifact = replace(artifact, inputs=settled)
        self._compile(artifact, target, settled)
        return artifact

    def _settings(self, target: Target) -> dict[str, Any]:
        return {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self.precision}

    def words(self) -> str:
        return f"{self.precision}, OpenVINO on {self.device}"
