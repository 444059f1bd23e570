"""Clients that come from one address, as behind a proxy, and are told apart by their tokens."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import queue
import socket
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.serving.test_bounded_requests import ROW, SHAPE, asking, field, unreading, wide
from tests.support import pausing
from tests.support.models import solid
from tests.support.pausing import Pausing, pausing_installed
from tests.support.servers import ServerThread, bundle_of, place_of, with_curve
from tests.support.waiting import PATIENCE_S, until

from hasten.serving import server as server_module
from hasten.serving.http import connection
from hasten.serving.protocol.messages import SERVICE
from hasten.serving.state import Limits
from hasten.serving.wire.http_bodies import decompressed

FOREVER_NS = 3_600_000_000_000
MIB = 1 << 20
TOKENS = {"greedy": "one-that-takes-all", "other": "one-that-asks-once"}
INFER = "/v2/models/solid/infer"
BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
).encode()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fair-tokens")
    return bundle_of(folder, solid(folder))


@contextlib.contextmanager
def serving(
    bundle: Path, file: Path, *names: str, settings: Mapping[str, Any] | None = None, **limits: Any
) -> Iterator[ServerThread]:
    """A server that knows these clients, and isn't slow to hear any."""
    file.write_text("".join(f'[{n}]\nscopes = ["infer"]\ntoken = "{TOKENS[n]}"\n' for n in names))
    file.chmod(0o600)
    bounds = Limits(receive_ns=FOREVER_NS, send_ns=FOREVER_NS, **limits)
    place = place_of(bundle, **settings or {})
    with ServerThread(place, grpc=True, tokens=file, limits=bounds) as server:
        yield server


def headers(name: str) -> dict[str, str]:
    return {"Host": "here", "Authorization": f"Bearer {TOKENS[name]}"}


def ask(server: ServerThread, name: str, body: bytes = BODY) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("POST", INFER, body, headers(name))
        return connection.getresponse().status


@contextlib.contextmanager
def holding(server: ServerThread, name: str, count: int, size: int, sent: bytes) -> Iterator[None]:
    """Connections of a client, on each of which a request begins."""
    lines = [f"POST {INFER} HTTP/1.1", *(f"{key}: {value}" for key, value in headers(name).items())]
    head = "\r\n".join([*lines, f"Content-Length: {size}", "", ""]).encode()
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", server.http_port), PATIENCE_S)
            stack.callback(one.close)
            one.sendall(head + sent)
        yield


def connections_of(server: ServerThread, client: str) -> int:
    return server.call(lambda: server.server.state.crowd.of(client))


def test_connections_of_one_token_make_room_for_anothers(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "tokens", *TOKENS, connections=20) as server:
        idle = [
            http.client.HTTPConnection("127.0.0.1", server.http_port, PATIENCE_S) for _ in range(20)
        ]
        for one in idle:
            one.request("POST", INFER, BODY, headers("greedy"))
            assert one.getresponse().read()
        assert connections_of(server, "client greedy") == 20
        assert ask(server, "other") == 200
        for one in idle:
            one.close()
        until(lambda: connections_of(server, "client greedy") == 0)
        assert connections_of(server, "127.0.0.1") == 0


def test_bodies_of_one_token_make_room_for_anothers(bundle: Path, tmp_path: Path) -> None:
    bounds: dict[str, Any] = {"body_bytes": MIB, "bodies_bytes": 8 * MIB}
    with serving(bundle, tmp_path / "tokens", *TOKENS, **bounds) as server:
        state = server.server.state
        with holding(server, "greedy", 8, MIB, bytes(MIB - 1)):
            until(lambda: state.body_bytes == 8 * (MIB - 1))  # alone it takes all
            assert server.call(lambda: state.bodies.of("client greedy")) == 8 * (MIB - 1)
            until(lambda: ask(server, "other", BODY + b" " * 99_999) == 200)
        until(lambda: state.body_bytes == 0)


def test_a_compressed_body_does_not_wait_behind_all_of_another_tokens(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, order = threading.Event(), list[str]()

    def held_up(body: Any, encoding: str, most_bytes: int) -> bytes:
        order.append(encoding)
        assert go_on.wait(PATIENCE_S)
        return decompressed(body, encoding, most_bytes)

    monkeypatch.setattr(connection, "decompressed", held_up)
    with serving(bundle, tmp_path / "tokens", *TOKENS) as server, contextlib.ExitStack() as stack:
        lines = server.server.state.coding._waiting

        def post(name: str, encoding: str, body: bytes) -> http.client.HTTPConnection:
            client = http.client.HTTPConnection("127.0.0.1", server.http_port, PATIENCE_S)
            stack.callback(client.close)
            client.request("POST", INFER, body, {**headers(name), "Content-Encoding": encoding})
            return client

        def waiting() -> int:
            return server.call(lambda: sum(map(len, lines.values())))

        clients = [post("greedy", "gzip", gzip.compress(BODY)) for _ in range(8)]
        until(lambda: waiting() == 6)
        clients.append(post("other", "deflate", zlib.compress(BODY)))
        until(lambda: waiting() == 7)
        go_on.set()
        assert [each.getresponse().status for each in clients] == [200] * 9
    assert order.index("deflate") <= 3


def test_a_connection_may_carry_requests_of_many_clients(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "tokens", *TOKENS) as server:
        proxy = http.client.HTTPConnection("127.0.0.1", server.http_port, PATIENCE_S)
        for name in ("greedy", "other", "greedy"):
            proxy.request("POST", INFER, BODY, headers(name))
            assert proxy.getresponse().read()
            assert connections_of(server, f"client {name}") == 1
        proxy.close()
        until(lambda: server.call(lambda: server.server.state.crowd.taken) == 0)


def test_requests_of_two_clients_are_not_under_way_on_one_connection(tmp_path: Path) -> None:
    # So slow by its curve that a thread runs it.
    bundle = bundle_of(tmp_path, solid(tmp_path), extra=with_curve({1: 1000.0}))
    path, sent = f"/v2/models/{bundle.name.removesuffix('.hasten')}/infer", b""
    for name in TOKENS:
        lines = [f"POST {path} HTTP/1.1", *(f"{k}: {v}" for k, v in headers(name).items())]
        sent += "\r\n".join([*lines, f"Content-Length: {len(BODY)}", "", ""]).encode() + BODY
    with serving(bundle, tmp_path / "tokens", *TOKENS) as server:
        with socket.create_connection(("127.0.0.1", server.http_port), PATIENCE_S) as one:
            one.sendall(sent)
            answers = one.makefile("rb").read()
    assert answers.count(b"HTTP/1.1 200 ") == answers.count(b"HTTP/1.1 400 ") == 1
    assert b"requests of different clients can't be in progress on one connection" in answers


@pytest.mark.parametrize("fair", [True, False])
def test_a_clients_priorities_order_only_its_own_requests(tmp_path: Path, fair: bool) -> None:
    """Unless all clients are treated as one."""

    def infer(number: float, name: str, priority: int = 2) -> threading.Thread:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [number, 0, 0, 0]}
        body = json.dumps({"inputs": [tensor], "parameters": {"priority": priority}}).encode()
        thread = threading.Thread(target=ask, args=(server, name, body))
        thread.start()
        return thread

    pausing.RELEASE.clear()
    request = {"x": np.array([[20, 0, 0, 0]], np.float32)}  # so long that a thread runs it
    with pausing_installed(tmp_path / "plug-in"):
        bundle = bundle_of(tmp_path, solid(tmp_path), engine=Pausing(), requests=[request])
        settings = {"most_rows": 1, "sessions": 1, "most_wait_ns": FOREVER_NS}
        with serving(bundle, tmp_path / "tokens", *TOKENS, settings=settings, fair=fair) as server:
            (model,) = server.server.state.repository.served()
            pausing.RAN.clear()
            threads = [infer(1e9, "greedy")]
            until(lambda: len(pausing.RAN) == 1)
            asked = [(0.1, "greedy", 1), (0.2, "greedy", 1), (0.3, "greedy", 1), (0.4, "other", 2)]
            for each in asked:
                threads.append(infer(*each))
                until(lambda: model.scheduler.queued_rows == len(threads) - 1)
            pausing.RELEASE.set()
            for thread in threads:
                thread.join(PATIENCE_S)
    order = [0.1, 0.4, 0.2, 0.3] if fair else [0.1, 0.2, 0.3, 0.4]
    assert [round(row[0], 1) for row in pausing.RAN] == [1e9, *order]


