"""Answers over HTTP that become larger than those before, of models whose outputs only they can size."""

from __future__ import annotations

import contextlib
import gc
import http.client
import json
import re
import socket
import urllib.request
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import numpy as np
import pytest
from tests.serving.test_owed_answers import MOST_MIB, is_ended, read_to_end
from tests.support.growing import HELD_MS, MIB, Growing, Stream, asking, growing_server, grown
from tests.support.pausing import RAN, RELEASE, Pauses, Pausing, pausing_installed
from tests.support.servers import ServerProcess, bundle_of
from tests.support.waiting import until

from hasten.serving import owed_answers
from hasten.serving.http import connection
from hasten.serving.protocol.messages import message

EIGHT = 2 * MIB
"""Numbers in an answer of 8 MiB."""


def request(count: int, pause_ms: int = 0, more: str = "") -> bytes:
    """Ask `grown` for so many numbers as bytes, after a pause.

    Args:
        count: Number of numbers.
        pause_ms: The pause.
        more: Further headers.
    """
    x = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [pause_ms, count, 0, 0]}
    body = json.dumps({"inputs": [x], "parameters": {"binary_data_output": True}})
    lines = "POST /v2/models/grown/infer HTTP/1.1", "Host: localhost", *more.splitlines()
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", body]).encode()


class Served:
    """A server of `grown`, one row at a time, and the memory of its process."""

    def __init__(self, process: ServerProcess, pauses: Pauses) -> None:
        self.process, self.pauses = process, pauses
        with self.asks(EIGHT) as one:  # the engine's own memory
            assert b" 200 " in read_to_end(one)
        with self.asks(1) as one:  # others are expected to be small, after small ones
            for _ in range(24):
                assert b" 200 " in one.recv(4096)
                one.sendall(request(1))
        self._before_mib = process.memory_mib("VmRSS")

    @property
    def taken_mib(self) -> int:
        """Most memory that the server has taken since its first answers."""
        return self.process.memory_mib("VmHWM") - self._before_mib

    @contextlib.contextmanager
    def channel(self) -> Iterator[Any]:
        """A connection over gRPC of its own, on which little is received that isn't read."""
        few = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
        options = [*few, ("grpc.use_local_subchannel_pool", 1)]
        place = f"127.0.0.1:{self.process.grpc_port}"
        with grpc.insecure_channel(place, options=options) as channel:
            yield channel

    @property
    def queued(self) -> int:
        """Requests that wait in the model's queue."""
        with urllib.request.urlopen(f"http://{self.process.host}/metrics") as answer:
            found = re.search(
                r'hasten_queued_rows\{.*model="grown".*\} (\d+)', answer.read().decode()
            )
        assert found is not None
        return int(found[1])

    def asks(self, count: int, pause_ms: int = 0) -> socket.socket:
        """Ask on a connection of its own, on which the system receives little that isn't read."""
        one = socket.socket()
        one.settimeout(120)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        one.connect(("127.0.0.1", self.process.http_port))
        one.sendall(request(count, pause_ms))
        return one


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with pausing_installed(tmp_path / "plug-in"):
        bundle = bundle_of(tmp_path, grown(tmp_path), engine=Pausing(), keep_exact=False)
        (tmp_path / "notes").mkdir()
        pauses = Pauses(tmp_path / "notes")
        options = "--max-batch", "1", "--sessions", "1", "--max-wait", "600s"
        with ServerProcess(bundle, *options, "--grpc", "0", env=pauses.env) as process:
            yield Served(process, pauses)


@pytest.mark.seconds
def test_answers_that_suddenly_become_large_take_little_memory_where_nobody_reads_them(
    served: Served,
) -> None:
    with contextlib.ExitStack() as opened:
        crowd = [opened.enter_context(served.asks(EIGHT, HELD_MS))]
        until(lambda: served.pauses.begun(HELD_MS))
        crowd += [opened.enter_context(served.asks(EIGHT)) for _ in range(40)]
        until(lambda: served.queued == 40)  # since all answers were small
        served.pauses.end()
        last = opened.enter_context(served.asks(EIGHT))
        assert b" 200 " in read_to_end(last)  # in its turn, since those in front were ended
        assert served.taken_mib < MOST_MIB
        until(lambda: sum(map(is_ended, crowd)) > 20)


