"""Folder in which the processes of a run find what one of them compiled."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

SCRATCH = "HASTEN_SCRATCH"
"""Environment variable that tells worker processes, which have temporary folders of their own, the folder."""


def scratch() -> Path:
    """Return the folder: among temporary files, for this user alone."""
    own = Path(tempfile.gettempdir(), f"hasten-c-{os.geteuid()}")
    return Path(os.environ.get(SCRATCH) or own)
