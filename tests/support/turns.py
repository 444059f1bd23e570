"""Counting the turns of a server's event loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.support.servers import ServerThread


@contextlib.contextmanager
def turns_of(server: ServerThread) -> Iterator[list[int]]:
    """Count the turns of a server's loop meanwhile; the only element is the number of the present one."""
    turn, counting = [0], [True]

    def next_turn() -> None:
        turn[0] += 1
        if counting[0]:
            server._loop.call_soon(next_turn)

    server.call(next_turn)
    try:
        yield turn
    finally:
        counting[0] = False
