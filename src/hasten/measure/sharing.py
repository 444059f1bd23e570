"""Divisions of a process's threads among sessions that answer in parallel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from hasten.engines.base import Engine

E = TypeVar("E", bound=Engine)


@dataclass(frozen=True)
class Sharing:
    """One division of threads among sessions.

    Attributes:
        threads: Number of threads of each session's engine.
        sessions: Number of parallel sessions.
    """

    threads: int
    sessions: int

    @property
    def busy(self) -> int:
        """Return the number of threads that work at once."""
        return self.threads * self.sessions

    def __str__(self) -> str:
        return f"{_many(self.sessions, 'session')} of {_many(self.threads, 'thread')}"


def sharings(threads: int, own: int | None = None) -> list[Sharing]:
    """Return the divisions of threads: all for one session, halves, quarters, ..., one each.

    Args:
        threads: Number of threads to divide.
        own: Number of threads that the engine asks for itself; that division comes first.
    """
    each = [threads >> halvings for halvings in range(threads.bit_length())]
    as_it_is = [Sharing(own, 1)] if own is not None and own < threads else []
    return as_it_is + [Sharing(share, threads // share) for share in each]


def on_share(engine: E, share: Sharing, threads: int) -> E:
    """Return an engine's settings for one share of the threads.

    Threads bound to processors stay bound only where one session has them all: several sessions
    would be bound to the same processors.
    """
    return engine.on_threads(share.threads, alone=share == Sharing(threads, 1))


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
