"""Bound the calls under way, and end those that let the server wait where others need their places."""

from __future__ import annotations

from typing import Protocol

from hasten.serving.fairness import Shares
from hasten.serving.protocol.errors import Kind, ProtocolError

_FULL = 0.9
"""Share of the allowed calls; once more are under way, those that wait for their clients are ended."""
_ENDED = 64
"""Largest number of slow clients' calls that are ended at once: each takes some time of the loop."""
_QUIET_NS = 5_000_000_000
"""Time for which a call must have waited for its client to be ended while there are places left."""

_MADE_ROOM = (
    "the call was waiting for its client, and was ended to make room for others: call again"
)


class Held(Protocol):
    """Interface of a call under way.

    Attributes:
        client: Client that the call is counted under.
    """

    client: str

    @property
    def peer(self) -> str:
        """Client's address and port, as gRPC writes them."""

    @property
    def waiting_ns(self) -> int | None:
        """Time since which the server waits for the call's client; None while it doesn't."""

    def overdue(self, now_ns: int) -> bool:
        """Whether the call's client is too slow."""

    def drain(self, why: ProtocolError) -> None:
        """End the call with an error once what was asked is answered."""

    def end(self, why: ProtocolError) -> None:
        """End the call with an error now."""


class Admission:
    """Calls under way, of which there are at most so many.

    Args:
        most: Largest number of calls at once.
        patience_ns: Time for which a call must have waited for its client to be ended where there is
            no place left.
    """

    def __init__(self, most: int, patience_ns: int) -> None:
        self._most, self._patience_ns = most, patience_ns
        self._calls: set[Held] = set()
        self._shares = Shares(most)
        self._leaving: set[Held] = set()
        """Calls that were told to end, for another client."""

    def __len__(self) -> int:
        """Return the number of calls under way."""
        return len(self._calls)

    @property
    def peers(self) -> set[str]:
        """Clients that have calls under way, with their ports, as gRPC writes them."""
        return {call.peer for call in self._calls}

    def peers_of_others(self, client: str) -> set[str]:
        """Return the same as `peers` for the calls of all clients but one."""
        return {call.peer for call in self._calls if call.client != client}

    def enter(self, call: Held, now_ns: int) -> None:
        """Count a call that begins.

        Raises:
            ProtocolError: too many calls are under way, and their clients wait for the server; or the
                client has more than its share.
        """
        if len(self._calls) >= self._most:
            self._make_room(now_ns - self._patience_ns)
        if not self._shares.took(call.client, 1):
            said = f"overloaded: {self._most:,} calls are in progress; retry later"
            if len(self._calls) >= self._most:
                self._take_back(call.client)
            if len(self._calls) < self._most:
                said = (
                    f"overloaded: {self._shares.of(call.client):,} of the {self._most:,} calls "
                    "that may be in progress are this client's, and other clients are waiting; "
                    "retry later"
                )
            raise ProtocolError(Kind.OVERLOADED, said, retry_s=1.0)
        self._calls.add(call)

    def leave(self, call: Held) -> None:
        """Count a call no longer."""
        if call in self._calls:
            self._calls.discard(call)
            self._shares.give(call.client, 1)
        if self._leaving:
            self._leaving.discard(call)

    def move(self, call: Held, client: str) -> None:
        """Count a call under another client from now on."""
        if call in self._calls:
            self._shares.give(call.client, 1)
            self._shares.take(client, 1)
        call.client = client

    def _take_back(self, client: str) -> None:
        """Tell a call of the client with the most calls to end, where another client finds no place."""
        greedy = self._shares.greediest()
        if self._shares.of(greedy) <= self._shares.of(client) + 1:
            return
        for call in self._calls - self._leaving:
            if call.client == greedy:
                self._leaving.add(call)
                why = "this call was ended to make room for other clients, which have fewer calls: call again"
                call.drain(ProtocolError(Kind.UNAVAILABLE, why, 1.0))
                return

    def sweep(self, now_ns: int) -> bool:
        """End calls of slow clients, and make room where nearly all places are taken.

        Returns:
            Whether there are more calls of slow clients, which are to be ended in a later turn of the loop.
        """
        overdue = [one for one in self._calls if one.overdue(now_ns)]
        for call in overdue[:_ENDED]:
            self._end(
                call,
                Kind.SLOW,
                "the request didn't arrive, or answers weren't read, within the time limit",
            )
        self._make_room(now_ns - _QUIET_NS)
        return len(overdue) > _ENDED

    def drain(self, why: ProtocolError) -> None:
        """End the calls that wait for their clients, once what they asked is answered."""
        for call in list(self._calls):
            call.drain(why)

    def _make_room(self, since_ns: int) -> None:
        """End calls that have waited for their clients since that time or before.

        Those of the client with the most calls come first, then those that have waited longest.
        """
        too_many = len(self._calls) - int(_FULL * self._most)
        if too_many <= 0:
            return
        waiting = [
            (-self._shares.of(one.client), one.waiting_ns, number, one)
            for number, one in enumerate(self._calls)
            if one.waiting_ns is not None and one.waiting_ns <= since_ns
        ]
        for *_, call in sorted(waiting)[:too_many]:
            self._end(call, Kind.UNAVAILABLE, _MADE_ROOM)

    def _end(self, call: Held, kind: Kind, why: str) -> None:
        self.leave(call)
        call.end(ProtocolError(kind, why, 1.0))
