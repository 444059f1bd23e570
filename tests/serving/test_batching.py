"""A model's queue at work on a real event loop: functions stand for engines."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.support.waiting import until

from hasten.core.tensors import Array, Tensors
from hasten.serving.models.batching import Batching, ServerTask, Timing
from hasten.serving.models.clients import Clients
from hasten.serving.models.latencies import Latencies
from hasten.serving.models.scheduling import Scheduler
from hasten.serving.models.statistics import Statistics
from hasten.serving.protocol.errors import Kind, ProtocolError

MS = 1_000_000
SIZES = (1, 2, 3, 4, 6, 8)
PATIENCE_S = 120.0


class Asked(ServerTask):
    """A request whose answer is a future."""

    __slots__ = ("answer",)

    def __init__(self, number: float, left_ns: float = math.inf, priority: int = 1) -> None:
        now_ns = time.perf_counter_ns()
        self.rows, self.key, self.priority = 1, "x", priority
        self.deadline_ns, self.arrived_ns = now_ns + left_ns, now_ns
        self.state, self.queued_ns, self.order = "new", 0, (0, 0, 0)
        self.tried, self.source, self.client, self.timer = False, 0, "", None
        self.named = self.accepted = self.over = False
        self.inputs = {"x": np.full((1, 2), number, np.float32)}
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def reply(self, outputs: Tensors | ProtocolError, timing: Timing | None) -> None:
        self.over = True
        self.answer.set_result(
            outputs if isinstance(outputs, ProtocolError) else outputs["x"].tolist()
        )


Model = Callable[[Tensors], dict[str, Array]]


def batching(
    model: Model,
    span_ns: float = MS,
    sessions: int = 1,
    clients: Clients | None = None,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> Batching:
    """A queue of a model whose batches are said to take the same whatever their size."""
    latencies = Latencies(dict.fromkeys(SIZES, span_ns), SIZES)
    scheduler: Scheduler[Any] = Scheduler(latencies, 10e9, sessions)
    clients = clients or Clients()
    loop = asyncio.get_running_loop()
    return Batching([model] * sessions, scheduler, Statistics(), loop, clients, clock_ns)


def until_told(model: Model) -> tuple[Model, threading.Event, threading.Event]:
    """Let a model's first batch take until it is told to go on; and tell when it has begun."""
    begun, go_on = threading.Event(), threading.Event()

    def held(inputs: Tensors) -> dict[str, Array]:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return model(inputs)

    return held, begun, go_on


async def submitted(queue: Batching, *items: Asked) -> None:
    for item in items:
        queue.submit(item)
    await asyncio.sleep(0)


def same(inputs: Tensors) -> dict[str, Array]:
    return {"x": np.array(inputs["x"])}


def choosy(inputs: Tensors) -> dict[str, Array]:
    if (inputs["x"] == 13).any():
        raise ValueError("thirteen")
    if (inputs["x"] == 14).any():
        raise MemoryError
    return same(inputs)


@pytest.mark.parametrize("span_ns", [MS / 100, MS], ids=["on the loop's thread", "on its own"])
@pytest.mark.parametrize(
    ("refused", "kind", "said"),
    [
        (13, Kind.INTERNAL, "the engine failed: ValueError: thirteen"),
        (14, Kind.OVERLOADED, "the server is short of memory: retry later"),
    ],
)
def test_one_request_that_fails_doesnt_fail_its_batch(
    span_ns: float, refused: int, kind: Kind, said: str
) -> None:
    async def work() -> list[Any]:
        queue = batching(choosy, span_ns)
        items = [Asked(number) for number in (1, 2, refused, 4, 5)]
        await submitted(queue, *items)
        answers = [await asyncio.wait_for(item.answer, PATIENCE_S) for item in items]
        queue.close()
        return answers

    answers = asyncio.run(work())
    failure = answers.pop(2)
    assert answers == [[[n, n]] for n in (1, 2, 4, 5)]
    assert isinstance(failure, ProtocolError)
    assert (failure.kind, str(failure)) == (kind, said)


