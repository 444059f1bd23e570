"""Sessions of one artifact for any number of threads: one thread in each at a time, the others in line."""

from __future__ import annotations

import threading
import weakref
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from queue import Empty, SimpleQueue

from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Engine, Session, share
from hasten.errors import CandidateError, HastenError, told

_OPENING = threading.Lock()
"""Held by who opens a session, in the whole process: while they load, engines redirect its output and replace
functions of their runtimes."""
_AGAIN_S = 1.0
"""How long a thread sleeps before it looks again: an interrupt may swallow what should have woken it."""
_TIMES = 2
"""Memory that a session takes, in sizes of its files."""


def sessions_for(engine: Engine, artifact: Artifact, target: Target, cpus: int) -> int:
    """Return how many sessions are worth having.

    As many as the processors can run: more of them help nobody. One on a device, which does one request's
    work after another's. No more than half of the memory holds.

    Args:
        engine: What opens them.
        artifact: What they load.
        target: The device, and the threads that each session may have.
        cpus: How many processors' time this process has.
    """
    if target.kind == "attached":
        return 1
    threads = max(getattr(each, "threads", None) or target.threads for each in engine.runtimes)
    fit = target.memory_bytes // 2 // (_TIMES * max(1, artifact.size_bytes))
    return max(1, min(cpus // threads, fit))


class SessionPool:
    """Sessions of one artifact: any number of threads may call `run` and `properties`.

    The first session is open from the start; another is opened when a call finds none free. The one that
    was used last is taken first: its memory is in the caches. Whoever finds none waits in line.

    Attributes:
        inputs: What `run` takes.
        outputs: What it gives.
        batch_sizes: The batch sizes that it takes, or None where any will do.
        limit: How many sessions there may be.

    Args:
        engine: What opens them.
        artifact: What they load.
        target: The device, and the threads of each session.
        limit: How many there may be, at least 1.

    Raises:
        CandidateError: the first can't be opened.
    """

    def __init__(self, engine: Engine, artifact: Artifact, target: Target, limit: int) -> None:
        self.limit = limit
        self._engine, self._artifact, self._target = engine, artifact, target
        self._lock = threading.RLock()  # a dropped seat may come back while its thread holds it
        self._closing = ExitStack()
        self._sessions: list[Session] = []
        self._growing = False
        self._refused = ""
        self._free: list[_Seat] = []
        self._line: deque[_Waiter] = deque()
        self._watched = False  # whether anybody waits for a seat to come back
        self._closed = False
        self._retired: list[_Seat] = []
        self._returned: SimpleQueue[None] = SimpleQueue()
        self._open()
        first = self._sessions[0]
        self.inputs, self.outputs, self.batch_sizes = first.inputs, first.outputs, first.batch_sizes

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request; see `Session.run`.

        Raises:
            CandidateError: the runtime failed, or the pool is closed.
        """
        # As `session` does, without what that adds to a call of some microseconds.
        try:
            seat = self._free.pop()
        except IndexError:
            seat = None
        if seat is None:
            seat = self._seat()
        try:
            return seat.session.run(inputs)
        finally:
            self._free.append(seat)
            if self._watched:
                self._hand_out()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Lend a session to the thread that asks.

        Raises:
            CandidateError: the pool is closed.
        """
        try:
            seat = self._free.pop()
        except IndexError:
            seat = None
        if seat is None:
            seat = self._seat()
        try:
            yield seat.session
        finally:
            self._free.append(seat)
            if self._watched:
                self._hand_out()

    def properties(self) -> Mapping[str, str]:
        """What a session says of itself; what sessions count is summed over all of them.

        Raises:
            CandidateError: the pool is closed.
        """
        with self.session() as session:
            said = dict(session.properties())
        parts, wholes = Counter[str](), Counter[str]()
        for each in list(self._sessions):
            for name, (part, whole) in each.shares().items():
                parts[name] += part
                wholes[name] += whole
        said |= {name: share(parts[name], wholes[name]) for name in wholes}
        if self._refused:
            said["no further session"] = self._refused
        return said

    def check_open(self) -> None:
        """Check that it takes calls.

        Raises:
            CandidateError: it is closed.
        """
        if self._closed:
            raise CandidateError("the bundle is closed: load it again")

    def close(self) -> None:
        """Refuse the calls in line and all later ones, wait for those that run, and free the sessions."""
        with self._lock:
            self._closed = self._watched = True
            for waiter in self._line:
                waiter.bell.put(None)
        self._retire()
        while self._growing or len(self._retired) < len(self._sessions):
            with suppress(Empty):
                self._returned.get(timeout=_AGAIN_S)
            self._retire()
        with self._lock:
            closing = self._closing.pop_all()
            self._sessions.clear()
            self._retired.clear()
        closing.close()

    def _seat(self) -> _Seat:
        """Wait in line for a session; before, open one more where there may be more."""
        with self._lock:
            self.check_open()
            grows = not self._growing and len(self._sessions) < self.limit
            self._growing |= grows
        if grows:
            self._grow()
        waiter = _Waiter()
        try:
            with self._lock:
                self._line.append(waiter)
                self._watched = True
            self._hand_out()
            while waiter.seat is None:
                self.check_open()
                try:
                    waiter.bell.get(timeout=_AGAIN_S)
                except Empty:
                    self._hand_out()
            return waiter.seat
        except BaseException:
            self._leave(waiter)
            raise

    def _grow(self) -> None:
        """Open a session more; where that fails, there will be no more than there are."""
        try:
            self._open()
        except Exception as error:
            self.limit = len(self._sessions)
            self._refused = str(error) if isinstance(error, HastenError) else told(error)
        finally:
            self._growing = False
            self._hand_out()

    def _open(self) -> None:
        """Open a session, which is free then."""
        with _OPENING, ExitStack() as opening:
            session = opening.enter_context(self._engine.open(self._artifact, self._target))
            with self._lock:
                seat = _Seat(session, self)
                self._closing.push(opening.pop_all())
                self._sessions.append(session)
                self._free.append(seat)

    def _hand_out(self) -> None:
        """Give free sessions to those in line, or to the thread that closes the pool."""
        if self._closed:
            self._retire()
            self._returned.put(None)
            return
        with self._lock, suppress(IndexError):  # others take free ones meanwhile, without the lock
            while self._line:
                first = self._line[0]
                if first.seat is None:
                    first.seat = self._free.pop()
                first.bell.put(None)
                self._line.popleft()
            self._watched = False

    def _retire(self) -> None:
        """Put free sessions away, for good."""
        with self._lock, suppress(IndexError):
            while True:
                self._retired.append(self._free.pop())

    def _leave(self, waiter: _Waiter) -> None:
        """Leave the line, and give back what was handed over meanwhile."""
        with self._lock:
            with suppress(ValueError):
                self._line.remove(waiter)
            if waiter.seat is not None:
                self._free.append(waiter.seat)
                waiter.seat = None
            self._hand_out()


class _Seat:
    """A session on its way between being free and being some thread's.

    One that an interrupt dropped on that way goes back to the free ones.
    """

    __slots__ = ("_pool", "session")

    def __init__(self, session: Session, pool: SessionPool) -> None:
        self.session = session
        self._pool = weakref.ref(pool)

    def __del__(self) -> None:
        pool = self._pool()
        if pool is not None and self.session in pool._sessions and self not in pool._free:
            pool._free.append(_Seat(self.session, pool))
            pool._hand_out()


class _Waiter:
    """A thread in line.

    Attributes:
        seat: What was handed to it.
        bell: Rung when it was, or when the pool is closed.
    """

    __slots__ = ("bell", "seat")

    def __init__(self) -> None:
        self.seat: _Seat | None = None
        self.bell: SimpleQueue[None] = SimpleQueue()  # `put` may be called by a `__del__`
