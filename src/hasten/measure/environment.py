"""What a measurement was taken in: versions, host, device, load."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from hasten.core.target import Target

DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "null": (),
    "reference": ("onnx",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "openvino_npu": ("openvino",),
    "openvino_igpu": ("openvino",),
    "litert": ("ai-edge-litert",),
    "fixed_point": ("da4ml",),
    "fpga": ("da4ml",),
    "litert_reference": ("ai-edge-litert",),
    "coreml": ("coremltools", "onnx2coreml", "torch"),
    "qnn": ("onnxruntime-qnn", "onnxruntime"),
    "tensorrt_rtx": (
        "tensorrt-rtx",
        "tensorrt-rtx-cu12-bindings",
        "tensorrt-rtx-cu13-bindings",
        "tensorrt-rtx-cu13-libs",
    ),
    "tensorrt": ("tensorrt", "tensorrt-cu12-bindings", "tensorrt-cu13-bindings"),
    "onnxruntime_cuda": ("onnxruntime-gpu",),
    "torch_cuda": ("torch", "triton"),
    "tpu": ("jax", "jaxlib", "libtpu"),
    "cascade": (),
}
"""Engine -> the packages that its answers stand on, as indexes call them; whichever are installed."""

PACKAGES = tuple(
    dict.fromkeys(
        (
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
            "torchax",
            "hgq2",
            "keras",
            "cuda-bindings",
            *(name for engine in DISTRIBUTIONS.values() for name in engine),
        )
    )
)

DEVICE_FACTS = ("device", "driver")
"""Of an environment, where the target is attached and its kernel says so."""
_RELEASE = re.compile(r"\s(\d+(?:\.\d+)+)\s")


def versions() -> dict[str, str]:
    """Return the versions of the packages that shape a result, those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def environment(target: Target, *, proc: Path = Path("/proc")) -> dict[str, str]:
    """Return the facts that two measurements must share to be compared.

    Args:
        target: What was measured, or is to be.
        proc: Where procfs is mounted.
    """
    return {
        "processor": target.processor,
        "system": target.system,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": str(len(target.cpus)),
        "isa": " ".join(target.isa),
        **(_nvidia(proc) if target.kind == "attached" and target.family == "cuda" else {}),
        **versions(),
    }


def _nvidia(proc: Path) -> dict[str, str]:
    """Return the names of the GPUs that NVIDIA's driver shows, and its version; what can be read of it.

    Source: NVIDIA's driver README, "Proc Interface": /proc/driver/nvidia.
    """
    folder = proc / "driver" / "nvidia"
    models = set()
    for file in folder.glob("gpus/*/information"):
        for line in _lines(file):
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                models.add(value.strip())
    release = next(iter(_RELEASE.findall(" ".join(_lines(folder / "version")[:1]))), "")
    facts = {"device": ", ".join(sorted(models)), "driver": release}
    return {name: value for name, value in facts.items() if value}


def _lines(file: Path) -> list[str]:
    """Return a file's lines; none where it can't be read."""
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []
