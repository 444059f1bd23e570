"""Answers over HTTP that become larger than those before, of models whose outputs only they can size."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving.test_owed_answers import MOST_MIB, is_ended, read_to_end
from tests.support.growing import HELD_MS, MIB, grown
from tests.support.pausing import Pauses, Pausing, pausing_installed
from tests.support.servers import ServerProcess, bundle_of
from tests.support.waiting import until

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
        with ServerProcess(bundle, *options, env=pauses.env) as process:
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
