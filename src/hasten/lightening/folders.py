"""Folders of the trainings and of the comparison after them, and what a run that stopped leaves there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from hasten.bundle import MANIFEST
from hasten.errors import CandidateError, InputError
from hasten.measure.journal import Journal
from hasten.optimization.workspace import begun


def training_folders(bundle: Path, *, resume: bool) -> tuple[Path, Path]:
    """Return the folder of the trainings, and the one of the comparison after them.

    Args:
        bundle: Folder of the bundle to make.
        resume: Whether a run that was stopped may be continued.

    Raises:
        InputError: a run was stopped there, and isn't to be continued.
    """
    folder = bundle.with_name(bundle.name + ".training")
    work = bundle.with_name(bundle.name + ".work")
    if begun(work) and not resume:
        raise InputError(
            f"there is an unfinished run in {work}: continue it with resume=True, or remove it and "
            f"{folder}"
        )
    return folder, work


def begin_race(journal: Journal, bundle: Path, folder: Path, work: Path) -> None:
    """Record that the trainings are done, and that what they made is compared from here on.

    Args:
        journal: Journal of the trainings.
        bundle: Folder of the bundle to make.
        folder: Folder of the trainings.
        work: Folder of the comparison.

    Raises:
        InputError: the comparison was over, too, when the run was killed; its folder is then removed.
    """
    if journal.last("race") is not None and not begun(work) and _newer(bundle, journal.path):
        shutil.rmtree(folder, ignore_errors=True)  # the run was killed just before doing so
        raise InputError(f"nothing to resume: the run has finished, and its bundle is {bundle}")
    journal.append("race")


def _newer(bundle: Path, journal: Path) -> bool:
    """Return whether a bundle was written after the last entry of a journal."""
    manifest = bundle / MANIFEST
    return manifest.is_file() and manifest.stat().st_mtime > journal.stat().st_mtime


@contextlib.contextmanager
def cleared_up(folder: Path, *, resume: bool) -> Iterator[None]:
    """Remove the work folder of a failed run, unless the run was resumed or has a checkpoint.

    Raises:
        InputError: the block raised it, or raised a `CandidateError`, which is converted.
    """
    try:
        yield
    except (InputError, CandidateError) as error:
        if not resume and not any(folder.glob("ways/*/*/checkpoint.pt")):
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, CandidateError):
            raise InputError(str(error)) from error
        raise
