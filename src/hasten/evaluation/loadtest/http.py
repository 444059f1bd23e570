"""A client over HTTP/1.1: persistent connections, each with one request in progress at a time."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.errors import InputError
from hasten.evaluation.loadtest.address import Access, Address
from hasten.evaluation.loadtest.answers import AnswerReader
from hasten.evaluation.loadtest.http_messages import (
    error_message,
    get,
    judge,
    metadata_of,
    model_path,
)
from hasten.evaluation.loadtest.metadata import Metadata
from hasten.evaluation.loadtest.traffic import CONNECTION, Fate, Traffic, legible

_CONNECT_S = 10.0
_READ_BYTES = 65_536


class ClientConnection(asyncio.Protocol):
    """One connection to the server: a lane of the traffic."""

    def __init__(
        self,
        traffic: Traffic,
        client: HttpClient,
        siblings: set[ClientConnection],
    ) -> None:
        """Send nothing yet.

        Args:
            traffic: Traffic, which is told when the connection is free and how a request ended.
            client: Client that has the requests, and judges the answers.
            siblings: Open connections, of which this is one while it is open.
        """
        self._traffic = traffic
        self._client = client
        self._siblings = siblings
        self._reader = AnswerReader()
        self._turn: int | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self._siblings.add(self)
        self._traffic.opened_one(self)

    def send(self, turn: int) -> None:
        assert self._transport is not None
        self._turn = turn
        requests = self._client.requests
        self._transport.write(requests[turn % len(requests)])

    def data_received(self, data: bytes) -> None:
        try:
            if self._turn is None:
                raise ValueError("an answer came without a request")
            if not self._reader.feed(data):
                return
        except ValueError as error:
            self._end(Fate("broken", "200" if self._reader.status == 200 else ""), str(error))
            self.close()
            return
        usable = self._reader.keeps_alive
        if not usable:
            self.close()
        self._judge()
        # A connection that is closed, or about to be, gets no more requests.
        if usable and self._transport is not None and not self._transport.is_closing():
            self._traffic.ready(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._siblings.discard(self)
        if self._turn is not None and exc is None and self._reader.end():
            self._judge()
        self._end(CONNECTION, f"the connection broke before an answer: {_reason(exc)}")
        self._traffic.lost(self)

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _judge(self) -> None:
        ended_ns, reader, turn = self._traffic.clock_ns(), self._reader, self._turn
        assert turn is not None
        fate, message = self._client.judge(turn, reader.status, reader.body, reader.header_length)
        reader.next()
        self._end(fate, message, ended_ns)

    def _end(self, fate: Fate, message: str, ended_ns: int | None = None) -> None:
        turn, self._turn = self._turn, None
        if turn is not None:
            self._traffic.ended(turn, fate, message, ended_ns)


@dataclass(frozen=True)
class ReachedServer:
    """A server that was reached, and its description of the model.

    Attributes:
        host: IP address that answered, so that no name is looked up under load.
        metadata: Description of the model.
    """

    host: str
    metadata: Metadata


async def reach(address: Address, access: Access, model: str, version: str) -> ReachedServer:
    """Ask a server for the inputs and outputs of a model.

    Raises:
        InputError: the server can't be reached, doesn't have the model, or doesn't speak the
            protocol.
    """
    path = model_path(address, model, version)
    tls = access.tls() if address.encrypted else None
    try:
        async with asyncio.timeout(_CONNECT_S):
            host, reader, writer = await _connect(address, tls)
            try:
                answer = await _ask(reader, writer, get(address, access, path))
            finally:
                writer.transport.abort()
    except OSError as error:
        raise InputError(f"can't reach {address}: {_reason(error)}; {_remedy(error)}") from error
    except ValueError as error:
        raise InputError(
            f"{address} doesn't speak the Open Inference Protocol over HTTP: {legible(str(error))}"
        ) from error
    if answer.status != 200:
        raise InputError(
            f"{address} answers {answer.status} to {path}: "
            f"{legible(error_message(answer.body)) or 'no message'}"
        )
    try:
        return ReachedServer(host, metadata_of(answer.body))
    except ValueError as error:
        raise InputError(
            f"{address} doesn't describe the inputs and outputs of the model {model!r}: "
            f"{legible(str(error))}"
        ) from error


async def _connect(
    address: Address, tls: ssl.SSLContext | None
) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the first of a host's IP addresses that accepts, and return that address too.

    Raises:
        OSError: none accepts.
    """
    loop, failed = asyncio.get_running_loop(), OSError("its host name has no address")
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for host in dict.fromkeys(str(one[4][0]) for one in found):
        try:
            streams = await asyncio.open_connection(
                host, address.port, ssl=tls, server_hostname=address.host if tls else None
            )
        except OSError as error:
            failed = error
        else:
            return host, *streams
    raise failed


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> AnswerReader:
    """Send one request and read its answer.

    Raises:
        ValueError: the answer isn't HTTP, or is cut short.
    """
    writer.write(request)
    answer = AnswerReader()
    while data := await reader.read(_READ_BYTES):
        if answer.feed(data):
            return answer
    if not answer.end():
        raise ValueError("the connection ended before an answer")
    return answer


