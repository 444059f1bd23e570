"""Versions of installed packages, without the library that parses their metadata whole.

Importing that library takes as long as opening a small model does.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path

_RECORD = ".dist-info"


@functools.cache
def installed_version(name: str) -> str | None:
    """Return a package's version; None if it isn't installed.

    Args:
        name: Name of the package in an index.

    Source: Python packaging user guide, "Recording installed projects" and "Core metadata specifications".
    """
    try:
        return _recorded(name)
    except (LookupError, OSError):
        from importlib import metadata

        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None


def _recorded(name: str) -> str | None:
    """Read a package's version from the head of its metadata; None if no folder of the search path has the package.

    Raises:
        LookupError: it may be recorded in another way.
        OSError: a file or folder can't be read.
    """
    if sum(hasattr(finder, "find_distributions") for finder in sys.meta_path) > 1:
        raise LookupError("packages are found by more than Python's own finder")
    wanted = _normalized(name)
    for folder in sys.path:
        if not os.path.exists(folder or "."):  # noqa: PTH110 - as often as there are folders
            continue
        records = [
            entry
            for entry in os.listdir(folder or ".")  # noqa: PTH208
            if entry.lower().endswith((_RECORD, ".egg-info", ".egg"))
            and _normalized(entry.rpartition(".")[0].partition("-")[0]) == wanted
        ]
        if len(records) == 1 and records[0].endswith(_RECORD):
            return _stated(Path(folder, records[0], "METADATA"))
        if records:
            raise LookupError(f"{name} has several records, or one of an older form")
    return None


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _stated(file: Path) -> str:
    """Return the version that the head of a metadata file states.

    Raises:
        LookupError: it states none.
        OSError: it can't be read.
    """
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            field, _, value = line.partition(":")
            if field.strip().lower() == "version" and value.strip():
                return value.strip()
            if not line.strip():
                break
    raise LookupError(f"{file} states no version")
