"""Facts about a CUDA device that code compiled for it depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hasten.engines.cuda.error_codes import explained
from hasten.engines.cuda.runtime import cuda_runtime, named


@dataclass(frozen=True)
class DeviceFacts:
    """Device that code is compiled for.

    Attributes:
        part: Compute capability, as in "sm90".
        driver: Version of CUDA that the driver supports, as in "13.0".
        name: Name by the runtime, as in "NVIDIA A10"; devices of one capability may differ by it.
    """

    part: str
    driver: str
    name: str = ""


def device_facts(runtime: Any = None) -> DeviceFacts:
    """Return the facts of the first CUDA device.

    Args:
        runtime: Module `cuda.bindings.runtime`; None to import it.

    Raises:
        InputError: the bindings aren't installed.
        CandidateError: there is no device, or no driver for it.
    """
    rt = runtime or cuda_runtime()
    attributes = rt.cudaDeviceAttr
    major = _told(rt, rt.cudaDeviceGetAttribute(attributes.cudaDevAttrComputeCapabilityMajor, 0))
    minor = _told(rt, rt.cudaDeviceGetAttribute(attributes.cudaDevAttrComputeCapabilityMinor, 0))
    driver = cuda_version(int(_told(rt, rt.cudaDriverGetVersion())))
    name = named(_told(rt, rt.cudaGetDeviceProperties(0)))
    return DeviceFacts(f"sm{int(major)}{int(minor)}", driver, name)


def cuda_version(number: int) -> str:
    """Return a version of CUDA as people write it: "13.0" for 13000; "none" for 0."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else "none"


def _told(rt: Any, result: tuple[Any, ...]) -> Any:
    code, *values = result
    if int(code) != 0:
        raise explained(rt, "look at the device", code)
    return values[0]
