"""Sessions that threads share: who gets which, and what becomes of those in line."""

import ctypes
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Session
from hasten.engines.cascade import Cascade
from hasten.engines.null import Null, NullSession
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.engines.pool import SessionPool, sessions_for
from hasten.errors import CandidateError
from hasten.inputs.models.onnx import load
from hasten.testing import models

X = {"x": np.zeros((1, 16), np.float32)}
LIMIT_S = 120


@dataclass(frozen=True)
class Gated(Null):
    """Its sessions answer with their number, once they are let through."""

    opened: list[Session] = field(default_factory=list)
    inside: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    most: int = 99

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        if len(self.opened) == self.most:
            raise CandidateError("there is no memory for another")
        self.opened.append(_GatedSession(artifact, self, len(self.opened)))
        yield self.opened[-1]

    def let(self, count: int) -> None:
        self.gate.release(count)

    def wait_inside(self, count: int) -> None:
        for _ in range(count):
            assert self.inside.acquire(timeout=LIMIT_S)


class _GatedSession(NullSession):
    def __init__(self, artifact: Artifact, engine: Gated, number: int) -> None:
        super().__init__(artifact)
        self._engine, self._number, self._busy = engine, number, threading.Lock()

    def run(self, inputs: Tensors) -> dict[str, Array]:
        assert self._busy.acquire(blocking=False), "two threads are in one session"
        try:
            self._engine.inside.release()
            assert self._engine.gate.acquire(timeout=LIMIT_S)
            if "fail" in inputs:
                raise CandidateError("it failed")
            return {"number": np.array(self._number)}
        finally:
            self._busy.release()


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    (tmp_path / "built").mkdir()
    model = load(models.linear_classifier(tmp_path))
    return Null().build(model, Target.host(), tmp_path / "built")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def pool_of(engine: Gated, artifact: Artifact, limit: int) -> SessionPool:
    return SessionPool(engine, artifact, Target.host(), limit)


def wait_in_line(pool: SessionPool, count: int) -> None:
    """Wait until so many are in line."""
    for _ in range(LIMIT_S * 1000):
        if len(pool._line) == count:
            return
        threading.Event().wait(0.001)
    raise AssertionError(f"{len(pool._line)} are in line")


def number(future: Future[dict[str, Array]]) -> int:
    return int(future.result(LIMIT_S)["number"])


def test_a_session_is_opened_when_none_is_free_and_the_last_used_is_taken_first(
    artifact: Artifact, threads: ThreadPoolExecutor
) -> None:
    engine = Gated()
    pool = pool_of(engine, artifact, 3)
    assert len(engine.opened) == 1
    engine.let(2)
    assert [int(pool.run(X)["number"]) for _ in range(2)] == [0, 0]
    engine.wait_inside(2)
    first = threads.submit(pool.run, X)
    engine.wait_inside(1)
    second = threads.submit(pool.run, X)
    engine.wait_inside(1)
    assert len(engine.opened) == 2
    engine.let(2)
    assert {number(first), number(second)} == {0, 1}
    engine.let(2)
    last = int(pool.run(X)["number"])
    assert int(pool.run(X)["number"]) == last
    assert len(engine.opened) == 2
    pool.close()


def test_those_who_find_none_are_answered_in_the_order_they_came(
    artifact: Artifact, threads: ThreadPoolExecutor
) -> None:
    engine, order = Gated(), []
    pool = pool_of(engine, artifact, 1)

    def ask(place: int) -> None:
        pool.run(X)
        order.append(place)

    asked = []
    for place in range(5):
        asked.append(threads.submit(ask, place))
        if place == 0:
            engine.wait_inside(1)
        else:
            wait_in_line(pool, place)
    for place in range(5):
        engine.let(1)
        asked[place].result(LIMIT_S)
    assert order == [0, 1, 2, 3, 4]
    assert len(engine.opened) == 1
    pool.close()


def test_where_no_further_one_can_be_opened_callers_wait_for_those_there_are(
    artifact: Artifact, threads: ThreadPoolExecutor
) -> None:
    engine = Gated(most=2)
    pool = pool_of(engine, artifact, 9)
    asked = [threads.submit(pool.run, X) for _ in range(8)]
    engine.let(8)
    assert {number(future) for future in asked} <= {0, 1}
    assert pool.limit == 2
    assert pool.properties()["no further session"] == "there is no memory for another"
    pool.close()


