"""Engine whose process is killed while it opens, as where memory runs short for a moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hasten.core.target import Target
from hasten.engines.base import Artifact, Session
from hasten.engines.null import Null


@dataclass(frozen=True)
class Killed(Null):
    """Engine whose process is killed while it opens, some times.

    Attributes:
        count: File with a letter for each time that it was opened.
        times: How often it is killed.
    """

    count: str = ""
    times: int = 1

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        with Path(self.count).open("a+") as file:
            file.write("x")
        if Path(self.count).stat().st_size <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        with super().open(artifact, target) as session:
            yield session
