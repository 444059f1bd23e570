"""Line of accepted requests that haven't begun; it lets them in as a model's queue orders its own."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from hasten.serving.turns import Turns

_SPARE = 16
"""Entries that a heap may have beyond twice those that count."""


class Waiting(Protocol):
    """Interface of a request that waits at the door."""

    over: bool


T = TypeVar("T", bound=Waiting)


@dataclass
class _Client(Generic[T]):
    """Requests of one client at one level.

    Attributes:
        items: Heap of the priority, the rank in the order of arrival, and the request; some may be over.
        turns: Turn, and rank in the order of arrival, of each request that isn't over; ascending.
    """

    items: list[tuple[int, int, T]] = field(default_factory=list)
    turns: deque[tuple[int, int]] = field(default_factory=deque)


class Door(Generic[T]):
    """Line of requests: by level, then by the clients' turns, and of each client the most urgent one first.

    A request that is over gives its client's latest turn back. It is forgotten at the latest when more than half of
    its client's requests, and a few more, are over.
    """

    def __init__(self) -> None:
        self._turns: dict[int, Turns] = {}
        self._clients: dict[tuple[int, str], _Client[T]] = {}
        self._next: list[tuple[int, int, int, str]] = []
        """Heap of each client's next turn: level, turn, rank in the order of arrival, and client."""
        self._order = itertools.count()

    def enter(self, item: T, level: int, client: str, priority: int) -> None:
        """Let a request wait.

        Args:
            item: The request.
            level: Level at which it waits; lower ones go first.
            client: Client that the request is counted under.
            priority: Priority among the client's own requests at this level; lower ones go first.
        """
        order, own = next(self._order), self._clients.setdefault((level, client), _Client())
        heapq.heappush(own.items, (priority, order, item))
        own.turns.append((self._turns.setdefault(level, Turns()).next(client, 1), order))
        if len(own.turns) == 1:
            self._queue(level, client, own)

    def left(self, level: int, client: str) -> None:
        """Note that a waiting request of a client is over."""
        own = self._clients[level, client]
        own.turns.pop()
        self._turns[level].gave_up(client, 1)
        if not own.turns:
            del self._clients[level, client]
        elif len(own.items) > 2 * len(own.turns) + _SPARE:
            own.items = [one for one in own.items if not one[2].over]
            heapq.heapify(own.items)

    def first(self) -> T | None:
        """Return the request whose turn it is; None if none waits."""
        while self._next:
            level, turn, order, client = self._next[0]
            own = self._clients.get((level, client))
            if own is not None and own.turns[0] == (turn, order):
                while own.items[0][2].over:
                    heapq.heappop(own.items)
                return own.items[0][2]
            heapq.heappop(self._next)  # of requests that are over
        self._turns.clear()
        return None

    def pop(self) -> None:
        """Let in what `first` returned just now."""
        level, turn, _, client = heapq.heappop(self._next)
        own = self._clients[level, client]
        heapq.heappop(own.items)
        own.turns.popleft()
        self._turns[level].begun(turn)
        if own.turns:
            self._queue(level, client, own)
        else:
            del self._clients[level, client]

    def _queue(self, level: int, client: str, own: _Client[T]) -> None:
        """Queue a client's next turn."""
        heapq.heappush(self._next, (level, *own.turns[0], client))
        if len(self._next) > 2 * len(self._clients) + _SPARE:
            self._next = [
                (level, *each.turns[0], client) for (level, client), each in self._clients.items()
            ]
            heapq.heapify(self._next)
