"""The generator over HTTP, against real servers."""

import asyncio
import json
import operator
import socket
import ssl
import struct
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.load_options import grouped

from hasten.errors import InputError
from hasten.evaluation.loadtest import LoadTestResult, in_words, run

Serve = Any
Http = Any
Writer = asyncio.StreamWriter


def load(
    server: Any, rate_per_s: float = 200.0, duration_s: float = 0.2, **options: Any
) -> LoadTestResult:
    given: dict[str, Any] = {"warmup_s": 0.0, "grace_s": 30.0, **options}
    return run(given.pop("url", server.url), "m", rate_per_s, duration_s, **grouped(given))


def kinds(found: LoadTestResult) -> dict[tuple[str, str], int]:
    return {(one.kind, one.status): one.count for one in found.outcomes}


def test_every_request_is_sent_and_answered_rightly(serve: Serve, http: Http) -> None:
    server = serve(http.right())
    found = load(server, warmup_s=0.1, seed=3, grace_s=86_400.0)  # it ends with the last answer
    assert kinds(found) == {("ok", "200"): found.requests}
    assert len(server.inferences) > found.requests > 20
    assert all(latency > 0 for latency in found.latency_ns)
    assert all(lag >= 0 for lag in found.lag_ns)
    assert (found.waited, found.goodput_per_s) == (0, None)


def test_a_server_that_stalls_shows_it_in_every_request_that_was_due_meanwhile(
    serve: Serve, http: Http
) -> None:
    stall_s, count = 0.3, 0

    async def stalling(asked: Any, writer: Writer) -> None:
        nonlocal count
        count += 1
        if count == 40:
            time.sleep(stall_s)  # all of it: its loop stands still
        writer.write(http.right())

    found = load(serve(stalling), 200.0, 0.8, arrivals="constant")
    assert kinds(found) == {("ok", "200"): 160}
    # 60 were due in these 0.3 s. A generator that waits for answers would have sent none of them,
    # and one that counts from the sending would call those that waited for a connection quick.
    slow = [latency for latency in found.latency_ns if latency > 0.1e9]
    assert len(slow) >= 35
    # 39 were answered before, whichever these are; the 40th that came was due with the 40th at the earliest.
    ends_ns = sorted(map(operator.add, found.due_ns, found.latency_ns))
    assert ends_ns[39] >= found.due_ns[39] + (stall_s - 0.02) * 1e9


def test_the_same_holds_where_the_stalled_requests_wait_for_the_only_connection(
    serve: Serve, http: Http
) -> None:
    count = 0

    async def stalling(asked: Any, writer: Writer) -> None:
        nonlocal count
        count += 1
        if count == 40:
            await asyncio.sleep(0.3)
        writer.write(http.right())

    server = serve(stalling)
    found = load(server, 200.0, 0.8, arrivals="constant", connections=1)
    assert len([latency for latency in found.latency_ns if latency > 0.1e9]) >= 35
    assert found.waited >= 35
    assert found.opened == 1
    assert server.connections == 2  # one for the metadata
    assert any("found all 1 connections busy and waited" in line for line in in_words(found))


def test_connections_are_kept_and_used_again(serve: Serve, http: Http) -> None:
    server = serve(http.right())
    found = load(server, 100.0, 0.5, arrivals="constant", connections=4)
    asked = Counter(one.connection for one in server.inferences)
    assert len(asked) <= found.opened <= 4  # one that was opened may not have been needed
    assert sum(asked.values()) == 50


def test_no_more_connections_are_opened_than_allowed(serve: Serve, http: Http) -> None:
    async def slow(asked: Any, writer: Writer) -> None:
        await asyncio.sleep(0.05)
        writer.write(http.right())

    server = serve(slow)
    found = load(server, 400.0, 0.2, arrivals="constant", connections=3)
    assert kinds(found) == {("ok", "200"): 80}
    assert found.opened == 3
    assert found.waited > 60
    assert max(found.latency_ns) > 0.5e9  # 80 requests of 0.05 s, three at a time