def test_a_call_that_fails_gives_its_session_back(artifact: Artifact) -> None:
    engine = Gated()
    pool = pool_of(engine, artifact, 1)
    engine.let(2)
    with pytest.raises(CandidateError, match=r"^it failed$"):
        pool.run({**X, "fail": X["x"]})
    assert pool.run(X)["number"] == 0
    pool.close()


def test_closing_waits_for_who_is_inside_and_refuses_the_others(
    artifact: Artifact, threads: ThreadPoolExecutor
) -> None:
    engine = Gated()
    pool = pool_of(engine, artifact, 2)
    inside = [threads.submit(pool.run, X) for _ in range(2)]
    engine.wait_inside(2)
    waiting = [threads.submit(pool.run, X) for _ in range(3)]
    wait_in_line(pool, 3)
    closing = [threads.submit(pool.close) for _ in range(2)]
    for future in waiting:
        error = future.exception(LIMIT_S)
        assert isinstance(error, CandidateError)
        assert str(error) == "the bundle is closed: load it again"
    assert not any(future.done() for future in closing)
    engine.let(1)
    wait(inside, LIMIT_S, "FIRST_COMPLETED")
    for ask in (lambda: pool.run(X), pool.properties):
        with pytest.raises(CandidateError, match=r"^the bundle is closed: load it again$"):
            ask()
    assert not any(future.done() for future in closing)
    engine.let(1)
    assert {number(future) for future in inside} == {0, 1}
    for done in closing:
        done.result(LIMIT_S)
    alive = [weakref.ref(session) for session in engine.opened]
    engine.opened.clear()
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_bound_calls_take_turns_with_requests_and_closing_waits_for_them(
    artifact: Artifact, threads: ThreadPoolExecutor
) -> None:
    pool, order = pool_of(Gated(), artifact, 1), []
    inside, gate = threading.Semaphore(0), threading.Semaphore(0)

    def call(place: int) -> None:
        inside.release()
        assert gate.acquire(timeout=LIMIT_S)
        order.append(place)

    first = threads.submit(pool.turn, lambda: call(0))
    assert inside.acquire(timeout=LIMIT_S)
    second = threads.submit(pool.turn, lambda: call(1))
    wait_in_line(pool, 1)
    assert not inside.acquire(blocking=False)
    gate.release()
    first.result(LIMIT_S)
    assert inside.acquire(timeout=LIMIT_S)
    third = threads.submit(pool.turn, lambda: call(2))
    wait_in_line(pool, 1)
    closing = threads.submit(pool.close)
    assert str(third.exception(LIMIT_S)) == "the bundle is closed: load it again"
    assert not closing.done()
    gate.release()
    for each in (second, closing):
        each.result(LIMIT_S)
    assert order == [0, 1]
    with pytest.raises(CandidateError, match=r"^the bundle is closed: load it again$"):
        pool.turn(lambda: call(3))


def test_a_bound_call_that_fails_gives_its_turn_back(artifact: Artifact) -> None:
    pool, done = pool_of(Gated(), artifact, 1), []

    def fails() -> None:
        raise CandidateError("it failed")

    with pytest.raises(CandidateError, match=r"^it failed$"):
        pool.turn(fails)
    pool.turn(lambda: done.append(True))
    assert done == [True]
    pool.close()


def test_one_that_nobody_closes_goes_with_its_last_user(artifact: Artifact) -> None:
    engine = Gated()
    pool = pool_of(engine, artifact, 1)
    alive = weakref.ref(engine.opened.pop())
    del pool
    gc.collect()
    assert alive() is None


class _Interrupt(BaseException):
    pass


