"""A client over gRPC: parallel calls on a few channels."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hasten.core.extras import missing_extra
from hasten.errors import InputError
from hasten.evaluation.loadtest.address import Access, Address
from hasten.evaluation.loadtest.grpc_messages import judge, metadata_of, metadata_request
from hasten.evaluation.loadtest.metadata import Metadata
from hasten.evaluation.loadtest.traffic import CONNECTION, Fate, Traffic, legible

try:
    import grpc
    import grpc.aio
except ImportError as error:
    raise missing_extra("a load test over gRPC", "serve") from error

_SERVICE = "/inference.GRPCInferenceService"
_REACH_S = 10.0
_CALLS_PER_CHANNEL = 64
"""Calls per connection, within the 100 that servers commonly allow."""
_MOST_MESSAGE_BYTES = 256 << 20
_RECONNECT_MS = 500
_REFUSED = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")


def _channel(address: Address, access: Access) -> Any:
    """Return a channel with a connection of its own."""
    options = [
        ("grpc.max_receive_message_length", _MOST_MESSAGE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        # A server that starts again is asked again soon, not only after up to two minutes.
        ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
    ]
    if not address.encrypted:
        return grpc.aio.insecure_channel(address.authority, options=options)
    access.tls()  # gRPC would say nothing of files that it can't use
    roots = None if access.ca is None else access.ca.read_bytes()
    chain: bytes | None = None
    key: bytes | None = None
    if access.client is not None:
        chain, key = (one.read_bytes() for one in access.client)
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    return grpc.aio.secure_channel(address.authority, credentials, options=options)


def _fields(access: Access) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {access.token}"),) if access.token else ()


async def reach(address: Address, access: Access, model: str, version: str) -> Metadata:
    """Ask a server for the inputs and outputs of a model.

    Raises:
        InputError: the server can't be reached, doesn't have the model, or doesn't speak the
            protocol.
    """
    async with _channel(address, access) as channel:
        try:
            answer = await channel.unary_unary(f"{_SERVICE}/ModelMetadata")(
                metadata_request(model, version), timeout=_REACH_S, metadata=_fields(access)
            )
        except grpc.aio.AioRpcError as error:
            said = legible(error.details() or "") or "no message"
            if channel.get_state() != grpc.ChannelConnectivity.READY:
                raise InputError(
                    f"can't reach {address}: {said}; does a server run there, and does it speak "
                    "gRPC?"
                ) from error
            raise InputError(
                f"{address} answers {error.code().name} to the model {model!r}: {said}"
            ) from error
    try:
        return metadata_of(answer)
    except ValueError as error:
        raise InputError(
            f"{address} doesn't describe the inputs and outputs of the model {model!r}: {error}"
        ) from error


class Call:
    """Makes one call at a time: a lane of the traffic."""

    def __init__(self, client: GrpcClient, traffic: Traffic, channel: Any) -> None:
        """Make no call yet.

        Args:
            client: Client that keeps the tasks.
            traffic: Traffic, which is told when the lane is free and how a request ended.
            channel: Channel to call on.
        """
        self._client, self._traffic, self._channel = client, traffic, channel
        self._infer = channel.unary_unary(f"{_SERVICE}/ModelInfer")

    def send(self, turn: int) -> None:
        self._client.start(self._call(turn))

    async def _call(self, turn: int) -> None:
        client = self._client
        request = client.requests[turn % len(client.requests)]
        try:
            answer = await self._infer(request, metadata=client.fields)
        except grpc.aio.AioRpcError as error:
            self._traffic.ended(turn, _fate(self._channel, error), error.details() or "")
        else:
            ended_ns = self._traffic.clock_ns()
            fate, message = client.judge(turn, answer)
            self._traffic.ended(turn, fate, message, ended_ns)
        self._traffic.ready(self)


def _fate(channel: Any, error: Any) -> Fate:
    """Return the fate of a failed call; gRPC reports UNAVAILABLE for lost connections too.

    Nor does gRPC know at once: a server that goes away announces it by GOAWAY.
    """
    status = error.code().name
    if status == "DEADLINE_EXCEEDED":
        return Fate("late", status)
    if status not in _REFUSED:
        return Fate("error", status)
    ready = channel.get_state() == grpc.ChannelConnectivity.READY
    ready &= "GOAWAY" not in (error.details() or "")
    return Fate("refused", status) if ready or status != "UNAVAILABLE" else CONNECTION


class GrpcClient:
    """Makes calls to a server.

    Attributes:
        requests: Complete requests, sent in turn.
        fields: Metadata sent with each call.
    """

    def __init__(
        self, address: Address, access: Access, metadata: Metadata, requests: Sequence[bytes]
    ) -> None:
        """Open no channel yet.

        Args:
            address: Address of the server.
            access: Credentials for the server.
            metadata: Description of the model.
            requests: Complete requests, sent in turn.
        """
        self._address, self._access = address, access
        self.requests = requests
        self._outputs = tuple(one.name for one in metadata.outputs)
        self.fields = _fields(access)
        self._channels: list[Any] = []
        self._lanes = 0
        self._calls: set[asyncio.Task[None]] = set()

    def open_lane(self, traffic: Traffic) -> None:
        """Give the traffic one more parallel call."""
        if self._lanes % _CALLS_PER_CHANNEL == 0:
            self._channels.append(_channel(self._address, self._access))
        self._lanes += 1
        traffic.opened_one(Call(self, traffic, self._channels[-1]))

    def judge(self, turn: int, answer: bytes) -> tuple[Fate, str]:
        """Return the fate of a request, by its number, that was answered; and what is wrong."""
        return judge(answer, self._outputs)

    async def ask(self, turn: int) -> tuple[Fate, str]:
        """Make one call, by its number, on a connection of its own, and judge its answer."""
        async with _channel(self._address, self._access) as channel:
            infer = channel.unary_unary(f"{_SERVICE}/ModelInfer")
            try:
                return self.judge(turn, await infer(self.requests[turn], metadata=self.fields))
            except grpc.aio.AioRpcError as error:
                return _fate(channel, error), error.details() or ""

    def start(self, call: Any) -> None:
        """Run a call."""
        task = asyncio.get_running_loop().create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def close(self) -> None:
        """Cancel the calls in progress, and close every channel."""
        calls = list(self._calls)
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for channel in self._channels:
            await channel.close()
