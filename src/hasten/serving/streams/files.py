"""Files that grow while a stream is watched, and appear under their name once they are whole."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.records import check_replaceable
from hasten.errors import InputError
from hasten.serving.streams.tally import Answer


class Beside:
    """A file under a temporary name in the folder of its own.

    Attributes:
        path: Where the file is to be.
        part: Where it is while it grows.

    Raises:
        InputError: the folder isn't there or can't be written to, or `path` is a folder, a device or a pipe.
    """

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            raise InputError(f"can't write {path}: it is a folder; give a file's name")
        self.path = path
        self.part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            check_replaceable(path)
            self.part.touch()
        except OSError as error:
            raise InputError(f"can't write {path}: {error.strerror or error}") from error

    def keep(self) -> Path:
        """Give the file its name.

        Raises:
            OSError: it can't be renamed.
        """
        self.part.replace(self.path)
        return self.path

    def drop(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            self.part.unlink()


class Lines:
    """A file with one line of JSON for each answer.

    Raises:
        InputError: the file can't be written.
    """

    def __init__(self, path: Path) -> None:
        self._beside = Beside(path)
        self._count = 0
        self._file = self._beside.part.open("w", buffering=1, encoding="utf-8")

    def write(self, answer: Answer) -> None:
        """Add an answer's line.

        Raises:
            InputError: the disk is full, or the file can't be written for another reason.
        """
        record = {
            "frame": answer.frame,
            "time_ns": answer.time_ns,
            "latency_ns": answer.latency_ns,
            "missed": answer.missed,
            "decision": answer.decision,
        }
        try:
            self._file.write(json.dumps(record, default=_plain) + "\n")
            self._count += 1
        except OSError as error:
            raise InputError(
                f"can't write {self._beside.path}: {error.strerror or error}"
            ) from error

    def close(self, *, done: bool) -> Path | None:
        """Finish the file under its name.

        Args:
            done: Whether the watch ended without an error. After one, a file without lines is
                removed.

        Raises:
            InputError: the disk is full, or the file can't be written for another reason.
        """
        try:
            if not done and not self._count:
                self._file.close()
                self._beside.drop()
                return None
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            return self._beside.keep()
        except OSError as error:
            with contextlib.suppress(OSError):  # it would try again what failed
                self._file.close()
            self._beside.drop()
            raise InputError(
                f"can't write {self._beside.path}: {error.strerror or error}"
            ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise InputError(f"a decision of type {type(value).__name__} can't be written as JSON")
