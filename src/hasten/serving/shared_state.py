"""Shared memory that outlives the serving process: the state of each connection and engine.

The supervisor reads it once that process is dead: whom it owes an answer, and whose engine was at
work. A byte each, so that a write is whole or absent.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from collections.abc import Callable
from typing import Self

RESTING, WORKING, SENDING, ANSWERED = 0, 1, 2, 3
_ENGINES = 4096
MOST_MODELS = 127
_STANDBY = 128


class SharedState:
    """Bytes of connections, then bytes of engine threads.

    Args:
        number: File descriptor of the memory.
        connections: How many there may be.
    """

    def __init__(self, number: int, connections: int) -> None:
        self.number, self.connections = number, connections
        self._memory = mmap.mmap(number, connections + _ENGINES)
        self._threads = itertools.count()

    @classmethod
    def new(cls, connections: int) -> Self:
        """Take memory for one."""
        number = os.memfd_create("hasten-state")
        os.ftruncate(number, connections + _ENGINES)
        return cls(number, connections)

    def clear(self) -> None:
        """Begin anew, for another process."""
        self._memory[:] = bytes(len(self._memory))

    def at(self, slot: int) -> int:
        """What a connection is at."""
        return self._memory[slot]

    def working_models(self) -> set[tuple[int, bool]]:
        """The models whose engines are at work, from 0; and whether it is the one that stands by."""
        marks = {each for each in self._memory[self.connections :] if each}
        return {((each & ~_STANDBY) - 1, each >= _STANDBY) for each in marks}

    def close(self) -> None:
        """Let go of the memory."""
        self._memory.close()
        os.close(self.number)

    def slot(self, slot: int, closed: Callable[[int], None]) -> ConnectionState:
        """Where a connection states what it is at."""
        return ConnectionState(self._memory, slot, closed)

    def engine(self, model: int, standby: bool) -> contextlib.AbstractContextManager[None]:
        """A context for one engine thread of a model, to be entered whenever it works."""
        place = self.connections + next(self._threads) % _ENGINES
        return _Engine(self._memory, place, model + 1 + (_STANDBY if standby else 0))


class ConnectionState:
    """A connection's byte."""

    __slots__ = ("_closed", "_gone", "_memory", "_slot")

    def __init__(self, memory: mmap.mmap, slot: int, closed: Callable[[int], None]) -> None:
        self._memory, self._slot, self._closed = memory, slot, closed
        self._gone = False

    def working(self) -> None:
        """A request is under way, and nothing of its answer is sent."""
        self._memory[self._slot] = WORKING

    def sending(self) -> None:
        """A part of the answer is sent."""
        self._memory[self._slot] = SENDING

    def answered(self) -> None:
        """The answer was handed to the system, or will be at once."""
        self._memory[self._slot] = ANSWERED

    def resting(self) -> None:
        """No request is under way, and none was for a while."""
        self._memory[self._slot] = RESTING

    def closed(self) -> None:
        """The connection is gone."""
        if not self._gone:
            self._gone = True
            self._memory[self._slot] = RESTING
            self._closed(self._slot)


class _Engine:
    __slots__ = ("_memory", "_model", "_place")

    def __init__(self, memory: mmap.mmap, place: int, model: int) -> None:
        self._memory, self._place, self._model = memory, place, model

    def __enter__(self) -> None:
        self._memory[self._place] = self._model

    def __exit__(self, *_: object) -> None:
        self._memory[self._place] = 0
