"""Session in a thread of its own: opened, run and closed there, whichever thread asks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Session
from hasten.errors import CandidateError

_T = TypeVar("_T")
_AGAIN_S = 1.0
"""Longest sleep of a waiting thread in seconds, since an interrupt just before it doesn't end it."""


class _Call(Generic[_T]):
    """Function to call in another thread, and what came of it.

    Attributes:
        claimed: Lock that whoever takes first decides with: the thread to call, or the asker to
            withdraw.
        ended: Lock that is held until the function returned or raised.
        finished: Whether the function returned or raised.
    """

    __slots__ = ("_arguments", "_error", "_result", "_work", "claimed", "ended", "finished")

    def __init__(self, work: Callable[..., _T], arguments: tuple[Any, ...]) -> None:
        self._work, self._arguments = work, arguments
        self._error: BaseException | None = None
        self.claimed, self.ended = threading.Lock(), threading.Lock()
        self.ended.acquire()
        self.finished = False

    def carry_out(self) -> None:
        """Call the function, unless the call was withdrawn."""
        if not self.claimed.acquire(blocking=False):
            return
        try:
            self._result = self._work(*self._arguments)
        except BaseException as error:  # of whatever kind: it is raised where the call was made
            self._error = error
        self.finished = True
        self.ended.release()

    def withdraw(self) -> None:
        """Keep the call from being carried out; if that has begun, wait for its end."""
        if not self.claimed.acquire(blocking=False) and not self.finished:
            self.ended.acquire()

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

    Args:
        name: Name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._process = os.getpid()
        self._asked: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._gate, self._closed = threading.Lock(), False
        # An open session doesn't keep the process from ending.
        self._thread = threading.Thread(
            target=_carry_out, args=(self._asked,), name=name, daemon=True
        )
        self._thread.start()

    def call(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """Call a function in the thread, and return what it returns or raise what it raises.

        An interrupt of the caller withdraws a call that hasn't begun, and otherwise waits for its
        end, since the function may be reading the caller's arrays.

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
        call = _Call(work, arguments)
        try:
            with self._gate:
                if self._closed:
                    raise CandidateError("the session is closed: open the artifact again")
                self._asked.put(call)
            while not call.ended.acquire(timeout=_AGAIN_S):
                pass
        except BaseException:
            call.withdraw()
            raise
        return call.outcome()

    def end(self, last: Callable[[], None]) -> None:
        """Carry out the calls that were made, then a last one, and end the thread.

        Does nothing in a fork of the process, which has neither the thread nor its device.
        """
        if os.getpid() != self._process:
            return
        call = _Call(last, ())
        with self._gate:
            self._closed = True
            self._asked.put(call)
            self._asked.put(None)
        if threading.get_ident() != self._thread.ident:
            self._thread.join()
            call.outcome()


def _carry_out(asked: SimpleQueue[_Call[Any] | None]) -> None:
    """Carry out calls until there is None in their place."""
    while (call := asked.get()) is not None:
        call.carry_out()
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
    and allocate all of that anew.

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
