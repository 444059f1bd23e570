"""The journal of a run, as append-only JSON lines, from which a killed run continues."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hasten.core.records import to_record
from hasten.errors import InputError


class Journal:
    """Events in the order in which they happened; an event is on disk when `append` returns.

    Args:
        path: Path of the file, made when missing. A last line that a kill cut short is dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: list[dict[str, Any]] = []
        if path.exists():
            self._recover()

    def _recover(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(self.path, len(whole))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                event = json.loads(line)
                self._events.append({"kind": event["kind"], **event})
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise InputError(
                    f"{self.path}: line {number} is damaged; remove {self.path.parent} to start again"
                ) from error

    def append(self, kind: str, **fields: Any) -> None:
        """Write one event and wait until it is on disk.

        Raises:
            InputError: the disk is full, or the folder can't be written.
        """
        event = {"kind": kind, "at_s": round(time.time(), 2), **to_record(fields)}
        size = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(json.dumps(event).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self.path, size)  # half a line would spoil the next
            raise InputError(f"can't write {self.path}: {error.strerror or error}") from error
        self._events.append(event)

    def events(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yield the events of one kind, oldest first."""
        return (event for event in self._events if event["kind"] == kind)

    @property
    def first(self) -> dict[str, Any] | None:
        """Oldest event; None where there is none."""
        return self._events[0] if self._events else None

    def last(self, kind: str) -> dict[str, Any] | None:
        """Return the newest event of a kind; None where there is none."""
        return next((event for event in reversed(self._events) if event["kind"] == kind), None)
