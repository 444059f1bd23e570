"""Bound the answers that a client is to read, over all its connections, before its further requests run."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from hasten.serving.protocol.errors import Kind, ProtocolError

MOST_OWED_BYTES = 48 << 20
"""Memory of a client's answers, made or foreseen, beyond one batch of them; from there on, further requests wait."""
COUNTED_BYTES = 16 << 10
"""Size of an answer up to which it isn't counted: a connection takes about as much without it."""
_ENDED = 64
"""Largest number of a client's requests that a look ends because they have waited for too long."""
_LOOK_S = 0.25
"""Time between two looks at the connections of clients whose requests wait."""
_DRAIN_S = 20.0
"""Time in which a client whose requests wait is to read as much as it holds; what it doesn't, it may lose."""
_JUDGED_S = 3.0
"""Time of looks after which a connection's rate is known: its rate since it was looked at one to two such times ago."""


class Holding(Protocol):
    """Interface of a request with a model that can be taken back from it."""

    @property
    def asked(self) -> str:
        """Name of the model that has the request."""

    @property
    def begun_ns(self) -> int:
        """Time when the model got the request."""

    def expect(self) -> None:
        """Count the answer as large as it is expected by now, if its size is guessed."""

    def hold(self) -> None:
        """Take the request back, unless an engine runs it, and let it wait for room in front of all that wait."""


def take_back(begun: Iterable[Holding], is_room: Callable[[], bool]) -> None:
    """Take requests back for whose answers there is no room, as far as no engine runs them.

    One answer is larger than was foreseen, so that the others' may be too.

    Args:
        begun: Requests that are with their models, in their order.
        is_room: Function that says whether there is room for the answers to all that weren't taken back.
    """
    calls = list(begun)
    for call in calls:
        call.expect()
    # The last one first: a model may go on with the next one when one is taken back.
    for call in reversed(calls):
        if is_room():
            return
        call.hold()


class _Way:
    """Answers owed on one connection.

    Attributes:
        size: Their memory, in bytes.
        end: Function that ends the connection; None before somebody looked at it.
        ended_s: Time at which it was called last.
        credited: Memory of answers, or their parts, that was read, and of which nothing became free yet.
    """

    __slots__ = ("_before", "_latest", "_since", "credited", "end", "ended_s", "size")

    def __init__(self) -> None:
        self.size = self.credited = 0
        self.end: Callable[[], None] | None = None
        self.ended_s = -math.inf
        self._before = self._since = self._latest = -math.inf, 0
        """Times of looks, and the memory that had been read by then."""

    def looked(self, read: int, now_s: float) -> int:
        """Note how much memory of answers was read by now; return how much more that is than at the last look."""
        seen_s, seen = self._latest
        self._latest = now_s, read
        if read < seen or now_s - seen_s >= _DRAIN_S:  # nobody looked for a while
            self._before = self._since = self._latest
            return 0
        if now_s - self._since[0] >= _JUDGED_S:
            self._before, self._since = self._since, self._latest
        self.credited += read - seen
        return read - seen

    @property
    def drain_s(self) -> float:
        """Time in which as much is read as is held, at the latest rate; 0 while that isn't known."""
        (began_s, had), (now_s, read) = self._before, self._latest
        looked_s = now_s - began_s
        return self.size * looked_s / max(1, read - had) if looked_s >= _JUDGED_S else 0.0

    def is_ending(self, now_s: float) -> bool:
        """Whether the connection was ended a moment ago, and its memory isn't free yet."""
        return now_s - self.ended_s < _JUDGED_S


