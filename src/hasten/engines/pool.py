"""Pool of sessions of an artifact for any number of threads: each session serves one at a time."""

from __future__ import annotations

import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from queue import Empty, SimpleQueue

from hasten.core.forks import ForkedLock, after_forks
from hasten.core.lookups import RowNumbers
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Engine, Session, share
from hasten.engines.compile_cache import CompileCache
from hasten.errors import CandidateError, HastenError, told

_OPENING = ForkedLock()
"""Lock that is held while a session is opened anywhere in the process: engines meanwhile redirect
the process's output and replace functions of their runtimes."""
_AGAIN_S = 1.0
"""Longest sleep of a waiting thread in seconds, since an interrupt may swallow its wake-up."""
_TIMES = 2
"""Memory that a session takes, as a multiple of its files' size."""


def sessions_for(engine: Engine, artifact: Artifact, target: Target, cpus: int) -> int:
    """Return how many sessions are worth opening.

    More than the processors can run at once are useless. A device gets one session, since it does
    one request's work after another's. All sessions together may take half of the memory.

    Args:
        engine: Engine that opens the sessions.
        artifact: Artifact that they load.
        target: Target with the device, and the number of threads of each session.
        cpus: Number of processors whose time this process has.
    """
    if target.kind == "attached":
        return 1
    threads = max(each.threads or target.threads for each in engine.runtimes)
    fit = target.memory_bytes // 2 // (_TIMES * max(1, engine.loaded_bytes(artifact)))
    return max(1, min(cpus // threads, fit))


class SessionPool:
    """Sessions of one artifact, whose `run` and `properties` any number of threads may call.

    The first session is opened at once, and another one when a call finds none free. The session
    used last is taken first, since its memory is in the caches. A thread that finds none free waits
    in line.

    Attributes:
        inputs: Specs of the inputs that `run` takes.
        outputs: Specs of the outputs that `run` returns.
        batch_sizes: Batch sizes that `run` takes; None for any.
        rows_apart: Whether a batch's rows are computed apart; see `Session`.
        lends_calls: Whether bound calls take no session of their own; see `Session`.
        compiling_s: Seconds that a compiler took for the first session; see `Session`.
        numbers: Check of each request's numbers; None for no check.
        limit: Largest number of sessions.

    Args:
        engine: Engine that opens the sessions.
        artifact: Artifact that they load.
        target: Target with the device, and the number of threads of each session.
        limit: Largest number of sessions, at least 1.
        compiled: Cache of what the engine made of the artifact; None to open it without one.
        numbers: Check of each request's numbers before an engine gets them; None for no check.

    Raises:
        CandidateError: the first session can't be opened.
    """

    def __init__(
        self,
        engine: Engine,
        artifact: Artifact,
        target: Target,
        limit: int,
        compiled: CompileCache | None = None,
        numbers: RowNumbers | None = None,
    ) -> None:
        self.limit = limit
        self.numbers = numbers
        self._compiled = compiled
        self._engine, self._artifact, self._target = engine, artifact, target
        self._lock = threading.RLock()  # a dropped seat may come back while its thread holds it
        self._closing = ExitStack()
        self._sessions: list[Session] = []
        self._growing = False
        self._refused = ""
        self._free: list[_Seat] = []
        self._line: deque[_Waiter] = deque()
        self._watched = False  # whether a thread waits for a session to be returned
        self._closed = False
        self._retired: list[_Seat] = []
        self._returned: SimpleQueue[None] = SimpleQueue()
        after_forks(self, SessionPool._anew)
        self._open()
        first = self._sessions[0]
        self.inputs, self.outputs, self.batch_sizes = first.inputs, first.outputs, first.batch_sizes
        self.rows_apart, self.lends_calls = first.rows_apart, first.lends_calls
        self.compiling_s = first.compiling_s

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request; see `Session.run`.

        Raises:
            CandidateError: the runtime failed, or the pool is closed.
            InputError: an input has other numbers than those that the model takes.
        """
        if self.numbers is not None:
            self.numbers(inputs)
        # This repeats `session`, whose context manager costs too much in a call of some
        # microseconds.
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

    def turn(self, call: Callable[[], None]) -> None:
        """Run a call that `bind` returned, in line with all others, where bound calls take no session.

        So no more than `limit` run at once, and closing waits for those that run.

        Raises:
            CandidateError: the runtime failed, or the pool is closed.
            InputError: an input has other numbers than those that the model takes.
        """
        try:  # as in `run`
            seat = self._free.pop()
        except IndexError:
            seat = None
        if seat is None:
            seat = self._seat()
        try:
            call()
        finally:
            self._free.append(seat)
            if self._watched:
                self._hand_out()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Lend a session to the calling thread.

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

    def bind(self, inputs: Tensors, outputs: Tensors) -> Callable[[], None]:
        """Return a call from and to the same arrays, on a session that no other call uses.

        A second thread that calls it meanwhile gets CandidateError, and so does any once the pool is
        closed, which frees the session.

        Args:
            inputs: Arrays by input name, as `Session.bind` takes them.
            outputs: Arrays by output name, as `Session.bind` takes them.

        Raises:
            CandidateError: the session can't be opened, or the pool is closed.
        """
        call = self._bound(inputs, outputs)
        numbers = self.numbers
        if numbers is None:
            return call

        def checked() -> None:
            numbers(inputs)
            call()

        return checked

    def _bound(self, inputs: Tensors, outputs: Tensors) -> Callable[[], None]:
        self.check_open()
        with self.session() as lent:
            if lent.lends_calls:
                return lent.bind(inputs, outputs)
        with _OPENING, ExitStack() as opening:
            session = opening.enter_context(self._opened())
            call = _BoundCall(session.bind(inputs, outputs))
            with self._lock:
                self.check_open()
                opening.callback(call.close)
                self._closing.push(opening.pop_all())
        return call

    def properties(self) -> Mapping[str, str]:
        """Properties of a session, with the counts of all sessions summed.

        Raises:
            CandidateError: the pool is closed.
        """
        with self.session() as session:
            said = dict(session.properties())
        said |= {name: share(part, whole) for name, (part, whole) in self.shares().items()}
        if self._refused:
            said["no further session"] = self._refused
        return said

    def shares(self) -> Mapping[str, tuple[int, int]]:
        """Counts of all sessions, summed: name -> number of answers of the kind, and of all."""
        parts, wholes = Counter[str](), Counter[str]()
        for each in list(self._sessions):
            for name, (part, whole) in each.shares().items():
                parts[name] += part
                wholes[name] += whole
        return {name: (parts[name], wholes[name]) for name in wholes}

    def check_open(self) -> None:
        """Check that the pool takes calls.

        Raises:
            CandidateError: the pool is closed.
        """
        if self._closed:
            raise CandidateError("the bundle is closed: load it again")

    def close(self) -> None:
        """Refuse the calls in line and later ones, wait for running ones, and free the sessions."""
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

    def _anew(self) -> None:
        """Take back the sessions of threads that aren't in this process, and forget who was in line."""
        self._lock = threading.RLock()
        self._line.clear()
        self._growing, self._watched = False, self._closed
        here = {id(seat.session) for seat in (*self._free, *self._retired)}
        self._free += [_Seat(one, self) for one in self._sessions if id(one) not in here]

    def _seat(self) -> _Seat:
        """Wait in line for a session, after opening another one if the limit allows it."""
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
        """Open another session; if that fails, the present number becomes the limit."""
        try:
            self._open()
        except Exception as error:
            self.limit = len(self._sessions)
            self._refused = str(error) if isinstance(error, HastenError) else told(error)
        finally:
            self._growing = False
            self._hand_out()

    def _open(self) -> None:
        """Open a session, and add it to the free ones."""
        with _OPENING, ExitStack() as opening:
            session = opening.enter_context(self._opened())
            with self._lock:
                seat = _Seat(session, self)
                self._closing.push(opening.pop_all())
                self._sessions.append(session)
                self._free.append(seat)

    def _opened(self) -> AbstractContextManager[Session]:
        if self._compiled is None:
            return self._engine.open(self._artifact, self._target)
        return self._engine.open_cached(self._artifact, self._target, self._compiled)

    def _hand_out(self) -> None:
        """Give free sessions to the threads in line, or to the thread that closes the pool."""
        if self._closed:
            self._retire()
            self._returned.put(None)
            return
        with self._lock, suppress(IndexError):  # others take free ones without the lock
            while self._line:
                first = self._line[0]
                if first.seat is None:
                    first.seat = self._free.pop()
                first.bell.put(None)
                self._line.popleft()
            self._watched = False

    def _retire(self) -> None:
        """Retire the free sessions for good."""
        with self._lock, suppress(IndexError):
            while True:
                self._retired.append(self._free.pop())

    def _leave(self, waiter: _Waiter) -> None:
        """Leave the line, and return a session that was handed over in the meantime."""
        with self._lock:
            with suppress(ValueError):
                self._line.remove(waiter)
            if waiter.seat is not None:
                self._free.append(waiter.seat)
                waiter.seat = None
            self._hand_out()


class _BoundCall:
    """Call from and to the same arrays, for one thread at a time, until it is closed."""

    __slots__ = ("_again", "_closed", "_turn")

    def __init__(self, again: Callable[[], None]) -> None:
        self._again: Callable[[], None] | None = again
        self._closed = False
        self._turn = threading.Lock()

    def __call__(self) -> None:
        turn = self._turn.acquire(blocking=False)
        try:
            if self._closed or self._again is None:
                raise CandidateError("the bundle is closed: load it again")
            if not turn:
                raise CandidateError(
                    "another thread is running this call: bind one call for each thread"
                )
            self._again()
        finally:
            if turn:
                self._turn.release()

    def close(self) -> None:
        """Wait for the call that runs, and refuse later ones."""
        self._closed = True
        with self._turn:
            self._again = None


class _Seat:
    """Session on its way between the free ones and a thread.

    If an interrupt drops it on the way, it returns to the free ones.
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
    """Thread in line.

    Attributes:
        seat: Session that was handed to the thread; None until then.
        bell: Queue that gets an item when a session was handed over or the pool is closed.
    """

    __slots__ = ("bell", "seat")

    def __init__(self) -> None:
        self.seat: _Seat | None = None
        self.bell: SimpleQueue[None] = SimpleQueue()  # `put` may be called by a `__del__`
