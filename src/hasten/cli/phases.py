"""Phases of a run, as people see them, and about how long it will still take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from hasten.core.progress import UNKNOWN, Outline, Progress, StageName

PHASES: dict[StageName, str] = {
    "prepare": "prepare",
    "prospects": "train",
    "shortlist": "train",
    "prune": "train",
    "train": "train",
    "int8": "train",
    "exact": "exact forms",
    "draft": "search",
    "try": "search",
    "widths": "search",
    "design": "search",
    "ceilings": "search",
    "race": "race",
    "certify": "certify",
    "label": "certify",
    "figures": "final timing",
    "limit": "extras",
    "curve": "extras",
    "load": "extras",
    "ways": "extras",
}
"""Phase of each stage; a stage that isn't here, as "transform", belongs to the phase at work."""
_SEARCHING = ("exact forms", "search")


class Phases:
    """Phases that a run has finished, the one at work and those to come.

    Args:
        clock: Function that returns the time in seconds.
        began_s: Beginning of the run by that clock; now by default.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, began_s: float | None = None
    ) -> None:
        self.names: list[str] = []
        self.current = ""
        self.outline: Outline | None = None
        self._met: set[str] = set()
        self._clock = clock
        self._began_s = clock() if began_s is None else began_s
        self._last: Progress | None = None
        self._stage_s, self._stage_done = self._began_s, 0

    def see(self, progress: Progress) -> None:
        """Take note of a report."""
        if progress.outline is not None:
            self.outline = progress.outline
            coming = dict.fromkeys(map(self._phase_of, progress.outline.stages))
            kept = [name for name in self.names if name not in coming]
            self.names = [*kept, *coming]
        if self._last is None or progress.stage != self._last.stage:
            self._stage_s, self._stage_done = self._clock(), progress.done
        self._last = progress
        self.current = self._phase_of(progress.stage)
        self._met.add(self.current)
        if self.current not in self.names:
            self.names.append(self.current)

    def finished(self, name: str) -> bool:
        """Whether a phase was at work and is no longer."""
        return name in self._met and name != self.current

    def left_out(self, name: str) -> bool:
        """Whether a later phase is at work, and this one never was."""
        order = self.names
        if name in self._met or self.current not in order:
            return False
        return order.index(name) < order.index(self.current)

    @property
    def elapsed_s(self) -> float:
        """Return the time since the beginning, in seconds."""
        return self._clock() - self._began_s

    def left_s(self) -> float | None:
        """Return about how long the run will still take, in seconds; None where unknown."""
        limit_s = None if self.outline is None else self.outline.limit_s
        most_s = math.inf if limit_s is None else max(0.0, limit_s - self.elapsed_s)
        last = self._last
        later_s = None if last is None else last.later_s
        if last is None or later_s is None or last.total == UNKNOWN:
            return None if limit_s is None else most_s
        passed, left = last.done - self._stage_done, max(0, last.total - last.done)
        if passed <= 0 < left:
            return None if limit_s is None else most_s
        own_s = (self._clock() - self._stage_s) / passed * left if left else 0.0
        return min(most_s, own_s + later_s)

    def left_in_words(self) -> str:
        """Say about how long the run will still take; empty where that isn't known."""
        left_s = self.left_s()
        if left_s is None:
            return ""
        more = self.outline is not None and self.outline.open_ended and not self.outline.limit_s
        if more and self.current in _SEARCHING:
            return f"about {_about(left_s)} or more left"
        return f"about {_about(left_s)} left"

    def _phase_of(self, stage: StageName) -> str:
        return PHASES.get(stage) or self.current or stage


def clock_in_words(seconds: float) -> str:
    """Write a time as on a stopwatch: "1:05"."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"


def _about(seconds: float) -> str:
    """Write a time roughly: up to a minute and a half in tens of seconds, then in minutes."""
    if seconds <= 90:
        return f"{max(10, 10 * round(seconds / 10))} s"
    return f"{round(seconds / 60)} min"
