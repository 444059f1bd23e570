"""The environment of a measurement: versions, host, device, load."""

from __future__ import annotations

import functools
import platform
import re
from collections.abc import Iterable
from pathlib import Path

from hasten.core.registry import plugins
from hasten.core.target import Target
from hasten.core.versions import installed_version
from hasten.engines.base import Engine
from hasten.engines.installed import tried_on

_LIBRARIES = (
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
)
"""Packages that shape a result on any engine: they make, convert and quantize models."""

DEVICE_FACTS = ("device", "driver")
"""Facts about an attached device, which an environment has where the kernel reports them."""
SOURCE = "hasten installed from"
"""Name of the fact whether hasten came from an index, where others find it, or from elsewhere."""
INDEX = "an index"
_RELEASE = re.compile(r"\s(\d+(?:\.\d+)+)\s")


def packages() -> tuple[str, ...]:
    """Return the packages that shape a result, by their names in an index, installed or not."""
    engines = (name for kind in Engine.members().values() for name in kind.distributions)
    added = (plugin.distribution for plugin in plugins())
    return tuple(dict.fromkeys((*_LIBRARIES, *engines, *added)))


def versions(of: Iterable[str] | None = None) -> dict[str, str]:
    """Return the versions of packages that are installed.

    Args:
        of: Names of packages; by default all that shape a result.
    """
    found = {name: installed_version(name) for name in (packages() if of is None else of)}
    return {name: version for name, version in found.items() if version is not None}


def environment(
    target: Target, *, of: Iterable[str] | None = None, proc: Path = Path("/proc")
) -> dict[str, str]:
    """Return the facts that two measurements must share to be compared.

    Args:
        target: Device that was measured, or is to be.
        of: Names of the packages that matter; by default all that shape a result.
        proc: Path at which procfs is mounted.
    """
    return {
        "processor": target.processor,
        "system": target.system,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": str(len(target.cpus)),
        "isa": " ".join(target.isa),
        **(_nvidia(proc) if target.kind == "attached" and target.family == "cuda" else {}),
        **versions(of),
        **({SOURCE: _source()} if of is None else {}),
        **(_programs() if of is None and target.kind == "host" else {}),
        **(_plugins() if of is None else {}),
    }


@functools.cache
def _source() -> str:
    """Return where hasten was installed from: an index, or a folder or repository.

    Source: the record of direct URLs in packages' metadata (PEP 610), which an index leaves out.
    """
    from importlib import metadata

    try:
        direct = metadata.distribution("hasten").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return "a folder"
    return INDEX if direct is None else "a folder or a repository"


def _programs() -> dict[str, str]:
    """Return the versions of programs that make models for this host, such as its C compiler."""
    kinds = [Engine.member(name) for name in tried_on("host")]
    return {name: version for kind in kinds for name, version in kind.tools().items()}


def _plugins() -> dict[str, str]:
    """Return the packages that add members to hasten, by group and name."""
    return {f"{one.group}:{one.name}": one.distribution for one in plugins()}


def _nvidia(proc: Path) -> dict[str, str]:
    """Return the names of the GPUs and the release of NVIDIA's driver, as far as it reports them.

    A Jetson has no GPU of its own there: its board is named by the device tree.

    Source: NVIDIA's driver README, "Proc Interface": /proc/driver/nvidia; Devicetree Specification,
    "Root node", property `model`.
    """
    folder = proc / "driver" / "nvidia"
    models = set()
    for file in folder.glob("gpus/*/information"):
        for line in _lines(file):
            name, _, value = line.partition(":")
            if name.strip() == "Model":
                models.add(value.strip())
    if not models:
        models.update(line.strip(" \0") for line in _lines(proc / "device-tree" / "model")[:1])
    release = next(iter(_RELEASE.findall(" ".join(_lines(folder / "version")[:1]))), "")
    facts = {"device": ", ".join(sorted(models)), "driver": release}
    return {name: value for name, value in facts.items() if value}


def _lines(file: Path) -> list[str]:
    """Return a file's lines; none where it can't be read."""
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []
