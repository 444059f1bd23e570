"""Answer calls with one inference request each."""

from __future__ import annotations

import asyncio
from typing import Any

from hasten.serving.grpc.calls import LITTLE_BYTES, Inference, Receiving
from hasten.serving.grpc.unread import MOST_UNREAD_BYTES, Debt, Place, Unread
from hasten.serving.protocol.errors import ProtocolError, without_frames
from hasten.serving.protocol.requests import Answer

_MOST_CALLS = 128
"""Largest number of calls of one connection at once."""
_SURPRISING_BYTES = MOST_UNREAD_BYTES // _MOST_CALLS
"""Size up to which an answer may be larger than foreseen: a connection may have as many of them as calls."""


class Single(Receiving):
    """A call with one inference request, which may be taken back from its model and begun again."""

    __slots__ = ("_answered", "_handler", "_inference", "_place", "_unread")

    _unread: Unread
    """Answers that count until their clients have read them."""
    _inference: Inference
    _answered: asyncio.Future[Answer | ProtocolError | None]
    """Answer of the model; None once the request was taken back."""
    _place: Place | None
    """Place among the calls of the connection that wait; None while it isn't among them."""
    _handler: asyncio.Task[Any] | None
    """Task that answers the call; None unless the request may be taken back."""

    async def answer(
        self, inference: Inference, unread: Unread, loop: asyncio.AbstractEventLoop
    ) -> Answer | ProtocolError:
        """Return the model's answer to the call's request.

        Args:
            inference: The request.
            unread: Answers that count until their clients have read them.
            loop: Event loop of the server.

        Raises:
            ProtocolError: the request can't be answered, or the server ended the call.
        """
        self._inference, self._unread = inference, unread
        self._place = self._handler = None
        inference.read()
        size = self._foreseen()
        try:
            if size > LITTLE_BYTES or (
                inference.stepping and unread.has_line(self.peer, self.client)
            ):
                await self._foresee(size)
            while True:
                answered = self._answered = loop.create_future()
                inference.begin(self._settle)
                if self._place is not None:
                    self._leave_line()
                if not (inference.guessed or inference.stepping):
                    return await answered  # type: ignore[no-any-return]
                if (answer := await self._unless_held()) is not None:
                    return answer
                await self._wait()
                self._read_again()
        finally:
            if self._place is not None:
                self._leave_line()

    def _foreseen(self) -> int:
        """Return the size that the answer to the request, which was read, is foreseen to have."""
        inference = self._inference
        size = inference.foreseen_bytes()
        if size is None:
            inference.guessed = True
            size = self._unread.foreseen(inference.answers_by)
        return size

    def _read_again(self) -> None:
        self._inference.forget()
        self._inference.read()
        self._foreseen()

    async def _foresee(self, size: int) -> None:
        """Count the answer, once the client has read enough answers to other calls of its connection.

        It counts until the client has read it, or is gone.

        Raises:
            ProtocolError: the server ended the call while it waited, or the request can no longer be answered.
        """
        batch = self._inference.batch_bytes(size)
        if self._unread.took(self.peer, size, self.client, batch):
            self._owes(Debt(self._unread, self.peer, size, self.client))
            return
        self._place = Place(size, self.client, batch)
        self._unread.queue(self.peer, self._place)
        await self._wait()
        if not self._inference.current:
            self._read_again()

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
        assert place is not None
        if self._debt is None:
            self._unread.gave_up(self.peer, place)
        else:
            self._unread.begun(self.peer, place)

    async def _unless_held(self) -> Answer | ProtocolError | None:
        """Return the answer to a request that may be taken back from its model; None if it was."""
        self._handler = asyncio.current_task()
        self._unread.enter(self.peer, self)
        try:
            return await self._answered
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
        answered.set_result(answer)  # first: it must get there, whatever is found about others
        if self._inference.guessed:
            self._compare(answer)

    def _compare(self, answer: Answer) -> None:
        """Compare the answer's size with the one that was foreseen; those of others were foreseen alike."""
        if self._inference.is_ranked:
            return
        size, counted = answer.size_bytes, 0 if self._debt is None else self._debt.size
        if size > max(counted, _SURPRISING_BYTES):
            self._unread.answered(answer.model, size)
            self._count(size)
            self._unread.hold(self.peer)
            self._unread.hold_of(self.client, answer.model, size)

    def _count(self, size: int) -> None:
        """Count the answer as so large."""
        if self._debt is None:
            self._unread.owes(self.peer)
            self._owes(Debt(self._unread, self.peer, 0, self.client), self._handler)
        assert self._debt is not None
        self._debt.expect(size)

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
        if self._inference.guessed and self._inference.may_be_held:
            size = self._unread.expected(self._inference.answers_by)
            self._count(size if self._debt is None else max(size, self._debt.size))

    def hold(self) -> None:
        """Take the request back, unless an engine runs it, and wait for room in front of all that wait."""
        if self._answered.done():  # the client went away a moment ago
            return
        if not self._inference.may_be_held or not self._inference.withdraw():
            return
        debt, self._debt = self._debt, None
        size = 0 if debt is None else debt.size
        self._place = Place(size, self.client, self._inference.batch_bytes(size))
        self._unread.queue(self.peer, self._place, first=True)
        if debt is not None:
            debt.made(0)
        else:  # nothing becomes free by which the line would go on
            self._unread.change(self.peer, 0, 0, self.client, made=False)
        self._answered.set_result(None)
