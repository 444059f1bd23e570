"""Clocks, power and temperature of an NVIDIA GPU, and who else computes on it, by NVML."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.errors import told

_CLOCK_SM, _TEMPERATURE_GPU = 1, 0
"""NVML's numbers of a clock and a sensor, whose names differ between versions of the bindings.
Source: nvml.h, nvmlClockType_t and nvmlTemperatureSensors_t."""
_SLOWED = 0x8 | 0x20 | 0x40 | 0x80
"""NVML's reasons for lower clocks that pass: a slowdown by the hardware, heat as its driver sees it, heat as
the hardware sees it, and power that is missing. The power limit isn't among them, since a GPU under load may
stay at it. Source: nvml.h, nvmlClocksEventReasons."""


@dataclass(frozen=True)
class Reading:
    """State of a GPU at one moment; None for what it doesn't tell.

    Attributes:
        clock_mhz: Clock of its processors.
        highest_mhz: Highest clock that its processors can have.
        power_w: Power that it draws, on most GPUs the mean of the last second.
        temperature_c: Its temperature.
        held_back: Reasons that keep its clocks low, in NVML's words; empty if there are none.
        slowed: The part of `held_back` that passes: heat, and power that is missing.
    """

    clock_mhz: int | None = None
    highest_mhz: int | None = None
    power_w: float | None = None
    temperature_c: int | None = None
    held_back: tuple[str, ...] | None = None
    slowed: tuple[str, ...] = ()

    def text(self) -> dict[str, str]:
        """Return what is known as text, by name with the unit."""
        known = {name: value for name, value in vars(self).items() if name != "slowed"}
        if self.held_back is not None:
            known["held_back"] = ", ".join(self.held_back) or "nothing"
        return {f"gpu_{name}": str(value) for name, value in known.items() if value is not None}


class Gauge:
    """Reader of one GPU's state.

    Args:
        nvml: Module `cuda.bindings.nvml`, initialized; None where nothing can be read.
        why: Reason why nothing can be read, in one line.
        handle: The GPU's handle.
    """

    def __init__(self, nvml: Any, why: str, handle: int = 0) -> None:
        self.why = why
        self._nvml, self._handle, self._seen_us = nvml, handle, 0

    def reading(self) -> Reading | None:
        """Return the GPU's state now; None where it can't be read."""
        nvml = self._nvml
        if nvml is None:
            return None
        bits = self._told("device_get_current_clocks_event_reasons")
        power_mw = self._told("device_get_power_usage")
        reasons = [one for one in nvml.ClocksEventReasons if int(one) & (bits or 0)]
        return Reading(
            self._told("device_get_clock_info", _CLOCK_SM),
            self._told("device_get_max_clock_info", _CLOCK_SM),
            None if power_mw is None else power_mw / 1000,
            self._told("device_get_temperature_v", _TEMPERATURE_GPU),
            None if bits is None else tuple(map(_words, reasons)),
            tuple(_words(one) for one in reasons if int(one) & _SLOWED),
        )

    def busy(self, proc: Path = Path("/proc")) -> set[int]:
        """Return the processes of this host that computed on the GPU since the last call.

        Empty where NVML doesn't tell, as in MIG mode. Numbers that this host doesn't have, as those of
        processes outside a container, are left out.

        Args:
            proc: Path at which procfs is mounted.
        """
        found = set()
        if self._nvml is not None:
            first = not self._seen_us  # what it says then may be of before
            samples = self._told("device_get_process_utilization", self._seen_us)
            for number in range(0 if samples is None else len(samples)):
                sample = samples[number]
                self._seen_us = max(self._seen_us, int(sample.time_stamp))
                if sample.sm_util and not first and (proc / str(sample.pid)).exists():
                    found.add(int(sample.pid))
        return found

    def _told(self, name: str, *arguments: Any) -> Any:
        """Return what a function of NVML says of the GPU; None where the GPU doesn't support it.

        None also where the driver's library is older than the function. The bindings say that by a
        RuntimeError that isn't an NvmlError, and have no names for the older functions.
        """
        with suppress(self._nvml.NvmlError, RuntimeError):
            return getattr(self._nvml, name)(self._handle, *arguments)
        return None


def _words(reason: Any) -> str:
    return str(reason.name).partition("_REASON_")[2].replace("_", " ").lower()


def gauge_of(runtime: Any) -> Gauge:
    """Return the gauge of CUDA's first device.

    Args:
        runtime: Module `cuda.bindings.runtime`.
    """
    lead = "the GPU's clocks can't be read"
    try:
        from cuda.bindings import nvml
    except ImportError as error:
        return Gauge(None, f"{lead} ({error}): pip install --upgrade 'cuda-bindings>=12.9.6'")
    code, place = runtime.cudaDeviceGetPCIBusId(64, 0)
    if int(code):
        _, text = runtime.cudaGetErrorString(code)
        return Gauge(None, f"{lead}: {text.decode()}")
    try:
        nvml.init_v2()
        handle = nvml.device_get_handle_by_pci_bus_id_v2(place.decode().rstrip("\0"))
    except Exception as error:
        return Gauge(None, f"{lead}: {told(error)}")
    return Gauge(nvml, "", handle)
