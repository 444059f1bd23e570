"""Read files again once they change, and keep what was read before where that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from hasten.errors import InputError

log = logging.getLogger("hasten.serving")

T = TypeVar("T")


class ChangingFiles(Generic[T]):
    """Value that is read from files, and from their new content once they change.

    Args:
        what: Name of the value for people, such as "tokens".
        files: Files that it is read from.
        read: Function that reads it, and raises InputError where it can't.

    Attributes:
        value: Value that was read last.

    Raises:
        InputError: the value can't be read.
    """

    def __init__(self, what: str, files: Sequence[Path], read: Callable[[], T]) -> None:
        self._what, self._files, self._read = what, files, read
        # Taken first: what changes while it is read is read again.
        self._marks = self._marked()
        self._told = ""
        self.value = read()

    def look(self) -> None:
        """Read the value again if a file has changed, at each look until it can be read.

        A failure is logged once: it may be that of a moment, such as too many open files.
        """
        marks = self._marked()
        if marks == self._marks:
            return
        try:
            self._check_kind()
            self.value = self._read()
        except Exception as error:  # whatever failed, the next look tries again
            if self._told != str(error):
                self._told = str(error)
                unexpected = not isinstance(error, InputError)
                log.error("the previous %s stay in use: %s", self._what, error, exc_info=unexpected)
        else:
            self._marks, self._told = marks, ""
            log.info("the %s changed: read again", self._what)

    def _check_kind(self) -> None:
        """Check that each file is a plain one: opening a pipe may never end, and no file would be looked at again.

        Raises:
            InputError: one isn't.
        """
        for file in self._files:
            if file.exists() and not file.is_file():
                raise InputError(f"{file} isn't a plain file any more: put one in its place")

    def _marked(self) -> list[tuple[int, ...]]:
        """Return what changes with each file: also where another file comes in its place."""
        marks: list[tuple[int, ...]] = []
        for file in self._files:
            try:
                found = file.stat()
            except OSError as error:
                marks.append((error.errno or 0,))
            else:
                marks.append(
                    (
                        found.st_dev,
                        found.st_ino,
                        found.st_size,
                        found.st_mtime_ns,
                        found.st_ctime_ns,
                    )
                )
        return marks
