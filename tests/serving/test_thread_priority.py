"""A model that is to take another's place is opened in what time that one leaves."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hasten.serving.models import thread_priority
from hasten.serving.models.pace import BackgroundPace
from hasten.serving.models.thread_priority import lowered_priority

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="niceness is of threads on Linux")


def niceness(thread: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, thread)


@pytest.fixture
def worker() -> Iterator[Any]:
    """Starts a thread that stays, and returns its number."""
    end = threading.Event()

    def start() -> int:
        thread = threading.Thread(target=end.wait)
        thread.start()
        assert thread.native_id is not None
        return thread.native_id

    yield start
    end.set()


def test_threads_that_begin_meanwhile_lower_their_priority_and_get_it_back(worker: Any) -> None:
    if not thread_priority._may_come_back():
        pytest.skip("this user may not raise a thread's priority again: CAP_SYS_NICE")
    here, other = threading.get_native_id(), worker()
    before = niceness(here)
    with contextlib.suppress(KeyError), lowered_priority():
        begun = worker()
        assert (niceness(here), niceness(begun), niceness(other)) == (19, 19, before)
        raise KeyError
    assert (niceness(here), niceness(begun), niceness(other)) == (before,) * 3


def test_where_no_priority_can_be_raised_again_none_is_lowered(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_priority, "_may_come_back", lambda: False)
    before = niceness(threading.get_native_id())
    with lowered_priority():
        assert niceness(worker()) == niceness(threading.get_native_id()) == before


class Session:
    def __init__(self) -> None:
        self.runs = 0

    def run(self, request: Any) -> Any:
        self.runs += 1
        return request


def test_a_run_waits_until_nobody_else_does_but_not_for_ever() -> None:
    asked: list[int] = []

    def idle() -> bool:
        asked.append(session.runs)
        return len(asked) % 3 == 0

    session: Any = Session()
    slept_s: list[float] = []
    pace = BackgroundPace(idle, sleep=slept_s.append)
    assert pace.patient
    request = {"x": np.zeros(1)}
    assert pace.run(session, request) is request
    assert pace.run(session, request) is request
    assert asked == [0, 0, 0, 1, 1, 1]
    assert BackgroundPace(lambda: False, sleep=slept_s.append).run(session, request) is request
    assert sum(slept_s) > 0.1
    assert session.runs == 3
