"""Answer inference calls over gRPC: one request per call, or many in a stream."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from hasten.serving.fairness import client_at_peer
from hasten.serving.grpc.reading_ahead import MOST_BYTES, Ahead, Together
from hasten.serving.grpc.unread import LIBRARY_TIMES, Debt, Unread
from hasten.serving.models.answer_sizes import batch_bytes, foreseen_bytes
from hasten.serving.models.deciding import RawTicket
from hasten.serving.models.sequences import StepTicket
from hasten.serving.models.served import ServedModel, Ticket
from hasten.serving.owed_answers import MOST_OWED_BYTES
from hasten.serving.protocol.errors import Kind, ProtocolError, own_fault, without_frames
from hasten.serving.protocol.requests import Answer, Query
from hasten.serving.state import ServerState
from hasten.serving.wire.grpc_messages import (
    LONG_BYTES,
    check_answer_size,
    is_slow,
    query_of,
    read_request,
    streamed,
    streamed_failure,
    write_answer,
)
from hasten.serving.wire.message_plans import Heading, heading_of

log = logging.getLogger("hasten.serving")
T = TypeVar("T")

LITTLE_BYTES = 4 << 10
"""Size of an answer up to which it takes no more than the call itself, and isn't counted."""
MIDDLE_BYTES = 256 << 10
"""Size of an answer from which it is part of the loop's budget for those that the library copies."""


class Named(Protocol):
    """Interface of a call whose client is known."""

    @property
    def client(self) -> str:
        """Client that the call is counted under."""

    @property
    def name(self) -> str:
        """Name of the client, where the server can tell several; else ""."""


