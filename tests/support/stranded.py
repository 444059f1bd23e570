"""Programs that tests started and left running: found by their ancestors and by their environment."""

from __future__ import annotations

import contextlib
import functools
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
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        with contextlib.suppress(OSError):
            state, parent, began = _stat(name)
            if state in b"ZX" or began < _began():  # none of ours began before this process
                continue
            pid = int(name)
            parents[pid] = parent
            if mark in _read(f"/proc/{name}/environ").split(b"\0"):
                marked.add(pid)
    found = {pid for pid in parents if pid in marked or _descends(pid, parents)}
    return frozenset(found - {os.getpid()})


def _stat(name: str) -> tuple[bytes, int, int]:
    """Return a process's state, its parent, and when it began, in ticks since the machine did."""
    fields = _read(f"/proc/{name}/stat").rpartition(b") ")[2].split()
    return fields[0], int(fields[1]), int(fields[19])


@functools.cache
def _began() -> int:
    return _stat("self")[2]


def _read(path: str) -> bytes:
    """Read a file; `Path` takes as long again, and these are read hundreds of times per file of tests."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.read()


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