class Turn:
    """Place of a request in the line of its client.

    Args:
        client: The client.
        size: Memory of its answer, in bytes.
        most: Memory of all answers, in bytes, from which it waits.
        go: Function that counts the answer, and begins the request; it is called at most once.
        end: Function that ends the request with an error, where it waits for too long.
        until_s: Time of the loop at which it has waited for too long.
    """

    __slots__ = ("client", "end", "go", "most", "size", "until_s")

    def __init__(
        self,
        client: str,
        size: int,
        most: int,
        go: Callable[[], None],
        end: Callable[[ProtocolError], None],
        until_s: float,
    ) -> None:
        self.client, self.size, self.most, self.until_s = client, size, most, until_s
        self.go, self.end = go, end


class _Client:
    """Answers owed to one client.

    Attributes:
        ways: The same by connection.
        size: Their memory, in bytes.
        line: Requests that wait, in their order.
        due: Memory that should have been read or become free by now, and wasn't, while requests waited.
        looked_s: Time up to which that is known.
    """

    __slots__ = ("due", "line", "looked_s", "size", "ways")

    def __init__(self) -> None:
        self.ways: dict[object, _Way] = {}
        self.size = 0
        self.line: deque[Turn] = deque()
        self.due = self.looked_s = 0.0

    def grows_due(self, now_s: float) -> None:
        """Count the time that has passed since the last look while requests waited."""
        passed_s, self.looked_s = now_s - self.looked_s, now_s
        self.due = min(self.size, self.due + self.size * passed_s / _DRAIN_S)

    def end_slow(self, now_s: float) -> None:
        """End the connections that are read most slowly, as far as that is due and the first request needs it."""
        first = self.line[0]
        ending = sum(way.size for way in self.ways.values() if way.is_ending(now_s))
        needed, due = self.size + first.size - first.most - ending, self.due - ending
        slow = [way for way in self.ways.values() if way.drain_s > _DRAIN_S]
        for way in sorted(slow, key=lambda way: -way.drain_s):
            if way.end is None or way.is_ending(now_s):
                continue
            if needed <= 0 or way.size > due:
                break
            way.ended_s = now_s
            needed, due = needed - way.size, due - way.size
            way.end()


