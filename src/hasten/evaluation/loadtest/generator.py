"""A load test from its options to its result."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hasten.errors import InputError
from hasten.evaluation.loadtest.address import Access, Address, Credentials, access, parse_address
from hasten.evaluation.loadtest.alarm import Alarm
from hasten.evaluation.loadtest.metadata import Metadata
from hasten.evaluation.loadtest.payloads import payloads
from hasten.evaluation.loadtest.result import LoadTestResult, Offered, result_of
from hasten.evaluation.loadtest.schedule import LONGEST_S, Arrivals, Schedule, schedule
from hasten.evaluation.loadtest.traffic import Traffic
from hasten.inputs.data.requests import MADE_UP, SAMPLES

MOST_CONNECTIONS = 10_000
LONGEST_DEADLINE_S = 3600.0
_LEAD_NS = 20_000_000
"""Lead before the schedule begins, to be ready for its first request."""
_LOOK_S = 0.005
"""Interval of checks for the last answers, in seconds."""


class Client(Protocol):
    """Opens lanes to a server."""

    def open_lane(self, traffic: Traffic) -> None:
        """Begin to open a lane."""

    async def close(self) -> None:
        """Close every lane."""


@dataclass(frozen=True)
class Payload:
    """Content of the requests of a load test.

    Attributes:
        data: An .npz archive with an array of shape `(n, ...)` per input, or the folder of a
            bundle, for the requests that it keeps; by default random numbers.
        shapes: Shapes of random inputs, by name; by default open sizes are 1.
        batch: Rows in each request.
        json_tensors: Whether to send tensors as JSON instead of raw bytes.
    """

    data: Path | str | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    batch: int = 1
    json_tensors: bool = False


@dataclass(frozen=True)
class Bounds:
    """Bounds of a load test.

    Attributes:
        deadline_s: Deadline in seconds, sent with each request as its `timeout`; later answers
            don't count towards the goodput.
        connections: Largest number of connections, each with one request in progress; over gRPC,
            of calls.
        grace_s: Time to wait for answers after the last request, in seconds.
    """

    deadline_s: float | None = None
    connections: int = 256
    grace_s: float = 10.0

    def check(self) -> None:
        """Check the bounds.

        Raises:
            InputError: one is out of range; the message says which.
        """
        if self.deadline_s is not None and not 1e-6 <= self.deadline_s <= LONGEST_DEADLINE_S:
            raise InputError(
                f"the deadline is in seconds, from 1 µs to {LONGEST_DEADLINE_S:.0f} s: got "
                f"{self.deadline_s:g}"
            )
        if not 1 <= self.connections <= MOST_CONNECTIONS:
            raise InputError(
                f"the number of connections is from 1 to {MOST_CONNECTIONS}: got {self.connections}"
            )
        if not (math.isfinite(self.grace_s) and 0 <= self.grace_s <= LONGEST_S):
            raise InputError(
                f"the grace is in seconds, from 0 to {LONGEST_S:.0f}: got {self.grace_s:g}"
            )


@dataclass(frozen=True)
class _Order:
    """Order of a load test, checked."""

    address: Address
    access: Access
    offered: Offered
    plan: Schedule
    data: Path | None
    shapes: Mapping[str, Sequence[int]]


def run(
    url: str,
    model: str,
    rate_per_s: float,
    duration_s: float = 30.0,
    *,
    version: str = "",
    arrivals: Arrivals = "poisson",
    warmup_s: float = 1.0,
    seed: int = 0,
    payload: Payload = Payload(),
    bounds: Bounds = Bounds(),
    credentials: Credentials = Credentials(),  # noqa: B008 - a value
) -> LoadTestResult:
    """Put a server under load: requests are sent when they are due, whatever is unanswered.

    Latency counts from when a request was due. Every answer is checked: its status, and that each
    output of the model is present with as many bytes as its type and shape require.

    Args:
        url: http://HOST:PORT, https://HOST:PORT, grpc://HOST:PORT or grpcs://HOST:PORT.
        model: Name of the model on the server.
        rate_per_s: Requests per second, on average.
        duration_s: Time during which requests count, in seconds.
        version: Version of the model; by default the server chooses.
        arrivals: "poisson", as from many independent clients, or "constant".
        warmup_s: Time during which requests are sent before they count, in seconds.
        seed: Seed of the arrivals and of random numbers.
        payload: Content of the requests.
        bounds: Deadline of a request, number of connections, and wait for the last answers.
        credentials: Files with the credentials for the server.

    Raises:
        InputError: an option is out of range, the server can't be reached, it doesn't have the
            model, the data doesn't fit the model, or an extra is missing.
    """
    address = parse_address(url)
    _check_names(model, version)
    bounds.check()
    if payload.json_tensors and address.grpc:
        raise InputError(
            "only HTTP sends tensors as JSON: leave that option out, or give an http:// address"
        )
    order = _Order(
        address=address,
        access=access(address, credentials),
        offered=Offered(
            url=str(address),
            model=model,
            version=version,
            rate_per_s=rate_per_s,
            duration_s=duration_s,
            warmup_s=warmup_s,
            arrivals=arrivals,
            deadline_ns=None if bounds.deadline_s is None else round(1e9 * bounds.deadline_s),
            batch=payload.batch,
            encoding="gRPC" if address.grpc else "JSON" if payload.json_tensors else "binary",
            payload=MADE_UP if payload.data is None else SAMPLES,
            connections=bounds.connections,
            grace_s=bounds.grace_s,
            seed=seed,
        ),
        plan=schedule(rate_per_s, duration_s, warmup_s=warmup_s, arrivals=arrivals, seed=seed),
        data=None if payload.data is None else Path(payload.data),
        shapes=payload.shapes,
    )
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_alone(order)
    # A notebook has a loop of its own in this thread, which can't have two.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_run_alone, order).result()


def _run_alone(order: _Order) -> LoadTestResult:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(order))


def _check_names(model: str, version: str) -> None:
    for what, name in (("model's name", model), ("version", version)):
        if not name.isprintable():  # nor is anything that UTF-8 can't encode
            raise InputError(f"the {what} can't be sent: {name!a}")
    if not model:
        raise InputError("the model's name is missing")


def _loop_factory() -> Any:
    """Return uvloop's loop where it is installed, since it spends half as long on a request."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _run(order: _Order) -> LoadTestResult:
    failed: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: failed.append(
            context.get("exception") or RuntimeError(context["message"])
        )
    )
    client = await (_grpc_client(order) if order.address.grpc else _http_client(order))
    with Alarm() as alarm, _no_collection():
        begin_ns = time.monotonic_ns() + _LEAD_NS
        traffic = Traffic(
            [begin_ns + due for due in order.plan.due_ns],
            client.open_lane,
            lanes=order.offered.connections,
        )
        try:
            await drive(traffic, alarm, order.offered.grace_s)
        finally:
            stopped_ns = time.monotonic_ns()
            traffic.stop()
            await client.close()
    for error in failed:
        if not isinstance(error, OSError):  # a connection that broke is in the result
            raise error
    return result_of(order.offered, order.plan, traffic, stopped_ns)