STRUCK = """
import signal, sys, threading
from pathlib import Path
import numpy as np
from hasten.core.target import Target
from hasten.engines.null import Null
from hasten.engines.pool import SessionPool
from hasten.inputs.models.onnx import load

class Interrupt(BaseException):
    pass

def strike(number, frame):
    if armed:
        armed.clear()
        raise Interrupt

armed, struck = [], 0
model = load(Path(sys.argv[1])).settled_by({"x": np.zeros(16, np.float32)})
folder = Path(sys.argv[1]).parent / "built"
folder.mkdir()
artifact = Null().build(model, Target.host(), folder)
request = {"x": np.zeros((1, 16), np.float32)}
pool = SessionPool(Null(), artifact, Target.host(), 1)
signal.signal(signal.SIGALRM, strike)
for turn in range(1500):
    try:
        armed.append(True)
        signal.setitimer(signal.ITIMER_REAL, (turn % 50 + 1) / 1e6, 0.01)
        for _ in range(100):
            pool.run(request)
        armed.clear()
    except Interrupt:
        struck += 1
signal.setitimer(signal.ITIMER_REAL, 0)
other = threading.Thread(target=pool.run, args=(request,), daemon=True)
other.start()
other.join(60)
print(struck > 0, other.is_alive())
pool.close()
"""


def test_an_interrupt_loses_no_session_wherever_it_strikes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STRUCK, str(models.linear_classifier(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True False\n"), done.stderr


def test_who_is_interrupted_in_line_leaves_it(
    artifact: Artifact, threads: ThreadPoolExecutor
) -> None:
    engine = Gated()
    pool = pool_of(engine, artifact, 1)
    inside = threads.submit(pool.run, X)
    engine.wait_inside(1)
    caught: list[bool] = []

    def ask() -> None:
        try:
            pool.run(X)
        except _Interrupt:
            caught.append(True)

    waiting = threading.Thread(target=ask, daemon=True)
    waiting.start()
    wait_in_line(pool, 1)
    assert waiting.ident is not None
    # Raised where that thread is, as a signal's handler would in the main one.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(waiting.ident), ctypes.py_object(_Interrupt)
    )
    waiting.join(LIMIT_S)
    assert caught == [True]
    assert not pool._line
    engine.let(2)
    assert number(inside) == number(threads.submit(pool.run, X)) == 0
    pool.close()


def test_a_cascade_counts_what_all_its_sessions_answered(
    tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    original = load(models.linear_classifier(tmp_path)).settled_by({"x": X["x"][0]})
    model, host = replace(original, origin=original), Target.host().with_threads(1)
    engine = Cascade(OpenVino(), OnnxRuntime(), 0.5, "logits")
    (tmp_path / "built").mkdir()
    pool = SessionPool(engine, engine.build(model, host, tmp_path / "built"), host, 3)
    drawn = np.random.default_rng(0).standard_normal((300, 1, 16), np.float32)
    with pool.session(), pool.session():
        assert len([pool.run({"x": x}) for x in drawn[:100]]) == 100
    for future in [threads.submit(pool.run, {"x": x}) for x in drawn]:
        future.result(LIMIT_S)
    assert pool.properties()["asked again"].endswith(" of 400")
    assert len(pool._sessions) == 3
    pool.close()


def test_there_are_as_many_as_processors_and_memory_hold(artifact: Artifact) -> None:
    host = replace(Target.host(), threads=4, memory_bytes=1 << 40)
    assert sessions_for(OnnxRuntime(), artifact, host, 16) == 4
    assert sessions_for(OnnxRuntime(), artifact, host, 7) == 1
    assert sessions_for(OnnxRuntime(threads=1), artifact, host, 16) == 16
    assert sessions_for(OnnxRuntime(threads=9), artifact, host, 4) == 1
    both = Cascade(OpenVino(threads=1), OnnxRuntime(), 0.5, "logits")
    assert sessions_for(both, artifact, host, 16) == 4
    small = replace(host, memory_bytes=12 * artifact.size_bytes)
    assert sessions_for(OnnxRuntime(threads=1), artifact, small, 16) == 3
    tiny = replace(host, memory_bytes=artifact.size_bytes)
    assert sessions_for(OnnxRuntime(threads=1), artifact, tiny, 16) == 1
    device = host.with_device("cuda", present=True)
    assert sessions_for(OnnxRuntime(threads=1), artifact, device, 16) == 1
