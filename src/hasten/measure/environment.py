"""What a measurement was taken in: versions, host, load."""

from __future__ import annotations

import os
import platform
from importlib import metadata

from hasten.target import Target

PACKAGES = (
    "hasten",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "onnxslim",
    "torch",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13-bindings",
)


def versions() -> dict[str, str]:
    """Return the versions of the packages that shape a result, those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(target: Target) -> dict[str, str]:
    """Return the facts that two measurements must share to be compared."""
    return {
        "processor": target.processor,
        "system": target.system,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": str(len(target.cpus)),
        "isa": " ".join(target.isa),
        **versions(),
    }


def load_average() -> float:
    """Return the one-minute load average: how busy the host was."""
    return os.getloadavg()[0]
