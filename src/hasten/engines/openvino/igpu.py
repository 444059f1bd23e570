"""Engine for OpenVINO on an Intel graphics processor that shares the processor's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from hasten.core.target import Target
from hasten.core.words import listed
from hasten.engines.openvino.engine import OpenVino
from hasten.engines.openvino.runtime import new_core
from hasten.errors import InputError


@dataclass(frozen=True)
class OpenVinoIgpu(OpenVino):
    """OpenVINO's GPU plugin with one stream, set for latency.

    Attributes:
        device: Name of the device in OpenVINO; empty for the first integrated GPU.
    """

    families: ClassVar[frozenset[str]] = frozenset({"igpu"})
    faithful: ClassVar[bool] = False
    copied_into: ClassVar[tuple[str, ...] | None] = None

    device: str = ""

    @property
    def plugin(self) -> str:
        """Name of the device in OpenVINO.

        Raises:
            InputError: there is no integrated GPU.
        """
        return self.device or integrated(new_core())

    @property
    def keeps_compiled(self) -> bool:
        """False: what it compiles depends on the device's driver, too."""
        return False

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield f32, and f16, in which the GPU is fastest."""
        yield cls()
        yield cls("f16")

    def tunings(self, target: Target) -> Iterator[Self]:
        """Yield nothing: the processor's threads don't matter."""
        yield from ()

    @classmethod
    def version(cls) -> str:
        """Return OpenVINO's version.

        Raises:
            InputError: it isn't installed, or finds no integrated GPU.
        """
        version = super().version()
        integrated(new_core())
        return version

    def _settings(self, target: Target) -> dict[str, Any]:
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": self.precision,
        }

    def words(self) -> str:
        return listed(
            "" if self.precision == "f32" else self.precision,
            self._narrowing(),
            f"OpenVINO on {self.device or 'the integrated GPU'}",
        )


def integrated(core: Any) -> str:
    """Return the name in OpenVINO of the first integrated GPU.

    Raises:
        InputError: OpenVINO finds none.
    """
    for device in core.available_devices:
        if device.startswith("GPU") and "INTEGRATED" in str(
            core.get_property(device, "DEVICE_TYPE")
        ):
            return str(device)
    there = ", ".join(core.available_devices)
    raise InputError(
        f"OpenVINO finds no integrated GPU here (it has: {there}); if this host has one, "
        "install Intel's compute runtime"
    )
