"""A load test from its options to its result."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from hasten.core.tensors import Tensors
from hasten.errors import InputError
from hasten.evaluation.loadtest.address import Access, Address, Credentials, access, parse_address
from hasten.evaluation.loadtest.alarm import Alarm
from hasten.evaluation.loadtest.metadata import Metadata
from hasten.evaluation.loadtest.payloads import payloads
from hasten.evaluation.loadtest.raw_samples import (
    RAW_SAMPLES,
    RawRequest,
    is_folder_of_files,
    raw_requests,
)
from hasten.evaluation.loadtest.result import LoadTestResult, Offered, result_of
from hasten.evaluation.loadtest.schedule import LONGEST_S, Arrivals, Schedule, schedule
from hasten.evaluation.loadtest.traffic import Fate, Traffic, legible
from hasten.inputs.data.requests import MADE_UP, SAMPLES

MOST_CONNECTIONS = 10_000
LONGEST_DEADLINE_S = 3600.0
_LEAD_NS = 20_000_000
"""Lead before the schedule begins, to be ready for its first request."""
_TRIALS_S = 10.0
"""Longest time for which files are tried before the test, in seconds."""
PLAIN = "plain body"
"""Encoding of requests whose body is one raw sample."""
_LOOK_S = 0.005
"""Interval of checks for the last answers, in seconds."""


class Client(Protocol):
    """Opens lanes to a server."""

    def open_lane(self, traffic: Traffic) -> None:
        """Begin to open a lane."""

    async def ask(self, turn: int) -> tuple[Fate, str]:
        """Send one request, by its number, apart from the lanes, and judge its answer."""

    async def close(self) -> None:
        """Close every lane."""


@dataclass(frozen=True)
class Payload:
    """Content of the requests of a load test.

    Attributes:
        data: An .npz archive with an array of shape `(n, ...)` per input; or the folder of a
            bundle, for the requests that it keeps; or a folder of files, for a model that takes raw
            samples; by default random numbers.
        shapes: Shapes of random inputs, by name; by default open sizes are 1.
        batch: Rows, or files, in each request.
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
    raw: bool
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
    data = None if payload.data is None else Path(payload.data)
    raw = is_folder_of_files(data)
    if raw and (payload.json_tensors or payload.shapes):
        raise InputError("files are sent as they are: leave out json_tensors=True and shapes=")
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
            encoding=_encoding(address, payload, bounds, raw=raw),
            payload=MADE_UP if data is None else f"files of {data}" if raw else SAMPLES,
            connections=bounds.connections,
            grace_s=bounds.grace_s,
            seed=seed,
        ),
        plan=schedule(rate_per_s, duration_s, warmup_s=warmup_s, arrivals=arrivals, seed=seed),
        data=data,
        raw=raw,
        shapes=payload.shapes,
    )
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_alone(order)
    # A notebook has a loop of its own in this thread, which can't have two.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_run_alone, order).result()


def _encoding(address: Address, payload: Payload, bounds: Bounds, *, raw: bool) -> str:
    """Return how requests are sent.

    A plain body is one sample without parameters, so several samples, and a deadline, take the protocol's
    own form.
    """
    if address.grpc:
        return "gRPC"
    if raw:
        return PLAIN if payload.batch == 1 and bounds.deadline_s is None else "BYTES"
    return "JSON" if payload.json_tensors else "binary"


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
    from hasten.evaluation.loadtest.http_messages import infer, infer_sample, model_path

    address, offered = order.address, order.offered
    server = await reach(address, order.access, offered.model, offered.version)
    path = model_path(address, offered.model, offered.version)

    def request(tensors: Tensors) -> bytes:
        return infer(
            address,
            order.access,
            path,
            server.metadata.inputs,
            server.metadata.outputs,
            tensors,
            binary=offered.encoding != "JSON",
            timeout_us=_timeout_us(offered),
        )

    if not order.raw:
        made = [request(tensors) for tensors in _payloads(order, server.metadata)]
        return HttpClient(address, order.access, server, made)
    described = server.metadata
    server = replace(server, metadata=RAW_SAMPLES)
    plain = offered.encoding == PLAIN
    requests, names = [], []
    for one in _raw_requests(order):
        if plain:
            (content,) = one.contents
            requests.append(infer_sample(address, order.access, path, content, one.kind))
        else:
            requests.append(request(one.tensors))
        names.append(f"{one} as {one.kind}" if plain else str(one))
    client = HttpClient(address, order.access, server, requests, plain=plain)
    await _check_accepted(client, offered, names, described)
    return client


async def _grpc_client(order: _Order) -> Client:
    """Ask the server over gRPC what the model's inputs are, and make the requests."""
    from hasten.evaluation.loadtest.grpc import GrpcClient, reach
    from hasten.evaluation.loadtest.grpc_messages import infer

    offered = order.offered
    described = await reach(order.address, order.access, offered.model, offered.version)
    metadata = RAW_SAMPLES if order.raw else described
    requests, names = [], []
    for one in _raw_requests(order) if order.raw else _payloads(order, metadata):
        tensors = one.tensors if isinstance(one, RawRequest) else one
        requests.append(
            infer(
                offered.model,
                offered.version,
                metadata.inputs,
                metadata.outputs,
                tensors,
                timeout_us=_timeout_us(offered),
            )
        )
        names.append(str(one) if order.raw else "")
    client = GrpcClient(order.address, order.access, metadata, requests)
    if order.raw:
        await _check_accepted(client, offered, names, described)
    return client


def _raw_requests(order: _Order) -> Iterator[RawRequest]:
    assert order.data is not None
    return raw_requests(order.data, order.offered.batch)


async def _check_accepted(
    client: Client, offered: Offered, names: Sequence[str], described: Metadata
) -> None:
    """Ask the server about each file once, for a few seconds, before it is put under load.

    Args:
        client: Client with the requests.
        offered: Load that will be offered.
        names: Names of the requests' files, for people.
        described: Server's description of the model, which names `raw` only if it is the only input.

    Raises:
        InputError: the server refuses a file; the message names it.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_TRIALS_S):
            for turn, name in enumerate(names):
                fate, said = await client.ask(turn)
                if fate.kind not in ("error", "broken"):
                    continue
                line = f"{offered.url} answers {fate.status} to {name}: {legible(said) or 'no message'}"
                unsure = turn == 0 and described.inputs != RAW_SAMPLES.inputs
                if unsure and fate.status in ("400", "INVALID_ARGUMENT"):
                    line += f"; does {offered.model!r} take files, as a chain or a bundle with a pipeline does?"
                raise InputError(line)


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
