"""Keep the state of each connection and engine in shared memory that outlives the serving process.

Once that process is dead, the supervisor reads which clients are owed an answer, and which models'
engines were running. Each state is one byte, so that a write is whole or absent. Two more bytes say
that the event loop goes on, and whether a bundle is being opened.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from collections.abc import Callable
from typing import Self

from hasten.errors import InputError

RESTING, WORKING, SENDING, ANSWERED = 0, 1, 2, 3
_ENGINES = 4096
MOST_MODELS = 127
_STANDBY = 128
_BEAT, _LOADING = -2, -1
"""Places of the two last bytes."""


class SharedState:
    """Shared memory with one byte per connection, then one byte per engine thread, then two of the loop's.

    Args:
        number: File descriptor of the memory.
        connections: Largest number of connections open at once.
    """

    def __init__(self, number: int, connections: int) -> None:
        self.number, self.connections = number, connections
        self._memory = mmap.mmap(number, connections + _ENGINES + 2)
        self._threads = itertools.count()

    @classmethod
    def new(cls, connections: int) -> Self:
        """Allocate the memory of a new shared state.

        Raises:
            InputError: the system allows no file in memory of this size.
        """
        try:
            number = os.memfd_create("hasten-state")
            os.ftruncate(number, connections + _ENGINES + 2)
        except OSError as error:
            raise InputError(
                f"can't share memory with the serving process: {error.strerror}; see ulimit -f and ulimit -n"
            ) from error
        return cls(number, connections)

    def clear(self) -> None:
        """Reset all bytes for a new serving process."""
        self._memory[:] = bytes(len(self._memory))

    def at(self, slot: int) -> int:
        """Return the state of a connection: RESTING, WORKING, SENDING or ANSWERED."""
        return self._memory[slot]

    def working_models(self) -> set[tuple[int, bool]]:
        """Return models with a running engine: indices from 0, and whether it is the standby engine."""
        marks = {each for each in self._memory[self.connections : _BEAT] if each}
        return {((each & ~_STANDBY) - 1, each >= _STANDBY) for each in marks}

    def beat(self, *, loading: bool) -> None:
        """Record that the event loop goes on, and whether a bundle is being opened."""
        self._memory[_BEAT] = self._memory[_BEAT] % 255 + 1
        self._memory[_LOADING] = loading

    @property
    def pulse(self) -> tuple[int, bool]:
        """A number that is another one after each beat, and whether a bundle is being opened."""
        return self._memory[_BEAT], bool(self._memory[_LOADING])

    def close(self) -> None:
        """Unmap and close the memory."""
        self._memory.close()
        os.close(self.number)

    def slot(self, slot: int, closed: Callable[[int], None]) -> ConnectionState:
        """Return the object with which a connection records its state.

        Args:
            slot: Index of the connection's byte.
            closed: Callback that is given the slot when the connection is closed.
        """
        return ConnectionState(self._memory, slot, closed)

    def engine(self, model: int, standby: bool) -> contextlib.AbstractContextManager[None]:
        """Return the context that one engine thread of a model enters whenever it runs."""
        place = self.connections + next(self._threads) % _ENGINES
        return _Engine(self._memory, place, model + 1 + (_STANDBY if standby else 0))


class ConnectionState:
    """Record the state of one connection in its byte."""

    __slots__ = ("_closed", "_gone", "_memory", "_slot")

    def __init__(self, memory: mmap.mmap, slot: int, closed: Callable[[int], None]) -> None:
        self._memory, self._slot, self._closed = memory, slot, closed
        self._gone = False

    def working(self) -> None:
        """Record that a request is being processed and no part of its answer was sent."""
        self._memory[self._slot] = WORKING

    def sending(self) -> None:
        """Record that a part of the answer was sent."""
        self._memory[self._slot] = SENDING

    def answered(self) -> None:
        """Record that the answer was handed to the operating system, or is about to be."""
        self._memory[self._slot] = ANSWERED

    def resting(self) -> None:
        """Record that no request is being processed, and none was for a while."""
        self._memory[self._slot] = RESTING

    def closed(self) -> None:
        """Record, once, that the connection is closed."""
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
