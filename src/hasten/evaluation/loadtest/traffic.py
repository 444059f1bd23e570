"""Requests on their way: which is due, which waits, which is in progress, and how each ended.

This module has no sockets and no event loop; those are the client's, which opens lanes. A lane,
such as an HTTP connection or a gRPC call, carries one request at a time.
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
"""Largest number of requests that wait or are unanswered at once; further ones aren't sent."""
_BURST = 64
"""Largest number of requests to send at once when the generator is behind, before it reads answers again."""
_MOST_MESSAGE = 300


class Fate(NamedTuple):
    """The way in which a request ended.

    Attributes:
        kind: "ok": answered correctly; "late": the server gave up at the deadline; "refused": the
            server was overloaded; "error": any other status; "broken": a success status without a
            correct answer; "connection": it broke, or there was none; "unanswered": nothing came
            until the end; "unsent": too many others were unanswered.
        status: Status from the server, such as "503" or "RESOURCE_EXHAUSTED"; empty where none
            came.
    """

    kind: Kind
    status: str = ""


CONNECTION = Fate("connection")
UNANSWERED = Fate("unanswered")
UNSENT = Fate("unsent")


class Lane(Protocol):
    """Carries one request at a time."""

    def send(self, turn: int) -> None:
        """Send a request; `Traffic.ended` is told how it ended."""


class Traffic:
    """Gives requests to lanes when they are due, and records how they ended.

    Attributes:
        lag_ns: Delay of the generator itself, by request.
        ended_ns: Time of the answer on the traffic's clock, by request; 0 where there is none.
        fates: Fate by request; None where it is unknown yet.
        waited: 1 where a request found every lane busy, by request.
        messages: Fate -> message to the first request with that fate.
        opened: Number of lanes that were opened.
        under_way: Number of requests that wait or are unanswered now.
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
            due_ns: Due time of each request on the clock, ascending.
            open_lane: Function that begins to open a lane, and later calls `ready` or `not_opened`.
            lanes: Largest number of lanes.
            most_under_way: Largest number of requests that wait or are unanswered at once.
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
        """Number of lanes that are open or being opened."""
        self._idle: list[Lane] = []
        self._waiting: deque[int] = deque()
        self._stopped = False

    def send_due(self) -> int | None:
        """Send the requests that are due now, up to a number at once.

        Returns:
            Due time of the next request; None after the last.
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
            # The lane that was answered last: lanes that aren't needed stay idle.
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
        """Count a lane that is open now, and use it."""
        self.opened += 1
        self.ready(lane)

    def ready(self, lane: Lane) -> None:
        """Give a free lane the request that has waited longest, if any."""
        if self._stopped:
            return
        if self._waiting:
            lane.send(self._waiting.popleft())
        else:
            self._idle.append(lane)

    def not_opened(self, message: str) -> None:
        """Fail the longest-waiting request, as no lane could be opened; never retry forever."""
        self._lanes -= 1
        if self._waiting and not self._stopped:
            self.ended(self._waiting.popleft(), CONNECTION, message)
        self._open_for_those_that_wait()

    def lost(self, lane: Lane) -> None:
        """Forget a lane that is gone; if it had a request, that has been reported as ended."""
        self._lanes -= 1
        if lane in self._idle:
            self._idle.remove(lane)
        self._open_for_those_that_wait()

    def _open_for_those_that_wait(self) -> None:
        if self._waiting and self._lanes < self._most_lanes and not self._stopped:
            self._open()

    def ended(self, turn: int, fate: Fate, message: str = "", ended_ns: int | None = None) -> None:
        """Record how a request ended.

        Args:
            turn: Number of the request.
            fate: Fate of the request.
            message: Message from the server, or what is wrong; the first of each fate is kept.
            ended_ns: Time of the answer; by default now.
        """
        if self._stopped:
            return
        self.under_way -= 1
        self.ended_ns[turn] = self.clock_ns() if ended_ns is None else ended_ns
        self.fates[turn] = fate
        if message and fate not in self.messages:
            self.messages[fate] = legible(message)

    def stop(self) -> None:
        """Stop recording; requests without a fate are unanswered."""
        self._stopped = True
        self.fates = [fate or UNANSWERED for fate in self.fates]


def legible(message: str) -> str:
    """Return a server's message as one short line that can't control a terminal."""
    line = " ".join(message[: 4 * _MOST_MESSAGE].split())
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= _MOST_MESSAGE else line[:_MOST_MESSAGE] + "..."
