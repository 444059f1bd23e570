"""Load by hasten's own generator, over several ways at once; each answer is held against what is known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import uvloop
from known import Known
from unit import MODEL

from hasten.evaluation.loadtest import grpc, grpc_messages, http, http_messages
from hasten.evaluation.loadtest.address import Access, Address
from hasten.evaluation.loadtest.alarm import Alarm
from hasten.evaluation.loadtest.generator import drive
from hasten.evaluation.loadtest.schedule import schedule
from hasten.evaluation.loadtest.traffic import Fate, Traffic
from hasten.serving.protocol.messages import message

GRACE_S = 60.0
"""Limit for an answer, from when its request was due: later is a hang."""
_LANES = 256
_CLIENTS = 8
"""Clients of each way that ask again once they are answered, where what the server can do is measured."""
_MOST = 50_000
_LEAD_NS = 20_000_000
_ACCESS = Access()


@dataclass(frozen=True)
class Way:
    """A way to ask the server.

    Attributes:
        name: Name of the way, for people.
        scheme: "http" or "grpc".
        port: Port on 127.0.0.1.
    """

    name: str
    scheme: str
    port: int

    @property
    def address(self) -> Address:
        """Address of the server."""
        return Address(self.scheme, "127.0.0.1", self.port)


class KnowingHttp(http.HttpClient):
    """Client over HTTP that holds each answer against what is known."""

    def __init__(self, way: Way, server: Any, requests: Sequence[bytes], known: Known) -> None:
        super().__init__(way.address, _ACCESS, server, requests)
        self._known = known

    def judge(
        self, turn: int, status: int, body: bytes, header_length: bytes | None
    ) -> tuple[Fate, str]:
        fate, said = super().judge(turn, status, body, header_length)
        if fate.kind == "ok":
            wrong = self._known.fault(turn, memoryview(body)[int(header_length or 0) :])
            return (Fate("broken", fate.status), wrong) if wrong else (fate, "")
        return fate, said


class KnowingGrpc(grpc.GrpcClient):
    """Client over gRPC that holds each answer against what is known."""

    def __init__(self, way: Way, metadata: Any, requests: Sequence[bytes], known: Known) -> None:
        super().__init__(way.address, _ACCESS, metadata, requests)
        self._known = known

    def judge(self, turn: int, answer: bytes) -> tuple[Fate, str]:
        fate, said = super().judge(turn, answer)
        if fate.kind == "ok":
            (raw,) = message("ModelInferResponse").FromString(answer).raw_output_contents
            wrong = self._known.fault(turn, raw)
            return (Fate("broken", fate.status), wrong) if wrong else (fate, "")
        return fate, said


async def client(way: Way, known: Known) -> Any:
    """Ask the server what the model takes, and return a client with its requests."""
    if way.scheme == "grpc":
        metadata = await grpc.reach(way.address, _ACCESS, MODEL, "")
        calls = [
            grpc_messages.infer(
                MODEL, "", metadata.inputs, metadata.outputs, tensors, timeout_us=None
            )
            for tensors in known.requests
        ]
        return KnowingGrpc(way, metadata, calls, known)
    server = await http.reach(way.address, _ACCESS, MODEL, "")
    path = http_messages.model_path(way.address, MODEL, "")
    described = (server.metadata.inputs, server.metadata.outputs)
    requests = [
        http_messages.infer(
            way.address, _ACCESS, path, *described, tensors, binary=True, timeout_us=None
        )
        for tensors in known.requests
    ]
    return KnowingHttp(way, server, requests, known)


def capacity_per_s(ways: Sequence[Way], known: Known, seconds: float) -> float:
    """Return how many right answers a second come where some clients ask as fast as they are answered."""
    traffics = uvloop.run(_offer(ways, known, [[0] * _MOST for _ in ways], _CLIENTS, seconds))
    ended_ns = sorted(
        ended
        for traffic in traffics
        for ended, fate in zip(traffic.ended_ns, traffic.fates, strict=True)
        if fate is not None and fate.kind == "ok"
    )
    late = ended_ns[len(ended_ns) // 4 :]  # the first ones are those of connecting
    return (len(late) - 1) * 1e9 / (late[-1] - late[0]) if len(late) > 1 else 0.0


def offer(
    ways: Sequence[Way],
    known: Known,
    rate_per_s: float,
    seconds: float,
    seed: int,
    beside: Callable[[], None] = lambda: None,
) -> list[Traffic]:
    """Ask at a rate, divided among the ways, at random times.

    Args:
        ways: Ways to ask.
        known: Model that is asked.
        rate_per_s: Requests per second of all ways.
        seconds: Time in which requests are due.
        seed: Seed of the times.
        beside: Function that is called once clients are there, before the first request.
    """
    due_ns = [
        schedule(rate_per_s / len(ways), seconds, seed=seed + number).due_ns
        for number in range(len(ways))
    ]
    return uvloop.run(_offer(ways, known, due_ns, _LANES, GRACE_S, beside))


async def _offer(
    ways: Sequence[Way],
    known: Known,
    due_ns: Sequence[Sequence[int]],
    lanes: int,
    grace_s: float,
    beside: Callable[[], None] = lambda: None,
) -> list[Traffic]:
    failed: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: failed.append(
            context.get("exception") or RuntimeError(context["message"])
        )
    )
    clients = [await client(way, known) for way in ways]
    beside()
    begin_ns = time.monotonic_ns() + _LEAD_NS
    traffics = [
        Traffic([begin_ns + due for due in each], one.open_lane, lanes=lanes)
        for one, each in zip(clients, due_ns, strict=True)
    ]
    with ExitStack() as alarms:
        driven = [drive(each, alarms.enter_context(Alarm()), grace_s) for each in traffics]
        try:
            await asyncio.gather(*driven)
        finally:
            for traffic in traffics:
                traffic.stop()
            for one in clients:
                await one.close()
    for error in failed:
        # A connection that broke is a request's fate. gRPC's library hands the present loop what it still
        # has of an earlier one's calls.
        if not isinstance(error, OSError) and str(error) != "Event loop is closed":
            raise error
    return traffics
