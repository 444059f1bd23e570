"""Session in a thread of its own: opened, run and closed there, whichever thread asks."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Generic, TypeVar

from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Session
from hasten.errors import CandidateError

_T = TypeVar("_T")
_ONE = (1).to_bytes(8, sys.byteorder)
"""Bytes that are written to an eventfd to wake its reader."""


class _Call(Generic[_T]):
    """Function to call in another thread, and what came of it.

    Attributes:
        finished: Whether the function returned or raised.
    """

    __slots__ = ("_arguments", "_error", "_result", "_work", "finished")

    def __init__(self, work: Callable[..., _T], arguments: tuple[Any, ...]) -> None:
        self._work, self._arguments = work, arguments
        self._error: BaseException | None = None
        self.finished = False

    def carry_out(self) -> None:
        """Call the function."""
        try:
            self._result = self._work(*self._arguments)
        except BaseException as error:  # of whatever kind: it is raised where the call was made
            self._error = error
        self.finished = True

    def outcome(self) -> _T:
        """Return what the function returned, or raise what it raised, with its traceback."""
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame


class OwnThread:
    """Thread that carries out the calls of other threads, one after another.

    The two sides wake each other by eventfds (eventfd(2)), which takes half the time of Python's
    locks and queues: `benchmarks/hand_over.py`.

    Args:
        name: Name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._process = os.getpid()
        self._turn, self._gate, self._closed = threading.Lock(), threading.Lock(), False
        self._calls: deque[_Call[Any] | None] = deque()
        self._asked, self._done = os.eventfd(0), os.eventfd(0)
        self._last: _Call[Any] | None = None
        # An open session doesn't keep the process from ending.
        self._thread = threading.Thread(
            target=_carry_out, args=(self._calls, self._asked, self._done), name=name, daemon=True
        )
        self._thread.start()

    def __del__(self) -> None:
        if self._closed and not self._thread.is_alive():
            os.close(self._asked)
            os.close(self._done)

    def call(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Call a function in the thread, and return what it returns or raise what it raises.

        A first interrupt of the caller waits for the end of a call that has begun, since the
        function may be reading the caller's arrays.

        Raises:
            CandidateError: the thread has ended, or belongs to the process that this one is a fork
                of.
        """
        if threading.get_ident() == self._thread.ident:  # where garbage is collected, for one
            return work(*arguments)
        if os.getpid() != self._process:
            raise CandidateError(
                "the session belongs to the process that this one was forked from: "
                "open the artifact again"
            )
        self._check_open()
        with self._turn:
            self._wait(self._last)  # for one whose caller was interrupted twice
            call = _Call(work, arguments)
            try:
                with self._gate:
                    self._check_open()
                    self._last = call
                    self._calls.append(call)
                os.write(self._asked, _ONE)
                self._wait(call)
            except BaseException:
                if self._last is call:
                    os.write(self._asked, _ONE)  # an interrupt may have come just before
                    self._wait(call)
                raise
            self._last = None
        return call.outcome()

    def _check_open(self) -> None:
        if self._closed:
            raise CandidateError("the session is closed: open the artifact again")

    def _wait(self, call: _Call[Any] | None) -> None:
        while call is not None and not call.finished:
            os.read(self._done, 8)  # it may be the news of an earlier call

    def end(self, last: Callable[[], None]) -> None:
        """Carry out the calls that were made, then a last one, and end the thread.

        Does nothing in a fork of the process, which has neither the thread nor its device.
        """
        if os.getpid() != self._process:
            return
        call = _Call(last, ())
        with self._gate:
            self._closed = True
            self._calls += (call, None)
            os.write(self._asked, _ONE)
        if threading.get_ident() != self._thread.ident:
            self._thread.join()
            call.outcome()


def _carry_out(calls: deque[_Call[Any] | None], asked: int, done: int) -> None:
    """Carry out calls as they come, until there is None in their place."""
    while True:
        os.read(asked, 8)
        while calls:
            call = calls.popleft()
            if call is None:
                return
            call.carry_out()
            os.write(done, _ONE)
            del call  # the arrays of a request aren't kept until the next


class ThreadedSession(Session):
    """Session that only one thread uses, offered to all threads.

    Args:
        session: Session that `thread` opened.
        thread: Thread that uses it.
    """

    def __init__(self, session: Session, thread: OwnThread) -> None:
        self.inputs, self.outputs = session.inputs, session.outputs
        self.batch_sizes, self.rows_apart = session.batch_sizes, session.rows_apart
        self._session, self._thread = session, thread

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request in the session's thread; see `Session.run`.

        Raises:
            CandidateError: the runtime failed, or the session is closed.
        """
        return self._thread.call(self._session.run, inputs)

    def properties(self) -> Mapping[str, str]:
        return self._thread.call(self._session.properties)

    def settle(self, again: Callable[[], object]) -> None:
        self._session.settle(again)  # the request is handed over each time, as in a block

    def device_times(self) -> Mapping[str, str]:
        return self._thread.call(self._session.device_times)

    def shares(self) -> Mapping[str, tuple[int, int]]:
        return self._session.shares()


@contextmanager
def in_own_thread(opening: AbstractContextManager[Session], name: str) -> Iterator[Session]:
    """Enter a session's context in a new thread, run the session there, and leave there.

    CUDA graphs that torch.compile and ONNX Runtime capture belong to the thread that captured
    them, as do handles and workspaces of the libraries below them: another thread would capture
    and allocate all of that again.

    Args:
        opening: Context of the session.
        name: Name of the thread.

    Yields:
        The session for any thread, which closes with the context.
    """
    thread, closing = OwnThread(name), ExitStack()
    try:
        yield ThreadedSession(thread.call(closing.enter_context, opening), thread)
    finally:
        thread.end(closing.close)
