"""A bundle's report, written to a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from hasten.bundle import unpacked
from hasten.core.records import with_name, write_whole
from hasten.errors import InputError
from hasten.reporting.evidence import gathered
from hasten.reporting.page import BEGINNING, render


def report(bundle: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write a bundle's measurements and certificate as one HTML page that needs nothing else.

    Args:
        bundle: Folder of the bundle.
        out: Path of the page; by default the bundle's name with .html, beside it. An older report
            there is replaced, but nothing else.

    Returns:
        Path of the page.

    Raises:
        InputError: there is no bundle, its run didn't finish, or the page can't be written.
        IntegrityError: the bundle is damaged.
    """
    folder, named = unpacked(bundle), with_name(Path(bundle))
    file = named.with_name(f"{named.name}.html") if out is None else Path(out)
    evidence = gathered(folder)
    _check_place(file, folder)  # before the drawing, which takes seconds
    write_whole(file, render(evidence))
    return file


def _check_place(file: Path, folder: Path) -> None:
    """Check that the page can be written, and overwrites nothing but an older report."""
    if file.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{file} is in the bundle, and writing there would damage it; give another out="
        )
    if not os.path.lexists(file.parent):
        raise InputError(f"can't write {file}: {os.strerror(errno.ENOENT)}")
    if not os.path.lexists(file):
        return
    beginning = BEGINNING.encode()
    try:
        with file.open("rb") as older:
            ours = older.read(len(beginning)) == beginning
    except OSError as error:
        raise InputError(f"can't write {file}: {error.strerror or error}") from error
    if not ours:
        raise InputError(f"{file} exists and isn't a report; give another out= or remove it")