async def drive(traffic: Traffic, alarm: Alarm, grace_s: float) -> None:
    """Send each request when it is due, then wait for the last answers.
    Args:
        traffic: Requests, due on the clock of `time.monotonic_ns`.
        alarm: Alarm that wakes the loop in time.
        grace_s: Time to wait after the last request was sent, in seconds.
    """
    loop = asyncio.get_running_loop()
    all_sent: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        alarm.clear()
        try:
            next_ns = traffic.send_due()
        except Exception as error:
            next_ns = None
            all_sent.set_exception(error)
        if next_ns is not None:
            alarm.set(next_ns)
        elif not all_sent.done():
            all_sent.set_result(None)

    loop.add_reader(alarm.descriptor, wake)
    try:
        alarm.set(traffic.due_ns[0])
        await all_sent
        end_ns = traffic.clock_ns() + round(1e9 * grace_s)
        while traffic.under_way and traffic.clock_ns() < end_ns:
            await asyncio.sleep(_LOOK_S)
    finally:
        loop.remove_reader(alarm.descriptor)


async def _http_client(order: _Order) -> Client:
    """Ask the server over HTTP what the model's inputs are, and make the requests."""
    from hasten.evaluation.loadtest.http import HttpClient, reach
    from hasten.evaluation.loadtest.http_messages import infer, model_path

    address, offered = order.address, order.offered
    server = await reach(address, order.access, offered.model, offered.version)
    requests = [
        infer(
            address,
            order.access,
            model_path(address, offered.model, offered.version),
            server.metadata.inputs,
            server.metadata.outputs,
            tensors,
            binary=offered.encoding == "binary",
            timeout_us=_timeout_us(offered),
        )
        for tensors in _payloads(order, server.metadata)
    ]
    return HttpClient(address, order.access, server, requests)


async def _grpc_client(order: _Order) -> Client:
    """Ask the server over gRPC what the model's inputs are, and make the requests."""
    from hasten.evaluation.loadtest.grpc import GrpcClient, reach
    from hasten.evaluation.loadtest.grpc_messages import infer

    offered = order.offered
    metadata = await reach(order.address, order.access, offered.model, offered.version)
    requests = [
        infer(
            offered.model,
            offered.version,
            metadata.inputs,
            metadata.outputs,
            tensors,
            timeout_us=_timeout_us(offered),
        )
        for tensors in _payloads(order, metadata)
    ]
    return GrpcClient(order.address, order.access, metadata, requests)


def _payloads(order: _Order, metadata: Metadata) -> Any:
    offered = order.offered
    return payloads(
        metadata.inputs,
        data=order.data,
        shapes=order.shapes,
        batch=offered.batch,
        seed=offered.seed,
    )


def _timeout_us(offered: Offered) -> int | None:
    return None if offered.deadline_ns is None else max(1, offered.deadline_ns // 1000)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Pause Python's garbage collection, which stops everything for milliseconds."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
