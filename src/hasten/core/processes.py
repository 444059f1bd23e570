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


def programs(pid: int) -> list[int]:
    """Return those of a process's descendants that run another program, and aren't forks of it."""
    own = _command(pid)
    return [one for one in descendants(pid) if _command(one) != own]


def name_of(pid: int) -> str:
    """Return the name of the program that a process runs, or of its script; empty where it is gone."""
    words = [Path(word).name for word in _command(pid).split("\0")]
    return words[1] if words[0].startswith("python") and len(words) > 1 else words[0]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0")
    return ""


def _children(pid: int) -> Iterator[int]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            yield from map(int, file.read_text().split())
