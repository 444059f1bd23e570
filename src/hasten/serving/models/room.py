"""Bound the memory that requests with raw samples take together, beyond what their own bytes pay for.

No thread waits for memory. Work that finds too little is given up before it allocates any, and begins again once
the memory is reserved for it. So the threads stay free for the requests that give memory back. Large samples are
prepared on one thread.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from hasten.inputs.pipeline.decoded_bytes import FEW_BYTES
from hasten.inputs.pipeline.memory import making_room
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.turns import Turns

ROOM_BYTES = 40 << 20
"""Memory of a process for all samples at once, beyond what their bytes pay for."""
_PAID = 128
"""Bytes of memory that each byte pays for, up to `FEW_BYTES`: real photographs need less."""
_PER_BYTE = 2048
"""Bytes of memory that each further byte pays for; as in `Decode`."""
COPIES = 2
"""Times that a prepared sample is in memory: a batch copies it."""
_TURN_BYTES = 64 << 10
"""Memory that a client gets for one of its turns."""
_SMALL_BYTES = 1 << 20
"""Most memory that a step takes on any thread; samples that take more are prepared on one thread, for all models."""
_KEPT_BYTES = 12 << 20
"""Memory that the threads for small samples may keep together once it is freed."""


class NoRoomError(Exception):
    """There isn't enough memory for a sample now: its work must begin again later."""


def paid_bytes(sent: int) -> int:
    """Return the memory, in bytes, that a request of so many bytes may take without a place in the room."""
    return _PAID * min(sent, FEW_BYTES) + _PER_BYTE * max(0, sent - FEW_BYTES)


class Place:
    """Share of the room that one request takes.

    Args:
        room: The room.
        client: Client that the request is counted under.
        sent: Bytes of the request as they were sent.
        most_bytes: Memory that a sample may take while it is prepared; None for any.

    Attributes:
        go: Function that begins the request's work again, once its memory is reserved.
        paid_bytes: Memory that the request's own bytes pay for.
        size_bytes: Memory that is reserved.
        wanted_bytes: Memory that the request waits for; 0 if it doesn't wait.
        turns: Turns of its client that this wait takes.
        tries: Number of times that the work found too little memory.
        large: Whether the work belongs on the thread for large samples.
        working: Whether a thread works on the request.
        over: Whether the request is answered or given up.
    """

    def __init__(self, room: Room, client: str, sent: int, most_bytes: int | None) -> None:
        self.room, self.client, self._most_bytes = room, client, most_bytes
        self.paid_bytes, self._base_bytes, self._step_bytes = paid_bytes(sent), 0, 0
        self.go: Callable[[], None] = _nothing
        self.size_bytes = self.wanted_bytes = self.turns = self.tries = 0
        self.large = self.working = self.over = self._alone = False

    @contextlib.contextmanager
    def works(self, *, later: bool) -> Iterator[None]:
        """Let the pipeline's steps take their memory here.

        Args:
            later: Whether the request has a reservation that others can't wait for, so that its steps can't
                be given up any more.
        """
        token = making_room.set(self._grow if later else self._need)
        self.working = True
        try:
            yield
        finally:
            making_room.reset(token)
            if self._alone:
                self._alone = False
                self.room.alone.release()
            self.room.rest(self)

    def hold(self, base_bytes: int) -> None:
        """Reserve what the request keeps, beside what its steps take.

        Raises:
            NoRoomError: there is too little room now, or the work belongs on the thread for large samples.
        """
        self._base_bytes = base_bytes
        size = base_bytes + self._step_bytes - self.paid_bytes
        if (self._is_large and not self.large) or (
            size > self.size_bytes and not self.room.took(self, size)
        ):
            raise NoRoomError

    def settle(self, base_bytes: int) -> None:
        """Reserve what the request keeps once its steps have ended.

        Raises:
            NoRoomError: there is too little room now.
        """
        self._step_bytes = 0
        self.hold(base_bytes)

    def keep(self, base_bytes: int) -> None:
        """Give back what is reserved beyond what the request keeps."""
        self._base_bytes = base_bytes
        self.room.give(self, max(0, base_bytes - self.paid_bytes))

    def again(self) -> None:
        """Wait for the memory that was missing; `go` is called once it is there."""
        wanted = self._base_bytes + self._step_bytes - self.paid_bytes
        self.large = self.large or self._is_large
        self._base_bytes = self._step_bytes = 0
        self.tries += 1
        # A request whose samples grow would otherwise begin again with each of them.
        self.room.wait(self, wanted if self.tries == 1 else max(wanted, self.room.total_bytes))

    def leave(self) -> None:
        """Give everything back, once no thread works on the request any more."""
        self.room.leave(self)
        self.go = _nothing  # it refers to the request, whose samples would stay until a garbage collection

    @property
    def _is_large(self) -> bool:
        """Whether a step takes much more than the sample's bytes pay for."""
        return self._step_bytes > self.paid_bytes + self.room.small_bytes

    def _need(self, size_bytes: int) -> None:
        """Reserve what a step takes, or give up the work."""
        self._check(size_bytes)
        self._step_bytes = max(self._step_bytes, size_bytes)
        self.hold(self._base_bytes)

    def _grow(self, size_bytes: int) -> None:
        """Let only one request at a time take more than it has reserved, until its stage ends."""
        self._check(size_bytes)
        left = self.paid_bytes + self.size_bytes - self._base_bytes
        if size_bytes > max(left, self.room.small_bytes) and not self._alone:
            self.room.alone.acquire()
            self._alone = True

    def _check(self, size_bytes: int) -> None:
        if self._most_bytes is not None and size_bytes > self._most_bytes:
            raise ProtocolError(
                Kind.INVALID,
                f"the sample needs {size_bytes / 2**20:,.0f} MiB of memory, but only {self._most_bytes / 2**20:,.0f} "
                "MiB are allowed for so few bytes: send a smaller picture or a shorter sound",
            )


