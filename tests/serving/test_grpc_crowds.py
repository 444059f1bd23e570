"""Crowds of gRPC calls that ask nothing, or whose answers nobody reads, beside clients that ask."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.support.models import solid
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.turns import turns_of
from tests.support.waiting import PATIENCE_S, until

from hasten.serving.grpc import calls
from hasten.serving.grpc.admission import Admission
from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.protocol.messages import METHODS, SERVICE, message
from hasten.serving.state import Limits

FOREVER_NS = 3_600_000_000_000
TOKEN = "correct-horse-battery"
OPEN = ("ServerLive", "ServerReady")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crowds")
    return bundle_of(folder, solid(folder))


@contextlib.contextmanager
def serving(bundle: Path, **limits: Any) -> Iterator[ServerThread]:
    times = {"receive_ns": FOREVER_NS, "send_ns": FOREVER_NS}
    with ServerThread(place_of(bundle), grpc=True, limits=Limits(**{**times, **limits})) as server:
        yield server


def inference(rows: int = 1) -> bytes:
    x = np.ones((rows, 4), np.float32)
    request = message("ModelInferRequest")(model_name="solid")
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    request.raw_input_contents.append(x.tobytes())
    return request.SerializeToString()  # type: ignore[no-any-return]


def code(url: str, method: str, data: bytes = b"") -> str:
    """Ask on a connection of its own; the status."""
    with grpc.insecure_channel(url, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            _, ended = call.with_call(data, timeout=PATIENCE_S)
        except grpc.RpcError as error:
            ended = error
        return str(ended.code().name)


class Crowd:
    """Calls on one connection that send what is given, and then neither more nor their end."""

    def __init__(self, url: str, method: str, count: int, sent: tuple[bytes, ...] = ()) -> None:
        # Without probes the client takes 64 KiB of answers that nobody reads, and no more.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
        self._channel = grpc.insecure_channel(url, options)
        self._over = threading.Event()
        path = f"/{SERVICE}/{method}"
        streaming = METHODS[method].streaming
        ask: Any = (
            self._channel.stream_stream(path)
            if streaming
            else self._channel.stream_unary(path).future
        )
        self.calls = [ask(self._requests(sent)) for _ in range(count)]

    def _requests(self, sent: tuple[bytes, ...]) -> Iterator[bytes]:
        yield from sent
        self._over.wait(PATIENCE_S)

    def ended(self) -> list[tuple[str, str]]:
        """Status and details of the calls that are over."""
        over = [call for call in self.calls if not call.is_active()]
        return [(call.code().name, call.details()) for call in over]

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for call in self.calls:
            call.cancel()
        self._over.set()
        self._channel.close()


def under_way(server: ServerThread) -> int:
    grpc_server = server.server._grpc
    assert grpc_server is not None
    return server.call(lambda: len(grpc_server._calls))


@pytest.mark.parametrize("method", ["ModelStreamInfer", "ModelInfer", "ServerMetadata"])
def test_calls_that_ask_nothing_make_room_for_those_that_ask(bundle: Path, method: str) -> None:
    with serving(bundle, connections=20) as server, Crowd(server.grpc_url, method, 20) as crowd:
        until(lambda: under_way(server) == 20)
        assert code(server.grpc_url, "ServerLive") == "OK"
        until(lambda: code(server.grpc_url, "ModelInfer", inference()) == "OK")
        until(lambda: len(crowd.ended()) >= 2)
        assert set(crowd.ended()) == {
            (
                "UNAVAILABLE",
                "the call was waiting for its client, and was ended to make room for "
                "others: call again",
            )
        }
        assert len(crowd.ended()) < 20


def test_one_connection_has_fewer_calls_than_all_together(bundle: Path) -> None:
    with serving(bundle) as server, Crowd(server.grpc_url, "ModelStreamInfer", 200) as crowd:
        until(lambda: under_way(server) == 128)
        assert code(server.grpc_url, "ModelInfer", inference()) == "OK"
        assert under_way(server) == 128
        assert crowd.ended() == []


def test_where_all_calls_are_at_work_another_is_told_to_come_again(bundle: Path) -> None:
    with serving(bundle, connections=20) as server:
        grpc_server = server.server._grpc
        assert grpc_server is not None
        with Crowd(server.grpc_url, "ModelStreamInfer", 20):
            until(lambda: under_way(server) == 20)
            under: list[Any] = server.call(lambda: list(grpc_server._calls._calls))
            for call in under:
                call.waiting_ns = None
            assert code(server.grpc_url, "ModelInfer", inference()) == "RESOURCE_EXHAUSTED"
            assert code(server.grpc_url, "ServerReady") == "OK"


def test_streams_of_one_client_that_are_all_at_work_make_room_for_another(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection counts as a client, since all come from one address here."""
    monkeypatch.setattr(calls, "client_at_peer", lambda peer: peer)
    with serving(bundle, connections=20) as server:
        grpc_server = server.server._grpc
        assert grpc_server is not None
        with Crowd(server.grpc_url, "ModelStreamInfer", 20) as crowd:
            until(lambda: under_way(server) == 20)
            under: list[Any] = server.call(lambda: list(grpc_server._calls._calls))
            for call in under:
                call.waiting_ns = None
            assert code(server.grpc_url, "ModelInfer", inference()) == "RESOURCE_EXHAUSTED"
            until(lambda: code(server.grpc_url, "ModelInfer", inference()) == "OK")
            until(lambda: len(crowd.ended()) >= 1)
            assert set(crowd.ended()) == {
                (
                    "UNAVAILABLE",
                    "this call was ended to make room for other clients, which have fewer calls: "
                    "call again",
                )
            }