class HttpClient:
    """Opens connections to a server.

    Attributes:
        requests: Complete requests, sent in turn.
    """

    def __init__(
        self,
        address: Address,
        access: Access,
        server: ReachedServer,
        requests: Sequence[bytes],
        *,
        plain: bool = False,
    ) -> None:
        """Open no connection yet.

        Args:
            address: Address of the server.
            access: Credentials for the server.
            server: Server that was reached.
            requests: Complete requests, sent in turn.
            plain: Whether each is a raw sample, which is answered by its decision alone.
        """
        self._address, self._host = address, server.host
        self._tls = access.tls() if address.encrypted else None
        self.requests = requests
        outputs = tuple(one.name for one in server.metadata.outputs)
        self._outputs = None if plain else outputs
        self._connections: set[ClientConnection] = set()
        self._opening: set[asyncio.Task[None]] = set()

    def open_lane(self, traffic: Traffic) -> None:
        """Begin to open a connection; the traffic is told when it is open."""
        task = asyncio.get_running_loop().create_task(self._open(traffic))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, traffic: Traffic) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: ClientConnection(traffic, self, self._connections),
                self._host,
                self._address.port,
                ssl=self._tls,
                server_hostname=self._address.host if self._tls else None,
            )
        except OSError as error:
            traffic.not_opened(f"no connection: {_reason(error)}")

    def judge(
        self, turn: int, status: int, body: bytes, header_length: bytes | None
    ) -> tuple[Fate, str]:
        """Return the fate of a request, by its number, and what the server said or what is wrong."""
        return judge(status, body, header_length, self._outputs)

    async def ask(self, turn: int) -> tuple[Fate, str]:
        """Send one request, by its number, on a connection of its own, and judge its answer."""
        try:
            reader, writer = await asyncio.open_connection(
                self._host,
                self._address.port,
                ssl=self._tls,
                server_hostname=self._address.host if self._tls else None,
            )
            try:
                answer = await _ask(reader, writer, self.requests[turn])
            finally:
                writer.transport.abort()
        except (OSError, ValueError) as error:
            return CONNECTION, str(error)
        return self.judge(turn, answer.status, answer.body, answer.header_length)

    async def close(self) -> None:
        """Close every connection."""
        opening = list(self._opening)
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        for connection in list(self._connections):
            connection.close()
        # Connections learn that they are lost in the loop's next turn.
        await asyncio.sleep(0)


def _remedy(error: OSError) -> str:
    """Say what to do about a connection that failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "give ca=, a file with the certificate that signed it"
    return "does a server run there?"


def _reason(error: BaseException | None) -> str:
    """Say briefly why a connection failed."""
    if error is None:
        return "the server closed it"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate isn't trusted ({error.verify_message})"
    if isinstance(error, OSError) and not isinstance(error, (ssl.SSLError, socket.gaierror)):
        if error.errno:
            return os.strerror(error.errno)
        if isinstance(error, TimeoutError):
            return f"no answer within {_CONNECT_S:.0f} s"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
