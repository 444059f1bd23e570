"""Bound the answers that a client is to read, over all its connections, before its further requests run."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from hasten.serving.protocol.errors import Kind, ProtocolError

MOST_OWED_BYTES = 48 << 20
"""Memory of a client's answers, made or foreseen, beyond one batch of them; from there on, further requests wait."""
COUNTED_BYTES = 16 << 10
"""Size of an answer up to which it isn't counted: a connection takes about as much without it."""
_LOOK_S = 0.25
"""Time between two looks at the connections of clients whose requests wait."""


class _Way:
    """Answers owed on one connection.

    Attributes:
        size: Their memory, in bytes.
        reading: Whether the client reads them, so that they hold nobody up.
    """

    __slots__ = ("reading", "size")

    def __init__(self) -> None:
        self.size, self.reading = 0, False


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
        size: Memory, in bytes, of those on connections that aren't known to be read.
        line: Requests that wait, in their order.
    """

    __slots__ = ("line", "size", "ways")

    def __init__(self) -> None:
        self.ways: dict[object, _Way] = {}
        self.size = 0
        self.line: deque[Turn] = deque()


class OwedAnswers:
    """Answers that clients are to read, made or foreseen; used on the event loop's thread only.

    A request whose answer finds no room waits before its model runs. While one waits, the connections of its client are
    looked at: those that are read hold nobody up, and those on which nothing is read are ended by who looks.

    Args:
        look: Function that looks at a client's connections, calls `reads`, and ends those on which nothing is read.
        patience_s: Longest time for which a request waits.
        fair: Whether clients are told apart; else none waits for another.
    """

    def __init__(
        self, look: Callable[[str], None], patience_s: float, *, fair: bool = True
    ) -> None:
        self._look, self._patience_s, self._fair = look, patience_s, fair
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
        if not way.reading:
            own.size += change
        if not way.size:
            del own.ways[connection]
        if change < 0:
            self._freed(client, own)

    def reads(self, client: str, connection: object, reading: bool) -> None:
        """Note whether a client reads the answers on a connection."""
        own = self._clients.get(client)
        way = None if own is None else own.ways.get(connection)
        if own is None or way is None or way.reading == reading:
            return
        way.reading = reading
        own.size += -way.size if reading else way.size
        if reading:
            self._freed(client, own)

    def has_room(self, client: str, size: int, most: int) -> bool:
        """Whether a client's request may begin whose answer takes so much memory; one may always."""
        own = self._clients.get(client)
        return own is None or not self._fair or (not own.line and _fits(own, size, most))

    def wait(
        self,
        client: str,
        size: int,
        most: int,
        go: Callable[[], None],
        end: Callable[[ProtocolError], None],
    ) -> Turn:
        """Let a request wait behind the others of its client; see `Turn`."""
        loop = asyncio.get_running_loop()
        turn = Turn(client, size, most, go, end, loop.time() + self._patience_s)
        own = self._clients.setdefault(client, _Client())
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
            while own.line and own.line[0].until_s <= loop.time():
                own.line.popleft().end(_too_long(self._patience_s))
            if own.line:
                self._look(client)
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
