"""Whether there is a file or a folder at a path that somebody gave, which may be no possible name of one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from hasten.errors import InputError

_NOTHING = (errno.ENOENT, errno.ENOTDIR, errno.EBADF, errno.ELOOP, errno.ENAMETOOLONG)


def path_text(path: str | os.PathLike[str]) -> str:
    """Return the text of a path that somebody gave.

    Raises:
        InputError: it is no text and no `Path`.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise InputError(f"a path must be a text or a Path: got {path!r:.100}")
    return text


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether there is something at a path; there is nothing under a name that is too long or has a NUL byte.

    Raises:
        InputError: the system doesn't let this process look there, or it is no path.
    """
    return _mode(path) is not None


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder at a path; see `is_there`."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file at a path; see `is_there`."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def _mode(path: str | os.PathLike[str]) -> int | None:
    try:
        return Path(path_text(path)).stat().st_mode
    except ValueError:  # a NUL byte, or letters that the file system can't spell
        return None
    except OSError as error:
        if error.errno in _NOTHING:
            return None
        raise InputError(f"can't look at {os.fspath(path)}: {error.strerror or error}") from error
