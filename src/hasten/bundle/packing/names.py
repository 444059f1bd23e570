"""Tell packed bundles from folders by their names and first bytes."""

from __future__ import annotations

import os
from pathlib import Path

from hasten.core.presence import is_file, path_text

SUFFIX = ".hastenz"
MAGIC = b"\x89HASTENZ"


def is_address(path: object) -> bool:
    """Whether a path is the address of a file on a web server."""
    return isinstance(path, str) and path.startswith(("http://", "https://"))


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a packed bundle: a file of that name, or that begins as one."""
    place = Path(path_text(path))
    if not is_file(place):
        return False
    if place.suffix == SUFFIX:
        return True
    try:
        with place.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False
