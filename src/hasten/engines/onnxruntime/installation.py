"""Packages that hold ONNX Runtime, of which one must be installed: they share a folder.

`onnxruntime`, `onnxruntime-gpu` and the other builds each write the whole folder `onnxruntime`. No package can
declare that it excludes another, so pip installs several: the last one overwrites what it shares with the
others, and removing one removes the shared files. See https://github.com/microsoft/onnxruntime/issues/26996.
"""

from __future__ import annotations

import platform
from typing import Any

from hasten.core.telemetry import import_quietly
from hasten.errors import InputError

GPU = "onnxruntime-gpu"
CUDA = "CUDAExecutionProvider"
GPU_MACHINES = ("x86_64", "AMD64", "aarch64")
"""Processors for which there are wheels of `onnxruntime-gpu`, by the names that Python has for them."""
_MODULE = "onnxruntime"
_BUILDS = (
    *("onnxruntime", GPU, "onnxruntime-cann", "onnxruntime-directml", "onnxruntime-migraphx"),
    *("onnxruntime-openvino", "onnxruntime-qnn", "onnxruntime-rocm", "onnxruntime-training"),
    *("onnxruntime-vitisai", "ort-nightly", "ort-nightly-gpu"),
)
"""Packages that hold the module, or did in some version: each is asked, as reading the lists of files of all packages is slow."""


def installed() -> tuple[str, ...]:
    """Return the installed packages that hold the module `onnxruntime`, by their metadata."""
    from importlib import metadata  # takes as long as opening a small model does

    found = []
    for name in _BUILDS:
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        folders = package.read_text("top_level.txt")
        if folders is None:
            record = (package.read_text("RECORD") or "").splitlines()
            folders = " ".join(line.partition("/")[0] for line in record)
        if _MODULE in folders.split():
            found.append(name)
    return tuple(found)


def load() -> Any:
    """Return the module `onnxruntime`.

    Raises:
        ImportError: no package holds it, or it can't be imported.
        InputError: files of it are missing, as after one of two packages was removed.
    """
    module = import_quietly("onnxruntime")
    if not hasattr(module, "InferenceSession"):
        kept = (*installed(), "onnxruntime")[0]
        raise InputError(
            "ONNX Runtime's folder lacks files, which happens when one of two packages is removed: "
            f"{_leaving(kept)}"
        )
    return module


def fault() -> str:
    """Say what is wrong with the installed packages, and what to do; "" where nothing is.

    Two packages are a fault even while all works: the next upgrade of one breaks the other.
    """
    names = installed()
    try:
        cuda = CUDA in load().get_available_providers()
    except ImportError:
        cuda = False
    except InputError as error:
        return str(error)
    if len(names) > 1:
        lost = ", and the loaded library has no CUDA" if GPU in names and not cuda else ""
        return (
            f"{' and '.join(names)} are installed into the same folder, and each overwrites the "
            "other's files"
            f"{lost}: {_leaving(GPU if GPU in names else names[0])}"
        )
    if names == (GPU,) and not cuda:
        return (
            f"{GPU} is installed, but the loaded library has no CUDA, which happens when another "
            "package overwrites it: "
            f"{_leaving(GPU)}"
        )
    return ""


def without_cuda() -> str:
    """Say why the loaded ONNX Runtime has no CUDA, and what to do."""
    if known := fault():
        return known
    version = load().__version__
    if platform.machine() not in GPU_MACHINES:
        return (
            f"this ONNX Runtime, {version}, has no CUDA, and {GPU} has no wheel for "
            f"{platform.machine()}: use TensorRT or torch"
        )
    return f"this ONNX Runtime, {version}, has no CUDA: {_leaving(GPU)}"


def _leaving(kept: str) -> str:
    """Return the line that removes every package and installs one, whole."""
    names = installed()
    removed = f"pip uninstall -y {' '.join(names)} && " if names else ""
    return f"{removed}pip install {kept}"