class Room:
    """Memory for the samples of all requests at once, whichever model they are for.

    A request that needs more than all of it runs while no other has any. Requests that wait come in turn, by
    client and by the memory that they want, so that a client gets its share of the memory whatever the others
    send, and neither a large request nor a client waits for ever.

    Args:
        total_bytes: Size of the memory.

    Attributes:
        total_bytes: Size of the memory.
        alone: Lock of the one request that takes more than it has reserved. Whoever has it only computes.
        taken_bytes: Memory that is reserved.
        small_bytes: Memory that a step takes on any thread: the less, the more threads there are.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes, self.taken_bytes = total_bytes, 0
        self.small_bytes, self._threads = _SMALL_BYTES, 0
        self._lock, self.alone = threading.Lock(), threading.Lock()
        self._turns, self._orders = Turns(), itertools.count()
        self._line: list[tuple[int, int, Place]] = []
        """Heap of the requests that wait, by the client's turn and the order of arrival; some have left since."""
        self._left = 0
        """Number of the requests in the line that have left."""

    def count_threads(self, more: int) -> None:
        """Note that there are more threads for small samples, or fewer."""
        with self._lock:
            self._threads += more
            self.small_bytes = min(_SMALL_BYTES, _KEPT_BYTES // max(1, self._threads))

    def took(self, place: Place, size_bytes: int) -> bool:
        """Reserve memory for a request if it is free and nobody waits for it; return whether it was."""
        with self._lock:
            waiting = len(self._line) > self._left and not place.size_bytes
            if waiting or not self._fits(place, size_bytes):
                return False
            self._resize(place, size_bytes)
            return True

    def give(self, place: Place, size_bytes: int) -> None:
        """Leave only so much reserved for a request."""
        with self._lock:
            if place.size_bytes > size_bytes:
                self._resize(place, size_bytes)
            ready = self._admitted()
        _begin(ready)

    def wait(self, place: Place, size_bytes: int) -> None:
        """Give back what a request has, and let it wait for more."""
        with self._lock:
            self._resize(place, 0)
            if not place.over:
                place.wanted_bytes = size_bytes
                place.turns = max(1, size_bytes // _TURN_BYTES)
                turn = self._turns.next(place.client, place.turns)
                heapq.heappush(self._line, (turn, next(self._orders), place))
            ready = self._admitted()
        _begin(ready)

    def rest(self, place: Place) -> None:
        """Note that no thread works on a request any more."""
        with self._lock:
            place.working = False
            if place.over:
                self._resize(place, 0)
            ready = self._admitted()
        _begin(ready)

    def leave(self, place: Place) -> None:
        """Note that a request is over."""
        with self._lock:
            place.over = True
            if place.wanted_bytes:
                place.wanted_bytes = 0
                self._turns.gave_up(place.client, place.turns)
                self._left += 1
                if 2 * self._left > len(self._line):
                    self._line = [each for each in self._line if not each[2].over]
                    heapq.heapify(self._line)
                    self._left = 0
            if not place.working:
                self._resize(place, 0)
            ready = self._admitted()
        _begin(ready)

    def _fits(self, place: Place, size_bytes: int) -> bool:
        others = self.taken_bytes - place.size_bytes
        return not others or others + size_bytes <= self.total_bytes

    def _resize(self, place: Place, size_bytes: int) -> None:
        self.taken_bytes += size_bytes - place.size_bytes
        place.size_bytes = size_bytes

    def _admitted(self) -> list[Place]:
        """Return the requests that no longer have to wait, with their memory reserved."""
        ready = []
        while self._line:
            turn, _, place = self._line[0]
            if not place.over and not self._fits(place, place.wanted_bytes):
                break
            heapq.heappop(self._line)
            if place.over:
                self._left -= 1
                continue
            self._turns.begun(turn)
            self._resize(place, place.wanted_bytes)
            place.wanted_bytes = 0
            ready.append(place)
        return ready


def _nothing() -> None:
    """Begin nothing: the request doesn't wait."""


def _begin(places: list[Place]) -> None:
    for place in places:
        place.go()


ROOM = Room(ROOM_BYTES)
"""The room of this process; a server sets its size."""
LARGE = ThreadPoolExecutor(1, "hasten-large")
"""Thread for large samples. glibc keeps what a thread has freed, so that several threads would each keep 40 MiB."""
