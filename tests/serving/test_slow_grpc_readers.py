"""A client over gRPC that reads slowly, beside another that reads nothing: the connections of both are looked at."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.serving.test_grpc_connections import call_of
from tests.support.growing import MIB, Growing, asking, growing_server
from tests.support.waiting import until

from hasten.serving import owed_answers

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
def calling(growing: Growing, data: bytes) -> Iterator[socket.socket]:
    """Make a call from the address `SLOW`, on a connection on which the system receives little that isn't read."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        one.bind((SLOW, 0))
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
