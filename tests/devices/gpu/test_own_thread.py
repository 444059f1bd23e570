"""The thread that a session of ONNX Runtime or torch has to itself."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.engines.base import Session
from hasten.engines.cuda.own_thread import OwnThread, _Call, in_own_thread
from hasten.errors import CandidateError

LONG_S = 60.0


class Adding(Session):
    """A session that adds one, and notes which threads do what with it."""

    inputs = outputs = (TensorSpec("x", "float32", (1,)),)
    batch_sizes = None

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.work: Callable[[], object] = lambda: None

    def run(self, inputs: Tensors) -> dict[str, Array]:
        self.seen.append(("run", threading.get_ident()))
        self.work()
        return {"x": inputs["x"] + 1}

    def properties(self) -> dict[str, str]:
        self.seen.append(("properties", threading.get_ident()))
        return {"adds": "1"}

    @contextmanager
    def opening(self) -> Iterator[Session]:
        self.seen.append(("open", threading.get_ident()))
        yield self
        self.seen.append(("close", threading.get_ident()))


def x(value: float = 0.0) -> dict[str, Array]:
    return {"x": np.full(1, value, np.float32)}


@contextmanager
def ended(own: OwnThread) -> Iterator[OwnThread]:
    """End a thread in any case."""
    try:
        yield own
    finally:
        own.end(lambda: None)


def test_a_session_is_opened_run_and_closed_in_its_thread() -> None:
    adding = Adding()
    with in_own_thread(adding.opening(), "a session") as session:
        assert session.run(x(1))["x"] == 2
        assert session.properties() == {"adds": "1"}
        assert "a session" in {thread.name for thread in threading.enumerate()}
    assert [name for name, _ in adding.seen] == ["open", "run", "properties", "close"]
    assert len({thread for _, thread in adding.seen} - {threading.get_ident()}) == 1
    assert "a session" not in {thread.name for thread in threading.enumerate()}
    for ask in (lambda: session.run(x()), session.properties, session.device_times):
        with pytest.raises(
            CandidateError, match=r"^the session is closed: open the artifact again$"
        ):
            ask()


def test_an_error_comes_with_its_traceback_and_isnt_kept() -> None:
    adding = Adding()

    class Failing(Exception): ...  # noqa: N818

    def failing() -> None:
        raise Failing

    adding.work = failing
    with in_own_thread(adding.opening(), "a session") as session:
        try:
            session.run(x())
        except Failing as error:
            names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
            kept = weakref.ref(error)
        assert names[0] == "test_an_error_comes_with_its_traceback_and_isnt_kept"
        assert names[-2:] == ["run", "failing"]
        assert kept() is None  # without any collection of garbage
        adding.work = lambda: None
        assert session.run(x(1))["x"] == 2


def test_a_session_that_cant_be_opened_leaves_no_thread() -> None:
    @contextmanager
    def failing() -> Iterator[Session]:
        raise CandidateError("it can't be opened")
        yield Adding()

    with (
        pytest.raises(CandidateError, match=r"^it can't be opened$"),
        in_own_thread(failing(), "a session"),
    ):
        pass
    assert "a session" not in {thread.name for thread in threading.enumerate()}


def test_the_arrays_of_a_request_arent_kept() -> None:
    with in_own_thread(Adding().opening(), "a session") as session:
        request = x()
        array = weakref.ref(request["x"])
        answer = weakref.ref(session.run(request)["x"])
        del request
        deadline = time.monotonic() + LONG_S
        while (
            array() is not None or answer() is not None
        ):  # the thread lets go of them after the answer
            assert time.monotonic() < deadline
            time.sleep(0.001)


def test_closing_waits_for_the_requests_that_were_made() -> None:
    adding, begun, go_on = Adding(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(LONG_S)

    adding.work = work
    opening = in_own_thread(adding.opening(), "a session")
    session = opening.__enter__()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(session.run, x(1))
        assert begun.wait(LONG_S)
        closing = pool.submit(opening.__exit__, None, None, None)
        while not session._thread._closed:  # type: ignore[attr-defined]
            pass
        with pytest.raises(CandidateError, match=r"^the session is closed"):
            session.run(x())
        assert not closing.done()
        go_on.set()
        assert running.result(LONG_S)["x"] == 2
        closing.result(LONG_S)
    assert adding.seen[-1][0] == "close"


class Interrupt:
    """Ctrl-C for the main thread, whose handler tells that it ran."""

    def __init__(self) -> None:
        self.handled = threading.Event()
        self._before = signal.signal(signal.SIGINT, self._handle)

    def _handle(self, *_: object) -> None:
        if not self.handled.is_set():
            self.handled.set()
            raise KeyboardInterrupt

    def send(self) -> None:
        """Interrupt it once, again and again in case that it was just about to wait."""
        while not self.handled.wait(0.01):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def restore(self) -> None:
        signal.signal(signal.SIGINT, self._before)


@pytest.fixture
def interrupt() -> Iterator[Interrupt]:
    one = Interrupt()
    yield one
    one.restore()


def test_an_interrupt_waits_for_the_request_that_runs(interrupt: Interrupt) -> None:
    adding, done = Adding(), list[str]()

    def work() -> None:
        interrupt.send()
        done.append("all of it")

    with in_own_thread(adding.opening(), "a session") as session:
        adding.work = work
        with pytest.raises(KeyboardInterrupt):
            session.run(x())
        assert done == ["all of it"]
        adding.work = lambda: None
        assert session.run(x(1))["x"] == 2


def test_an_interrupt_withdraws_the_request_that_waits(interrupt: Interrupt) -> None:
    begun, go_on, done = threading.Event(), threading.Event(), list[str]()

    def first() -> None:
        begun.set()
        go_on.wait(LONG_S)
        done.append("first")

    with ended(OwnThread("a session")) as own, ThreadPoolExecutor(2) as pool:
        running = pool.submit(own.call, first)
        assert begun.wait(LONG_S)
        sending = pool.submit(interrupt.send)
        with pytest.raises(KeyboardInterrupt):
            own.call(done.append, "never")
        go_on.set()
        running.result(LONG_S)
        sending.result(LONG_S)
        assert own.call(list, done) == ["first"]


def test_a_request_whose_caller_left_in_its_midst_is_waited_for_by_the_next() -> None:
    begun, go_on, done = threading.Event(), threading.Event(), list[str]()

    def left() -> None:
        begun.set()
        go_on.wait(LONG_S)
        done.append("left")

    with ended(OwnThread("a session")) as own, ThreadPoolExecutor(1) as pool:
        own._last = call = _Call(left, ())  # as two interrupts leave it
        own._calls.append(call)
        os.write(own._asked, (1).to_bytes(8, sys.byteorder))
        assert begun.wait(LONG_S)
        coming = pool.submit(own.call, done.append, "next")
        go_on.set()
        coming.result(LONG_S)
        assert done == ["left", "next"]


def test_no_descriptor_is_left_open() -> None:
    def count() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for _ in range(5):
        with in_own_thread(Adding().opening(), "a session") as session:
            assert session.run(x(1))["x"] == 2
        del session
    assert count() == before


def test_the_thread_may_end_itself_as_where_it_collects_garbage() -> None:
    own, done = OwnThread("a session"), []
    own.call(lambda: own.end(lambda: done.append("closed")))
    own._thread.join(LONG_S)
    assert done == ["closed"]
    assert not own._thread.is_alive()


def test_a_session_that_nobody_closes_is_closed_as_garbage() -> None:
    adding = Adding()
    opening = in_own_thread(adding.opening(), "a session")
    opening.__enter__()
    del opening
    gc.collect()
    assert adding.seen[-1][0] == "close"
    assert "a session" not in {thread.name for thread in threading.enumerate()}


def test_a_fork_is_told_whose_the_session_is() -> None:
    reader, writer = os.pipe()
    with in_own_thread(Adding().opening(), "a session") as session:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # newer Pythons warn of threads that a fork doesn't have
            child = os.fork()
        if not child:
            try:
                session.run(x())
            except CandidateError as error:
                os.write(writer, str(error).encode())
            session._thread.end(lambda: os._exit(1))  # type: ignore[attr-defined]
            os._exit(0)
        os.close(writer)
        assert os.waitpid(child, 0)[1] == 0
        with os.fdopen(reader) as said:
            assert said.read() == (
                "the session belongs to the process that this one was forked from: "
                "open the artifact again"
            )
        assert session.run(x(1))["x"] == 2
