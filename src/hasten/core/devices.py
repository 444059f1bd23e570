"""The devices that a model can be made for, and whether this host has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hasten.core.target import Target
from hasten.errors import InputError


@dataclass(frozen=True)
class Family:
    """Devices that one set of engines makes models for: those that state it among their families.

    Attributes:
        noun: What they are.
        parts: The devices' names within the family, the default first; empty where there is but one.
        present: Whether a host has one, by its /sys and /dev.
        program: Whether its engines take the framework's program and not ONNX: not at all, some do,
            or all, so that there has to be one.
        selective: Whether of the passes that may change answers only those are tried that state it
            among their families.
    """

    noun: str
    parts: tuple[str, ...]
    present: Callable[[Path], bool]
    program: Literal["not taken", "taken", "needed"] = "not taken"
    selective: bool = False


def _nowhere(root: Path) -> bool:
    """Whether a host has a device that is always compiled for elsewhere."""
    return False


def _nvidia(root: Path) -> bool:
    """Whether there is an NVIDIA GPU: a device node of its driver's, or of a Jetson's."""
    return any(any(root.glob(f"dev/{name}")) for name in ("nvidia[0-9]*", "nvhost-gpu", "nvgpu"))


def _pci(root: Path, vendor: str, kinds: tuple[str, ...]) -> bool:
    """Whether there is a PCI device of a vendor and of one of these classes.

    Source: Linux, Documentation/ABI/testing/sysfs-bus-pci; PCI Code and ID Assignment, class codes.
    """
    for device in root.glob("sys/bus/pci/devices/*"):
        try:
            made_by = (device / "vendor").read_text().strip()
            kind = (device / "class").read_text().strip()
        except OSError:
            continue
        if made_by == vendor and any(kind.startswith(prefix) for prefix in kinds):
            return True
    return False


def _tpu(root: Path) -> bool:
    """Whether there is one of Google's accelerators, which no PCI class is for, and its device node."""
    nodes = any(any(root.glob(name)) for name in ("dev/accel[0-9]*", "dev/vfio/[0-9]*"))
    return nodes and _pci(root, "0x1ae0", ("0x00", "0x12", "0xff"))


def _intel_npu(root: Path) -> bool:
    """Whether there is one of Intel's neural processing units, and its device node."""
    return any(root.glob("dev/accel/accel*")) and _pci(root, "0x8086", ("0x1200",))


def _intel_gpu(root: Path) -> bool:
    """Whether there is one of Intel's graphics processors, and its device node."""
    return any(root.glob("dev/dri/renderD*")) and _pci(root, "0x8086", ("0x03",))


def _qualcomm_htp(root: Path) -> bool:
    """Whether there is the device node by which a Snapdragon's compute DSP, the HTP, is called.

    Source: Linux, drivers/misc/fastrpc.c; "-secure" is the one for signed processes.
    """
    return any(any(root.glob(f"dev/{name}")) for name in ("fastrpc-cdsp*", "adsprpc-smd*"))


FAMILIES: Mapping[str, Family] = {
    "cuda": Family(
        "NVIDIA GPU",
        ("sm80", "sm75", "sm86", "sm89", "sm120", "sm121"),
        _nvidia,
        program="taken",
    ),
    "tpu": Family("Google TPU", ("v5e", "v4", "v5p", "v6e", "tpu7x"), _tpu, program="needed"),
    "fpga": Family(
        "FPGA",
        (
            *("ecp5-85k", "ecp5-45k", "ecp5-25k", "ecp5-85k-8", "ecp5-45k-8", "ecp5-25k-8"),
            *("ice40-hx8k", "ice40-up5k"),
        ),
        _nowhere,
    ),
    "npu": Family("Intel NPU", (), _intel_npu, selective=True),
    "igpu": Family("Intel GPU", (), _intel_gpu, selective=True),
    "qnn": Family(
        "Qualcomm chip",
        ("sm8550", "sm8450", "sm8650", "sm8750", "sm8850", "sc8380xp"),
        _qualcomm_htp,
        selective=True,
    ),
    "litert": Family("LiteRT interpreter elsewhere", (), _nowhere, selective=True),
    "coreml": Family("Apple Core ML", (), _nowhere, selective=True),
}


def family_of(target: Target) -> Family:
    """Return the family of a target that isn't the host itself."""
    return FAMILIES[target.family]


def find_target(device: str, *, root: Path = Path("/")) -> Target:
    """Return the target of a name: "host", "cuda", "cuda:sm89", "fpga:ecp5", "tpu:v5e", ...

    The name of a part may be cut short where the beginning is enough to tell; the family alone names
    what is here, or else its default.

    Args:
        device: The name.
        root: Where /sys and /dev are.

    Raises:
        InputError: there is no such device.
    """
    host = Target.host()
    if device == "host":
        return host
    name, colon, part = device.partition(":")
    family = FAMILIES.get(name)
    if family is None:
        raise InputError(f"no target is called {device!r}; there are: host, {', '.join(FAMILIES)}")
    if not family.parts:
        if colon:
            raise InputError(f"the target {name} has no parts to name: got {device!r}")
        return host.with_device(name, present=family.present(root))
    found = [known for known in family.parts if known == part] or [
        known for known in family.parts if known.startswith(part)
    ]
    if not found:
        raise InputError(
            f"no {family.noun} is called {part!r}; there are: {', '.join(family.parts)}"
        )
    if not colon and family.present(root):
        return host.with_device(name, present=True)  # whichever it is
    return host.with_device(f"{name}:{found[0]}", present=False)


def at_hand(made_for: Target, *, root: Path = Path("/")) -> Target:
    """Return this host as what a bundle was made for: with the device, where one of its family is here.

    Args:
        made_for: The bundle's target.
        root: Where /sys and /dev are.
    """
    host, family = Target.host(), FAMILIES.get(made_for.family)
    if family is None:
        return host
    return host.with_device(made_for.device, present=family.present(root))


def check_measurable(target: Target) -> None:
    """Check that what answers here is what it would be timed for.

    Raises:
        InputError: the device isn't here, and what stands in for it says nothing of its speed.
    """
    if target.kind == "compile-only":
        raise InputError(
            f"{target.device} isn't here, and what answers in its place says nothing of its speed: the "
            "bundle's report has what the device's own tools say"
        )
