"""A bundle's report, written to a file."""

from __future__ import annotations

import os
from pathlib import Path

from hasten.core.records import write_whole
from hasten.errors import InputError
from hasten.report.evidence import gathered
from hasten.report.page import BEGINNING, render


def report(bundle: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write what a bundle's run measured and certified as one HTML page that needs nothing else.

    Args:
        bundle: Its folder.
        out: The file; by default the bundle's name and .html, beside it. An older report there is
            replaced, and nothing else.

    Returns:
        The file.

    Raises:
        InputError: there is no bundle, its run didn't finish, or the file can't be written.
        IntegrityError: the bundle is damaged.
    """
    folder = Path(bundle)
    file = folder.with_name(f"{folder.name}.html") if out is None else Path(out)
    page = render(gathered(folder))
    _check_place(file, folder)
    write_whole(file, page)
    return file


def _check_place(file: Path, folder: Path) -> None:
    """Check that nothing but an older report is lost."""
    if file.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{file} lies in the bundle, which would be damaged; give another --out")
    if not os.path.lexists(file):
        return
    beginning = BEGINNING.encode()
    try:
        with file.open("rb") as older:
            ours = older.read(len(beginning)) == beginning
    except OSError as error:
        raise InputError(f"can't write {file}: {error.strerror or error}") from error
    if not ours:
        raise InputError(f"{file} exists and is no report; give another --out or remove it")