def unread_calls(channel: Any, streaming: bool) -> Any:
    """Ask for a small answer and read it; return a function that asks for a large one that nobody reads."""
    if streaming:
        stream = Stream(channel)
        stream.ask(asking(1))
        stream.read(1)
        return partial(stream.ask, asking(EIGHT))
    ask = channel.stream_stream("/inference.GRPCInferenceService/ModelInfer")
    next(ask(iter([asking(1)])))
    return partial(ask, iter([asking(EIGHT)]))


@pytest.mark.seconds
@pytest.mark.parametrize("streaming", [False, True], ids=["calls", "streams"])
def test_answers_over_grpc_that_suddenly_become_large_take_little_memory_on_many_connections(
    served: Served, streaming: bool
) -> None:
    with contextlib.ExitStack() as opened:
        channels = [opened.enter_context(served.channel()) for _ in range(16)]
        begin = [unread_calls(channel, streaming) for channel in channels]
        first = opened.enter_context(served.asks(1, HELD_MS))  # which has a small answer
        until(lambda: served.pauses.begun(HELD_MS))
        begun = [one() for one in begin]
        until(lambda: served.queued == 16)  # since all answers were small
        served.pauses.end()
        last = opened.enter_context(served.asks(EIGHT))
        assert b" 200 " in read_to_end(last)  # in its turn, since those in front were ended
        assert served.taken_mib < MOST_MIB
        assert first
        assert begun


class Asker:
    """A connection over HTTP, on which the system receives little that isn't read.

    Args:
        growing: Server.
        client: Address that it comes from.
    """

    def __init__(self, growing: Growing, client: str = "127.0.0.1") -> None:
        self._address = client
        self._socket = socket.socket()
        self._socket.settimeout(120)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        self._socket.bind((client, 0))
        self._socket.connect(("127.0.0.1", growing.server.http_port))
        self._answers = self._socket.makefile("rb")

    def ask(
        self,
        count: int,
        pause_ms: int = 0,
        number: int = 0,
        model: str = "grown",
        output: str = "y",
        **parameters: Any,
    ) -> None:
        """Ask for so many numbers; `number` is noted where the engine runs, and `parameters` are the request's."""
        x = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [pause_ms, count, number, 0]}
        parameters = {"binary_data_output": True, **parameters}
        asked = {"id": str(number), "inputs": [x], "outputs": [{"name": output}]}
        body = json.dumps({**asked, "parameters": parameters})
        head = (
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}"
        )
        self._socket.sendall(f"{head}\r\n\r\n{body}".encode())

    def read(self) -> tuple[int, dict[str, Any], bytes]:
        """Read an answer: its status, its JSON, and the tensors that follow."""
        status = int(self._answers.readline().split()[1])
        headers = http.client.parse_headers(self._answers)
        body = self._answers.read(int(headers["Content-Length"]))
        size = int(headers.get("Inference-Header-Content-Length", len(body)))
        return status, json.loads(body[:size]), body[size:]

    def asked(self, count: int, **parameters: Any) -> bytes:
        """Return the tensors of an answer."""
        self.ask(count, **parameters)
        status, _, data = self.read()
        assert status == 200
        return data

    def close(self) -> None:
        self._answers.close()
        self._socket.close()

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Growing]:
    """A server that ends no connection because too little is read on it."""
    with (
        patch.object(connection, "_STUCK_NS", 10**15),
        patch.object(owed_answers, "_DRAIN_S", 1e9),
        growing_server(tmp_path) as served,
    ):
        yield served


def crowd_of(
    growing: Growing, opened: contextlib.ExitStack, count: int, client: str = "127.0.0.1"
) -> list[Asker]:
    """Ask for large answers on connections of their own, the first of which comes once the engine is let go."""
    with Asker(growing, client) as one:
        for _ in range(20):
            one.asked(1)
    crowd = [opened.enter_context(Asker(growing, client)) for _ in range(count)]
    RAN.clear()
    for n, one in enumerate(crowd):  # each is there before the next one is sent
        one.ask(EIGHT, 0 if n else HELD_MS, n)
        until(lambda n=n: growing.queued == n and len(RAN) == 1)  # type: ignore[misc]
    return crowd


