"""Send the answer to one request of a connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hasten.serving.http.messages import JSON, Response, failure_response, head_of
from hasten.serving.models.served import ServedModel
from hasten.serving.protocol.errors import ProtocolError, own_fault
from hasten.serving.protocol.requests import Answer, Query
from hasten.serving.state import ServerState
from hasten.serving.wire.http_bodies import (
    chosen_encoding,
    compressed,
    slow_bytes,
    write_answer,
)
from hasten.serving.wire.plans import RequestPlan, pieces_of

log = logging.getLogger("hasten.serving")

_BINARY = b"application/octet-stream"
_LITTLE_BYTES = 4 << 10
"""Size of an answer up to which it takes no more than the connection itself, and isn't counted."""


class Sender(Protocol):
    """Interface of the connection that a request came on.

    Attributes:
        state: State of the server.
        client: Client that the connection is counted under.
        owes: Memory, in bytes, that the answer was foreseen to take; 0 if it isn't counted.
        begun_ns: Time when the model got the request, if it can be taken back; else 0.
        clock_ns: Monotonic clock, in nanoseconds.
    """

    state: ServerState
    client: str
    owes: int
    begun_ns: int
    clock_ns: Callable[[], int]

    def made(self, size: int) -> None:
        """Count an answer that takes so much memory, and whose size may only have been guessed."""

    def send(
        self, head: bytes, pieces: Sequence[Any], size: int, reserved: int, keep_alive: bool
    ) -> None:
        """Send an answer, and continue with requests that arrived meanwhile.

        Args:
            head: Status line and headers.
            pieces: Pieces of the body.
            size: Size of the body, in bytes.
            reserved: Bytes of the request's body, which are no longer counted after this.
            keep_alive: Whether the connection stays open.
        """