class Unheard(Asked):
    """A request whose answer nobody can take."""

    def reply(self, outputs: Tensors | ProtocolError, timing: Timing | None) -> None:
        self.over = True
        raise RuntimeError("nobody is there")


class Unfit(Asked):
    """A request that can't take its answer, but an error."""

    def reply(self, outputs: Tensors | ProtocolError, timing: Timing | None) -> None:
        if not isinstance(outputs, ProtocolError):
            raise KeyError("y")
        super().reply(outputs, timing)


@pytest.mark.parametrize("span_ns", [MS / 100, MS], ids=["on the loop's thread", "on its own"])
def test_an_answer_that_nobody_can_take_keeps_no_other_request_waiting(
    span_ns: float, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> list[Any]:
        queue = batching(same, span_ns)
        await submitted(queue, Unheard(1), *(items := [Asked(number) for number in (2, 3)]))
        await asyncio.wait_for(queue.drained(), PATIENCE_S)
        queue.close()
        return [item.answer.result() for item in items]

    assert asyncio.run(work()) == [[[n, n]] for n in (2, 3)]
    assert caplog.messages == ["an answer couldn't be handed over"]


@pytest.mark.parametrize("span_ns", [MS / 100, MS], ids=["on the loop's thread", "on its own"])
@pytest.mark.parametrize("number", [1, 2], ids=["alone", "in a batch"])
def test_a_request_whose_answer_cannot_be_made_is_told_so(span_ns: float, number: int) -> None:
    async def work() -> list[Any]:
        queue = batching(same, span_ns)
        items = [Unfit(1), Asked(2)][:number]
        await submitted(queue, *items)
        answers = [await asyncio.wait_for(item.answer, PATIENCE_S) for item in items]
        queue.close()
        return answers

    failure, *others = asyncio.run(work())
    assert others == [[[2, 2]]][: number - 1]
    assert (failure.kind, str(failure)) == (
        Kind.INTERNAL,
        "the answer couldn't be made; the server's log has the reason",
    )


@pytest.mark.parametrize("when", ["it is unloaded", "its turn is too late", "its deadline passes"])
def test_an_error_that_nobody_can_take_keeps_no_other_request_waiting(when: str) -> None:
    async def work() -> tuple[Any, bool]:
        held, begun, go_on = until_told(same)
        queue = batching(held)
        first, unheard, other = Asked(1), Unheard(2, 20e9), Asked(3)
        await submitted(queue, first)
        assert await asyncio.to_thread(begun.wait, PATIENCE_S)
        await submitted(queue, unheard, other)
        if when == "it is unloaded":
            queue.close()
        else:
            unheard.deadline_ns = 0.0
            if when == "its deadline passes":
                queue._late(unheard)
        go_on.set()
        answers = [await asyncio.wait_for(one.answer, PATIENCE_S) for one in (first, other)]
        if when != "it is unloaded":
            await asyncio.wait_for(queue.drained(), PATIENCE_S)
            queue.close()
        await asyncio.to_thread(until, lambda: not any(map(working, threading.enumerate())))
        return answers[1], unheard.inputs == {}

    before = threading.enumerate()

    def working(thread: threading.Thread) -> bool:
        return thread.name == "hasten-engine" and thread not in before

    answer, forgotten = asyncio.run(work())
    if when == "it is unloaded":
        assert answer.kind is Kind.UNAVAILABLE
    else:
        assert (answer, forgotten) == ([[3, 3]], True)


def test_a_batch_that_fails_while_its_model_is_drained_is_tried_again_one_by_one() -> None:
    async def work() -> list[Any]:
        model, begun, go_on = until_told(choosy)
        queue = batching(model)
        items = [Asked(number) for number in (1, 13, 3)]
        await submitted(queue, *items)
        drained = asyncio.ensure_future(queue.drained())
        await asyncio.to_thread(begun.wait, PATIENCE_S)
        behind = Asked(7, 20e9)
        queue.submit(behind)
        behind.deadline_ns = 0.0  # it is hopeless by the time the batch has failed
        go_on.set()
        await asyncio.wait_for(drained, PATIENCE_S)
        queue.close()
        return [item.answer.result() for item in items]

    first, failed, last = asyncio.run(work())
    assert (first, last) == ([[1, 1]], [[3, 3]])
    assert isinstance(failed, ProtocolError)
    assert failed.kind is Kind.INTERNAL


def test_each_request_of_many_gets_its_own_answer_on_several_sessions() -> None:
    async def work() -> None:
        queue = batching(same, sessions=3)
        items = [Asked(number) for number in range(500)]
        for item in items:
            queue.submit(item)
            if item.inputs["x"][0, 0] % 7 == 0:
                await asyncio.sleep(0.001)
        for number, item in enumerate(items):
            assert await asyncio.wait_for(item.answer, PATIENCE_S) == [[number, number]]
        await asyncio.wait_for(queue.drained(), PATIENCE_S)
        queue.close()

    asyncio.run(work())


def in_time(queue: Batching, left_ns: float) -> Asked:
    """Submit a request with so much time left; again, where this process paused for longer than that."""
    while True:
        item = Asked(1, left_ns)
        with contextlib.suppress(ProtocolError):
            queue.submit(item)
            return item


def test_a_deadline_isnt_early() -> None:
    """Below the millisecond that loops' timers go by, too."""

    async def work() -> list[float]:
        held, begun, go_on = until_told(same)
        queue = batching(held, MS)
        first = Asked(0)
        await submitted(queue, first)
        assert begun.wait(PATIENCE_S)
        for running in queue.scheduler._running.values():
            running.end_ns = 0  # it is believed to be over
        queue.scheduler.latencies._factor = queue.scheduler.latencies._tail = 1e-3
        late = []
        for left_ns in (1.2 * MS, 1.45 * MS, 2.3 * MS):
            item = in_time(queue, left_ns)
            failure = await asyncio.wait_for(item.answer, PATIENCE_S)
            assert isinstance(failure, ProtocolError)
            late.append(time.perf_counter_ns() - item.deadline_ns)
        go_on.set()
        await first.answer
        queue.close()
        return late

    assert all(each >= 0 for each in asyncio.run(work()))


def test_what_waits_behind_a_batch_is_refused_when_the_model_goes() -> None:
    async def work() -> Any:
        held, begun, go_on = until_told(same)
        queue = batching(held)
        first, second = Asked(1), Asked(2)
        await submitted(queue, first)
        assert begun.wait(PATIENCE_S)
        await submitted(queue, second)
        queue.close()
        go_on.set()
        return await first.answer, await second.answer

    answer, failure = asyncio.run(work())
    assert answer == [[1, 1]]
    assert (failure.kind, str(failure)) == (Kind.UNAVAILABLE, "the model was unloaded")


def test_the_patient_are_told_when_others_went_first_for_too_long() -> None:
    async def work() -> Any:
        held, begun, go_on = until_told(same)
        queue = batching(held)
        queue.scheduler.most_wait_ns = 30 * MS
        first, patient = Asked(1), Asked(2, priority=2)
        await submitted(queue, first)
        assert begun.wait(PATIENCE_S)
        await submitted(queue, patient)
        await asyncio.sleep(0.05)
        await submitted(queue, *(Asked(3) for _ in range(3)))
        go_on.set()
        failure = await asyncio.wait_for(patient.answer, PATIENCE_S)
        await asyncio.wait_for(queue.drained(), PATIENCE_S)
        queue.close()
        return failure

    failure = asyncio.run(work())
    assert (failure.kind, str(failure)) == (
        Kind.OVERLOADED,
        "overloaded: requests of higher priority took all the time; retry later",
    )


@pytest.mark.parametrize(
    ("heard", "left_ns", "span_ns", "here"),
    [
        ([7], math.inf, MS, True),
        ([7], 20e9, MS, True),
        ([7], math.inf, 50 * MS, False),
        ([7, 8, 7], math.inf, MS, False),
        ([7, 0], math.inf, MS, False),
    ],
    ids=["alone", "in time", "too long", "another was heard", "gRPC was heard"],
)
def test_who_is_alone_is_answered_on_the_loops_thread(
    heard: list[int], left_ns: float, span_ns: float, here: bool
) -> None:
    threads: list[str] = []

    def model(inputs: Tensors) -> dict[str, Array]:
        threads.append(threading.current_thread().name)
        return same(inputs)

    async def work() -> Any:
        clients = Clients()
        now_ns = time.perf_counter_ns()
        clients.heard(heard[0], now_ns - 1_000_000_000)
        for source in heard[1:]:
            clients.heard(source, now_ns)
        queue = batching(model, span_ns, clients=clients, clock_ns=lambda: now_ns)
        item = Asked(3, left_ns)
        item.source = 7
        await submitted(queue, item)
        answer = await asyncio.wait_for(item.answer, PATIENCE_S)
        queue.close()
        return answer

    assert asyncio.run(work()) == [[3, 3]]
    assert (threads == [threading.current_thread().name]) is here


def test_an_answer_that_comes_after_its_deadline_is_none() -> None:
    """On the loop's own thread no timer can say so while the engine works."""

    async def work() -> Any:
        clients = Clients()
        clients.heard(7, time.perf_counter_ns() - 1_000_000_000)
        item = Asked(3, 20e9)

        def model(inputs: Tensors) -> dict[str, Array]:
            item.deadline_ns = 0.0  # it took that long
            return same(inputs)

        queue = batching(model, clients=clients)
        item.source = 7
        await submitted(queue, item)
        answer = await asyncio.wait_for(item.answer, PATIENCE_S)
        queue.close()
        return answer

    answer = asyncio.run(work())
    assert isinstance(answer, ProtocolError)
    assert (answer.kind, str(answer)) == (
        Kind.LATE,
        "the deadline passed while it was computed",
    )


def test_two_requests_of_who_is_alone_arent_run_on_the_loops_thread() -> None:
    """Only one can be under way on a connection; where there are more, the loop is wanted."""
    threads: list[str] = []

    def model(inputs: Tensors) -> dict[str, Array]:
        threads.append(threading.current_thread().name)
        return same(inputs)

    async def work() -> None:
        clients = Clients()
        clients.heard(7, time.perf_counter_ns() - 1_000_000_000)
        queue = batching(model, clients=clients)
        items = [Asked(number, 20e9) for number in range(6)]
        for item in items:
            item.source = 7
        await submitted(queue, *items)
        for item in items:
            await asyncio.wait_for(item.answer, PATIENCE_S)
        queue.close()

    asyncio.run(work())
    assert "hasten-engine" in threads


def test_after_a_batch_that_took_far_too_long_the_next_ones_leave_the_loops_thread() -> None:
    """Values can decide how long a model takes, so no warm-up shows it."""
    threads: list[bool] = []
    now_ns = 0

    def model(inputs: Tensors) -> dict[str, Array]:
        nonlocal now_ns
        threads.append(threading.current_thread() is threading.main_thread())
        now_ns += int(inputs["x"][0, 0]) * MS
        return same(inputs)

    async def work() -> None:
        latencies = Latencies({1: MS / 100})
        scheduler: Scheduler[Any] = Scheduler(latencies, 10e9)
        loop, statistics = asyncio.get_running_loop(), Statistics()
        clients = Clients()
        queue = Batching([model], scheduler, statistics, loop, clients, lambda: now_ns)
        for took_ms in (0, 15, 0, 50, *(0,) * 1281):
            item = Asked(took_ms)
            await submitted(queue, item)
            await asyncio.wait_for(item.answer, PATIENCE_S)
        queue.close()

    asyncio.run(work())
    assert threads[:4] == [True] * 4
    assert threads[4:-1] == [False] * 1280
    assert threads[-1]