class OwedAnswers:
    """Answers that clients are to read, made or foreseen; used on the event loop's thread only.

    A request whose answer finds no room waits before its model runs. While one waits, the connections of its client are
    looked at: those on which nothing is read are ended by who looks. If the client as a whole doesn't read, within
    `_DRAIN_S`, as much as it holds, connections on which it reads more slowly than that are ended, the slowest first.

    Args:
        look: Function that looks at a client's connections, calls `looked`, and ends those on which nothing is read.
        patience_s: Longest time for which a request waits.
        begun: Function that returns the requests of a client that are with their models and can be taken back.
        fair: Whether clients are told apart; else none waits for another.
    """

    def __init__(
        self,
        look: Callable[[str], None],
        patience_s: float,
        begun: Callable[[str], Iterable[Holding]] = lambda client: (),
        *,
        fair: bool = True,
    ) -> None:
        self._look, self._patience_s, self._fair, self._begun = look, patience_s, fair, begun
        self._clients: dict[str, _Client] = {}
        self._sizes: dict[str, int] = {}
        self._ticking = self._letting_in = False

    def count(self, client: str, connection: object, change: int) -> None:
        """Count that much more memory, or less, for a client's answers on a connection."""
        if not change:
            return
        own = self._clients.setdefault(client, _Client())
        way = own.ways.setdefault(connection, _Way())
        way.size += change
        own.size += change
        if not way.size:
            del own.ways[connection]
        if change < 0:
            credited = min(way.credited, -change)
            way.credited -= credited
            own.due = max(0.0, own.due + change + credited)
            self._freed(client, own)

    def looked(self, client: str, connection: object, read: int, end: Callable[[], None]) -> None:
        """Note how a client reads on a connection.

        Args:
            client: The client.
            connection: The connection.
            read: Memory, in bytes, of what the client has received on it since it was opened.
            end: Function that ends the connection.
        """
        own = self._clients.get(client)
        if own is not None and (way := own.ways.get(connection)) is not None:
            way.end = end
            more = way.looked(read, asyncio.get_running_loop().time())
            own.due = max(0.0, own.due - more)

    def has_room(self, client: str, size: int, most: int) -> bool:
        """Whether a client's request may begin whose answer takes so much memory; one may always."""
        own = self._clients.get(client)
        return own is None or not self._fair or (not own.line and _fits(own, size, most))

    def has_line(self, client: str) -> bool:
        """Whether requests of a client wait."""
        own = self._clients.get(client)
        return own is not None and bool(own.line)

    def hold(self, client: str, model: str) -> None:
        """Take back a client's requests to a model, one of whose answers is larger than was foreseen; see `take_back`."""
        own = self._clients.get(client)
        if self._fair and own is not None:
            same = (
                call for call in self._begun(client) if call.asked == model
            )  # others' have their room
            begun = sorted(same, key=lambda call: call.begun_ns)
            take_back(begun, lambda: own.size <= MOST_OWED_BYTES)

    def wait(
        self,
        client: str,
        size: int,
        most: int,
        go: Callable[[], None],
        end: Callable[[ProtocolError], None],
        *,
        first: bool = False,
    ) -> Turn:
        """Let a request wait behind the others of its client, or in front of them; see `Turn`."""
        loop = asyncio.get_running_loop()
        turn = Turn(client, size, most, go, end, loop.time() + self._patience_s)
        own = self._clients.setdefault(client, _Client())
        if not own.line:
            own.due, own.looked_s = 0.0, loop.time()
        if first:
            own.line.appendleft(turn)
        else:
            own.line.append(turn)
        if not self._ticking:
            self._ticking = True
            loop.call_soon(self._tick)
        return turn

    def leave(self, turn: Turn) -> None:
        """Forget a request that waits, if it still does."""
        own = self._clients.get(turn.client)
        if own is not None and turn in own.line:
            own.line.remove(turn)
            self._freed(turn.client, own)

    def foreseen(self, model: str) -> int:
        """Return the size that a model's answer is expected to have where only the model can tell."""
        return self._sizes.get(model, 0)

    def answered(self, model: str, size: int) -> None:
        """Note how large an answer is."""
        self._sizes[model] = max(size, self._sizes.get(model, 0) // 2)

    def _freed(self, client: str, own: _Client) -> None:
        """Let in those that wait, one in each turn of the loop, and forget a client that has nothing."""
        if own.line:
            if not self._letting_in and _fits(own, own.line[0].size, own.line[0].most):
                self._letting_in = True
                asyncio.get_running_loop().call_soon(self._let_in)
        elif not own.ways:
            self._clients.pop(client, None)

    def _let_in(self) -> None:
        self._letting_in = False
        for client, own in list(self._clients.items()):
            if own.line and _fits(own, own.line[0].size, own.line[0].most):
                try:
                    own.line.popleft().go()
                finally:
                    self._freed(client, own)

    def _tick(self) -> None:
        """Look at the connections of the clients that wait, again and again until none does."""
        loop = asyncio.get_running_loop()
        waiting = [(client, own) for client, own in self._clients.items() if own.line]
        self._ticking = bool(waiting)
        if waiting:  # first, so that an error with one client ends nobody's wait
            loop.call_later(_LOOK_S, self._tick)
        for client, own in waiting:
            for _ in range(_ENDED):  # each takes some time of the loop
                if not own.line or own.line[0].until_s > loop.time():
                    break
                own.line.popleft().end(_too_long(self._patience_s))
            if own.line:
                self._look(client)
                own.grows_due(loop.time())
            if own.line:
                own.end_slow(loop.time())
            self._freed(client, own)


def _fits(own: _Client, size: int, most: int) -> bool:
    return not own.size or own.size + size <= most


def _too_long(patience_s: float) -> ProtocolError:
    return ProtocolError(
        Kind.OVERLOADED,
        f"the request waited for {patience_s:g} s until this client reads other answers: read them, or ask for fewer "
        "at once; retry later",
        1.0,
    )
