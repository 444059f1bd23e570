"""Answers to streams over gRPC that become larger than those before, of models whose outputs only they can size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.support.growing import (
    HELD_MS,
    LARGE,
    MIB,
    Growing,
    Stream,
    asking,
    growing_server,
    large,
)
from tests.support.pausing import RELEASE
from tests.support.waiting import until

from hasten.serving.grpc.calls import Inference


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Growing]:
    with growing_server(tmp_path) as served:
        yield served


def test_a_stream_whose_answers_suddenly_become_large_holds_few_of_them(growing: Growing) -> None:
    with growing.client() as channel:
        stream = Stream(channel)
        stream.ask(*[asking(1)] * 200)
        stream.read(200)
        stream.ask(*large(120))
        until(lambda: growing.queued == 119)  # since all answers were small

        growing.settle()

        assert 8 * MIB <= growing.held_bytes < 16 * MIB
        assert stream.read(120) == [(str(n), 4 * LARGE) for n in range(120)]
        counts = growing.model.statistics
        until(lambda: growing.held_bytes == 0)
        assert (counts.totals["success"].count, counts.cancel.count) == (320, 0)


def test_streams_of_one_connection_hold_few_answers_that_suddenly_become_large(
    growing: Growing,
) -> None:
    with growing.client() as channel:
        streams = [Stream(channel) for _ in range(30)]
        for one in streams:
            one.ask(asking(1))
            one.read(1)
        streams[0].ask(*large(2))
        until(lambda: growing.queued == 1)
        for one in streams[1:]:
            one.ask(asking(LARGE), asking(LARGE))
        until(lambda: growing.queued == 59)

        growing.settle()

        assert 16 * MIB <= growing.held_bytes < 24 * MIB
        with ThreadPoolExecutor(len(streams)) as pool:  # none waits for another one's reader
            for came in pool.map(lambda one: one.read(2), streams):
                assert [size for _, size in came] == [4 * LARGE] * 2


def test_a_stream_has_as_many_requests_under_way_again_once_its_answers_stay_small(
    growing: Growing,
) -> None:
    with growing.client() as channel:
        stream = Stream(channel)
        stream.ask(asking(1), asking(LARGE))
        stream.read(2)
        stream.ask(*[asking(1)] * 400)
        stream.read(400)
        RELEASE.clear()
        stream.ask(*[asking(1, HELD_MS if n == 0 else 0) for n in range(200)])
        until(lambda: growing.queued == 127)
        RELEASE.set()
        assert [size for _, size in stream.read(200)] == [4] * 200


def test_steps_of_a_sequence_stay_in_order_where_their_answers_suddenly_become_large(
    growing: Growing,
) -> None:
    steps = growing.find("stepping")
    with growing.client() as channel:
        stream = Stream(channel)
        stream.ask(asking(1, model="stepping", start=True))
        stream.read(1)
        stream.ask(*large(60, "stepping"))
        until(lambda: bool(growing.server.call(lambda: steps.sequences._pending) == 60))

        growing.settle("stepping")

        assert 8 * MIB <= growing.held_bytes < 16 * MIB
        assert stream.numbers(60) == list(range(2, 62))
    assert (steps.statistics.totals["success"].count, steps.statistics.cancel.count) == (61, 0)


def test_steps_whose_answers_have_a_known_size_stay_behind_those_that_are_held(
    growing: Growing,
) -> None:
    steps = growing.find("stepping")
    with growing.client() as channel:
        stream = Stream(channel)
        stream.ask(asking(1, model="stepping", start=True))
        stream.read(1)
        asked = large(60, "stepping")
        for n in range(2, 60, 3):
            asked[n] = asking(LARGE, model="stepping", id_=str(n), output="after")
        stream.ask(*asked)
        until(lambda: bool(growing.server.call(lambda: steps.sequences._pending) == 60))
        growing.settle("stepping")
        assert [id_ for id_, _ in stream.read(60)] == [str(n) for n in range(60)]


def test_a_sequence_that_begins_anew_among_held_steps_goes_on_from_each_start(
    growing: Growing,
) -> None:
    steps = growing.find("stepping")
    with growing.client() as channel:
        stream = Stream(channel)
        stream.ask(asking(1, model="stepping", start=True))
        stream.read(1)
        asked = large(60, "stepping")
        for place in (20, 40):
            asked[place] = asking(LARGE, model="stepping", start=True)
        stream.ask(*asked)
        until(lambda: bool(growing.server.call(lambda: steps.sequences._pending) == 60))
        growing.settle("stepping")
        assert stream.numbers(60) == [*range(2, 22), *range(1, 21), *range(1, 21)]


def test_held_requests_are_answered_while_the_server_drains(growing: Growing) -> None:
    with growing.client() as channel:
        stream = Stream(channel)
        stream.ask(asking(1))
        stream.read(1)
        stream.ask(*large(40))
        until(lambda: growing.queued == 39)
        growing.settle()
        growing.server.call(lambda: setattr(growing.state, "draining", True))
        assert stream.read(40) == [(str(n), 4 * LARGE) for n in range(40)]


def test_requests_are_rarely_read_again_while_answers_grow_slowly(
    growing: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[bytes] = []
    read = Inference.read

    def counted(inference: Inference) -> None:
        reads.append(inference._data)
        read(inference)

    monkeypatch.setattr(Inference, "read", counted)
    with growing.client() as channel:
        stream = Stream(channel)
        stream.ask(asking(20_000))
        stream.read(1)
        asked = [asking(20_000 + n, 0 if n else HELD_MS) for n in range(100)]
        stream.ask(*asked)
        until(lambda: growing.queued == 99)
        growing.settle()
        assert [size for _, size in stream.read(100)] == [4 * (20_000 + n) for n in range(100)]
    assert 100 <= sum(one in asked for one in reads) <= 200


def test_held_requests_are_read_one_in_each_turn_of_the_loop(
    growing: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, read = [0], Inference.read
    turns: list[int] = []

    def counted(inference: Inference) -> None:
        turns.append(turn[0])
        read(inference)

    def next_turn() -> None:
        turn[0] += 1
        loop.call_soon(next_turn)

    steps = growing.find("stepping")
    with growing.client() as channel:
        stream = Stream(channel)
        stream.ask(asking(1), asking(20_000, model="stepping", start=True))
        stream.read(2)
        held = asking(20_000, HELD_MS, "stepping")
        stream.ask(asking(5 * LARGE, HELD_MS), held, *[asking(20_000, model="stepping")] * 90)
        until(lambda: bool(growing.server.call(lambda: steps.sequences._pending) == 91))
        loop = growing.server._loop
        growing.server.call(next_turn)
        monkeypatch.setattr(Inference, "read", counted)
        RELEASE.set()
        assert len(stream.read(92)) == 92
    assert len(turns) > 20
    assert max(Counter(turns).values()) <= 2  # one that is held, and one that just came


class Calling:
    """A call of gRPC, and the client that it is counted under."""

    client, name, left_s = "192.0.2.1", "", 10.0

    def time_remaining(self) -> float:
        return self.left_s

    def invocation_metadata(self) -> tuple[()]:
        return ()


def test_a_request_that_is_read_again_keeps_its_deadline_and_its_room(growing: Growing) -> None:
    def work() -> None:
        bodies, call, now_ns = growing.state.bodies, Calling(), [0]
        one = Inference(growing.state, call, call, asking(1), lambda: now_ns[0])
        one.read()
        taken = bodies.taken
        bodies.take("192.0.2.2", bodies.total - taken)  # another client came meanwhile
        now_ns[0], call.left_s = 6 * 10**9, 4.0
        one.forget()
        one.read()
        assert (one._query.arrived_ns, one._query.timeout_ns) == (0, 10 * 10**9)
        assert bodies.taken == bodies.total
        bodies.give("192.0.2.2", bodies.total - taken)
        one.end()
        assert bodies.taken == 0

    growing.server.call(work)


def test_decisions_of_a_stream_that_suddenly_become_large_are_few(growing: Growing) -> None:
    rows = growing.find("rows")
    with growing.client() as channel:
        stream = Stream(channel)
        stream.ask(*[asking(1, model="rows")] * 20)
        stream.read(20)
        first, *others = large(40, "rows")
        stream.ask(
            first
        )  # samples are prepared side by side, so that another one might overtake it
        until(lambda: not growing.server.call(lambda: rows._batching.scheduler.idle))
        stream.ask(*others)
        until(lambda: bool(growing.server.call(lambda: rows.queued_rows) == 39))

        growing.settle("rows")

        assert 8 * MIB <= growing.held_bytes < 16 * MIB
        assert [size > 4 * LARGE for _, size in stream.read(40)] == [True] * 40
    assert (rows.statistics.totals["success"].count, rows.statistics.cancel.count) == (60, 0)


def test_a_stream_that_ends_while_requests_are_held_leaves_nothing(growing: Growing) -> None:
    with growing.client() as channel:
        stream = Stream(channel)
        stream.ask(asking(1))
        stream.read(1)
        stream.ask(*large(120))
        until(lambda: growing.queued == 119)
        growing.settle()
    until(lambda: growing.held_bytes == 0)
    front: Any = growing.server.server._grpc
    together = front._together
    assert (together._sizes, together._waiting, together._streams) == ({}, {}, {})


def test_clients_that_go_away_while_they_are_sent_answers_are_no_fault(
    growing: Growing, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(40):
        with growing.client() as channel:
            ask = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
            next(ask(iter([asking(LARGE)] * 4)))
    until(lambda: growing.held_bytes == 0)
    assert [one.getMessage() for one in caplog.records if one.name == "hasten.serving"] == []
