"""Counts that are taken while a stream is watched, and the record that a watch ends with."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

Ended: TypeAlias = Literal["end", "stopped", "cut short", "lost"]
MOST_LATENCIES = 2**20
"""Number of the newest latencies that are kept: nine hours at 30 frames a second."""


@dataclass(frozen=True)
class Answer:
    """One frame's answer.

    Attributes:
        frame: Number of frames that were captured before this one.
        time_ns: Time of capture, in nanoseconds from the beginning of the watch.
        latency_ns: Time from capture to the decision, in nanoseconds.
        missed: Whether the decision came after the deadline.
        decision: Decision of the bundle.
    """

    frame: int
    time_ns: int
    latency_ns: int
    missed: bool
    decision: Any


@dataclass(frozen=True)
class Watched:
    """Counts of a stream's frames by what happened to them.

    Attributes:
        source: Name of the source, without a password.
        rate_per_s: Frames per second that the source has, or was given.
        deadline_ns: Longest time from capture to a decision, in nanoseconds; None where frames
            didn't come at their own times.
        captured: Number of frames that came and could be decoded: those answered and those dropped.
        answered: Number of frames with a decision.
        dropped: Number of frames without one: replaced by a newer frame, older than one period, late,
            refused, or left when the watch was stopped.
        missed: Number of answers that came after the deadline.
        late: Number of dropped frames whose decision came after the deadline, where those are
            dropped.
        refused: Number of dropped frames that the bundle couldn't decide on, such as one with more boxes than a
            chain takes.
        unreadable: Number of frames that came and couldn't be decoded.
        latency_ns: Time from capture to the decision of each answer in order, in nanoseconds; of the
            newest 1,048,576 where there are more.
        duration_ns: Length of the watch, in nanoseconds.
        ended: "end"; "stopped" by Ctrl-C or after the given time; "cut short", where a recording's
            end is missing; "lost", where a camera went away and didn't come back.
        overlay: File with the decisions drawn in, if one was written.
        overlay_dropped: Number of frames that are missing there, since drawing them took too long.
        decisions: File with a line for each answer, if one was written.
        notes: Sentences for people on what went wrong.
    """

    source: str
    rate_per_s: float
    deadline_ns: int | None
    captured: int
    answered: int
    dropped: int
    missed: int
    unreadable: int
    latency_ns: tuple[int, ...]
    duration_ns: int
    ended: Ended
    overlay: Path | None = None
    overlay_dropped: int = 0
    decisions: Path | None = None
    notes: tuple[str, ...] = ()
    late: int = 0
    refused: int = 0

    @property
    def p50_ns(self) -> int | None:
        """Latency that half of the answers have at most; None if there are no answers."""
        return _quantile(self.latency_ns, 0.5)

    @property
    def p99_ns(self) -> int | None:
        """Latency that 99% of the answers have at most; None if there are no answers."""
        return _quantile(self.latency_ns, 0.99)

    @property
    def most_ns(self) -> int | None:
        """Longest latency; None if there are no answers."""
        return _quantile(self.latency_ns, 1.0)


def _quantile(latency_ns: Sequence[int], share: float) -> int | None:
    """Return the least latency that at least a share of all reach: the nearest rank."""
    if not latency_ns:
        return None
    return int(np.quantile(np.asarray(latency_ns), share, method="inverted_cdf"))


class Tally:
    """Counts that the capturing and the answering thread keep together.

    Attributes:
        newest: The newest answer, if there is one.
    """

    def __init__(self, deadline_ns: int | None, begin_ns: int) -> None:
        self._deadline_ns = deadline_ns
        self._begin_ns = begin_ns
        self._lock = threading.Lock()
        self._latency_ns: deque[int] = deque(maxlen=MOST_LATENCIES)
        self._captured = self._answered = self._dropped = self._missed = self._late = 0
        self._refused = 0
        self.newest: Answer | None = None

    def capture(self) -> int:
        """Count a captured frame, and return its number."""
        with self._lock:
            self._captured += 1
            return self._captured - 1

    def drop(self, *, late: bool = False, refused: bool = False) -> None:
        """Count a frame that is never answered.

        Args:
            late: Whether there was a decision, after the deadline.
            refused: Whether the bundle couldn't decide on it.
        """
        with self._lock:
            self._dropped += 1
            self._late += late
            self._refused += refused

    def settle(self) -> None:
        """Count each frame that was left without an answer as dropped."""
        with self._lock:
            self._dropped = self._captured - self._answered

    def answer(self, frame: int, captured_ns: int, latency_ns: int, decision: Any) -> Answer:
        """Count an answer, and return its record."""
        missed = self._deadline_ns is not None and latency_ns > self._deadline_ns
        answer = Answer(frame, captured_ns - self._begin_ns, latency_ns, missed, decision)
        with self._lock:
            self._answered += 1
            self._missed += missed
            self._latency_ns.append(latency_ns)
        self.newest = answer
        return answer

    def watched(self, make: Callable[..., Watched], last: int | None = None) -> Watched:
        """Return the counts as a record.

        Args:
            make: Function that makes the record of the counts, by name.
            last: Number of the newest latencies to put into it; by default all that are kept.
        """
        with self._lock:
            counts = {
                "captured": self._captured,
                "answered": self._answered,
                "dropped": self._dropped,
                "missed": self._missed,
                "late": self._late,
                "refused": self._refused,
            }
            latency_ns = tuple(self._latency_ns)
        kept = latency_ns if last is None else latency_ns[-last:]
        return make(**counts, latency_ns=kept, deadline_ns=self._deadline_ns)
