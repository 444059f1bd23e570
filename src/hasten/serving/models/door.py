"""Line of accepted requests that haven't begun; it lets them in as a model's queue orders its own."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from hasten.serving.turns import Turns


class Waiting(Protocol):
    """Interface of a request that waits at the door."""

    over: bool


T = TypeVar("T", bound=Waiting)


@dataclass
class _Client(Generic[T]):
    """Requests of one client at one level.

    Attributes:
        items: Heap of the priority, the rank in the order of arrival, and the request.
        waiting: Number of them that aren't over.
    """

    items: list[tuple[int, int, T]] = field(default_factory=list)
    waiting: int = 0


class Door(Generic[T]):
    """Line of requests: by level, then by the clients' turns, and of each client the most urgent one first.

    The next of its client takes the turn of a request that is over while it waits.
    """

    def __init__(self) -> None:
        self._turns: dict[int, Turns] = {}
        self._taken: list[tuple[int, int, int, str]] = []
        """Heap of the turns: level, turn, rank in the order of arrival, and client."""
        self._clients: dict[tuple[int, str], _Client[T]] = {}
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
        own.waiting += 1
        turn = self._turns.setdefault(level, Turns()).next(client, 1)
        heapq.heappush(self._taken, (level, turn, order, client))

    def left(self, level: int, client: str) -> None:
        """Note that a waiting request of a client is over."""
        self._clients[level, client].waiting -= 1

    def first(self) -> T | None:
        """Return the request whose turn it is; None if none waits."""
        while self._taken:
            level, _, _, client = self._taken[0]
            own = self._clients.get((level, client))
            if own is not None and own.waiting:
                while own.items[0][2].over:
                    heapq.heappop(own.items)
                return own.items[0][2]
            self._clients.pop((level, client), None)
            heapq.heappop(self._taken)  # nobody is left to take it
        self._turns.clear()
        return None

    def pop(self) -> None:
        """Let in what `first` returned just now."""
        level, turn, _, client = heapq.heappop(self._taken)
        own = self._clients[level, client]
        heapq.heappop(own.items)
        own.waiting -= 1
        self._turns[level].begun(turn)
