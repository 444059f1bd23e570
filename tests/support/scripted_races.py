"""Races without processes: entrants take as long as their settings say, and nothing is started for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from tests.support.nominal_times import BASE_NS, Asked, nearly, nominal

from hasten.core.records import to_record
from hasten.measure.candidate import Candidate
from hasten.measure.workbench import Workbench
from hasten.optimization.measured.racing import Racing


class Entrant:
    """Stands for a worker in a race: it answers nothing, and its latencies are known.

    Args:
        asked: What the worker would be asked to open.
    """

    def __init__(self, asked: Asked) -> None:
        self._latencies = nominal(asked) or (BASE_NS,)

    def ask(self, do: str, *, first: int, at_least: int, **_: Any) -> list[int]:
        """Return the latencies of a block."""
        assert do == "time"
        known = self._latencies
        return [nearly(known[i % len(known)], first) for i in range(at_least)]

    def sleep(self) -> None:
        """Do nothing: it never runs."""

    def kill(self) -> None:
        """Do nothing: it has no process."""


@contextlib.contextmanager
def scripted_races() -> Iterator[None]:
    """Let the race and the fresh rounds of runs start no process.

    They are most of a short run. Trials and the sealed data are answered by processes as ever. Engines
    whose latencies aren't nominal are all equally fast.
    """

    def opened(
        self: Racing, bench: Workbench, who: str, candidate: Candidate, *, fresh: bool
    ) -> Entrant:
        artifact = self.artifact(candidate)  # which builds what isn't built
        return Entrant({"engine": to_record(candidate.engine), "artifact": to_record(artifact)})

    with patch.object(Racing, "_opened", opened):
        yield