def test_a_server_that_ends_each_connection_is_served_over_new_ones(
    serve: Serve, http: Http
) -> None:
    async def once(asked: Any, writer: Writer) -> None:
        writer.write(http.right().replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        writer.close()

    found = load(serve(once), 100.0, 0.3, arrivals="constant")
    assert kinds(found) == {("ok", "200"): 30}
    assert found.opened >= 30  # and one more wherever an end comes too late to be seen


def test_a_connection_that_the_server_wont_use_again_is_let_go_of(serve: Serve, http: Http) -> None:
    answer = http.right().replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    found = load(serve(answer), 50.0, arrivals="constant", connections=1)
    assert kinds(found) == {("ok", "200"): 10}
    assert found.opened == 10


def test_an_answer_without_a_length_ends_with_its_connection(serve: Serve, http: Http) -> None:
    body = http.outputs(1, {"data": [1, 2, 3]})

    async def once(asked: Any, writer: Writer) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + body)
        writer.close()

    assert kinds(load(serve(once), 50.0, arrivals="constant")) == {("ok", "200"): 10}


@pytest.mark.parametrize("pause_s", [0.0, 0.002])
def test_answers_in_chunks_and_in_pieces_are_put_together(
    serve: Serve, http: Http, pause_s: float
) -> None:
    whole = http.right(rows=50)
    head, _, body = whole.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    chunks = [body[i : i + 97] for i in range(0, len(body), 97)]

    async def chunked(asked: Any, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        writer.write(b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b""]))
        for chunk in [*chunks, b""]:
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await asyncio.sleep(pause_s)

    server = serve(chunked)
    found = load(server, 100.0, 0.2, arrivals="constant", connections=3)
    assert kinds(found) == {("ok", "200"): 20}
    assert found.opened <= 3  # each is used again, after an answer in pieces too


def test_refusals_and_deadlines_are_counted_with_the_servers_first_message(
    serve: Serve, http: Http
) -> None:
    count = 0
    answers = [http.right(), http.error(503, "the queue is full"), http.error(504, "too late")]

    async def mixed(asked: Any, writer: Writer) -> None:
        nonlocal count
        writer.write(answers[count % 3])
        count += 1

    found = load(serve(mixed), 150.0, 0.2, arrivals="constant", deadline_s=600.0)
    assert kinds(found) == {("ok", "200"): 10, ("late", "504"): 10, ("refused", "503"): 10}
    assert [one.message for one in found.outcomes] == ["", "too late", "the queue is full"]
    assert found.goodput_per_s == 50.0
    assert len(found.latency_ns) == 10


def test_the_deadline_is_sent_in_microseconds_and_what_comes_after_it_is_late(
    serve: Serve, http: Http
) -> None:
    async def slow(asked: Any, writer: Writer) -> None:
        await asyncio.sleep(0.03)
        writer.write(http.right())

    server = serve(slow)
    found = load(server, 50.0, deadline_s=0.02, arrivals="constant")
    assert kinds(found) == {("late", "200"): 10}
    assert found.goodput_per_s == 0.0
    length = int(server.inferences[0].fields["Inference-Header-Content-Length"])
    header = json.loads(server.inferences[0].body[:length])
    assert header["parameters"] == {"timeout": 20_000}


def test_other_statuses_are_errors_by_status(serve: Serve, http: Http) -> None:
    found = load(serve(http.error(400, "no input \x1b[31m'z'")), 50.0, arrivals="constant")
    assert kinds(found) == {("error", "400"): 10}
    assert found.outcomes[0].message == "no input ?[31m'z'"
    assert found.p50 is None


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "", "the answer isn't HTTP: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\ngarbage", "200", "JSON is malformed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "", "the answer isn't HTTP: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "200", "Input data was truncated"),
    ],
)
def test_garbage_is_a_wrong_answer(serve: Serve, answer: bytes, status: str, message: str) -> None:
    found = load(serve(answer), 50.0, arrivals="constant")
    assert kinds(found) == {("broken", status): 10}
    assert found.outcomes[0].message.startswith(message)


def test_outputs_that_are_too_short_are_a_wrong_answer(serve: Serve, http: Http) -> None:
    header = http.outputs(1, {"parameters": {"binary_data_size": 8}})
    short = http.answer(200, header + bytes(8), Inference_Header_Content_Length=len(header))
    found = load(serve(short), 50.0, arrivals="constant")
    assert kinds(found) == {("broken", "200"): 10}
    assert found.outcomes[0].message == "output 'y': [1, 3] of FP32 are 12 bytes, but 8 came"