def test_requests_that_are_taken_back_are_answered_in_their_order(growing: Growing) -> None:
    with contextlib.ExitStack() as opened:
        crowd = crowd_of(growing, opened, 30)
        for n, one in enumerate(crowd):
            one.ask(1, 0, 100 + n)  # on the same connection, without waiting
        growing.settle()
        assert 5 <= len(RAN) <= 7  # of 8 MiB each, and 48 MiB may be unread
        for n, one in enumerate(crowd):
            status, told, data = one.read()
            assert (status, told["id"], len(data)) == (200, str(n), 4 * EIGHT)
        for n, one in enumerate(crowd):
            status, told, data = one.read()
            assert (status, told["id"], len(data)) == (200, str(100 + n), 4)
    ran = [int(row[2]) for row in RAN]
    assert [n for n in ran if n < 100] == list(range(30))
    assert sorted(ran) == [*range(30), *range(100, 130)]
    counts = growing.model.statistics
    assert (counts.totals["success"].count, counts.cancel.count) == (80, 0)
    owed = growing.state.owed
    until(lambda: growing.server.call(lambda: owed._clients) == {})


def test_no_engine_begins_another_large_answer_before_the_first_one_is_known(
    growing: Growing,
) -> None:
    with contextlib.ExitStack() as opened:
        with Asker(growing) as one:
            for _ in range(20):
                one.asked(1)
        RAN.clear()
        for n in range(3):  # each takes more than a client may leave unread
            asker = opened.enter_context(Asker(growing))
            asker.ask(7 * EIGHT, 0 if n else HELD_MS, n)
            until(lambda n=n: growing.queued == n and len(RAN) == 1)  # type: ignore[misc]
        growing.settle()
        assert len(RAN) == 1


def tickets_of(growing: Growing, client: str) -> list[Any]:
    found = (one._ticket for one in growing.state.connections if client in one.client)
    return [one for one in found if one is not None]


def test_requests_that_are_taken_back_wait_for_their_own_client_alone(growing: Growing) -> None:
    with contextlib.ExitStack() as opened:
        crowd = crowd_of(growing, opened, 20, "127.0.0.2")
        others = [opened.enter_context(Asker(growing, "127.0.0.3")) for _ in range(3)]
        for one in others:
            one.ask(EIGHT)
        until(lambda: growing.queued == 22)
        waiting = growing.server.call(lambda: tickets_of(growing, "127.0.0.3"))
        growing.settle()
        assert [one.query.own for one in waiting] == [False] * 3  # none was taken back
        for one in others:
            assert len(one.read()[2]) == 4 * EIGHT
        assert len(RAN) <= 10
        for one in crowd:
            assert len(one.read()[2]) == 4 * EIGHT


def test_a_request_to_another_model_stays_in_the_queue_of_that_model(growing: Growing) -> None:
    other, owed = growing.find("rows"), growing.state.owed
    with growing.client() as channel, Asker(growing) as big:
        for _ in range(20):
            big.asked(1)
        RAN.clear()
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        held = ask.future(asking(1, HELD_MS, "rows"))
        until(lambda: len(RAN) == 1)
        waits = ask.future(asking(1, 0, "rows"))
        until(lambda: bool(growing.server.call(lambda: other.queued_rows) == 1))
        big.ask(15 * MIB)

        def unread() -> list[int]:
            return [own.size for own in owed._clients.values() if own.size > 48 * MIB]

        until(lambda: bool(growing.server.call(unread)))
        assert growing.server.call(lambda: other.queued_rows) == 1
        RELEASE.set()
        assert held.result(timeout=60)
        assert waits.result(timeout=60)  # though nobody has read the large answer


def test_nothing_is_kept_of_a_request_whose_client_went_away_while_it_waited(
    growing: Growing,
) -> None:
    def waiting() -> list[Any]:
        return [weakref.ref(one) for one in growing.state.connections if one._waiting is not None]

    with contextlib.ExitStack() as opened:
        first = opened.enter_context(Asker(growing))
        first.ask(15 * MIB)
        until(lambda: bool(growing.server.call(lambda: growing.state.owed._clients)))
        gone = [Asker(growing) for _ in range(3)]
        for one in gone:
            one.ask(1)
        until(lambda: len(growing.server.call(waiting)) == 3)
        kept = growing.server.call(waiting)
        gc.collect()
        gc.disable()
        opened.callback(gc.enable)
        for one in gone:
            one.close()
        until(lambda: all(one() is None for one in kept))


