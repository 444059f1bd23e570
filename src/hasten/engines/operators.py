"""Copies in memory of libraries of operators, so that what was hashed is what a runtime loads."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Mapping
from pathlib import Path

from hasten.core.forks import ForkedLock
from hasten.core.memory_folder import MemoryFolder
from hasten.errors import InputError

_FROM_HERE = re.compile(rb"(?:\$ORIGIN|\$\{ORIGIN\}|@loader_path)/([^\0:]{1,4096})")
"""Folders that a library names from its own one, in which the system looks for other libraries."""

_copies: dict[tuple[int, frozenset[tuple[Path, str]]], tuple[MemoryFolder, dict[Path, Path]]] = {}
"""Process and libraries -> copies. One that was forked makes its own, since its parent's folder ends with the parent."""
_lock = ForkedLock()


def copied(libraries: Mapping[Path, str]) -> Mapping[Path, Path]:
    """Return the paths of sealed copies of libraries, which have the libraries' own names.

    A library may look for files beside it, or in folders that it names from its own one. So the copies
    lie in folders as the originals do, below a folder that only this user may enter, with links to the
    files beside the originals. What a library itself opens there is opened as it is, unless it is one
    of the copies.

    The copies stay until this process ends: a library that is loaded once more is the same one.

    Args:
        libraries: SHA-256 of each library, in hex.

    Raises:
        IntegrityError: a library has other bytes, or can't be read.
        InputError: there is no memory for a copy.
    """
    real = {each: _real(each) for each in libraries}
    known = frozenset((real[each], sha256) for each, sha256 in libraries.items())
    with _lock:
        key = os.getpid(), known
        if key not in _copies:
            _copies[key] = _copy(known)
        _, paths = _copies[key]
    return {each: paths[real[each]] for each in libraries}


def keep_loaded(library: Path) -> None:
    """Load a copy of a library, which isn't unloaded before this process ends.

    Objects in C++ of which a process has only one are shared with the original, if that is loaded,
    too: by an import, or by a run. So a copy that a runtime unloads after its last session would leave
    pointers into itself, through which the next one crashes.
    """
    with contextlib.suppress(OSError):  # the runtime says why it can't be loaded
        ctypes.CDLL(str(library))


def _copy(libraries: frozenset[tuple[Path, str]]) -> tuple[MemoryFolder, dict[Path, Path]]:
    """Copy libraries into a new folder, and return it with the path of each copy."""
    folder, copies = MemoryFolder(), dict[Path, Path]()
    for library, sha256 in libraries:
        name = library.relative_to("/")
        folder.add(name.as_posix(), library, sha256)
        copies[library] = folder.path / name
    for library, copy in copies.items():
        try:
            _show(library.parent, copy.parent, folder.path)
            for found in _FROM_HERE.findall(copy.read_bytes()):
                there, here = (
                    Path(os.path.normpath(one.parent / os.fsdecode(found)))
                    for one in (library, copy)
                )
                _show(there, here, folder.path)
        except OSError as error:
            raise InputError(f"can't link the files beside {library}: {error.strerror}") from error
    return folder, copies


def _show(there: Path, here: Path, inside: Path) -> None:
    """Let a folder be found in the folder of copies, without hiding a copy."""
    if here.is_symlink() or not here.is_relative_to(inside) or not there.is_dir():
        return
    if not here.exists():
        here.parent.mkdir(parents=True, exist_ok=True)
        here.symlink_to(there)
        return
    with contextlib.suppress(PermissionError):  # what can't be listed can still be loaded from
        for entry in list(there.iterdir()):
            if not os.path.lexists(beside := here / entry.name):
                beside.symlink_to(entry)


def _real(library: Path) -> Path:
    """Return a library's path in the folder that it is in; its own name may be a link."""
    return Path(os.path.realpath(library.parent), library.name)