def test_a_body_that_is_cut_short_is_a_broken_connection(serve: Serve, http: Http) -> None:
    async def cut(asked: Any, writer: Writer) -> None:
        writer.write(http.right()[:-5])
        writer.close()

    found = load(serve(cut), 50.0, arrivals="constant")
    assert kinds(found) == {("connection", ""): 10}
    assert found.outcomes[0].message == (
        "the connection broke before an answer: the server closed it"
    )


def test_a_connection_that_is_reset_is_counted_and_the_test_goes_on(
    serve: Serve, http: Http
) -> None:
    count = 0

    async def resets(asked: Any, writer: Writer) -> None:
        nonlocal count
        count += 1
        if count % 2:
            # What isn't sent yet is dropped, and the other side gets a reset.
            at_once = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            writer.transport.abort()
        else:
            writer.write(http.right())

    found = load(serve(resets), 50.0, 0.4, arrivals="constant")
    assert kinds(found) == {("ok", "200"): 10, ("connection", ""): 10}
    assert "Connection reset by peer" in found.outcomes[1].message


def test_an_answer_that_nobody_asked_for_is_never_taken_for_one(serve: Serve, http: Http) -> None:
    async def twice(asked: Any, writer: Writer) -> None:
        writer.write(http.right() + http.error(503, "of nobody"))

    found = load(serve(twice), 50.0, arrivals="constant")
    assert kinds(found) == {("ok", "200"): 10}
    assert found.opened == 10


def test_what_is_never_answered_is_unanswered_and_the_test_ends(serve: Serve, http: Http) -> None:
    async def silent(asked: Any, writer: Writer) -> None:
        if asked.connection % 2:
            writer.write(http.right())

    found = load(serve(silent), 100.0, arrivals="constant", grace_s=0.2, connections=4)
    assert found.count("unanswered") > 0
    assert sum(one.count for one in found.outcomes) == found.requests == 20
    assert found.elapsed_ns >= 0.2e9


def test_requests_that_come_when_the_server_is_gone_are_lost(serve: Serve, http: Http) -> None:
    async def leaving(asked: Any, writer: Writer) -> None:
        server.leave()
        writer.write(http.right().replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        writer.close()

    server = serve(leaving)
    found = load(server, 50.0, 0.4, arrivals="constant", connections=1)
    assert kinds(found) == {("ok", "200"): 1, ("connection", ""): 19}
    assert found.outcomes[-1].message == "no connection: Connection refused"


def test_a_server_that_isnt_there_is_one_clear_line() -> None:
    with pytest.raises(InputError) as raised:
        run("http://127.0.0.1:1", "m", 10.0, 1.0)
    assert str(raised.value) == (
        "can't reach http://127.0.0.1:1: Connection refused; does a server run there?"
    )


def test_a_name_that_stands_for_no_address_is_one_clear_line() -> None:
    with pytest.raises(
        InputError, match=r"^can't reach http://no-such\.invalid:80: .+; does a server"
    ):
        run("http://no-such.invalid", "m", 10.0, 1.0)


def test_a_wrong_model_is_said_with_the_servers_message(serve: Serve, http: Http) -> None:
    server = serve(b"", metadata=http.error(404, "no model 'm' here; there is 'n'"))
    with pytest.raises(InputError) as raised:
        load(server, version="3")
    assert str(raised.value) == (
        f"{server.url} answers 404 to /v2/models/m/versions/3: no model 'm' here; there is 'n'"
    )


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"220 mail.example.org ESMTP\r\n", "{} doesn't speak the Open Inference Protocol over"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
            "{} doesn't describe the inputs and outputs of the model 'm': JSON is malformed",
        ),
    ],
)
def test_another_kind_of_server_is_one_clear_line(
    serve: Serve, metadata: bytes, message: str
) -> None:
    server = serve(b"", metadata=metadata)
    with pytest.raises(InputError) as raised:
        load(server)
    assert str(raised.value).startswith(message.format(server.url))


