"""Processes that a process starts, and those that it started, by /proc."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path


def interpreter() -> tuple[str, ...]:
    """Return the begin of a command that runs Python, which imports nothing from the current folder.

    `-m` and `-c` put that folder before the standard library, so a `numpy.py` beside a model there would run.
    A process that looks there first itself, as that of a script in this folder does, passes it on.

    Source: Python's documentation, "Command line and environment", `-P`.
    """
    first = itertools.takewhile(lambda entry: entry != os.path.dirname(os.__file__), sys.path)  # noqa: PTH120
    with contextlib.suppress(OSError):  # the folder may be gone
        here = os.path.realpath(os.getcwd())  # noqa: PTH109
        if any(os.path.realpath(entry) == here for entry in first):
            return (sys.executable,)
    return sys.executable, "-P"


def descendants(pid: int) -> list[int]:
    """Return a process's children, and then their children, and so on.

    Source: proc(5), /proc/pid/task/tid/children.
    """
    found = list(_children(pid))
    for one in found:
        found += _children(one)
    return found


def programs(pid: int) -> list[int]:
    """Return the descendants of a process that run another program, leaving out its own forks."""
    own = _command(pid)
    return [one for one in descendants(pid) if _command(one) != own]


def name_of(pid: int) -> str:
    """Return the name of a process's program or Python script; "" once the process is gone."""
    words = [Path(word).name for word in _command(pid).split("\0") if word not in ("-P", "-m")]
    return words[1] if words[0].startswith("python") and len(words) > 1 else words[0]


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").rstrip("\0")
    return ""


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):  # it may end while its threads are listed
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                yield from map(int, file.read_text().split())
