"""Devices by name, and whether a host has one, by what its kernel shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.core.devices import FAMILIES, find_target
from hasten.engines.base import Engine
from hasten.engines.installed import tried_on
from hasten.errors import InputError


def shown(root: Path, node: str, vendor: str, kind: str) -> Path:
    """A root whose kernel shows a PCI device and a device node."""
    (root / node).parent.mkdir(parents=True, exist_ok=True)
    (root / node).touch()
    pci = root / "sys/bus/pci/devices/0000:00:04.0"
    pci.mkdir(parents=True)
    (pci / "vendor").write_text(f"{vendor}\n")
    (pci / "class").write_text(f"{kind}\n")
    return root


def test_the_host_is_a_target_too(tmp_path: Path) -> None:
    target = find_target("host", root=tmp_path)
    assert (target.kind, target.device, target.family) == ("host", "host", "host")


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("fpga", "fpga:ecp5-85k"),
        ("fpga:ecp5", "fpga:ecp5-85k"),
        ("fpga:ice40", "fpga:ice40-hx8k"),
        ("fpga:ecp5-25k", "fpga:ecp5-25k"),
        ("tpu:v6e", "tpu:v6e"),
    ],
)
def test_a_part_may_be_cut_short_and_a_family_names_its_default(
    name: str, device: str, tmp_path: Path
) -> None:
    target = find_target(name, root=tmp_path)
    assert (target.kind, target.device) == ("compile-only", device)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpu", "no target is called 'gpu'; the targets are: host, cuda, tpu, fpga, "),
        ("fpga:spartan", "no FPGA is called 'spartan'; choose one of: ecp5-85k, "),
        ("npu:1", "the target npu has no named parts: got 'npu:1'"),
    ],
)
def test_names_of_nothing_are_refused_with_what_there_is(
    name: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        find_target(name, root=tmp_path)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("name", "node", "vendor", "kind"),
    [
        ("cuda", "dev/nvidia0", "0x10de", "0x030200"),
        ("cuda", "dev/nvhost-gpu", "", ""),  # a Jetson, whose GPU is on no PCI bus
        ("cuda", "dev/nvgpu/igpu0/ctrl", "", ""),
        ("tpu", "dev/accel0", "0x1ae0", "0x120000"),
        ("npu", "dev/accel/accel0", "0x8086", "0x120000"),
        ("igpu", "dev/dri/renderD128", "0x8086", "0x030000"),
    ],
)
def test_a_device_that_the_kernel_shows_is_attached(
    name: str, node: str, vendor: str, kind: str, tmp_path: Path
) -> None:
    assert find_target(name, root=tmp_path).kind == "compile-only"
    found = find_target(name, root=shown(tmp_path, node, vendor, kind))
    assert (found.kind, found.device) == ("attached", name)


def test_a_named_part_is_compiled_for_wherever_one_is(tmp_path: Path) -> None:
    root = shown(tmp_path, "dev/nvidia0", "0x10de", "0x030200")
    assert find_target("cuda:sm86", root=root).kind == "compile-only"


def test_every_family_of_devices_has_an_engine_and_every_engine_a_family_that_there_is() -> None:
    for name in FAMILIES:
        assert tried_on(name), name
    named = {family for kind in Engine.members().values() for family in kind.families}
    assert named == {"host", *FAMILIES}