def renamed(file: Path, names: Mapping[str, str]) -> None:
    """Put a file in the place of one in which clients have other names, with the tokens that they had."""
    beside = file.with_name("beside")
    beside.write_text(
        "".join(f'[{new}]\nscopes = ["infer"]\ntoken = "{TOKENS[n]}"\n' for n, new in names.items())
    )
    beside.chmod(0o600)
    beside.replace(file)


def test_a_request_behind_one_under_way_goes_by_the_name_that_its_client_has_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_LOOK_S", 0.01)
    pausing.RELEASE.clear()
    lines = [f"POST {INFER} HTTP/1.1", *(f"{k}: {v}" for k, v in headers("greedy").items())]
    body = BODY.replace(b"[1, 2, 3, 4]", b"[1e9, 0, 0, 0]")
    request = {"x": np.array([[20, 0, 0, 0]], np.float32)}  # so long that a thread runs it
    with pausing_installed(tmp_path / "plug-in"):
        bundle = bundle_of(tmp_path, solid(tmp_path), engine=Pausing(), requests=[request])
        settings = {"most_wait_ns": FOREVER_NS}
        with serving(bundle, tmp_path / "tokens", *TOKENS, settings=settings) as server:
            state, first = server.server.state, server.server.state.rights
            pausing.RAN.clear()
            with socket.create_connection(("127.0.0.1", server.http_port), PATIENCE_S) as one:
                for end, sent in ((None, body), ("close", BODY)):
                    more = [] if end is None else [f"Connection: {end}"]
                    head = [*lines, *more, f"Content-Length: {len(sent)}", "", ""]
                    one.sendall("\r\n".join(head).encode() + sent)
                    if end is None:
                        until(lambda: len(pausing.RAN) == 1)
                        renamed(tmp_path / "tokens", {"greedy": "modest", "other": "greedy"})
                        until(lambda: state.rights is not first)
                (there,) = state.connections
                until(lambda: bool(there._backlog or there._refusal))  # type: ignore[attr-defined]
                assert there._name == "modest"  # type: ignore[attr-defined]
                for shares, size in ((state.crowd, 1), (state.bodies, len(body) + len(BODY))):
                    assert shares._of == {"client modest": size}
                pausing.RELEASE.set()
                answers = one.makefile("rb").read()
            assert answers.count(b"HTTP/1.1 200 ") == 2
            assert ask(server, "greedy") == 200
            until(lambda: server.call(lambda: state.crowd.taken + state.bodies.taken) == 0)
            assert state.crowd._of == state.bodies._of == {}


