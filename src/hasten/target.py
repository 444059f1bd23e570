"""The facts of the device that a model must run on: here, this host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Target:
    """A device and the part of it that this process may use.

    Attributes:
        kind: "host", the only kind so far; attached devices and compile-only ones come later.
        processor: Its model name.
        cpus: The processors that this process may run on (affinity mask and cgroup cpuset).
        threads: How many an engine may keep busy: `len(cpus)`, less where a cgroup quota says so.
        isa: Instruction sets that matter to engines: "avx2", "avx512f", "avx512_vnni", ...
        memory_bytes: What this process may use: the cgroup's limit or the machine's memory.
    """

    kind: Literal["host"]
    processor: str
    cpus: tuple[int, ...]
    threads: int
    isa: tuple[str, ...]
    memory_bytes: int
    system: str

    def with_threads(self, threads: int) -> Target:
        """Return the same device with fewer or more threads for an engine."""
        return replace(self, threads=threads)
