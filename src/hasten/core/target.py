"""Facts about this host and about the device that a model must run on."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

ISA = (
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512vbmi",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
)
"""Instruction sets by which engines choose kernels, as /proc/cpuinfo spells them: those of x86-64, then of ARM."""


@dataclass(frozen=True)
class Target:
    """Device, and the share of it that this process may use.

    Attributes:
        kind: "host"; "attached" for a device of this host; or "compile-only" for a device
            elsewhere, in which case the other attributes describe the host that compiles.
        processor: Model name of the processor; on ARM the numbers of its implementer and part.
        cpus: Numbers of the processors that this process may run on (affinity mask and cgroup
            cpuset).
        threads: Threads that an engine may use: `len(cpus)`, or fewer under a cgroup quota.
        isa: Instruction sets that matter to engines: "avx2", "avx512_vnni", or "asimddp" and "i8mm" on ARM, ...
        memory_bytes: Memory that this process may use, in bytes: the cgroup's limit or the machine's memory.
        system: Operating system, its release and the machine: "Linux 6.1.0 x86_64".
        device: Name of the device, as a user gives it: "host", "cuda", "fpga:ecp5-85k", "tpu:v5e".
    """

    kind: Literal["host", "attached", "compile-only"]
    processor: str
    cpus: tuple[int, ...]
    threads: int
    isa: tuple[str, ...]
    memory_bytes: int
    system: str
    device: str = "host"

    @property
    def family(self) -> str:
        """Family of the device: "fpga" of "fpga:ecp5-85k"."""
        return self.device.partition(":")[0]

    @property
    def part(self) -> str:
        """Part within the family: "ecp5-85k" of "fpga:ecp5-85k"; "" in a family of one device."""
        return self.device.partition(":")[2]

    @classmethod
    def host(
        cls,
        *,
        proc: Path = Path("/proc"),
        cgroup: Path = Path("/sys/fs/cgroup"),
        affinity: Collection[int] | None = None,
    ) -> Self:
        """Return the facts of this host, and the limits that this process runs under.

        A limit that can't be read counts as no limit.

        Args:
            proc: Folder where procfs is mounted.
            cgroup: Folder where the cgroup file systems are mounted, version 1, 2, or both.
            affinity: Processors in the process's affinity mask; None to ask the kernel.
        """
        groups = list(_groups(proc, cgroup))
        cpus = _cpus(frozenset(os.sched_getaffinity(0) if affinity is None else affinity), groups)
        quota = min(_quotas(groups), default=float(len(cpus)))
        model_name, flags = _processor(proc)
        system = os.uname()
        return cls(
            kind="host",
            processor=model_name,
            cpus=cpus,
            threads=min(len(cpus), max(1, int(quota))),
            isa=tuple(name for name in ISA if name in flags),
            memory_bytes=min((_machine_memory_bytes(proc), *_memory_limits_bytes(groups))),
            system=f"{system.sysname} {system.release} {system.machine}",
        )

    def with_device(self, device: str, *, present: bool) -> Target:
        """Return this host as a target that has a device, or that only compiles for it.

        Args:
            device: Name of the device, as a user gives it.
            present: Whether this host has the device.
        """
        return replace(self, kind="attached" if present else "compile-only", device=device)

    def with_threads(self, threads: int) -> Target:
        """Return the target with another number of threads for an engine.

        Args:
            threads: Number of threads.
        """
        return replace(self, threads=threads)


def _groups(proc: Path, cgroup: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroups and of all their ancestors.

    In a container, /proc may give paths of the host that don't exist in the container. The mount's
    root, which is then the container's own group, is always among those yielded.

    Source: cgroups(7), "/proc/[pid]/cgroup".
    """
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mounts = [cgroup, cgroup / "unified"]
        else:
            mounts = [cgroup / name for name in {controllers, *controllers.split(",")} if name]
        parts = [part for part in path.split("/") if part]
        if ".." in parts:
            parts = []
        for mount in mounts:
            for depth in range(len(parts) + 1):
                folder = mount.joinpath(*parts[:depth])
                if folder.is_dir():
                    yield folder


def _quotas(groups: list[Path]) -> Iterator[float]:
    """Yield each group's limit on processor time, in processors; nothing for a group without one.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst, cpu.max; scheduler/sched-bwc.rst.
    """
    for folder in groups:
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        yield from _ratio(quota, period)
        yield from _ratio(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> Iterator[float]:
    """Yield quota / period where both are positive numbers; "max" and -1 mean no limit."""
    try:
        quota_us, period_us = int(quota), int(period)
    except ValueError:
        return
    if quota_us > 0 and period_us > 0:
        yield quota_us / period_us


def _cpus(mask: frozenset[int], groups: list[Path]) -> tuple[int, ...]:
    """Return the processors of the mask that every cpuset allows; an empty cpuset is ignored."""
    allowed = mask
    for folder in groups:
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            if common := allowed & _cpu_list(_text(folder / name)):
                allowed = common
                break
    return tuple(sorted(allowed))


def _cpu_list(text: str) -> frozenset[int]:
    """Read "0-3,7"; return an empty set for any other text. Source: cpuset(7), "List format"."""
    cpus: set[int] = set()
    try:
        for part in filter(None, text.split(",")):
            first, dash, last = part.partition("-")
            cpus.update(range(int(first), int(last if dash else first) + 1))
    except ValueError:
        return frozenset()
    return frozenset(cpus)


def _memory_limits_bytes(groups: list[Path]) -> Iterator[int]:
    """Yield each group's memory limit in bytes; in version 1, a huge number means no limit."""
    for folder in groups:
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(folder / name)
            if text.isdecimal() and int(text) > 0:
                yield int(text)


def _machine_memory_bytes(proc: Path) -> int:
    """Return the machine's memory in bytes, by /proc/meminfo (its kB are KiB), else by sysconf."""
    for line in _text(proc / "meminfo").splitlines():
        name, _, value = line.partition(":")
        kibibytes = value.removesuffix("kB").strip()
        if name == "MemTotal" and kibibytes.isdecimal():
            return int(kibibytes) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _processor(proc: Path) -> tuple[str, frozenset[str]]:
    """Return the first processor's model name and flags, which have other titles on ARM.

    Source: Linux, Documentation/arch/arm64/elf_hwcaps.rst, for the names in "Features".
    """
    facts: dict[str, str] = {}
    for line in _text(proc / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    name = facts.get("model name") or "unknown"
    if "CPU implementer" in facts and "CPU part" in facts:
        name = f"ARM processor {facts['CPU implementer']}:{facts['CPU part']}"
    flags = facts.get("flags") or facts.get("Features", "")
    return name, frozenset(flags.split())


def _text(file: Path) -> str:
    """Return a file's text, stripped; "" where it can't be read."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
