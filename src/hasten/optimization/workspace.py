"""A run's work folder: its journal and its lock, and the check on resuming."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hasten.core.presence import is_folder, is_there
from hasten.core.records import canonical
from hasten.errors import InputError
from hasten.measure.journal import Journal

JOURNAL = "journal.jsonl"
_LOCK_TRIES, _LOCK_PAUSE_S = 10, 0.1
_BEGIN = b'{"kind": "begin"'
"""First bytes of every run's journal: see `check_same_run`."""
_OWN_FOLDER, _OWN_FILE = 0o775, 0o664
"""Rights of a new folder and of its journal, which `_check_own` takes, whatever the process's mask is."""
SEARCH_VERSION = 7
"""Version of the search, raised where an older candidate would have another key or speed, or the sealed samples
another order, though nothing in its description shows it: then an older journal no longer counts."""


@contextlib.contextmanager
def claimed_folder(folder: Path, *, resume: bool) -> Iterator[Journal]:
    """Make a run's work folder, or take up one that a stopped run left, and lock it.

    Raises:
        InputError: there is an unfinished run and `resume` is False; there is nothing to resume;
            the folder is of another kind, or other users may have written it; or another run is at work in it.
    """
    path = folder / JOURNAL
    nothing = f"nothing to resume: there is no {path}; run without resume=True"
    if resume and not is_there(path):
        raise InputError(nothing)
    there = is_there(folder)
    if there and not is_there(path) and (not is_folder(folder) or any(folder.iterdir())):
        raise InputError(
            f"{folder} is needed as a work folder, but contains something else; move it"
        )
    try:
        folder.mkdir(mode=_OWN_FOLDER, parents=True, exist_ok=True)
        if not path.exists():
            path.touch(mode=_OWN_FILE)
        file = path.open("ab")
    except (OSError, ValueError) as error:  # a NUL byte in a name is such a ValueError
        why = getattr(error, "strerror", None) or error
        raise InputError(f"can't write {folder}: {why}") from error
    with file:
        if there:  # a folder made just now may have other rights, as on a Windows drive
            _check_own(folder, folder.stat(), folder)
            _check_own(path, os.fstat(file.fileno()), folder)
        if not _locked_soon(file):
            raise InputError(f"another run is using {folder}: wait for it, or stop it")
        begun = path.stat().st_size > 0
        if begun and not resume:
            raise InputError(
                f"{folder} contains an unfinished run: continue it with resume=True, or remove "
                "that folder"
            )
        if resume and not begun:
            raise InputError(nothing)
        journal = Journal(path)
        _check_begins(journal)
        yield journal


def _check_own(path: Path, facts: os.stat_result, folder: Path) -> None:
    """Refuse what other users may have written, since a run believes its journal, and opens what it names.

    The group may write, since many systems give each user a group of their own. What belongs to root is
    taken, as for `hasten.toml`: in a container, the same folder often does.
    """
    wrong = (
        f"it belongs to another user (number {facts.st_uid})"
        if facts.st_uid not in (0, os.geteuid())
        else "every user may write to it"
        if facts.st_mode & stat.S_IWOTH
        else ""
    )
    if wrong:
        raise InputError(
            f"{path} can't be trusted, since {wrong}: remove {folder}, and run without resume=True"
        )


def _check_begins(journal: Journal) -> None:
    """Check that the first event, if there is any, is the one of `check_same_run`."""
    first = journal.first
    if first is not None and not (
        first["kind"] == "begin" and isinstance(first.get("facts"), dict)
    ):
        raise InputError(
            f"{journal.path} doesn't begin as the journal of a run: remove {journal.path.parent}, and run without "
            "resume=True"
        )


def begun(folder: Path) -> bool:
    """Whether a run that can be resumed lies in a work folder."""
    path = folder / JOURNAL
    return path.is_file() and path.stat().st_size > 0


def discard(folder: Path) -> None:
    """Remove the work folder of a stopped run; keep a live run's, and any other folder."""
    with contextlib.suppress(OSError), (folder / JOURNAL).open("rb") as file:
        if _locked(file) and file.read(len(_BEGIN)) == _BEGIN:
            shutil.rmtree(folder)


def _locked_soon(file: BinaryIO) -> bool:
    """Lock a journal, retrying: a child of a killed run may hold it for a moment more."""
    for _ in range(_LOCK_TRIES):
        if _locked(file):
            return True
        time.sleep(_LOCK_PAUSE_S)
    return False


def _locked(file: BinaryIO) -> bool:
    """Lock a journal; return whether this run alone holds it, and no other has just removed it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return os.fstat(file.fileno()).st_nlink > 0


def check_same_run(journal: Journal, facts: dict[str, Any]) -> None:
    """Record the facts about a run, or check that a resumed run agrees with them.

    Raises:
        InputError: a fact, named in the message, differs.
    """
    begun = journal.last("begin")
    if begun is None:
        journal.append("begin", facts=facts)
        return
    for name, fact in facts.items():
        if canonical(begun["facts"].get(name)) != canonical(fact):
            raise InputError(
                f"can't resume: the stopped run had another {name}; give the same value, or remove "
                f"{journal.path.parent}"
            )
