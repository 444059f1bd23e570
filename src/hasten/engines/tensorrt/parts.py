"""NVIDIA's GPUs by compute capability: which TensorRT takes each, and how that TensorRT is installed."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from hasten.core.target import Target

OLDEST = "sm75"
"""Oldest part that TensorRT since 10.5, and CUDA 13, still take."""


@dataclass(frozen=True)
class Capability:
    """GPUs of one compute capability.

    Attributes:
        devices: Examples, for people.
        rtx: Whether TensorRT for RTX builds for them.
        float8: Whether they have float8.
        jetson: Whether they are modules of the Jetson family, whose JetPack brings TensorRT.
    """

    devices: str
    rtx: bool = False
    float8: bool = False
    jetson: bool = False


PARTS: Mapping[str, Capability] = {
    "sm75": Capability("T4, RTX 20", rtx=True),
    "sm80": Capability("A100, A30", rtx=True),
    "sm86": Capability("A10, RTX 30", rtx=True),
    "sm87": Capability("Jetson Orin", jetson=True),
    "sm89": Capability("L4, L40, RTX 40", rtx=True, float8=True),
    "sm90": Capability("H100, H200, GH200", float8=True),
    "sm100": Capability("B200, GB200", float8=True),
    "sm103": Capability("B300, GB300", float8=True),
    "sm110": Capability("Jetson Thor", float8=True, jetson=True),
    "sm120": Capability("RTX 50, RTX PRO Blackwell", rtx=True, float8=True),
    "sm121": Capability("GB10 of the DGX Spark", rtx=True, float8=True),
}
"""Every part that a target can name.

TensorRT for RTX takes the parts in its builder's `ComputeCapability`. NVIDIA's page "CPU-Only AOT and
TensorRT-RTX Engines" names sm80 too, which its support matrix leaves out.
"""

RTX_PARTS = tuple(name for name, part in PARTS.items() if part.rtx)
"""Parts that TensorRT for RTX builds for."""


def rtx_runs_here() -> bool:
    """Whether TensorRT for RTX has a library for this host's processor; for aarch64 since 1.6."""
    return platform.machine() in ("x86_64", "AMD64", "aarch64")


def installing_rtx() -> str:
    """Return what installs TensorRT for RTX on this host.

    The extra leaves it out on aarch64, where its wheels need glibc 2.35, newer than all others do.
    """
    if not rtx_runs_here():
        return f"it has no library for this processor; TensorRT has: {installing('')}"
    if platform.machine() == "aarch64":
        return "pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs"
    return "pip install 'hasten[gpu]'"


def installing(part: str) -> str:
    """Return what installs TensorRT on a host with a GPU of this part."""
    known = PARTS.get(part)
    jetson = known is not None and known.jetson
    return "NVIDIA's JetPack contains it" if jetson else "pip install tensorrt-cu13"


def no_rtx(part: str, target: Target) -> str:
    """Return why TensorRT for RTX makes nothing for a part, and what to do; "" where it does.

    Args:
        part: Part of the target's GPU: "sm90"; "" where it isn't known.
        target: Target of family "cuda".
    """
    attached = target.kind == "attached"
    if not part or (part in RTX_PARTS and (rtx_runs_here() or not attached)):
        return ""
    if _number(part) < _number(OLDEST):
        return f"{part} is older than {OLDEST}, the oldest GPU that TensorRT and CUDA 13 support"
    builds = f"TensorRT for RTX builds for {', '.join(RTX_PARTS)}"
    if part in RTX_PARTS:
        builds = f"TensorRT for RTX has no library for {platform.machine()}"
    if attached:
        return f"{builds}; this GPU, {part}, needs TensorRT: {installing(part)}"
    return (
        f"nothing builds for {part} without that GPU: {builds}, and TensorRT builds only on the GPU "
        f'itself: on a host that has one, use target="cuda" ({installing(part)})'
    )


def _number(part: str) -> int:
    """Return the number in a part's name: 90 of "sm90"."""
    digits = part.removeprefix("sm")
    return int(digits) if digits.isdecimal() else 0