def test_samples_of_data_a_version_and_a_token_reach_the_server(
    serve: Serve, http: Http, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    np.savez(tmp_path / "d.npz", x=x)
    server = serve(http.right(rows=2))
    found = load(
        server,
        50.0,
        arrivals="constant",
        version="3",
        data=tmp_path / "d.npz",
        batch=2,
        token_file=tmp_path / "token",
        connections=1,
    )
    assert kinds(found) == {("ok", "200"): 10}
    assert all(one.fields["Authorization"] == "Bearer s3cret" for one in server.asked)
    assert {one.line for one in server.inferences} == {
        "POST /v2/models/m/versions/3/infer HTTP/1.1"
    }
    sent = [
        one.body[int(one.fields["Inference-Header-Content-Length"]) :] for one in server.inferences
    ]
    assert sent == [x[:2].tobytes(), x[2:].tobytes()] * 5
    assert "s3cret" not in repr(found)


def test_tensors_may_be_sent_and_answered_as_json(serve: Serve, http: Http) -> None:
    server = serve(http.answer(200, http.outputs(1, {"data": [[1, 2, 3]]})))
    found = load(server, 50.0, arrivals="constant", json_tensors=True)
    assert kinds(found) == {("ok", "200"): 10}
    (tensor,) = json.loads(server.inferences[0].body)["inputs"]
    assert (tensor["shape"], len(tensor["data"])) == ([1, 2], 2)


def test_large_requests_and_answers_arrive_whole(serve: Serve, http: Http) -> None:
    server = serve(http.right(rows=20_000))
    found = load(server, 40.0, arrivals="constant", batch=20_000)
    assert kinds(found) == {("ok", "200"): 8}
    assert {len(one.body) > 160_000 for one in server.inferences} == {True}


def test_encrypted_connections_are_checked_against_the_certificates_given(
    serve: Serve, http: Http, certificate: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    server = serve(http.right(), tls=context)
    url = server.url.replace("http", "https")
    with pytest.raises(
        InputError,
        match=r"its certificate isn't trusted \(self-signed certificate.*\); give ca=, a file with the",
    ):
        load(server, url=url)
    for options in ({"ca": certificate}, {"insecure": True}):
        found = load(server, 50.0, url=url, arrivals="constant", **options)
        assert kinds(found) == {("ok", "200"): 10}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ""}, "the model's name is missing"),
        ({"model": "a\n"}, "the model's name can't be sent: 'a\\n'"),
        ({"deadline_s": 0.0}, "the deadline is in seconds, from 1 µs to 3600 s: got 0"),
        ({"connections": 0}, "the number of connections is from 1 to 10000: got 0"),
        ({"grace_s": -1.0}, "the grace is in seconds, from 0 to 86400: got -1"),
        (
            {"url": "grpc://127.0.0.1:1", "json_tensors": True},
            "only HTTP sends tensors as JSON: leave that option out, or give an http:// address",
        ),
    ],
)
def test_options_out_of_range_are_named_before_anything_is_sent(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as raised:
        run(**{"url": "http://127.0.0.1:1", "model": "m", "rate_per_s": 1.0, **grouped(options)})
    assert str(raised.value) == message


def test_it_works_without_uvloop(serve: Serve, http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(
        InputError, match=r"^can't reach http://127\.0\.0\.1:1: Connection refused;"
    ):
        run("http://127.0.0.1:1", "m", 10.0, 1.0)
    found = load(serve(http.right()), 50.0, arrivals="constant")
    assert kinds(found) == {("ok", "200"): 10}


def test_a_bug_of_the_generators_own_isnt_taken_for_the_servers(
    serve: Serve, http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("hasten.evaluation.loadtest.http.judge", judge)
    with pytest.raises(ZeroDivisionError):
        load(serve(http.right()), 50.0, arrivals="constant")


def test_it_works_where_an_event_loop_runs_already(serve: Serve, http: Http) -> None:
    server = serve(http.right())

    async def cell() -> LoadTestResult:
        return load(server, 50.0, arrivals="constant")

    assert kinds(asyncio.run(cell())) == {("ok", "200"): 10}


@pytest.mark.parametrize(
    ("module", "url", "what"),
    [
        ("httptools", "http://127.0.0.1:1", "HTTP"),
        ("grpc", "grpc://127.0.0.1:1", "gRPC"),
        ("google.protobuf.message", "grpc://127.0.0.1:1", "gRPC"),
    ],
)
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, url: str, what: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for name in ("http", "answers", "grpc", "grpc_messages"):
        monkeypatch.delitem(sys.modules, f"hasten.evaluation.loadtest.{name}", raising=False)
    with pytest.raises(InputError) as raised:
        run(url, "m", 10.0, 1.0)
    assert str(raised.value) == (
        f"a load test over {what} needs the extra: pip install 'hasten[serve]'"
    )