def test_a_stream_is_counted_under_the_name_that_its_client_has_by_now(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_LOOK_S", 0.01)
    questions = queue.Queue[bytes]()
    with serving(bundle, tmp_path / "tokens", *TOKENS) as server:
        grpc_server, first = server.server._grpc, server.server.state.rights
        assert grpc_server is not None
        calls = grpc_server._calls
        with grpc.insecure_channel(server.grpc_url) as channel:
            answers = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(
                iter(questions.get, b"over"),
                timeout=PATIENCE_S,
                metadata=(("authorization", f"Bearer {TOKENS['greedy']}"),),
            )
            questions.put(b"")
            assert b"unknown model" in next(answers)
            renamed(tmp_path / "tokens", {"greedy": "modest", "other": "greedy"})
            until(lambda: server.server.state.rights is not first)
            questions.put(b"")
            assert b"unknown model" in next(answers)
            (stream,) = calls._calls
            assert (stream.name, stream.client) == ("modest", "client modest")  # type: ignore[attr-defined]
            assert server.call(lambda: calls._shares._of) == {"client modest": 1}
            questions.put(b"over")
            assert list(answers) == []
        until(lambda: server.call(lambda: calls._shares.taken) == 0)


def test_one_token_for_all_tells_nobody_apart(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "tokens", "other") as server:
        with holding(server, "other", 3, len(BODY), b""):
            until(lambda: connections_of(server, "127.0.0.1") == 3)
            assert connections_of(server, "client other") == 0


def test_calls_over_grpc_are_counted_under_their_tokens(bundle: Path, tmp_path: Path) -> None:
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait(PATIENCE_S)
        yield from ()

    with serving(bundle, tmp_path / "tokens", *TOKENS) as server:
        grpc_server = server.server._grpc
        assert grpc_server is not None
        shares = grpc_server._calls._shares
        with grpc.insecure_channel(server.grpc_url) as channel:
            stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
            names = ["greedy"] * 3 + ["other"]
            given = [[("authorization", f"Bearer {TOKENS[name]}")] for name in names]
            calls = [stream(nothing(), metadata=each) for each in given]
            until(lambda: server.call(lambda: shares.of("client greedy")) == 3)
            until(lambda: server.call(lambda: shares.of("client other")) == 1)
            assert server.call(lambda: shares.taken) == 4
            over.set()
            assert [list(call) for call in calls] == [[]] * 4
        until(lambda: server.call(lambda: shares.taken) == 0)


def test_a_connection_that_clients_share_is_not_ended_for_what_one_of_them_leaves_unread(
    tmp_path: Path,
) -> None:
    """Such as that of a proxy, which keeps few connections for all its clients."""
    wide_ = bundle_of(tmp_path, wide(tmp_path, 1 << 19))
    small = asking(SHAPE, model=b"solid") + field(7, np.ones(4, np.float32).tobytes())
    bounds: dict[str, Any] = {"body_bytes": 8 * MIB, "bodies_bytes": 40 * MIB}
    file = tmp_path / "tokens"
    file.write_text("".join(f'[{n}]\nscopes = ["infer"]\ntoken = "{TOKENS[n]}"\n' for n in TOKENS))
    file.chmod(0o600)
    limits = Limits(receive_ns=FOREVER_NS, send_ns=FOREVER_NS, **bounds)
    places = place_of(wide_), place_of(bundle_of(tmp_path, solid(tmp_path)))
    body = json.dumps({**json.loads(BODY), "parameters": {"binary_data_output": True}}).encode()
    greedy, other = ((("authorization", f"Bearer {token}"),) for token in TOKENS.values())

    def status() -> int:
        client = http.client.HTTPConnection("127.0.0.1", server.http_port, PATIENCE_S)
        with contextlib.closing(client):
            client.request("POST", "/v2/models/wide/infer", body, headers("other"))
            return client.getresponse().status

    with (
        ServerThread(*places, grpc=True, tokens=file, limits=limits) as server,
        unreading(server) as shared,
        contextlib.ExitStack() as many,
    ):
        requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        asked = shared.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        answers = asked(iter(requests.get, None), metadata=other)
        requests.put(small)
        assert next(answers)
        channels = shared, *(many.enter_context(unreading(server)) for _ in range(3))
        calls = [
            channel.stream_stream(f"/{SERVICE}/ModelInfer")(iter([ROW]), metadata=greedy)
            for channel in channels
            for _ in range(5)
        ]
        until(lambda: server.server.state.body_bytes > 38 * MIB)
        until(lambda: status() == 200)
        requests.put(small)
        assert next(answers)
        requests.put(None)
        assert len(calls) == 20
