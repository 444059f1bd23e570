"""Requests on their way: which is due, which waits, which is under way, what became of each.

No sockets and no event loop: those are a client's, which opens lanes. A lane carries one request
at a time: an HTTP connection, or a gRPC call.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

Kind: TypeAlias = Literal[
    "ok", "late", "refused", "error", "broken", "connection", "unanswered", "unsent"
]
MOST_UNDER_WAY = 100_000
"""Requests that are waiting or unanswered at once; more aren't sent."""
_BURST = 64
"""Sent in one go where the generator is behind; then it listens to answers again."""
_MOST_MESSAGE = 300


class Fate(NamedTuple):
    """What became of a request.

    Attributes:
        kind: "ok": answered rightly; "late": the server gave up at the deadline; "refused": it
            said that it has too much to do; "error": any other status; "broken": status of
            success, but no right answer; "connection": it broke, or there was none; "unanswered":
            nothing came until the end; "unsent": too many others were unanswered.
        status: The server's, as "503" or "RESOURCE_EXHAUSTED"; empty where there was none.
    """

    kind: Kind
    status: str = ""


CONNECTION = Fate("connection")
UNANSWERED = Fate("unanswered")
UNSENT = Fate("unsent")


class Lane(Protocol):
    """Carries one request at a time."""

    def send(self, turn: int) -> None:
        """Send a request; what becomes of it is told to `Traffic.ended`."""


class Traffic:
    """Hands requests to lanes when they are due, and keeps what became of them.

    Attributes:
        lag_ns: By turn: how late the generator itself looked at it.
        ended_ns: By turn: when the answer was there, on the traffic's clock; 0 where none is.
        fates: By turn; None where nothing is known yet.
        waited: By turn: 1 where it found every lane busy.
        messages: What the first request of a fate was told.
        opened: How many lanes were opened.
        under_way: How many requests are waiting or unanswered now.
        clock_ns: Monotonic clock, in nanoseconds.
    """

    def __init__(
        self,
        due_ns: Sequence[int],
        open_lane: Callable[[Traffic], None],
        *,
        lanes: int,
        most_under_way: int = MOST_UNDER_WAY,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Send nothing yet.

        Args:
            due_ns: When each request is due on the clock, ascending.
            open_lane: Begins to open a lane; calls `ready` or `not_opened` in the end.
            lanes: How many there are at most.
            most_under_way: Requests that are waiting or unanswered at once.
            clock_ns: Monotonic clock, in nanoseconds.
        """
        count = len(due_ns)
        self.due_ns = due_ns
        self.lag_ns = array("q", bytes(8 * count))
        self.ended_ns = array("q", bytes(8 * count))
        self.fates: list[Fate | None] = [None] * count
        self.waited = bytearray(count)
        self.messages: dict[Fate, str] = {}
        self.opened = 0
        self.under_way = 0
        self._open_lane, self._most_lanes = open_lane, lanes
        self._most_under_way = most_under_way
        self.clock_ns = clock_ns
        self._turn = 0
        self._lanes = 0
        """Open, or about to be."""
        self._idle: list[Lane] = []
        self._waiting: deque[int] = deque()
        self._stopped = False

    def send_due(self) -> int | None:
        """Send what is due now, though only so many in one go.

        Returns:
            When the next one is due; None behind the last.
        """
        for _ in range(_BURST):
            if self._turn == len(self.due_ns):
                return None
            due_ns, now_ns = self.due_ns[self._turn], self.clock_ns()
            if due_ns > now_ns:
                return due_ns
            self.lag_ns[self._turn] = now_ns - due_ns
            self._turn += 1
            self._send(self._turn - 1)
        return self.due_ns[self._turn] if self._turn < len(self.due_ns) else None

    def _send(self, turn: int) -> None:
        if self.under_way >= self._most_under_way:
            self.fates[turn] = UNSENT
            return
        self.under_way += 1
        if self._idle:
            # The last that was answered: those that aren't needed stay idle.
            self._idle.pop().send(turn)
            return
        self._waiting.append(turn)
        if self._lanes < self._most_lanes:
            self._open()
        else:
            self.waited[turn] = 1

    def _open(self) -> None:
        self._lanes += 1
        self._open_lane(self)

    def opened_one(self, lane: Lane) -> None:
        """A lane is open now."""
        self.opened += 1
        self.ready(lane)

    def ready(self, lane: Lane) -> None:
        """A lane can take a request: the one that waits longest, if any."""
        if self._stopped:
            return
        if self._waiting:
            lane.send(self._waiting.popleft())
        else:
            self._idle.append(lane)

    def not_opened(self, message: str) -> None:
        """No lane could be opened: the request that waits longest fails, instead of trying for ever."""
        self._lanes -= 1
        if self._waiting and not self._stopped:
            self.ended(self._waiting.popleft(), CONNECTION, message)
        self._open_for_those_that_wait()

    def lost(self, lane: Lane) -> None:
        """A lane is gone; its request, if it had one, was said to have ended."""
        self._lanes -= 1
        if lane in self._idle:
            self._idle.remove(lane)
        self._open_for_those_that_wait()

    def _open_for_those_that_wait(self) -> None:
        if self._waiting and self._lanes < self._most_lanes and not self._stopped:
            self._open()

    def ended(self, turn: int, fate: Fate, message: str = "", ended_ns: int | None = None) -> None:
        """Note what became of a request.

        Args:
            turn: Which.
            fate: What became of it.
            message: What the server said, or what is wrong; only the first of each fate is kept.
            ended_ns: When its answer was there; by default now.
        """
        if self._stopped:
            return
        self.under_way -= 1
        self.ended_ns[turn] = self.clock_ns() if ended_ns is None else ended_ns
        self.fates[turn] = fate
        if message and fate not in self.messages:
            self.messages[fate] = legible(message)

    def stop(self) -> None:
        """Take note of nothing more: what has no fate is unanswered."""
        self._stopped = True
        self.fates = [fate or UNANSWERED for fate in self.fates]


def legible(message: str) -> str:
    """Return what a server said as one short line that can't steer a terminal."""
    line = " ".join(message[: 4 * _MOST_MESSAGE].split())
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= _MOST_MESSAGE else line[:_MOST_MESSAGE] + "..."