class Inference:
    """An inference request, from its message to the end of its answer.

    Args:
        state: State of the server.
        context: gRPC context of the call.
        call: Call that the request came in.
        data: Bytes of the request's message.
        clock_ns: Monotonic clock, in nanoseconds.

    Attributes:
        id: Identifier that the answer repeats.
        final: Whether to mark even an error as the last answer.
        ahead_bytes: Size that the answer has, or is foreseen to have, in a stream.
        guessed: Whether only the model could tell that size before.
        stepping: Whether the request, which was read, is a step of a sequence whose state the server keeps.
    """

    __slots__ = (
        "_again",
        "_answer_bytes",
        "_arrived_ns",
        "_client",
        "_clock_ns",
        "_context",
        "_data",
        "_model",
        "_name",
        "_query",
        "_reserved",
        "_state",
        "_ticket",
        "ahead_bytes",
        "final",
        "guessed",
        "id",
        "stepping",
    )

    def __init__(
        self,
        state: ServerState,
        context: Any,
        call: Named,
        data: bytes,
        clock_ns: Callable[[], int],
    ) -> None:
        self._state, self._context, self._data = state, context, data
        self._client, self._name = call.client, call.name
        self._clock_ns, self._arrived_ns = clock_ns, clock_ns()
        self._reserved = 0
        self._model: ServedModel
        self._query: Query
        self._again: tuple[Any, ...] | None = None
        """Parts of a plan for messages that are like this one; None where no plan is to be made."""
        self._ticket: Ticket | RawTicket | StepTicket | None = None
        self.id, self.final, self.ahead_bytes, self.guessed = "", False, 0, False
        self.stepping, self._answer_bytes = False, 0

    def read(self) -> None:
        """Read the message.

        Raises:
            ProtocolError: the request can't be answered.
        """
        state, data = self._state, self._data
        if not self._reserved:  # else the request was let in before
            state.repository.clients.heard(0, self._arrived_ns)
            if state.draining:
                raise leaving()
            self._reserve(len(data))
        trace = metadata_of(self._context, "traceparent").decode("latin-1") if state.tracing else ""
        heading = heading_of(data)
        query, request = self._planned(heading), None
        if query is None:
            request = read_request(data)
            self.id, self.final = request.id, request.wants_final
            model = self._model = state.repository.find(
                request.message.model_name, request.message.model_version
            )
            try:
                query = self._query = query_of(
                    request, state.memory, state.limits.body_bytes, model.check_input
                )
            except ProtocolError as failure:
                model.unread(failure, self._arrived_ns, trace)
                raise
            if heading is not None and request.raw:
                self._again = *heading[2:], request.raw, query.timeout_ns
        if query.sequence is not None:
            self.stepping = self._model.sequences is not None
        stated_ns = query.timeout_ns
        left_s, now_ns = self._context.time_remaining(), self._clock_ns()
        if left_s is not None:
            left_ns = max(1, int(left_s * 1e9) + now_ns - self._arrived_ns)
            query.timeout_ns = min(stated_ns or left_ns, left_ns)
        query.trace, query.client, query.name = trace, self._client, self._name
        query.arrived_ns, query.parsed_ns = self._arrived_ns, now_ns

    def begin(self, done: Callable[[Answer | ProtocolError], None]) -> None:
        """Hand the request, which was read, to its model; `done` gets the answer, maybe before this returns.

        Raises:
            ProtocolError: the request can't be answered.
        """
        ticket = self._model.accept(self._query, done)
        if not ticket.over:
            self._ticket = ticket
        if self._again is not None and type(ticket) is Ticket:
            try:
                *begin_end, raw, stated_ns = self._again
                known = *begin_end, raw, ticket.rows, ticket.key, self.final, stated_ns
                self._model.messages.note(self._query, self._data, *known)
            except Exception:  # the request may be answered already, so it can't fail any more
                log.exception("the plan of a request couldn't be kept")

    def _planned(self, heading: Heading | None) -> Query | None:
        """Decode a message of which all but the id and the tensors is known; None if it isn't."""
        if heading is None:
            return None
        name, version, begin, end = heading
        try:
            model = self._state.repository.find(name, version)
        except ProtocolError:  # raised again where the whole message is read
            return None
        query = model.messages.find(self._data, begin, end)
        if query is not None:
            self._model, self._query = model, query
            self.id, self.final = query.id, query.plan.final
        return query

    def _reserve(self, size: int) -> None:
        state = self._state
        if not state.bodies.took(self._client, size):
            state.check_room(self._client, size)
            state.bodies.take(self._client, size)
        self._reserved += size

    @property
    def answers_by(self) -> str:
        """Name of the model that the request, which was read, is for."""
        return self._model.name

    def foreseen_bytes(self) -> int | None:
        """Return the size that the answer to a request that was read will have; None if only the model can tell.

        Raises:
            ProtocolError: the answer would be too large.
        """
        size, most = foreseen_bytes(self._model, self._query), self._state.limits.grpc_answer_bytes
        if size is not None and size > most:
            try:
                check_answer_size(size, most)
            except ProtocolError as failure:
                self.refused(failure)
                raise
        return size

    def batch_bytes(self, size: int) -> int:
        """Return the size of the answers to a whole batch of requests with answers of a size; 0 if that is a guess."""
        return 0 if self.guessed else batch_bytes(self._model, self._query, size)

    @property
    def begun_ns(self) -> int:
        """Time when the model got the request."""
        return self._query.parsed_ns

    @property
    def current(self) -> bool:
        """Whether the request's model is still the one that would be found."""
        query = self._query
        try:
            return self._state.repository.find(query.model, query.version) is self._model
        except ProtocolError:
            return False

    @property
    def is_ranked(self) -> bool:
        """Whether the classes with the highest scores of an output are sent in its place."""
        return any(each.classes for each in self._query.outputs)

    @property
    def may_be_held(self) -> bool:
        """Whether the answer isn't there, and has a guessed size, or comes after such a one of the same sequence."""
        ticket = self._ticket
        if ticket is None or ticket.over:
            return False
        return self.guessed or self.stepping

    def withdraw(self) -> bool:
        """Take the request back from its model, unless that runs it or answered it; return whether that was done."""
        ticket = self._ticket
        if ticket is None or not ticket.withdraw():
            return False
        self._ticket = None
        return True

    def forget(self) -> None:
        """Forget what was read and isn't with the model, so that the request can be read again in the room that it has."""
        self._again, self.guessed = None, False

    @property
    def client(self) -> str:
        """Client that the request is counted under."""
        return self._client

    @property
    def name(self) -> str:
        """Name of the client; "" where the server can't tell several."""
        return self._name

    def refused(self, failure: ProtocolError) -> None:
        """Count a request that was read, and refused before its model got it, or after it was taken back."""
        self._query.own = False  # else one that was taken back isn't counted
        self._model.refused(self._query, failure)

    def reserve_answer(self, answer: Answer) -> None:
        """Count the answer's memory until the request ends.

        Raises:
            ProtocolError: there is no room for the answer.
        """
        size = self._answer_bytes = answer.size_bytes
        if size > LITTLE_BYTES:
            self._reserve(size)

    def written_again(self, answer: Answer, *, in_stream: bool = False) -> bytes | None:
        """Encode the answer as an earlier one was; None if that isn't known, or takes long."""
        query = self._query
        if query.plan is None or self._answer_bytes > LONG_BYTES:
            return None
        began_ns = self._clock_ns()
        data: bytes | None = query.plan.answer(answer.outputs, query.id, in_stream)
        if data is not None:
            self._model.statistics.encoded(self._clock_ns() - began_ns)
        return data

    def is_slow(self, answer: Answer) -> bool:
        """Whether encoding the answer takes so long that `written_apart` should do it."""
        return is_slow(answer, self._query, self._model.most_rows > 0)

    def written(self, answer: Answer, *, in_stream: bool = False) -> bytes:
        """Encode the answer.

        Raises:
            ProtocolError: an output can't be written to the place that the request states, or they are too large.
        """
        model = self._model
        began_ns = self._clock_ns()
        memory, most = self._state.memory, self._state.limits.grpc_answer_bytes
        data = write_answer(answer, self._query, memory, model.most_rows > 0, in_stream, most)
        model.statistics.encoded(self._clock_ns() - began_ns)
        if self._query.plan is not None:
            self._query.plan.note(answer)
        return data

    async def written_apart(self, answer: Answer, *, in_stream: bool = False) -> bytes:
        """Encode the answer on a thread, while other clients are answered.

        Raises:
            ProtocolError: an output can't be written to the place that the request states, or they are too large.
        """
        model, clock_ns = self._model, self._clock_ns

        def write() -> tuple[bytes, int]:
            began_ns = clock_ns()
            memory, batched = self._state.memory, model.most_rows > 0
            most = self._state.limits.grpc_answer_bytes
            data = write_answer(answer, self._query, memory, batched, in_stream, most)
            return data, clock_ns() - began_ns

        data, taken_ns = await self._state.coding.work(self._client, write)
        model.statistics.encoded(taken_ns)
        return data

    def end(self) -> None:
        """Release the request, which is answered or given up by its client."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None and not ticket.over:
            ticket.cancel()
        self._state.bodies.give(self._client, self._reserved)
        self._reserved = 0


class Receiving:
    """A call with one request: its message, which is received once the call is let in, and room for its answer.

    Args:
        state: State of the server.
        context: gRPC context of the call.
        now_ns: Time when the call began.

    Attributes:
        client: Client that the call is counted under.
        name: Name of the client, where the server can tell several; else "".
        peer: Client's address and port, as gRPC writes them.
    """

    __slots__ = (
        "_context",
        "_debt",
        "_message_ns",
        "_most_ns",
        "_reads",
        "_task",
        "_why",
        "client",
        "name",
        "peer",
    )

    def __init__(self, state: ServerState, context: Any, now_ns: int) -> None:
        self._context, self._most_ns = context, state.limits.receive_ns
        # Asked once: the library crashes where the peer of a call is asked for that has just ended.
        self.peer = str(context.peer())
        self.client, self.name = state.client_of(client_at_peer(self.peer)), ""
        self._task: asyncio.Task[Any] | None = None
        """Task that waits; None while none does."""
        self._why: ProtocolError | None = None
        self._debt: Debt | None = None
        self._message_ns: int | None = now_ns
        """Time since which the server waits for the message; None once it is there."""
        self._reads: tuple[Unread, str] | None = None
        """Answers that the client has to read first, with its connection; None while it has to read none."""

    async def message(self) -> bytes:
        """Return the message.

        Raises:
            ProtocolError: the server ended the call, or there is no message.
        """
        data = await self._waited(self._context.read())
        if type(data) is not bytes:
            raise ProtocolError(Kind.INVALID, "the call has no message: send one")
        return data

    def answered(self, unread: Unread, size: int) -> None:
        """Note how large the message is that the client will read; 0 for an error."""
        if self._debt is None:
            if size <= LITTLE_BYTES:
                return
            unread.owes(self.peer)
            self._owes(Debt(unread, self.peer, 0, self.client))
        assert self._debt is not None
        self._debt.made(size)

    def _owes(self, debt: Debt, handler: asyncio.Task[Any] | None = None) -> None:
        self._debt, task = debt, handler or asyncio.current_task()
        assert task is not None
        task.add_done_callback(
            debt.ended
        )  # it ends with the call: once the client has read the answer

    async def _waited(self, event: Awaitable[T]) -> T:
        self._task = asyncio.current_task()
        try:
            found = await event
        except asyncio.CancelledError:
            if self._why is None:  # the client is gone
                raise
            try:
                raise self._why from None
            finally:
                self._why = None  # it keeps this frame
        finally:
            self._task = None  # it keeps the frames of its error, and they keep this
        self._message_ns = None
        return found

    @property
    def waiting_ns(self) -> int | None:
        """Time since which the server waits for the message, or for the client to read; None while it doesn't."""
        if self._reads is None:
            return self._message_ns
        unread, connection = self._reads
        return unread.stuck_since(connection)

    def overdue(self, now_ns: int) -> bool:
        """Whether the message didn't come, or other answers weren't read, within the time for a request."""
        since_ns = self.waiting_ns
        return since_ns is not None and now_ns - since_ns > self._most_ns

    def end(self, why: ProtocolError) -> None:
        """End the call with an error, unless its request is answered now."""
        if self._task is not None:
            self._why = why
            self._task.cancel()

    drain = end


