"""Devices that a model can be made for, and checks whether this host has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from hasten.core.target import Target
from hasten.errors import InputError


class Family(NamedTuple):
    """Kind of device that one set of engines serves: the engines that list it in `families`.

    Attributes:
        noun: Name of the kind for people: "NVIDIA GPU".
        parts: Names of the devices within the family, the default first; empty for a single device.
        present: Function that tells from a host's /sys and /dev whether it has such a device.
        program: Whether the family's engines take the framework's program instead of ONNX: "not
            taken" by none, "taken" by some, "needed" by all.
        selective: Whether passes that may change answers are tried only where they list the family.
        one_shape: Whether a model for it takes requests of the one shape that it was compiled for.
    """

    noun: str
    parts: tuple[str, ...]
    present: Callable[[Path], bool]
    program: Literal["not taken", "taken", "needed"] = "not taken"
    selective: bool = False
    one_shape: bool = False


def _nowhere(root: Path) -> bool:
    """Return False: such a device is always elsewhere, and models are only compiled for it."""
    return False


def _nvidia(root: Path) -> bool:
    """Whether the host has an NVIDIA GPU: a device node of the desktop or the Jetson driver."""
    return any(any(root.glob(f"dev/{name}")) for name in ("nvidia[0-9]*", "nvhost-gpu", "nvgpu"))


def _pci(root: Path, vendor: str, kinds: tuple[str, ...]) -> bool:
    """Whether the host has a PCI device of this vendor and of one of these classes.

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
    """Whether the host has a Google TPU (there is no PCI class for TPUs) and its device node."""
    nodes = any(any(root.glob(name)) for name in ("dev/accel[0-9]*", "dev/vfio/[0-9]*"))
    return nodes and _pci(root, "0x1ae0", ("0x00", "0x12", "0xff"))


def _intel_npu(root: Path) -> bool:
    """Whether the host has an Intel neural processing unit and its device node."""
    return any(root.glob("dev/accel/accel*")) and _pci(root, "0x8086", ("0x1200",))


def _intel_gpu(root: Path) -> bool:
    """Whether the host has an Intel graphics processor and its device node."""
    return any(root.glob("dev/dri/renderD*")) and _pci(root, "0x8086", ("0x03",))


def _qualcomm_htp(root: Path) -> bool:
    """Whether the host has the device node of a Snapdragon's compute DSP, the HTP.

    Source: Linux, drivers/misc/fastrpc.c; "-secure" is the one for signed processes.
    """
    return any(any(root.glob(f"dev/{name}")) for name in ("fastrpc-cdsp*", "adsprpc-smd*"))


FAMILIES: Mapping[str, Family] = {
    "cuda": Family(
        "NVIDIA GPU",
        (
            *("sm80", "sm75", "sm86", "sm87", "sm89"),
            *("sm90", "sm100", "sm103", "sm110", "sm120", "sm121"),
        ),
        _nvidia,
        program="taken",
    ),
    "tpu": Family(
        "Google TPU",
        ("v5e", "v4", "v5p", "v6e", "tpu7x"),
        _tpu,
        program="needed",
        one_shape=True,
    ),
    "fpga": Family(
        "FPGA",
        (
            *("ecp5-85k", "ecp5-45k", "ecp5-25k", "ecp5-85k-8", "ecp5-45k-8", "ecp5-25k-8"),
            *("ice40-hx8k", "ice40-up5k"),
        ),
        _nowhere,
        one_shape=True,
    ),
    "npu": Family("Intel NPU", (), _intel_npu, selective=True, one_shape=True),
    "igpu": Family("Intel GPU", (), _intel_gpu, selective=True),
    "qnn": Family(
        "Qualcomm chip",
        ("sm8550", "sm8450", "sm8650", "sm8750", "sm8850", "sc8380xp"),
        _qualcomm_htp,
        selective=True,
        one_shape=True,
    ),
    "litert": Family("LiteRT interpreter elsewhere", (), _nowhere, selective=True, one_shape=True),
    "coreml": Family("Apple Core ML", (), _nowhere, selective=True, one_shape=True),
}


def family_of(target: Target) -> Family:
    """Return the family of a target that isn't the host itself."""
    return FAMILIES[target.family]


def find_target(device: str, *, root: Path = Path("/")) -> Target:
    """Return the target that a name stands for: "host", "cuda", "cuda:sm89", "fpga:ecp5", ...

    A part's name may be abbreviated: the first part that begins so is taken. The name of a family
    alone means the device of this host, or the family's default part where the host has none.

    Args:
        device: Name of the device.
        root: Folder that holds /sys and /dev.

    Raises:
        InputError: there is no such device.
    """
    host = Target.host()
    if device == "host":
        return host
    name, colon, part = device.partition(":")
    family = FAMILIES.get(name)
    if family is None:
        raise InputError(
            f"no target is called {device!r}; the targets are: host, {', '.join(FAMILIES)}"
        )
    if not family.parts:
        if colon:
            raise InputError(f"the target {name} has no named parts: got {device!r}")
        return host.with_device(name, present=family.present(root))
    found = [known for known in family.parts if known == part] or [
        known for known in family.parts if known.startswith(part)
    ]
    if not found:
        raise InputError(
            f"no {family.noun} is called {part!r}; choose one of: {', '.join(family.parts)}"
        )
    if not colon and family.present(root):
        return host.with_device(name, present=True)  # whichever part it is
    return host.with_device(f"{name}:{found[0]}", present=False)


def at_hand(made_for: Target, *, root: Path = Path("/")) -> Target:
    """Return this host as a target for a bundle: with the bundle's device where the host has one.

    Args:
        made_for: Target that the bundle was made for.
        root: Folder that holds /sys and /dev.
    """
    host, family = Target.host(), FAMILIES.get(made_for.family)
    if family is None:
        return host
    return host.with_device(made_for.device, present=family.present(root))


def check_measurable(target: Target) -> None:
    """Check that the target's device is here, so that what is timed is the device itself.

    Raises:
        InputError: the device isn't here, and its stand-in on this host says nothing of its speed.
    """
    if target.kind == "compile-only":
        raise InputError(
            f"{target.device} isn't available, and its stand-in on this host says nothing about "
            "its speed: see the figures of the device's own tools in the bundle's report"
        )