def test_health_is_told_to_askers_who_never_finish_their_question(bundle: Path) -> None:
    with serving(bundle) as server, Crowd(server.grpc_url, "ServerLive", 100) as crowd:
        until(lambda: len(crowd.ended()) == 100)
        assert set(crowd.ended()) == {("OK", "")}
        assert code(server.grpc_url, "ModelInfer", inference()) == "OK"


@pytest.mark.parametrize("method", ["ModelInfer", "ModelReady"])
def test_a_message_that_never_comes_ends_its_call(bundle: Path, method: str) -> None:
    with serving(bundle, receive_ns=100_000_000) as server:
        with Crowd(server.grpc_url, method, 3) as crowd:
            until(lambda: len(crowd.ended()) == 3)
            assert set(crowd.ended()) == {
                (
                    "CANCELLED",
                    "the request didn't arrive, or answers weren't read, within the time limit",
                )
            }


@pytest.mark.seconds
def test_many_calls_whose_messages_never_come_are_ended_in_several_turns_of_the_loop(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, end = list[int](), calls.Receiving.end
    with (
        serving(bundle, receive_ns=3_000_000_000) as server,
        turns_of(server) as turn,
        contextlib.ExitStack() as opened,
    ):

        def counted(call: calls.Receiving, why: ProtocolError) -> None:
            ended.append(turn[0])
            end(call, why)

        monkeypatch.setattr(calls.Receiving, "end", counted)
        crowds = [Crowd(server.grpc_url, "ModelInfer", 100) for _ in range(3)]
        for crowd in crowds:
            opened.enter_context(crowd)
        until(lambda: sum(len(crowd.ended()) for crowd in crowds) == 300)
        assert {name for crowd in crowds for name, _ in crowd.ended()} == {"CANCELLED"}
        assert max(Counter(ended).values()) <= 64


def test_a_call_without_a_message_is_refused(bundle: Path) -> None:
    with serving(bundle) as server, grpc.insecure_channel(server.grpc_url) as channel:
        call = channel.stream_unary(f"/{SERVICE}/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(iter([]), timeout=PATIENCE_S)
        assert caught.value.code().name == "INVALID_ARGUMENT"
        assert caught.value.details() == "the call has no message: send one"


def test_a_stream_whose_answers_nobody_reads_is_ended(bundle: Path) -> None:
    with serving(bundle, send_ns=100_000_000) as server:
        with Crowd(server.grpc_url, "ModelStreamInfer", 2, (inference(32),) * 1000) as crowd:
            until(lambda: under_way(server) == 2)
            until(lambda: under_way(server) == 0)
            for call in crowd.calls:
                with pytest.raises(grpc.RpcError):
                    list(call)
            assert {name for name, _ in crowd.ended()} == {"CANCELLED"}


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(OPEN)))
def test_the_token_is_looked_at_before_a_message_is_received(
    bundle: Path, tmp_path: Path, method: str
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with ServerThread(place_of(bundle), grpc=True, token_file=tmp_path / "token") as server:
        with Crowd(server.grpc_url, method, 1) as crowd:
            until(lambda: len(crowd.ended()) == 1)
            assert crowd.ended()[0] == (
                "UNAUTHENTICATED",
                "this server requires a token: send authorization: Bearer TOKEN",
            )


def test_the_case_of_the_tokens_scheme_doesnt_matter(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with ServerThread(place_of(bundle), grpc=True, token_file=tmp_path / "token") as server:
        with grpc.insecure_channel(server.grpc_url) as channel:
            ask = channel.unary_unary(f"/{SERVICE}/ServerMetadata")
            ask(b"", timeout=PATIENCE_S, metadata=(("authorization", f"bearer {TOKEN}"),))


@pytest.mark.parametrize("method", ["ModelStreamInfer", "ModelInfer", "ServerMetadata"])
def test_calls_under_way_are_told_to_come_again_when_the_server_closes(
    bundle: Path, method: str
) -> None:
    """As one closes that couldn't load its models: CANCELLED would be the client's own doing."""
    with serving(bundle) as server, Crowd(server.grpc_url, method, 3) as crowd:
        until(lambda: under_way(server) == 3)
        server.call(server.server.close)
        until(lambda: len(crowd.ended()) == 3)
        assert set(crowd.ended()) == {("UNAVAILABLE", "the server is draining")}


def test_a_stream_that_the_server_ends_before_it_reads_anything_ends_at_once(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter = Admission.enter

    def drained_now(self: Admission, call: Any, now_ns: int) -> None:
        enter(self, call, now_ns)
        asyncio.get_running_loop().call_soon(self.drain, calls.leaving())

    monkeypatch.setattr(Admission, "enter", drained_now)
    with serving(bundle) as server, Crowd(server.grpc_url, "ModelStreamInfer", 1) as crowd:
        until(lambda: crowd.ended() == [("UNAVAILABLE", "the server is draining")])


def test_a_stream_begins_nothing_while_its_connection_has_many_unsent_answers(bundle: Path) -> None:
    with serving(bundle) as server, grpc.insecure_channel(server.grpc_url) as channel:
        asked: queue.Queue[bytes] = queue.Queue()
        call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        answers: Any = call(iter(asked.get, b"end"))
        asked.put(inference())
        next(answers)
        grpc_server = server.server._grpc
        assert grpc_server is not None
        under_way: list[Any] = server.call(lambda: list(grpc_server._calls._calls))
        (stream,) = under_way
        server.call(lambda: grpc_server._together.count(stream._connection, 64 << 20))
        asked.put(inference())
        waiting = grpc_server._together._waiting
        until(lambda: server.call(lambda: stream._connection in waiting))
        server.call(lambda: grpc_server._together.count(stream._connection, -(64 << 20)))
        next(answers)
        asked.put(b"end")
        assert list(answers) == []
        until(lambda: server.call(lambda: not grpc_server._together._sizes and not waiting))
