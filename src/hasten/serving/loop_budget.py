"""Bound the bytes that one turn of the event loop works on, so that others are heard in between."""

from __future__ import annotations

import asyncio
from collections import deque

TURN_BYTES = 64 << 10
"""Bytes of JSON that are parsed in one turn of the loop; a longer body is parsed in a turn of its own."""


class LoopBudget:
    """Budget of the loop's turns for long bodies, or answers; used on the loop's thread only.

    Bodies that find no room wait. Clients take turns then, and a client's bodies go in order of arrival.

    Args:
        turn_bytes: Bytes of one turn, or number of what else is counted; a longer body has a turn of its own.

    Attributes:
        turn: Number of the turn that bytes are taken of now.
    """

    def __init__(self, turn_bytes: int = TURN_BYTES) -> None:
        self._turn_bytes, self._spent = turn_bytes, 0
        self._scheduled, self.turn = False, 0
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    def took(self, size: int) -> bool:
        """Take bytes of this turn if there is room and nobody waits; return whether they were taken."""
        if self._waiting or not self._is_room(size):
            return False
        self._spent += size
        self._schedule()
        return True

    async def take(self, client: str, size: int) -> None:
        """Take bytes of this turn, or of the first turn that has room for them.

        Args:
            client: Client that the body is counted under.
            size: Size of the body, in bytes.
        """
        if not self.took(size):
            await self.asked(client, size)

    def asked(self, client: str, size: int) -> asyncio.Future[None]:
        """Wait in line for bytes of a turn; return the future of their being taken, which may be cancelled."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append((size, waiter))
        self._schedule()
        return waiter

    def _is_room(self, size: int) -> bool:
        return not self._spent or self._spent + size <= self._turn_bytes

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        """Begin a turn's budget, and let those go on in the next turn that there is room for."""
        self._spent, self._scheduled, self.turn = 0, False, self.turn + 1
        while self._waiting:
            client, queue = next(iter(self._waiting.items()))
            size, waiter = queue[0]
            if not waiter.done():  # it is, if its client went away
                if not self._is_room(size):
                    break
                self._spent += size
                waiter.set_result(None)
            queue.popleft()
            del self._waiting[client]
            if queue:
                self._waiting[client] = queue  # behind the other clients
        if self._spent:
            self._schedule()
