"""Answers to single calls over gRPC that become larger than those before, of models whose outputs only they can size."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.support.growing import HELD_MS, LARGE, MIB, Growing, asking, growing_server, large
from tests.support.pausing import RELEASE
from tests.support.waiting import until

from hasten.serving.fairness import Shares
from hasten.serving.grpc.calls import leaving
from hasten.serving.grpc.unread import Place, Unread
from hasten.serving.owed_answers import OwedAnswers
from hasten.serving.protocol.messages import message


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Growing]:
    with growing_server(tmp_path) as served:
        yield served


def call(channel: Any, *requests: bytes) -> list[Any]:
    """Begin single calls, and read no answer."""
    ask = channel.stream_stream("/inference.GRPCInferenceService/ModelInfer")
    return [ask(iter([one])) for one in requests]


def read(calls: list[Any]) -> list[tuple[str, int]]:
    """Read the answers: the id of each, and how many bytes of tensors it has."""
    answers = [message("ModelInferResponse").FromString(next(one)) for one in calls]
    return [(one.id, len(one.raw_output_contents[0])) for one in answers]


def ended(call: Any) -> bool:
    """Whether the server ended a call, instead of answering it."""
    try:
        return not list(call)
    except grpc.RpcError as error:
        return error.code() is grpc.StatusCode.UNAVAILABLE


def test_calls_whose_answers_suddenly_become_large_hold_few_of_them(growing: Growing) -> None:
    with growing.client() as channel:
        for _ in range(20):
            read(call(channel, asking(1)))
        begun = call(channel, *large(120))
        until(lambda: growing.queued == 119)  # since all answers were small

        growing.settle()

        assert 16 * MIB <= growing.held_bytes < 26 * MIB, growing.held_bytes / MIB
        assert read(begun) == [(str(n), 4 * LARGE) for n in range(120)]
        until(lambda: growing.held_bytes == 0)
    counts = growing.model.statistics
    assert (counts.totals["success"].count, counts.cancel.count) == (140, 0)


def test_steps_of_single_calls_stay_in_order_where_their_answers_suddenly_become_large(
    growing: Growing,
) -> None:
    steps = growing.find("stepping")
    with growing.client() as channel:
        read(call(channel, asking(1, model="stepping", start=True)))
        asked = large(30, "stepping")
        for n in range(2, 30, 3):
            asked[n] = asking(1, model="stepping", id_=str(n), output="after")
        begun = []

        def pending(count: int) -> bool:
            return bool(growing.server.call(lambda: steps.sequences._pending) == count)

        for n, one in enumerate(asked):  # each is there before the next one is sent
            begun += call(channel, one)
            until(partial(pending, n + 1))
        growing.settle("stepping")
        late = call(channel, asking(1, model="stepping", output="after"))
        answers = [message("ModelInferResponse").FromString(next(one)) for one in (*begun, *late)]
    numbers = [int(np.frombuffer(one.raw_output_contents[0], np.float32)[0]) for one in answers]
    assert numbers == list(range(2, 33))
    assert (steps.statistics.totals["success"].count, steps.statistics.cancel.count) == (32, 0)


def test_calls_that_are_given_up_while_they_are_held_leave_nothing(growing: Growing) -> None:
    front: Any = growing.server.server._grpc
    with growing.client() as channel:
        read(call(channel, asking(1)))
        begun = call(channel, *large(60))
        until(lambda: growing.queued == 59)
        growing.settle()
        for one in begun[::2]:
            one.cancel()
        assert read(begun[1::2]) == [(str(n), 4 * LARGE) for n in range(1, 60, 2)]
        begun = call(channel, *large(60))
    until(lambda: growing.held_bytes == 0)
    unread = front._unread
    until(lambda: (unread._readers, unread._begun) == ({}, {}))


def test_a_call_whose_client_goes_away_as_it_is_taken_back_fails_no_other(
    growing: Growing, caplog: pytest.LogCaptureFixture
) -> None:
    front: Any = growing.server.server._grpc

    def give_up_and_hold() -> None:
        ((connection, held),) = front._unread._begun.items()
        for one in list(
            held
        ):  # calls of one client may arrive in another order than they were sent
            if int(one._inference.id) % 2:
                one._handler.cancel()  # as the library does where a client goes away
        front._unread.owes(connection)
        front._unread.change(connection, 0, 64 * MIB, "", made=True)
        front._unread.hold(connection)
        front._unread.change(connection, 64 * MIB, 0, "", made=False)

    with growing.client() as channel:
        read(call(channel, asking(1)))
        begun = call(channel, asking(1, HELD_MS, id_="0"))
        until(lambda: not growing.server.call(lambda: growing.model.idle))
        begun += call(channel, *[asking(1, id_=str(n)) for n in range(1, 10)])
        until(lambda: growing.queued == 9)
        growing.server.call(give_up_and_hold)
        RELEASE.set()
        assert read(begun[::2]) == [(str(n), 4) for n in range(0, 10, 2)]
    until(lambda: (front._unread._readers, front._unread._begun) == ({}, {}))
    until(lambda: growing.held_bytes == 0 and growing.queued == 0)
    assert not caplog.records


def test_held_calls_that_the_server_ends_are_counted_as_failed(growing: Growing) -> None:
    front: Any = growing.server.server._grpc
    with growing.client() as channel:
        read(call(channel, asking(1)))
        begun = call(channel, *large(40))
        until(lambda: growing.queued == 39)
        growing.settle()
        growing.server.call(lambda: front._calls.drain(leaving()))
        refused = sum(ended(one) for one in begun)
    counts = growing.model.statistics
    assert 0 < refused < 40
    assert counts.totals["success"].count == 41 - refused
    assert counts.refusals == {"UNAVAILABLE": refused}


def test_as_many_calls_are_with_the_model_again_once_answers_stay_small(growing: Growing) -> None:
    with growing.client() as channel:
        read(call(channel, asking(1), asking(LARGE)))
        for _ in range(20):
            read(call(channel, asking(1)))
        RELEASE.clear()
        begun = call(channel, *[asking(1, HELD_MS if n == 0 else 0) for n in range(100)])
        until(lambda: growing.queued == 99)
        RELEASE.set()
        assert [size for _, size in read(begun)] == [4] * 100


def test_a_call_that_was_let_in_as_others_are_taken_back_goes_behind_them() -> None:
    async def work() -> None:
        owed = OwedAnswers(lambda client: None, 30.0)
        unread = Unread(lambda: 0, Shares(1000), owed, most=10)
        assert unread.took("c", 10, "")
        later = Place(4, "", 0)
        unread.queue("c", later)
        waiting = asyncio.create_task(unread.wait("c", later))
        await asyncio.sleep(0)
        unread.change("c", 10, 5, "", made=False)
        assert later.let_in.done()
        earlier = Place(5, "", 0)
        unread.queue("c", earlier, first=True)
        unread.change("c", 5, 0, "", made=True)
        await asyncio.sleep(0)
        assert not waiting.done()
        await unread.wait("c", earlier)
        unread.begun("c", earlier)
        await waiting
        unread.begun("c", later)
        unread.change("c", 4, 0, "", made=True)
        unread.change("c", 5, 0, "", made=True)
        assert unread._readers == {}

    asyncio.run(work())
