"""What a request had is gone once it ends, without a garbage collection: a server collects rarely."""

from __future__ import annotations

import asyncio
import gc
import http.client
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.servers import ServerThread
from tests.support.waiting import until

from hasten.serving.coding import Coding
from hasten.serving.grpc.calls import Receiving, Stream
from hasten.serving.grpc.reading_ahead import Together
from hasten.serving.http.connection import Connection
from hasten.serving.monitoring.line import Line
from hasten.serving.owed_answers import OwedAnswers
from hasten.serving.protocol.errors import Kind, ProtocolError, without_frames
from hasten.serving.run import settings_of

WHY = ProtocolError(Kind.SLOW, "the client doesn't read its answers")


@pytest.fixture(autouse=True)
def _uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Silent:
    """Context of a call whose client sends nothing, and reads nothing before it is told to."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:9"

    async def read(self) -> bytes:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    async def write(self, data: bytes) -> None:
        await self.reads.wait()


class Asked:
    """A request of a stream, with what the client sent."""

    ahead_bytes = 0

    def end(self) -> None: ...


STATE: Any = SimpleNamespace(
    client_of=lambda place: place,
    limits=SimpleNamespace(receive_ns=1, send_ns=1),
    owed=OwedAnswers(lambda client: None, 1.0),
)


def failing() -> None:
    raise ProtocolError(Kind.UNAUTHENTICATED, "the token isn't one of the server's any more")


async def cancelled(stream: Stream, task: asyncio.Task[None]) -> None:
    task.cancel()


async def ended(stream: Stream, task: asyncio.Task[None]) -> None:
    stream.end(WHY)
    stream._context.reads.set()


def nothing(*_: object) -> None: ...


@pytest.mark.parametrize("by", [cancelled, ended])
def test_a_stream_and_its_answers_are_gone_however_it_ends(by: Callable[..., Any]) -> None:
    async def ran() -> list[weakref.ref[Any]]:
        stream, asked = Stream(STATE, Silent(), nothing, lambda: 0, Together(), nothing), Asked()
        stream._ahead.requests = 2
        stream._answers.append((asked, b"answer"))  # type: ignore[arg-type]
        stream._answers.append((asked, b"answer"))  # type: ignore[arg-type]
        task = asyncio.get_running_loop().create_task(stream.run())
        stream._task = task
        stream._changed.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await by(stream, task)
        left: list[weakref.ref[Any]] = [weakref.ref(stream), weakref.ref(asked)]
        await asyncio.wait({task})
        error = None if task.cancelled() else task.exception()
        assert error in (None, WHY)
        if error is not None:
            without_frames(error)
        return left

    left = asyncio.run(ran())
    assert [one() for one in left] == [None, None]


def test_a_call_that_waited_in_vain_for_its_message_is_gone() -> None:
    async def ran() -> weakref.ref[Any]:
        async def receive() -> None:
            receiving.append(Receiving(STATE, Silent(), 0))
            await receiving[0].message()

        receiving: list[Receiving] = []
        task = asyncio.get_running_loop().create_task(receive())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        receiving[0].end(WHY)
        await asyncio.wait({task})
        without_frames(task.exception() or WHY)
        left = weakref.ref(receiving[0]._context)
        receiving.clear()
        return left

    assert asyncio.run(ran())() is None


def test_a_connection_with_a_foreign_origin_is_gone(tmp_path: Any) -> None:
    from fuzz import served

    bundles = served.bundles(tmp_path)
    with ServerThread(*settings_of([str(bundles[0])]).models) as server:
        before = sum(isinstance(one, Connection) for one in gc.get_objects())
        for _ in range(3):
            connection = http.client.HTTPConnection(server.host, timeout=60)
            connection.request(
                "POST", "/v2/repository/index", b"{}", {"Origin": "http://elsewhere.example"}
            )
            assert connection.getresponse().status == 403
            connection.close()
        until(lambda: sum(isinstance(one, Connection) for one in gc.get_objects()) <= before)


@pytest.mark.parametrize("kind", ["coding", "labels"])
def test_what_a_thread_refused_is_gone(kind: str) -> None:
    held: list[weakref.ref[Asked]] = []

    def refuses() -> None:
        parsed = Asked()
        held.append(weakref.ref(parsed))
        raise ProtocolError(Kind.INVALID, "it can't be read")

    async def refused() -> None:
        line, coding = Line(), Coding()
        with pytest.raises(ProtocolError):
            await (coding.work("a", refuses) if kind == "coding" else line.work("a", 1, refuses))
        line.close()
        coding.close()

    asyncio.run(refused())
    until(lambda: held[0]() is None)  # the thread may be about to let go of it
