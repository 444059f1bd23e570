"""Answer calls with one inference request each."""

from __future__ import annotations

import asyncio
from typing import Any

from hasten.serving.grpc.calls import LITTLE_BYTES, Inference, Receiving
from hasten.serving.grpc.unread import MOST_UNREAD_BYTES, Debt, Place, Unread
from hasten.serving.protocol.errors import ProtocolError, without_frames
from hasten.serving.protocol.requests import Answer
from hasten.serving.state import ServerState

_MOST_CALLS = 128
"""Largest number of calls of one connection at once."""
_SURPRISING_BYTES = MOST_UNREAD_BYTES // _MOST_CALLS
"""Size up to which an answer may be larger than foreseen: a connection may have as many of them as calls."""


class Single(Receiving):
    """A call with one inference request, which may be taken back from its model and begun again.

    Args:
        state: State of the server.
        context: gRPC context of the call.
        now_ns: Time when the call began.
        unread: Answers that count until their clients have read them.
    """

    __slots__ = ("_answered", "_handler", "_inference", "_place", "_unread")

    def __init__(self, state: ServerState, context: Any, now_ns: int, unread: Unread) -> None:
        super().__init__(state, context, now_ns)
        self._unread = unread
        self._inference: Inference
        self._answered: asyncio.Future[Answer | ProtocolError | None]
        """Answer of the model; None once the request was taken back."""
        self._place: Place | None = None
        """Place among the calls of the connection that wait; None while it isn't among them."""
        self._handler: asyncio.Task[Any] | None = None
        """Task that answers the call; None while nothing else counts for it."""

    async def answer(self, inference: Inference) -> Answer | ProtocolError:
        """Return the model's answer to the call's request.

        Raises:
            ProtocolError: the request can't be answered, or the server ended the call.
        """
        self._inference = inference
        try:
            size = self._read()
            if size > LITTLE_BYTES or (inference.in_sequence and self._unread.has_line(self.peer)):
                await self._foresee(size)
            while (answer := await self._asked()) is None:
                await self._wait()
                inference.forget()
                self._read()
            return answer
        finally:
            self._leave_line()

    def _read(self) -> int:
        """Read the message; return the size that its answer is foreseen to have.

        Raises:
            ProtocolError: the request can't be answered.
        """
        inference = self._inference
        inference.read()
        size = inference.foreseen_bytes()
        if size is None:
            inference.guessed = True
            size = self._unread.foreseen(inference.answers_by)
        return size

    async def _foresee(self, size: int) -> None:
        """Count the answer, once the client has read enough answers to other calls of its connection.

        It counts until the client has read it, or is gone.

        Raises:
            ProtocolError: the server ended the call while it waited, or the request can no longer be answered.
        """
        if self._unread.took(self.peer, size):
            self._owes(Debt(self._unread, self.peer, size, self.client))
            return
        self._place = self._unread.queue(self.peer, size)
        await self._wait()
        if not self._inference.current:
            self._inference.forget()
            self._read()

    async def _wait(self) -> None:
        """Wait at the call's place until its answer is counted.

        Raises:
            ProtocolError: the server ended the call while it waited.
        """
        place, unread = self._place, self._unread
        assert place is not None
        self._reads = unread, self.peer
        try:
            await self._waited(unread.wait(self.peer, place))
        except ProtocolError as failure:
            self._inference.refused(failure)
            raise
        finally:
            self._reads = None
        self._owes(Debt(unread, self.peer, place.size, self.client))

    def _leave_line(self) -> None:
        place, self._place = self._place, None
        if place is None:
            return
        if self._debt is None:
            self._unread.gave_up(self.peer, place)
        else:
            self._unread.begun(self.peer, place)

    async def _asked(self) -> Answer | ProtocolError | None:
        """Hand the request to its model; return the answer, or None if the request was taken back.

        Raises:
            ProtocolError: the request can't be answered.
        """
        inference = self._inference
        answered: asyncio.Future[Answer | ProtocolError | None]
        answered = self._answered = asyncio.get_running_loop().create_future()
        inference.begin(self._settle)
        self._leave_line()
        if not inference.may_be_held:
            return await answered
        self._handler = asyncio.current_task()
        self._unread.enter(self.peer, self)
        try:
            return await answered
        finally:
            self._unread.leave(self.peer, self)
            self._handler = None  # it keeps the frames of its error, and they keep this

    def _settle(self, answer: Answer | ProtocolError) -> None:
        answered = self._answered
        if answered.done():  # the client may have gone away a moment ago
            return
        if isinstance(answer, ProtocolError):
            answered.set_result(without_frames(answer))
            return
        if self._inference.guessed:
            self._compare(answer)
        answered.set_result(answer)

    def _compare(self, answer: Answer) -> None:
        """Compare the answer's size with the one that was foreseen; those of others were foreseen alike."""
        if self._inference.is_ranked:
            return
        size, counted = answer.size_bytes, 0 if self._debt is None else self._debt.size
        if size > max(counted, _SURPRISING_BYTES):
            self._unread.answered(answer.model, size)
            self._count(size)
            self._unread.hold(self.peer)

    def _count(self, size: int) -> None:
        """Count the answer as so large."""
        if self._debt is None:
            self._unread.owes(self.peer)
            self._owes(Debt(self._unread, self.peer, 0, self.client), self._handler)
        assert self._debt is not None
        self._debt.expect(size)

    def expect(self) -> None:
        """Count the answer as large as it is expected by now, if its size is guessed."""
        if self._inference.guessed and self._inference.may_be_held:
            size = self._unread.foreseen(self._inference.answers_by)
            self._count(size if self._debt is None else max(size, self._debt.size))

    def hold(self) -> None:
        """Take the request back, unless an engine runs it, and wait for room in front of all that wait."""
        if not self._inference.may_be_held or not self._inference.withdraw():
            return
        debt, self._debt = self._debt, None
        size = 0 if debt is None else debt.size
        self._place = self._unread.queue(self.peer, size, first=True)
        if debt is not None:
            debt.made(0)
        self._answered.set_result(None)