class Stream:
    """A stream of requests that run in parallel, each answered as soon as possible.

    Args:
        state: State of the server.
        context: gRPC context of the call.
        check: Function that raises ProtocolError where the stream's client may no longer ask, and that names it anew.
        clock_ns: Monotonic clock, in nanoseconds.
        together: Unsent answers of all streams.
        left: Function called with the client's address and the stream's task where the stream is ended before its client
            has read an answer.

    Attributes:
        client: Client that the call is counted under.
        name: Name of the client, where the server can tell several; else "".
        payer: Client that the answers are counted under.
        waiting_ns: Time since which the server waits for the client to ask, or to read answers; None
            while it doesn't.
    """

    def __init__(
        self,
        state: ServerState,
        context: Any,
        check: Callable[[Stream], object],
        clock_ns: Callable[[], int],
        together: Together,
        left: Callable[[str, asyncio.Task[Any]], object],
    ) -> None:
        self.waiting_ns: int | None = clock_ns()
        self._check, self._together, self._left = check, together, left
        self._connection = str(context.peer())
        self.client, self.name = client_of(state, context), ""
        self._state, self._context, self._clock_ns = state, context, clock_ns
        self._under_way: dict[Inference, None] = {}
        """Requests that were read and whose answers aren't queued yet, in order."""
        self._held: deque[Inference] = deque()
        """Those of them that wait for room before they begin again, or at all."""
        self._writers: set[asyncio.Task[None]] = set()
        """Tasks that wait for threads to encode answers."""
        self._answers: deque[tuple[Inference, bytes]] = deque()
        self._ahead = Ahead()
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._beginning: asyncio.Task[None] | None = None
        """Task that begins what is held; None while nothing is."""
        self._why: ProtocolError | None = None
        self._writing = self._over = False
        self.payer = ""
        self._task = asyncio.current_task()

    @property
    def peer(self) -> str:
        """Client's address and port, as gRPC writes them."""
        return self._connection

    async def run(self) -> None:
        """Answer requests until the client has no more, or goes away.

        Raises:
            ProtocolError: the server ended the stream; the message says why.
        """
        self._together.enter(self._connection, self)
        self.payer = self.client
        self._reading = asyncio.get_running_loop().create_task(self._read())
        try:
            while self._ahead.requests or not self._reading.done():
                await self._changed.wait()
                self._changed.clear()
                await self._write()
        finally:
            self._reading.cancel()
            self._give_up()
            # A task keeps the frames of its error, and they keep this.
            self._reading = self._beginning = self._task = None
            self._together.leave(self._connection, self)
            self._count_together(-self._ahead.size_bytes)
            self._ahead.size_bytes = 0
        if self._why is not None:
            try:
                raise self._why
            finally:
                self._why = None  # it keeps this frame

    def _give_up(self) -> None:
        """Drop all requests but that whose answer is being written."""
        if self._beginning is not None:
            self._beginning.cancel()
        for writer in self._writers:
            writer.cancel()
        for inference in (*self._under_way, *(each for each, _ in self._answers)):
            self._ahead.requests -= 1
            self._count(inference, 0)
            inference.end()
        self._under_way.clear()
        self._held.clear()
        self._answers.clear()

    async def _write(self) -> None:
        """Send the answers that are there."""
        while self._answers:
            inference, data = self._answers.popleft()
            self.waiting_ns, self._writing = self._clock_ns(), True
            try:
                if len(data) > MIDDLE_BYTES:
                    await self._state.handing.take(self.client, len(data))
                await self._context.write(data)
            finally:
                inference.end()
            self._writing = False
            self._ahead.requests -= 1
            if self._ahead.requests:
                self.waiting_ns = None
            self._count(inference, 0)

    def overdue(self, now_ns: int) -> bool:
        """Whether the client hasn't read an answer within the time for one."""
        since_ns = self.unread_ns
        return since_ns is not None and now_ns - since_ns > self._state.limits.send_ns

    @property
    def unread_ns(self) -> int | None:
        """Time since which an answer isn't read; None while none is written."""
        return self.waiting_ns if self._writing else None

    def drain(self, why: ProtocolError) -> None:
        """Read no more requests, and end with an error once those that were read are answered."""
        self._why = why
        if self._reading is not None:
            self._reading.cancel()
            self._changed.set()  # a task that is cancelled before its first step doesn't do so itself

    def end(self, why: ProtocolError) -> None:
        """End with an error once the answer that is being written is read, if there is one, and write no further one.

        The library keeps an answer until its client reads it, so it counts for the client as long, but no other stream of
        the connection waits for that. Without the wait, the library can't send an error before the first answer is read.
        """
        self.drain(why)
        if self._writing and self._task is not None and not self._over:
            self._give_up()
            self._together.count(self._connection, -self._ahead.size_bytes)
            self._over = True
            self._left(self._connection, self._task)

    async def _read(self) -> None:
        from grpc.aio import EOF

        try:
            while True:
                data = await self._context.read()
                if data is EOF:
                    return
                self._check(self)
                await self._let_in(self._room)
                self._take(data)
                while self._ahead.full or self._held:
                    self._room.clear()
                    await self._room.wait()
        except ProtocolError as failure:
            self._why = without_frames(failure)
        except Exception:
            self._why = logged_fault()
        finally:
            self._changed.set()

    def _take(self, data: bytes) -> None:
        """Begin a request, behind those that are held."""
        inference = Inference(self._state, self._context, self, data, self._clock_ns)
        self._ahead.requests += 1
        if not self._writing:
            self.waiting_ns = None
        if self._held:
            self._under_way[inference] = None
            self._held.append(inference)
        else:
            self._begin(inference)

    def expect(self) -> None:
        """Count the answers whose sizes are guessed anew, as large as they are expected by now."""
        for inference in self._under_way:
            self.expect_of(inference)

    def expect_of(self, inference: Inference) -> None:
        """Count an answer as large as it is expected by now, if its size is guessed."""
        if inference.guessed and inference.may_be_held:
            size = self._together.foreseen(self._connection, inference.answers_by)
            size = max(size, self._state.owed.foreseen(inference.answers_by))
            self._count(inference, max(size, inference.ahead_bytes))

    def begun(self) -> list[_Streamed]:
        """Return the requests that are with their models and can be taken back."""
        return [_Streamed(self, one) for one in self._under_way if one.may_be_held]

    def hold(self) -> None:
        """Take back the requests whose answers have guessed sizes and no room, as far as no engine runs them."""
        # The last one first: a model may go on with the next one when one is taken back.
        for inference in [one for one in reversed(self._under_way) if one.may_be_held]:
            size = inference.ahead_bytes
            if self._ahead.size_bytes - size < MOST_BYTES and self._together.has_room(
                self._connection, size
            ):
                break
            self.take_back(inference)

    def take_back(self, inference: Inference) -> None:
        """Take a request back from its model, unless an engine runs it, and let it wait in front of all that do."""
        if not inference.withdraw():
            return
        self._held.appendleft(inference)
        self._count(inference, 0)
        if self._beginning is None:
            self._beginning = asyncio.get_running_loop().create_task(self._begin_held())

    async def _begin_held(self) -> None:
        """Begin again what is held, once there is room for its answer."""
        room = asyncio.Event()  # its own, since a request that was read may wait, too
        while self._held:
            try:
                await self._let_in(room)
            except ProtocolError as failure:
                await self._refuse_held(without_frames(failure))
                continue
            if self._ahead.size_bytes >= MOST_BYTES:
                self._room.clear()
                await self._room.wait()
                continue
            inference = self._held.popleft()
            inference.forget()
            self._begin(inference)
            await asyncio.sleep(0)  # reading may take long, and others wait meanwhile
        self._beginning = None
        self._room.set()

    async def _refuse_held(self, failure: ProtocolError) -> None:
        """Refuse what is held by now, as far as a turn of the loop refuses requests, and the rest in later ones."""
        refused = [*self._held]
        self._held.clear()  # what is taken back meanwhile has just begun to wait
        for inference in refused:
            await self._together.refusing.take(self.client, 1)
            inference.refused(failure)
            self._answer(inference, failure)

    def _begin(self, inference: Inference) -> None:
        self._under_way[inference] = None
        try:
            inference.read()
            size = inference.foreseen_bytes()
            inference.begin(partial(self._answer, inference))
            if inference in self._under_way and not inference.ahead_bytes:
                if size is None:
                    inference.guessed = True
                    size = self._together.foreseen(self._connection, inference.answers_by)
                self._count(inference, size)
        except ProtocolError as failure:
            self._answer(inference, failure)
        except Exception:
            self._answer(inference, logged_fault())

    def _answer(self, inference: Inference, answer: Answer | ProtocolError) -> None:
        """Queue the answer or error of a request."""
        if inference not in self._under_way:
            return
        size = answer.size_bytes if isinstance(answer, Answer) else 0
        self._count(inference, size)
        try:
            if isinstance(answer, Answer):
                if inference.guessed and self._together.answered(
                    self._connection, answer.model, size
                ):
                    self._state.owed.answered(answer.model, size)
                    self._state.owed.hold(self.payer, answer.model)
                inference.reserve_answer(answer)
                known = inference.written_again(answer, in_stream=True)
                if known is not None:
                    self._send_soon(inference, streamed(known))
                    return
                if inference.is_slow(answer):
                    work = self._answer_apart(inference, answer)
                    task = asyncio.get_running_loop().create_task(work)
                    self._writers.add(task)
                    task.add_done_callback(self._writers.discard)
                    return
                data = inference.written(answer, in_stream=True)
            else:
                data = streamed_failure(str(answer), inference.id, inference.final)
        except ProtocolError as failure:
            data = streamed_failure(str(failure), inference.id, inference.final)
        except Exception:
            data = streamed_failure(str(logged_fault()), inference.id, inference.final)
        self._send_soon(inference, data)

    def _count(self, inference: Inference, size_bytes: int) -> None:
        """Note how large the unsent answer of a request is, or is foreseen to be."""
        change = size_bytes - inference.ahead_bytes
        self._ahead.size_bytes += change
        inference.ahead_bytes = size_bytes
        self._count_together(change)
        self._room.set()

    def _count_together(self, change: int) -> None:
        """Count that much more, or less, of unsent answers for the client, and for the connection until the stream is ended."""
        if not self._over:
            self._together.count(self._connection, change)
        self._state.owed.count(self.payer, self._connection, LIBRARY_TIMES * change)

    async def _let_in(self, room: asyncio.Event) -> None:
        """Wait until the connection, and the client over all its connections, may begin a further request.

        Raises:
            ProtocolError: the client doesn't read its answers.
        """
        await self._together.let_in(self._connection, room)
        owed = self._state.owed
        while not owed.has_room(self.payer, 1, MOST_OWED_BYTES):
            let_in: asyncio.Future[ProtocolError | None] = (
                asyncio.get_running_loop().create_future()
            )
            go, end = partial(_settle, let_in, None), partial(_settle, let_in)
            turn = owed.wait(self.payer, 1, MOST_OWED_BYTES, go, end)
            try:
                if (failure := await let_in) is not None:
                    raise failure
                break
            finally:
                owed.leave(turn)

    async def _answer_apart(self, inference: Inference, answer: Answer) -> None:
        try:
            data = await inference.written_apart(answer, in_stream=True)
        except ProtocolError as failure:
            data = streamed_failure(str(failure), inference.id, inference.final)
        except Exception:
            data = streamed_failure(str(logged_fault()), inference.id, inference.final)
        self._send_soon(inference, data)

    def _send_soon(self, inference: Inference, data: bytes) -> None:
        if inference not in self._under_way:  # the stream ended meanwhile
            return
        del self._under_way[inference]
        self._answers.append((inference, data))
        self._changed.set()


