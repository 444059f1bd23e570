"""The facts of the device that a model must run on, and of this host."""

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
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "amx_fp16",
)
"""The instruction sets that engines choose kernels by, as /proc/cpuinfo spells them."""


@dataclass(frozen=True)
class Target:
    """A device and the part of it that this process may use.

    Attributes:
        kind: "host"; "attached", a device of this host; or "compile-only", one that isn't here:
            then all else is said of the host that compiles.
        processor: Its model name.
        cpus: The processors that this process may run on (affinity mask and cgroup cpuset).
        threads: How many an engine may keep busy: `len(cpus)`, less where a cgroup quota says so.
        isa: Instruction sets that matter to engines: "avx2", "avx512f", "avx512_vnni", ...
        memory_bytes: What this process may use: the cgroup's limit or the machine's memory.
        system: The operating system, its release and the machine: "Linux 6.1.0 x86_64".
        device: The device as it is asked for: "host", "cuda", "fpga:ecp5-85k", "tpu:v5e".
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
        """The device's family: "fpga" of "fpga:ecp5-85k"."""
        return self.device.partition(":")[0]

    @property
    def part(self) -> str:
        """Which of its family it is: "ecp5-85k" of "fpga:ecp5-85k"; empty where there is but one."""
        return self.device.partition(":")[2]

    @classmethod
    def host(
        cls,
        *,
        proc: Path = Path("/proc"),
        cgroup: Path = Path("/sys/fs/cgroup"),
        affinity: Collection[int] | None = None,
    ) -> Self:
        """Look at this host, and at what of it this process may use.

        A limit that can't be read limits nothing.

        Args:
            proc: Where procfs is mounted.
            cgroup: Where the cgroup file systems are mounted, version 1, 2, or both.
            affinity: The process's mask; None to ask the kernel.
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
        """Return this host as one that has a device, or only compiles for it."""
        return replace(self, kind="attached" if present else "compile-only", device=device)

    def with_threads(self, threads: int) -> Target:
        """Return the same device with fewer or more threads for an engine."""
        return replace(self, threads=threads)


def _groups(proc: Path, cgroup: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroups and of all their ancestors.

    In a container the paths may be the host's and not be there; the mount's root, which is then
    the container's own group, always counts.

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
    """Yield how many processors' time each group may use, where it is limited.

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
    """Return the mask's processors that every cpuset allows; a set that allows none is ignored."""
    allowed = mask
    for folder in groups:
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            if common := allowed & _cpu_list(_text(folder / name)):
                allowed = common
                break
    return tuple(sorted(allowed))


def _cpu_list(text: str) -> frozenset[int]:
    """Read "0-3,7". Anything else is an empty set. Source: cpuset(7), "List format"."""
    cpus: set[int] = set()
    try:
        for part in filter(None, text.split(",")):
            first, dash, last = part.partition("-")
            cpus.update(range(int(first), int(last if dash else first) + 1))
    except ValueError:
        return frozenset()
    return frozenset(cpus)


def _memory_limits_bytes(groups: list[Path]) -> Iterator[int]:
    """Yield each group's memory limit; version 1 writes a huge number for none."""
    for folder in groups:
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(folder / name)
            if text.isdecimal() and int(text) > 0:
                yield int(text)


def _machine_memory_bytes(proc: Path) -> int:
    """Return the machine's memory, by /proc/meminfo (whose kB are KiB), else by sysconf."""
    for line in _text(proc / "meminfo").splitlines():
        name, _, value = line.partition(":")
        kibibytes = value.removesuffix("kB").strip()
        if name == "MemTotal" and kibibytes.isdecimal():
            return int(kibibytes) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _processor(proc: Path) -> tuple[str, frozenset[str]]:
    """Return the first processor's model name and flags."""
    facts: dict[str, str] = {}
    for line in _text(proc / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    return facts.get("model name") or "unknown", frozenset(facts.get("flags", "").split())


def _text(file: Path) -> str:
    """Return a file's text without the blanks around it; nothing where it can't be read."""
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
