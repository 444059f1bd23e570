"""A client over gRPC that reads slowly: what becomes of its further requests, and of others' connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.serving.test_grpc_connections import call_of
from tests.support.growing import HELD_MS, MIB, Growing, Stream, asking, growing_server
from tests.support.pausing import RELEASE
from tests.support.turns import turns_of
from tests.support.waiting import until

from hasten.serving import owed_answers
from hasten.serving.grpc.calls import Inference
from hasten.serving.protocol.errors import ProtocolError

pytestmark = pytest.mark.seconds
INFER = "/inference.GRPCInferenceService/ModelInfer"
MUCH = 7 * MIB
"""Numbers in an answer that takes more of the library's memory than a client may leave unread."""
SLOW = "127.0.0.2"
OPENING = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    b"\0\0\6\4\0\0\0\0\0\0\4\x7f\xff\xff\xff"
    b"\0\0\4\x08\0\0\0\0\0\x7f\xfe\0\0"
)
"""Begin of a connection on which HTTP/2 bounds no answer, so that only TCP does."""


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Growing]:
    with growing_server(tmp_path) as served:
        yield served


@contextlib.contextmanager
def calling(growing: Growing, data: bytes, client: str = SLOW) -> Iterator[socket.socket]:
    """Make a call from an address, on a connection on which the system receives little that isn't read."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        one.bind((client, 0))
        one.connect(("127.0.0.1", growing.server.grpc_port))
        one.sendall(OPENING + call_of(1, INFER, data))
        yield one


@contextlib.contextmanager
def read_slowly(one: socket.socket) -> Iterator[None]:
    """Read 80 kB each second meanwhile."""
    over = threading.Event()

    def read() -> None:
        one.settimeout(0.1)
        while not over.wait(0.1):
            with contextlib.suppress(OSError):
                one.recv(1 << 13)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        over.set()
        reader.join()


def test_a_client_that_reads_slowly_keeps_no_other_ones_unread_connections_from_being_ended(
    growing: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owed_answers, "_DRAIN_S", 3600.0)  # the slow one is never slow enough
    clients: Any = growing.state.owed._clients

    def owes(client: str) -> bool:
        return growing.server.call(lambda: client in clients and clients[client].size > 48 * MIB)

    def waits(client: str) -> bool:
        return growing.server.call(lambda: client in clients and len(clients[client].line) == 1)

    with contextlib.ExitStack() as opened:
        slow = opened.enter_context(calling(growing, asking(MUCH)))
        until(partial(owes, SLOW))
        opened.enter_context(read_slowly(slow))
        opened.enter_context(calling(growing, asking(1)))
        until(partial(waits, SLOW))

        unread, another = (opened.enter_context(growing.client()) for _ in range(2))
        left = unread.stream_stream(INFER)(iter([asking(MUCH)]))
        until(partial(owes, "127.0.0.1"))
        assert len(another.unary_unary(INFER)(asking(1), timeout=60)) < 4096
        assert growing.server.call(lambda: SLOW in clients and clients[SLOW].line)
        assert left


def test_held_requests_that_waited_for_too_long_are_refused_in_several_turns_of_the_loop(
    growing: Growing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owed_answers, "_DRAIN_S", 3600.0)
    monkeypatch.setattr(growing.state.owed, "_patience_s", 0.0)
    refused, refuse = list[int](), Inference.refused
    with contextlib.ExitStack() as opened:
        turn = opened.enter_context(turns_of(growing.server))

        def counted(inference: Inference, failure: ProtocolError) -> None:
            refused.append(turn[0])
            refuse(inference, failure)

        channel = opened.enter_context(growing.client())
        streams = [Stream(channel) for _ in range(10)]
        streams[0].ask(asking(1))
        streams[0].read(1)  # from now on, small answers are expected
        slow = opened.enter_context(calling(growing, asking(MUCH, HELD_MS), "127.0.0.1"))
        until(lambda: not growing.server.call(lambda: growing.model.idle))
        for one in streams:
            one.ask(*[asking(1)] * 20)
        until(lambda: growing.queued == 200)
        monkeypatch.setattr(Inference, "refused", counted)
        opened.enter_context(read_slowly(slow))
        RELEASE.set()
        for one in streams:
            assert all("waited for" in said for said in one.refused(20))
    assert len(refused) == 200
    assert max(Counter(refused).values()) <= 64
    assert growing.model.statistics.refusals == {"OVERLOADED": 200}
