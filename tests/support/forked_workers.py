"""Workers that are all forked, where nobody quotes their times."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hasten.core.workers import Worker


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """Fork each worker, which takes a third of the time of a fresh interpreter.

    What asks for fresh interpreters needs a test with `workers_as_asked` besides.
    """
    start = Worker.__init__

    @functools.wraps(start)
    def forked(
        self: Worker, log: Path, memory_bytes: int, *, fresh: bool = False, **others: Any
    ) -> None:
        start(self, log, memory_bytes, **others)

    with patch.object(Worker, "__init__", forked):
        yield


@contextlib.contextmanager
def workers_as_asked() -> Iterator[list[bool]]:
    """Start the workers inside as users get them, within `forked_workers` too.

    Yields:
        Whether each worker so far is a fresh interpreter, in the order of their starts.
    """
    start, found = inspect.unwrap(Worker.__init__), list[bool]()

    def noted(
        self: Worker, log: Path, memory_bytes: int, *, fresh: bool = False, **others: Any
    ) -> None:
        start(self, log, memory_bytes, fresh=fresh, **others)
        # A forked one has its server's words at once; a fresh one may have none yet.
        command = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        found.append(b"hasten.measure.forkserver" not in command)

    with patch.object(Worker, "__init__", noted):
        yield found
