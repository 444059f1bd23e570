"""Workers that are all forked, where nobody quotes their times."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from hasten.measure.process import Worker


@contextlib.contextmanager
def forked_workers() -> Iterator[None]:
    """Fork each worker, which takes a third of the time of a fresh interpreter."""
    start = Worker.__init__

    def forked(self: Worker, log: Path, memory_bytes: int, *, fresh: bool = False) -> None:
        start(self, log, memory_bytes)

    with patch.object(Worker, "__init__", forked):
        yield
