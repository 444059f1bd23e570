"""What a process started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Return the processes that one started, and those that they started, the oldest first.

    Source: proc(5), /proc/pid/task/tid/children.
    """
    found = list(_children(pid))
    for one in found:
        found += _children(one)
    return found


def name_of(pid: int) -> str:
    """Return the name of the program that a process runs; empty where it is gone."""
    with contextlib.suppress(OSError):
        program = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
        return Path(program.decode(errors="replace")).name
    return ""


def _children(pid: int) -> Iterator[int]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            yield from map(int, file.read_text().split())