def test_steps_on_several_connections_stay_in_order_where_answers_suddenly_become_large(
    growing: Growing,
) -> None:
    steps = growing.find("stepping")
    with contextlib.ExitStack() as opened:
        crowd = [opened.enter_context(Asker(growing)) for _ in range(20)]
        crowd[0].asked(1, model="stepping", sequence_id=7, sequence_start=True)

        def pending(count: int) -> bool:
            return bool(growing.server.call(lambda: steps.sequences._pending) == count)

        for n, one in enumerate(crowd):
            output = "after" if n % 3 == 2 else "y"  # whose answer is small, as its shape tells
            one.ask(EIGHT, 0 if n else HELD_MS, model="stepping", output=output, sequence_id=7)
            until(partial(pending, n + 1))
        growing.settle("stepping")
        late = opened.enter_context(Asker(growing))
        late.ask(1, model="stepping", output="after", sequence_id=7)
        answers = [one.read()[2] for one in (*crowd, late)]
    numbers = [int(np.frombuffer(data[:4], np.float32)[0]) for data in answers]
    assert numbers == list(range(2, 23))
    assert (steps.statistics.totals["success"].count, steps.statistics.cancel.count) == (22, 0)


def test_a_step_over_grpc_whose_answer_is_not_counted_goes_on_after_it_was_taken_back(
    growing: Growing,
) -> None:
    steps = growing.find("stepping")
    with Asker(growing) as one, growing.client() as channel, growing.client() as other:
        one.asked(1, model="stepping", sequence_id=7, sequence_start=True)
        one.ask(7 * EIGHT, HELD_MS, model="stepping", sequence_id=7)
        until(lambda: growing.server.call(lambda: steps.sequences._pending) == 1)
        step = asking(1, model="stepping", output="after")
        method = "/inference.GRPCInferenceService/ModelInfer"
        begun = [channel.stream_stream(method)(iter([step]), timeout=120)]
        until(lambda: growing.server.call(lambda: steps.sequences._pending) == 2)
        growing.settle("stepping")
        begun.append(other.stream_stream(method)(iter([step]), timeout=120))
        with growing.client() as last:  # once the server has both
            last.unary_unary(method)(asking(1, model="solid"))
        assert len(one.read()[2]) == 28 * EIGHT
        told = [message("ModelInferResponse").FromString(next(each)) for each in begun]
    numbers = [np.frombuffer(one.raw_output_contents[0], np.float32).tolist() for one in told]
    assert numbers == [[3], [4]]


def test_requests_of_a_stream_that_are_held_for_too_long_are_told_why(growing: Growing) -> None:
    with contextlib.ExitStack() as opened:
        stream = Stream(opened.enter_context(growing.client()))
        stream.ask(asking(1))
        stream.read(1)
        crowd = crowd_of(growing, opened, 7)
        stream.ask(*[asking(EIGHT, id_=str(n)) for n in range(3)])
        until(lambda: growing.queued == 9)
        growing.server.call(lambda: setattr(growing.state.owed, "_patience_s", 1.0))
        growing.settle()
        said = stream.refused(3)
        assert [one.split(" until")[0] for one in said] == ["the request waited for 1 s"] * 3
        growing.server.call(lambda: setattr(growing.state.owed, "_patience_s", 30.0))
        for one in crowd:
            one.read()
        stream.ask(asking(1))
        assert stream.read(1) == [("", 4)]
    assert growing.model.statistics.refusals["OVERLOADED"] >= 3


def test_clients_that_go_away_while_their_requests_are_held_leave_nothing(growing: Growing) -> None:
    with contextlib.ExitStack() as opened:
        crowd = crowd_of(growing, opened, 30)
        growing.settle()
        begun = len(RAN)
        for one in crowd[10::2]:
            one.close()
        counts = growing.model.statistics
        until(lambda: counts.cancel.count == 10)
        for one in (*crowd[:10], *crowd[11::2]):
            assert len(one.read()[2]) == 4 * EIGHT
    assert begun < 10
    assert [int(row[2]) for row in RAN] == [*range(10), *range(11, 30, 2)]
    owed = growing.state.owed
    until(lambda: growing.server.call(lambda: owed._clients) == {} and growing.held_bytes == 0)


@pytest.mark.seconds
def test_a_request_that_is_held_fails_at_its_deadline(growing: Growing) -> None:
    with contextlib.ExitStack() as opened:
        crowd = crowd_of(growing, opened, 20)
        last = opened.enter_context(Asker(growing))
        last.ask(EIGHT, timeout=5_000_000)
        until(lambda: growing.queued == 20)
        growing.settle()
        status, told, _ = last.read()
        assert (status, told["error"]) == (
            504,
            "the deadline passed before this client had read its other answers",
        )
        for one in crowd:
            assert len(one.read()[2]) == 4 * EIGHT
    assert growing.model.statistics.refusals == {"LATE": 1}
