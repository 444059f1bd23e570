"""How sessions that answer side by side in one process share its threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from hasten.engines.base import Engine

E = TypeVar("E", bound=Engine)


@dataclass(frozen=True)
class Sharing:
    """One way of sharing.

    Attributes:
        threads: Of each session's engine.
        sessions: How many answer side by side.
    """

    threads: int
    sessions: int

    @property
    def busy(self) -> int:
        """How many threads work at once."""
        return self.threads * self.sessions

    def __str__(self) -> str:
        return f"{_many(self.sessions, 'session')} of {_many(self.threads, 'thread')}"


def sharings(threads: int, own: int | None = None) -> list[Sharing]:
    """Return the ways to share: all threads for one session, halves, quarters, ..., one each.

    Args:
        threads: How many there are.
        own: How many the engine asks for itself, where it does: as it is comes first.
    """
    each = [threads >> halvings for halvings in range(threads.bit_length())]
    as_it_is = [Sharing(own, 1)] if own is not None and own < threads else []
    return as_it_is + [Sharing(share, threads // share) for share in each]


def on_share(engine: E, share: Sharing, threads: int) -> E:
    """Return an engine's settings on one share of so many threads.

    What is bound to processors stays so only where one session has them all: others would be
    bound to the same ones.
    """
    return engine.on_threads(share.threads, alone=share == Sharing(threads, 1))


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
