"""Free space of the file system that a folder is in."""

from __future__ import annotations

import os
import shutil
import sys


def free_bytes(folder: str | os.PathLike[str]) -> int:
    """Return how many bytes are free for files in a folder: more than any file has where its file system has no limit.

    Raises:
        OSError: there is no such folder.

    Source: Linux, Documentation/filesystems/tmpfs.rst: a size of 0 is no limit, and then it states 0 for all.
    """
    found = shutil.disk_usage(folder)
    return found.free if found.total else sys.maxsize
