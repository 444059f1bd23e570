"""Workers that have torch in memory from the start, where nobody asks how they get it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from hasten.core import forked
from hasten.core.processes import _children, interpreter

_MODULES = (
    "torch",
    "torch._dynamo",
    "torch.onnx._internal.exporter._core",
    "onnxscript.optimizer",
    "onnxscript.rewriter",
)
"""What the export of a program imports; none of it starts a thread, and none is a runtime."""
_SERVE = f"""
import contextlib, importlib, sys
from hasten.measure import forkserver
for name in {_MODULES}:
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
del sys.argv[1:3]
forkserver.main()
"""


@contextlib.contextmanager
def torch_at_hand() -> Iterator[None]:
    """Let the server that forks workers import torch first, which takes each of them seconds.

    A worker is as alone as ever. What asks whether workers find torch by themselves starts them without this.
    """

    def importing() -> tuple[str, ...]:
        return (*interpreter(), "-c", _SERVE)

    with patch.object(forked, "interpreter", importing):
        yield


def forking_servers() -> set[int]:
    """Return the process ids of the servers that fork this process's workers, or did so before."""
    found = set()
    for pid in _children(os.getpid()):
        with contextlib.suppress(OSError):
            if b"hasten.measure.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found
