"""The one client for all servers: a process that asks over loopback and checks every answer.

It takes a job as one line of JSON on its standard input and gives one line of JSON back, until the
input ends. A closed loop asks again once it is answered; an open one asks when a request is due,
and counts from then, whatever is still unanswered.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import httptools
import numpy as np
import uvloop
from tally import Answers, Tally

_CONNECT_S = 10.0
_LEAD_NS = 5_000_000
"""Before the first request of an open loop is due, for its thread to be there."""

Answered: TypeAlias = Callable[["Connection", int, bytes], None]


@dataclass(frozen=True)
class Job:
    """What is asked of a server.

    Attributes:
        port: The server's port on 127.0.0.1.
        format: Name of the answers' format.
        folder: Folder with the requests and the numbers expected of each.
        tolerance: Error that an answer may have, as a share of the largest expected number.
        clients: Connections of a closed loop, each with one request at a time.
        warmup_s: Seconds of untimed requests before the timed ones.
        duration_s: Seconds of timed requests; a closed loop goes on until an answer if none comes
            in that time.
        rate_per_s: Requests per second of an open loop, a Poisson process; 0 for a closed loop.
        grace_s: Seconds that an open loop waits at its end for outstanding answers.
        most_connections: Most connections of an open loop; a request that is due while all are
            busy waits for one, and its wait counts.
        seed: Seed of the arrivals.
    """

    port: int
    format: str
    folder: str
    tolerance: float = 0.0
    clients: int = 1
    warmup_s: float = 0.1
    duration_s: float = 0.5
    rate_per_s: float = 0.0
    grace_s: float = 5.0
    most_connections: int = 512
    seed: int = 0


class Connection(asyncio.Protocol):
    """One connection; has one request in flight at most.

    Args:
        answered: Called with status and body once an answer is whole; with status 0 where the
            server hung up instead.

    Attributes:
        turn: Index of the request that it sent last.
        begin_ns: Time at which that request was due.
        open: Whether it can send another request.
    """

    def __init__(self, answered: Answered) -> None:
        self.turn, self.begin_ns, self.open = 0, 0, False
        self._answered, self._waiting = answered, False

    def connection_made(self, transport: Any) -> None:
        self.transport, self.open = transport, True
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []

    def ask(self, turn: int, request: bytes, begin_ns: int) -> None:
        """Send a request; it counts from `begin_ns`."""
        self.turn, self.begin_ns, self._waiting = turn, begin_ns, True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status, body = self._parser.get_status_code(), b"".join(self._body)
        if status == 100:  # "go on" comes before the answer
            return
        self._body = []
        if not self._parser.should_keep_alive():
            self.open = False
            self.transport.close()
        self._waiting = False
        self._answered(self, status, body)

    def close(self) -> None:
        """Hang up; an answer that is missing won't be told of."""
        self._waiting = False
        self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._waiting:
            self._waiting = False
            self._answered(self, 0, b"")


async def _connected(port: int, answered: Answered) -> Connection:
    loop = asyncio.get_running_loop()
    made = loop.create_connection(lambda: Connection(answered), "127.0.0.1", port)
    _, connection = await asyncio.wait_for(made, _CONNECT_S)
    return connection


class ClosedLoop:
    """So many connections, each busy until the time is up."""

    def __init__(self, job: Job, answers: Answers) -> None:
        self._job, self._answers, self._tally = job, answers, Tally(answers)
        self._left, self._over, self._done = job.clients, False, asyncio.Event()
        self._connections: list[Connection] = []

    async def run(self) -> dict[str, Any]:
        """Ask, and return what came of it."""
        job = self._job
        for place in range(job.clients):
            await self._begin(place)
        await asyncio.sleep(job.warmup_s)
        cpu_s, begin_ns = time.process_time(), time.perf_counter_ns()
        end_ns = begin_ns + round(1e9 * job.duration_s)
        self._tally.count_within(begin_ns, end_ns)
        while (left_ns := end_ns - time.perf_counter_ns()) > 0:
            await asyncio.sleep(left_ns / 1e9)
        elapsed_s = job.duration_s
        if not self._tally.statuses:  # the machine stood still: the next answer ends the time
            self._tally.count_within(begin_ns, float("inf"))
            await _until(self._tally.counted, max(job.grace_s, 60.0))
            end_ns = time.perf_counter_ns()
            self._tally.count_within(begin_ns, end_ns)
            elapsed_s = (end_ns - begin_ns) / 1e9
        cpu_s = time.process_time() - cpu_s
        self._over = True
        await _until(self._done, job.grace_s)
        for connection in self._connections:
            connection.close()
        return self._tally.record(elapsed_s, cpu_s, unanswered=self._left)

    async def _begin(self, turn: int) -> None:
        connection = await _connected(self._job.port, self._answered)
        self._connections.append(connection)
        connection.turn = turn
        self._ask(connection)

    def _ask(self, connection: Connection) -> None:
        turn = (connection.turn + 1) % len(self._answers.requests)
        connection.ask(turn, self._answers.requests[turn], time.perf_counter_ns())

    def _answered(self, connection: Connection, status: int, body: bytes) -> None:
        self._tally.take(connection.turn, connection.begin_ns, status, body)
        if self._over:
            self._end_one()
        elif connection.open:
            self._ask(connection)
        else:
            self._connections.remove(connection)
            self._tally.reconnected += 1
            self._again = asyncio.get_running_loop().create_task(self._reconnect(connection.turn))

    async def _reconnect(self, turn: int) -> None:
        try:
            await self._begin(turn)
        except (OSError, TimeoutError):
            self._end_one()

    def _end_one(self) -> None:
        self._left -= 1
        if not self._left:
            self._done.set()


