"""Answers over gRPC that become larger than those before, of a model whose outputs only itself can size."""

from __future__ import annotations

import contextlib
import json
import queue
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from onnx import parser, save
from tests.support.models import solid
from tests.support.pausing import RELEASE, Pausing, pausing_installed
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import until

from hasten.core.sequences import Sequences
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.serving.grpc.calls import Inference
from hasten.serving.models import batching
from hasten.serving.protocol.messages import message

MIB = 1 << 20
LARGE = MIB // 2
"""Numbers in an answer of 2 MiB."""
HELD_MS = 600_000
"""Pause that lasts until a test ends it."""


def grown(folder: Path) -> Path:
    """Write x: [1, 4] -> y, as many zeros as the second number of x says; the first one is a pause."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        grown (float[batch, 4] x) => (float[batch, found] y)
        <int64[1] flat = {-1}, int64[1] one = {1}, int64[1] two = {2}> {
            all = Reshape (x, flat)  second = Slice (all, one, two)  size = Abs (second)
            count = Cast <to = 7> (size)  shape = Concat <axis = 0> (one, count)
            y = ConstantOfShape (shape)
        }"""
    save(parser.parse_model(text), folder / "grown.onnx")
    return folder / "grown.onnx"


def stepping(folder: Path) -> Path:
    """Write x: [1, 4], state -> y, as many numbers as the second one of x says, each the number of the step."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        stepping (float[batch, 4] x, float[batch, 1] before) => (float[found] y, float[batch, 1] after)
        <int64[1] flat = {-1}, int64[1] one = {1}, int64[1] two = {2}, float plus = {1}> {
            after = Add (before, plus)  number = Reshape (after, flat)
            all = Reshape (x, flat)  second = Slice (all, one, two)  size = Abs (second)
            count = Cast <to = 7> (size)  y = Expand (number, count)
        }"""
    save(parser.parse_model(text), folder / "stepping.onnx")
    return folder / "stepping.onnx"


def asking(
    count: int,
    pause_ms: int = 0,
    model: str = "grown",
    id_: str = "",
    *,
    start: bool = False,
    output: str = "",
) -> bytes:
    """Ask for so many numbers, after a pause."""
    made, x = message("ModelInferRequest")(model_name=model, id=id_), [pause_ms, count, 0, 0]
    if model == "rows":
        made.inputs.add(name="raw", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
            json.dumps(x).encode()
        )
        return bytes(made.SerializeToString())
    made.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    made.raw_input_contents.append(np.array(x, np.float32).tobytes())
    if output:
        made.outputs.add(name=output)
    if model == "stepping":
        made.parameters["sequence_id"].int64_param = 7
        made.parameters["sequence_start"].bool_param = start
    return bytes(made.SerializeToString())


class Growing:
    """A server of `grown`, whose engine is on a thread, and of `solid`."""

    def __init__(self, server: ServerThread) -> None:
        self.server = server
        self.state: Any = server.server.state
        self.model = self.find("grown")

    def find(self, name: str) -> Any:
        return self.server.call(lambda: self.state.repository.find(name))

    @property
    def held_bytes(self) -> int:
        return int(self.server.call(lambda: self.state.body_bytes))

    @property
    def queued(self) -> int:
        return int(self.server.call(lambda: self.model.queued_rows))

    def settle(self, name: str = "grown") -> None:
        """Let a model's engine go, and wait until it runs nothing more, however often others ask meanwhile."""
        model = self.find(name)
        RELEASE.set()
        with grpc.insecure_channel(self.server.grpc_url) as channel:
            ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            for _ in range(100):
                until(lambda: bool(self.server.call(lambda: model.idle)))
                ask(asking(1, model="solid"))

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """A client that takes little of what it doesn't read."""
        little = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
        options = [
            *little,
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
        ]
        with grpc.insecure_channel(self.server.grpc_url, options=options) as channel:
            yield channel


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Growing]:
    monkeypatch.setattr(batching, "INLINE_NS", 0)
    monkeypatch.setattr(batching, "_LONE_NS", 0)
    with pausing_installed(tmp_path / "plug-in"):
        pausing = bundle_of(tmp_path, grown(tmp_path), engine=Pausing(), keep_exact=False)
        carried = Sequences((("before", "after"),))
        model = stepping(tmp_path)
        stepping_ = bundle_of(
            tmp_path, model, engine=Pausing(), keep_exact=False, sequences=carried
        )
        row = Pipeline((Row(tuple("abcd")),))
        model = grown(tmp_path)
        rows = bundle_of(tmp_path, model, "rows", engine=Pausing(), keep_exact=False, pipeline=row)
        places = [
            place_of(pausing, most_rows=1, sessions=1, most_wait_ns=600_000_000_000),
            place_of(bundle_of(tmp_path, solid(tmp_path))),
            place_of(stepping_, most_rows=1, sessions=1),
            place_of(rows, most_rows=1, sessions=1, most_wait_ns=600_000_000_000),
        ]
        with ServerThread(*places, grpc=True) as server:
            yield Growing(server)
            RELEASE.set()


class Stream:
    """A stream, to which requests are sent when a test wants."""

    def __init__(self, channel: Any) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
            iter(self._requests.get, None)
        )

    def ask(self, *requests: bytes) -> None:
        for one in requests:
            self._requests.put(one)

    def read(self, count: int) -> list[tuple[str, int]]:
        """Read so many answers: the id of each, and how many bytes of tensors it has."""
        return [self._read(next(self._answers)) for _ in range(count)]

    def numbers(self, count: int) -> list[int]:
        """Read so many answers: the first number of each."""
        return [
            int(np.frombuffer(self._tensor(next(self._answers)), np.float32)[0])
            for _ in range(count)
        ]

    def _tensor(self, data: bytes) -> bytes:
        answer = message("ModelStreamInferResponse").FromString(data)
        assert not answer.error_message
        return bytes(answer.infer_response.raw_output_contents[0])

    def _read(self, data: bytes) -> tuple[str, int]:
        answer = message("ModelStreamInferResponse").FromString(data)
        assert not answer.error_message
        return answer.infer_response.id, len(answer.infer_response.raw_output_contents[0])


def large(count: int, model: str = "grown") -> list[bytes]:
    """Ask for so many large answers, of which the first one comes once it is let go."""
    return [asking(LARGE, 0 if n else HELD_MS, model, str(n)) for n in range(count)]


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
        RELEASE.set()
        until(lambda: bool(growing.server.call(lambda: steps.sequences._pending) < 10))
        loop = growing.server._loop
        growing.server.call(next_turn)
        monkeypatch.setattr(Inference, "read", counted)
        assert len(stream.read(92)) == 92
    assert len(turns) > 20  # how many are held depends on how far the stream was read
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