class _Streamed:
    """Request of a stream that can be taken back; see `Holding`."""

    __slots__ = ("_inference", "_stream")

    def __init__(self, stream: Stream, inference: Inference) -> None:
        self._stream, self._inference = stream, inference

    @property
    def asked(self) -> str:
        """Name of the model that has the request."""
        return self._inference.answers_by

    @property
    def begun_ns(self) -> int:
        """Time when the model got the request."""
        return self._inference.begun_ns

    def expect(self) -> None:
        """Count the answer as large as it is expected by now, if its size is guessed."""
        self._stream.expect_of(self._inference)

    def hold(self) -> None:
        """Take the request back, unless an engine runs it."""
        if self._inference.may_be_held:
            self._stream.take_back(self._inference)


def metadata_of(context: Any, wanted: str) -> bytes:
    """Return a metadata value of a call by name; b"" if there is none."""
    for name, value in context.invocation_metadata() or ():
        if name == wanted:
            return value if isinstance(value, bytes) else value.encode()
    return b""


def _settle(let_in: asyncio.Future[T], result: T) -> None:
    if not let_in.done():  # the client may have gone away a moment ago
        let_in.set_result(result)


def client_of(state: ServerState, context: Any) -> str:
    """Return the client that a call is counted under."""
    return state.client_of(client_at_peer(context.peer()))


def logged_fault() -> ProtocolError:
    """Log the exception that is being handled, and return the error for the client."""
    log.exception("the server's own code failed on a request")
    return own_fault(sys.exception())


def leaving() -> ProtocolError:
    """Return the error for requests that arrive while the server drains."""
    return ProtocolError(Kind.UNAVAILABLE, "the server is draining", 1.0)
