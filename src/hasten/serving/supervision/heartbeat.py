"""Tell a serving process whose event loop hangs from one that waits, is stopped, or gets no processor."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hasten.serving.shared_state import SharedState

BEAT_S = 1.0
"""Time between two beats of the loop, and at most between two looks of the supervisor."""
LOADING_TIMES = 10
"""Factor on the time that a loop may stand still while a bundle is opened, which may hold up the interpreter."""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_STOPPED, _COMPUTING, _NO_FAULT = ("T", "t"), "R", "D"
"""States of a thread in proc(5): stopped by somebody, at work or ready for it, waiting for a disk."""


class Thread(NamedTuple):
    """Facts about a thread by the system.

    Attributes:
        state: Letter of its state, as proc(5) has it; "" if it is gone.
        computed_s: Time for which it had a processor, in seconds.
    """

    state: str
    computed_s: float


def main_thread(pid: int) -> Thread:
    """Look at a process's main thread, on which its loop runs."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/stat").read_text()
    except OSError:
        return Thread("", 0.0)
    fields = text.rpartition(")")[2].split()
    return Thread(fields[0], _TICK_S * (int(fields[11]) + int(fields[12])))


class Pulse:
    """Shows the supervisor that the event loop goes on.

    Args:
        shared_state: Memory that the supervisor reads.
        loading: Function that says whether a bundle is being opened.
    """

    def __init__(self, shared_state: SharedState, loading: Callable[[], bool]) -> None:
        self._shared_state, self._loading = shared_state, loading
        self._loop = asyncio.get_running_loop()

    def beat(self) -> None:
        """Beat now, and from now on."""
        self._shared_state.beat(loading=self._loading())
        self._loop.call_later(BEAT_S, self.beat)

    def loading_begins(self) -> None:
        """Say at once that a bundle is being opened."""
        self._shared_state.beat(loading=True)


class Heartbeat:
    """Adds up for how long a loop didn't beat, of the time in which it could have.

    Time in which the process was stopped doesn't count, nor in which it waited for a disk or for a processor,
    nor a gap between two looks: then the supervisor itself stood still, or the whole machine did.

    Args:
        most_s: Longest time, in seconds; 0 for any.
        now_s: Time of a monotonic clock, in seconds.
    """

    def __init__(self, most_s: float, now_s: float) -> None:
        self.most_s, self.silent_s = most_s, 0.0
        self.pause_s = min(BEAT_S, most_s / 4)
        self._looked_s, self._count, self._computed_s = now_s, -1, 0.0

    def hangs(self, count: int, loading: bool, thread: Thread, now_s: float) -> bool:
        """Look once; whether the loop has stood still for too long.

        Args:
            count: Number that is another one after each beat.
            loading: Whether a bundle is being opened.
            thread: The loop's thread.
            now_s: Time of the clock.
        """
        gap_s = min(now_s - self._looked_s, 2 * self.pause_s)
        computed_s = thread.computed_s - self._computed_s
        self._looked_s, self._computed_s = now_s, thread.computed_s
        if count != self._count:
            self._count, self.silent_s = count, 0.0
        elif thread.state == _COMPUTING:
            self.silent_s += min(gap_s, computed_s)
        elif thread.state not in (*_STOPPED, _NO_FAULT):
            self.silent_s += gap_s
        return self.silent_s >= self.most_s * (LOADING_TIMES if loading else 1)
