"""Workers that have libraries in memory from the start, where nobody asks how they get them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from hasten.core import forked
from hasten.core.processes import _children, interpreter

EXPORT = (
    "torch",
    "torch._dynamo",
    "torch.onnx._internal.exporter._core",
    "onnxscript.optimizer",
    "onnxscript.rewriter",
)
"""What the export of a program imports; none of it starts a thread, and none is a runtime."""
_SERVE = """
import contextlib, gc, importlib, sys
from hasten.core.telemetry import import_quietly
from hasten.measure import forkserver
gc.disable()
for name in {names}:
    with contextlib.suppress(ImportError):
        import_quietly(name)
gc.enable()
del sys.argv[1:3]
forkserver.main()
"""
_names: list[str] = []
"""Modules of all blocks at work."""


@contextlib.contextmanager
def at_hand(*names: str) -> Iterator[None]:
    """Let the server that forks workers import modules first, which each of them would import.

    A worker is as alone as ever. What asks whether workers find modules by themselves starts them without this.

    Args:
        names: Names of modules that start no thread when they are imported; those that aren't installed are left out.
    """

    def importing() -> tuple[str, ...]:
        return (*interpreter(), "-c", _SERVE.format(names=tuple(dict.fromkeys(_names))))

    _names.extend(names)
    try:
        with patch.object(forked, "interpreter", importing):
            yield
    finally:
        del _names[-len(names) :]


def forking_servers() -> set[int]:
    """Return the process ids of the servers that fork this process's workers, or did so before."""
    found = set()
    for pid in _children(os.getpid()):
        with contextlib.suppress(OSError):
            if b"hasten.measure.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found
