"""Give clients turns, so that none waits behind all that another has asked."""

from __future__ import annotations

_MOST_TURNS = 4096
"""Clients whose turns are kept before those that are over are forgotten."""


class Turns:
    """Turns of clients' requests: a client's follow each other by their rows, whatever others have queued.

    Source: Goyal, Vin and Cheng, Start-time fair queueing, 1996; without weights.

    Args:
        now: Turn after which all others come.
    """

    def __init__(self, now: int = 0) -> None:
        self._now = now
        self._last: dict[str, int] = {}

    def next(self, client: str, rows: int) -> int:
        """Return the turn of a client's request that is queued now."""
        if len(self._last) > _MOST_TURNS:
            self._last = {one: turn for one, turn in self._last.items() if turn > self._now}
        turn = self._last[client] = max(self._now, self._last.get(client, 0)) + rows
        return turn

    def gave_up(self, client: str, rows: int) -> None:
        """Give a client the turns back that one of its requests took, which left before they came."""
        if client in self._last:
            self._last[client] -= rows

    def begun(self, turn: int) -> None:
        """Note the turn of a request that runs now."""
        self._now = max(self._now, turn)
