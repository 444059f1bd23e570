"""Load a shared object from its bytes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
from pathlib import Path
from typing import TypeVar

_Kind = TypeVar("_Kind", bound=ctypes.CDLL)


def opened(content: bytes, kind: type[_Kind]) -> _Kind:
    """Load a shared object from a file that only this user can reach, which is removed at once.

    A loader takes a path that it knows for the file that it knows, so each path is a new one.

    Args:
        content: Bytes of the shared object.
        kind: Class of ctypes that calls it: `PyDLL` holds the interpreter's lock in a call, `CDLL` doesn't.

    Raises:
        OSError: it can't be loaded.
    """
    with (
        contextlib.suppress(OSError),
        tempfile.TemporaryDirectory(prefix="hasten-c-") as folder,
    ):
        path = Path(folder, "model.so")
        path.write_bytes(content)
        return kind(str(path))
    # A folder for temporary files may be full, or forbid to run what lies in it. The file stays open, so
    # that no other one ever has its path.
    file = os.memfd_create("model.so")
    try:
        with open(file, "wb", closefd=False) as whole:
            whole.write(content)
        return kind(f"/proc/self/fd/{file}")
    except OSError:
        os.close(file)
        raise