class OpenLoop:
    """Requests when they are due, each on a connection that is free, or on a new one."""

    def __init__(self, job: Job, answers: Answers) -> None:
        self._job, self._answers, self._tally = job, answers, Tally(answers)
        rng = np.random.default_rng(job.seed)
        count = max(1, round(job.rate_per_s * job.duration_s))
        self._due_ns = np.cumsum(rng.exponential(1e9 / job.rate_per_s, count)).tolist()
        self._left, self._done = count, asyncio.Event()
        self._waiting: deque[tuple[int, int]] = deque()
        self._free: list[Connection] = []
        self._connections: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._late_ns = 0

    async def run(self) -> dict[str, Any]:
        """Ask, and return what came of it."""
        self._loop = asyncio.get_running_loop()
        for _ in range(self._job.clients):
            await self._connect()
        gc.collect()
        gc.disable()
        cpu_s, begin_ns = time.process_time(), time.perf_counter_ns() + _LEAD_NS
        self._tally.count_within(begin_ns, float("inf"))
        pacer = threading.Thread(target=self._pace, args=(begin_ns,), daemon=True)
        pacer.start()
        await _until(self._done, self._due_ns[-1] / 1e9 + self._job.grace_s)
        elapsed_s = (time.perf_counter_ns() - begin_ns) / 1e9
        cpu_s = time.process_time() - cpu_s
        for connection in self._connections:
            connection.close()
        return self._tally.record(
            elapsed_s,
            cpu_s,
            asked=len(self._due_ns),
            unanswered=self._left,
            connections=len(self._connections),
            most_late_ns=self._late_ns,
        )

    def _pace(self, begin_ns: int) -> None:
        """Sleep in a thread of its own: the event loop's timers count in whole milliseconds."""
        for place, due_ns in enumerate(self._due_ns):
            at_ns = begin_ns + round(due_ns)
            while (early_ns := at_ns - time.perf_counter_ns()) > 0:
                time.sleep(early_ns / 1e9)
            try:
                self._loop.call_soon_threadsafe(self._due, place, at_ns)
            except RuntimeError:  # the time for answers is over
                return

    def _due(self, place: int, at_ns: int) -> None:
        self._late_ns = max(self._late_ns, time.perf_counter_ns() - at_ns)
        self._waiting.append((place % len(self._answers.requests), at_ns))
        self._send()

    def _send(self) -> None:
        while self._waiting and self._free:
            connection = self._free.pop()
            if connection.open:
                turn, at_ns = self._waiting.popleft()
                connection.ask(turn, self._answers.requests[turn], at_ns)
            else:
                self._connections.discard(connection)
        wanted = min(len(self._waiting), self._job.most_connections - len(self._connections))
        for _ in range(wanted - len(self._connecting)):
            task = self._loop.create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        try:
            connection = await _connected(self._job.port, self._answered)
        except (OSError, TimeoutError):
            return
        self._connections.add(connection)
        self._free.append(connection)
        self._send()

    def _answered(self, connection: Connection, status: int, body: bytes) -> None:
        self._tally.take(connection.turn, connection.begin_ns, status, body)
        if connection.open:
            self._free.append(connection)
        else:
            self._connections.discard(connection)
            self._tally.reconnected += 1
        self._left -= 1
        if not self._left:
            self._done.set()
        self._send()


async def _until(done: asyncio.Event, most_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(done.wait(), most_s)


async def carry_out(job: Job) -> dict[str, Any]:
    """Carry out one job."""
    answers = Answers(Path(job.folder), job.format, job.tolerance)
    return await (OpenLoop if job.rate_per_s else ClosedLoop)(job, answers).run()


def main() -> None:
    for line in sys.stdin:
        try:
            found = uvloop.run(carry_out(Job(**json.loads(line))))
        except (OSError, TimeoutError) as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        gc.enable()
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