class Exchange:
    """A request that is being answered on its connection.

    Args:
        connection: Connection that the request came on.
        headers: Values of the request's headers by lower-case name.
        keep_alive: Whether the client may send further requests on the connection.
        reserved: Counted bytes of the request's body.
        head_only: Whether to answer without a body, as for HEAD.

    Attributes:
        model: Model that the request was sent to; None until it is known.
        query: Request as it was parsed; None until it is.
        reserved: Counted bytes of the request's body.
    """

    __slots__ = (
        "_connection",
        "_encoding",
        "_head_only",
        "_headers",
        "_keep_alive",
        "_sent",
        "model",
        "query",
        "reserved",
    )

    def __init__(
        self,
        connection: Sender,
        headers: dict[bytes, bytes],
        keep_alive: bool,
        reserved: int,
        head_only: bool,
    ) -> None:
        self._connection, self._headers = connection, headers
        self._keep_alive, self.reserved, self._head_only = keep_alive, reserved, head_only
        self.model: ServedModel | None = None
        self.query: Query | None = None
        self._encoding: asyncio.Task[None] | None = None
        self._sent = False

    def deliver(self, answer: Answer | ProtocolError) -> None:
        """Send the model's answer."""
        try:
            connection, model, query = self._connection, self.model, self.query
            assert model is not None
            assert query is not None
            if isinstance(answer, ProtocolError):
                self.respond(failure_response(answer))
                return
            if connection.owes and answer.size_bytes <= _LITTLE_BYTES:  # others may get as little
                connection.state.owed.answered(answer.model, answer.size_bytes)
            began_ns = connection.clock_ns()
            plan: RequestPlan | None = query.plan
            same = plan is not None and self._keep_alive and not connection.state.draining
            if same and self._headers.get(b"accept-encoding", b"identity") == b"identity":
                assert plan is not None
                known = plan.head(answer.outputs, query.id)
                if known is not None:
                    pieces = pieces_of(answer.outputs)
                    size = sum(map(len, pieces))
                    if size > _LITTLE_BYTES and not self._is_room(answer, size):
                        return
                    self._sent = True
                    connection.send(known, pieces, size, self.reserved, True)
                    model.statistics.encoded(connection.clock_ns() - began_ns)
                    return
            size = answer.size_bytes
            accepted = self._headers.get(b"accept-encoding")
            encoding = None
            if accepted is not None and accepted != b"identity":
                encoding = chosen_encoding(accepted.decode("latin-1"))
            if size > _LITTLE_BYTES:
                slow = slow_bytes(answer, query, model.most_rows > 0, encoding is not None)
                if not self._is_room(answer, size + slow):
                    return
                if slow:
                    self._begin_encoding(answer, encoding, slow)
                    return
            pieces, header_bytes = self._encoded(answer, encoding)
            self._send(answer, pieces, header_bytes, encoding)
            model.statistics.encoded(connection.clock_ns() - began_ns)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Tell the client why its answer can't be sent, unless a part of it was; else it would wait for ever."""
        if not isinstance(error, ProtocolError):
            log.exception("the server's own code failed on a request")
            error = own_fault(error)
        if not self._sent and self._encoding is None:
            self.respond(failure_response(error))

    def _begin_encoding(self, answer: Answer, encoding: str | None, size: int) -> None:
        """Encode a long answer on a thread; its bytes count from now on until that has ended."""
        state, client = self._connection.state, self._connection.client
        task = asyncio.get_running_loop().create_task(self._encode_apart(answer, encoding))
        state.bodies.take(client, size)
        task.add_done_callback(lambda _: state.bodies.give(client, size))
        self._encoding = task

    def give_up(self) -> None:
        """Encode no answer: nobody waits for it."""
        if self._encoding is not None:
            self._encoding.cancel()
            self._encoding = None

    def _encoded(self, answer: Answer, encoding: str | None) -> tuple[list[Any], int | None]:
        """Return the pieces of the body, and the length of its JSON, as `write_answer` does."""
        assert self.model is not None
        assert self.query is not None
        memory = self._connection.state.memory
        pieces, header_bytes = write_answer(answer, self.query, memory, self.model.most_rows > 0)
        if encoding is not None:
            pieces = [compressed(pieces, encoding)]
        return pieces, header_bytes

    async def _encode_apart(self, answer: Answer, encoding: str | None) -> None:
        """Encode a long answer on a thread, while other clients are answered, and send it."""
        clock_ns = self._connection.clock_ns

        def encode() -> tuple[list[Any], int | None, int]:
            began_ns = clock_ns()
            pieces, header_bytes = self._encoded(answer, encoding)
            return pieces, header_bytes, clock_ns() - began_ns

        try:
            pieces, header_bytes, taken_ns = await self._connection.state.coding.work(
                self._connection.client, encode
            )
            self._encoding = None
            self._send(answer, pieces, header_bytes, encoding)
            if self.model is not None:
                self.model.statistics.encoded(taken_ns)
        except Exception as error:
            self._encoding = None
            self._failed(error)
        finally:
            self._encoding = None

    def _send(
        self,
        answer: Answer,
        pieces: list[Any],
        header_bytes: int | None,
        encoding: str | None,
    ) -> None:
        """Send an answer whose body is written."""
        connection, query = self._connection, self.query
        assert query is not None
        extra = b"" if encoding is None else b"Content-Encoding: %s\r\n" % encoding.encode()
        size = 0
        for piece in pieces:
            size += len(piece)
        if header_bytes is not None:
            extra += b"Inference-Header-Content-Length: %d\r\n" % header_bytes
        keep_alive = self._keep_alive and not connection.state.draining
        if not keep_alive:
            extra += b"Connection: close\r\n"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n%s\r\n" % (
            JSON if header_bytes is None else _BINARY,
            size,
            extra,
        )
        plan: RequestPlan | None = query.plan
        in_bytes = header_bytes == len(pieces[0]) and len(pieces) == 1 + len(answer.outputs)
        if plan is not None and keep_alive and encoding is None and in_bytes:
            plan.note(answer.outputs, query.id, head + bytes(pieces[0]))
        self._sent = True
        connection.send(head, pieces, size, self.reserved, keep_alive)

    def _is_room(self, answer: Answer, size: int) -> bool:
        """Whether an answer may take memory until its client reads it; if not, the client is told."""
        self._connection.state.owed.answered(answer.model, size)
        if self._connection.begun_ns:
            self._connection.made(size)
        try:
            self._connection.state.check_room(self._connection.client, size)
        except ProtocolError as failure:
            self.respond(failure_response(failure))
            return False
        return True

    def count(self, failure: ProtocolError, arrived_ns: int) -> None:
        """Count a request that gets an error, or whose client went away, while no model has it."""
        if self.model is not None:
            trace = self._headers.get(b"traceparent", b"").decode("latin-1")
            self.model.unread(failure, arrived_ns, trace)

    def refuse(self, failure: ProtocolError) -> None:
        """Send an error."""
        self.respond(failure_response(failure))

    def respond(self, response: Response) -> None:
        """Send a response that isn't a model's answer."""
        state = self._connection.state
        keep_alive = self._keep_alive and not state.draining
        head, pieces = head_of(response, keep_alive)
        if self._head_only:
            pieces = []
        self._sent = True
        self._connection.send(head, pieces, len(response.body), self.reserved, keep_alive)
