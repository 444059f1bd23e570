"""Files of a folder, each of which is one raw sample: a picture, a sound, a text or the JSON of a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hasten.errors import InputError
from hasten.inputs.data.images import SUFFIXES


def sample_files(folder: Path) -> list[Path]:
    """Return the files of a folder and of those in it, sorted; only its images, if it has some.

    Raises:
        InputError: there is no such folder, or it has no files.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    listed = sorted(
        file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")
    )
    files = [file for file in listed if file.suffix.lower() in SUFFIXES] or listed
    if not files:
        raise InputError(f"{folder} has no files")
    return files


def spread(files: Sequence[Path], count: int) -> tuple[Path, ...]:
    """Return a number of files, evenly spread over all of them; some repeatedly where there are fewer."""
    return tuple(files[place] for place in np.linspace(0, len(files) - 1, count).astype(int))
