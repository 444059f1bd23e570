"""Meanings of CUDA's error codes for a process, and what to do about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hasten.errors import CandidateError, DeviceLost

LOST = frozenset({226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911})
"""Codes after which each further call fails until the process is started again.

Source: CUDA Runtime API, cudaError: those of which it says that "the process must be terminated and
relaunched".
"""
_TOO_OLD_DRIVER, _UNAVAILABLE = 35, 46
_FIRST_DRIVERS = {12: "525", 13: "580"}
"""Major version of CUDA -> oldest branch of NVIDIA's driver for Linux that runs it.

Source: CUDA Toolkit release notes, "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor
Version Compatibility".
"""
_ONE_PROCESS = 3
"""cudaComputeModeExclusiveProcess."""


def explained(runtime: Any, what: str, code: int, root: Path = Path("/")) -> CandidateError:
    """Return an error in one line, with the runtime's own message and what to do, where known.

    Args:
        runtime: CUDA runtime's bindings.
        what: Action that failed: "find a device".
        code: Code that the runtime returned, other than 0.
        root: Folder that holds /sys.
    """
    _, text = runtime.cudaGetErrorString(code)
    said = text.decode() if isinstance(text, bytes) else str(text)
    if code in LOST:
        return DeviceLost(
            f"CUDA can't {what}: {said}: the GPU no longer works in this process: start the "
            "process again"
        )
    advice = ""
    if code == _TOO_OLD_DRIVER:
        advice = _newer_driver(runtime, root)
    elif code == _UNAVAILABLE:
        advice = _other_process(runtime)
    return CandidateError(f"CUDA can't {what}: {said}{advice}")


def _newer_driver(runtime: Any, root: Path) -> str:
    """Say which driver the CUDA runtime needs, and which one there is."""
    ours, theirs = (
        _value(call()) for call in (runtime.cudaRuntimeGetVersion, runtime.cudaDriverGetVersion)
    )
    if ours is None:
        return ""
    branch = _FIRST_DRIVERS.get(ours // 1000, "")
    needed = f": CUDA {_named(ours)} needs NVIDIA's driver {branch or 'of its time'} or newer"
    if not theirs:
        return f"{needed}, but none is loaded here"
    try:
        release = (root / "sys/module/nvidia/version").read_text().strip()
    except OSError:
        release = ""
    return f"{needed}, and this host has {f'{release},' if release else 'one'} for CUDA up to {_named(theirs)}: update it"


def _other_process(runtime: Any) -> str:
    """Say that another process has the GPU, where its compute mode lets in only one."""
    attribute = runtime.cudaDeviceAttr.cudaDevAttrComputeMode
    mode = _value(runtime.cudaDeviceGetAttribute(attribute, 0))
    if mode is None or int(mode) != _ONE_PROCESS:
        return ""
    return (
        ": its compute mode, EXCLUSIVE_PROCESS, allows only one process, and another process has "
        "the GPU: end that process, or allow several with nvidia-smi --compute-mode=DEFAULT"
    )


def _value(result: tuple[Any, ...]) -> Any:
    """Return a call's value; None where it failed."""
    code, *values = result
    return values[0] if int(code) == 0 and values else None


def _named(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}"
