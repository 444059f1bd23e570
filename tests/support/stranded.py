"""Programs that tests started and left running: found by their ancestors and by their environment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

_MARK = "HASTEN_TEST_PROCESS"
_KEPT = ("hasten.measure.forkserver", "multiprocessing.resource_tracker")
"""Programs that a process starts once, keeps, and ends with itself."""
_PATIENCE_S = 60.0


def mark() -> None:
    """Let all programs that this process starts from now on be known by their environment."""
    os.environ[_MARK] = str(os.getpid())


def running() -> frozenset[int]:
    """Process ids of all programs that this process started, and those started; none that ended."""
    mark = f"{_MARK}={os.getpid()}".encode()
    parents: dict[int, int] = {}
    marked: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        with contextlib.suppress(OSError):
            state, parent = (
                (folder / "stat").read_text(errors="replace").rpartition(") ")[2].split()[:2]
            )
            if state in "ZX":
                continue
            parents[pid] = int(parent)
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                marked.add(pid)
    found = {pid for pid in parents if pid in marked or _descends(pid, parents)}
    return frozenset(found - {os.getpid()})


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False


def left(before: Collection[int], patience_s: float = _PATIENCE_S) -> dict[int, str]:
    """Return what still runs of all that was started since, and kill it.

    Args:
        before: Process ids from `running()`, which may stay.
        patience_s: Time for what is ending, in seconds.

    Returns:
        Process id -> command line.
    """
    end_s = time.monotonic() + patience_s
    while (found := _named(running() - set(before))) and time.monotonic() < end_s:
        time.sleep(0.05)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def _named(pids: Collection[int]) -> dict[int, str]:
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            command = b" ".join(words).decode(errors="replace").strip()
            if not any(kept in command for kept in _KEPT):
                found[pid] = command
    return found
