"""Folders in which the processes of a run find what one of them compiled."""

from __future__ import annotations

import getpass
import os
import re
import tempfile
from pathlib import Path

SCRATCH = "HASTEN_SCRATCH"
"""Environment variable that tells worker processes, which have temporary folders of their own, the folder for compiled C."""
TORCH_FOLDER = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable with the folder in which torch keeps what it compiles."""


def scratch() -> Path:
    """Return the folder: among temporary files, for this user alone."""
    own = Path(tempfile.gettempdir(), f"hasten-c-{os.geteuid()}")
    return Path(os.environ.get(SCRATCH) or own)


def torch_folder() -> str:
    """Return the folder in which torch keeps what it compiles, where the environment names none.

    Source: torch, torch/_inductor/runtime/cache_dir_utils.py.
    """
    try:
        user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
    except (KeyError, OSError):  # no user has that number
        user = f"uid_{os.getuid()}"
    return f"{tempfile.gettempdir()}/torchinductor_{user}"
