"""Memory of the states of sequences: one bound for all models of a server."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from fuzz.isolated import peak_kib, reset_peak
from tests.support import recurrent
from tests.support.servers import ServerProcess, ServerThread, bundle_of, place_of, with_curve
from tests.support.waiting import PATIENCE_S, until
from tritonclient.utils import InferenceServerException

from hasten.core.sequences import Sequences
from hasten.serving.models.served import ServedModel

EACH = 4 * recurrent.HIDDEN
"""Bytes of the state of a sequence."""
MOST = 6
"""States that may be kept, besides the copies of one step."""
TOTAL = (MOST + 3) * EACH
TOKENS = {name: f"the-token-of-the-{name}" for name in ("greedy", "other")}
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    return bundle_of(folder, recurrent.gru(folder), sequences=Sequences((("h", "h_out"),)))


@pytest.fixture
def server(bundle: Path, tmp_path: Path) -> Iterator[ServerThread]:
    file = tmp_path / "tokens"
    tables = [f'[{n}]\nscopes = ["infer"]\ntoken = "{token}"\n' for n, token in TOKENS.items()]
    file.write_text("".join(tables))
    file.chmod(0o600)
    places = [place_of(bundle, name, sequence_bytes=TOTAL) for name in ("one", "two")]
    with ServerThread(*places, tokens=file) as running:
        yield running


def ask(server: ServerThread, model: str, client: str, id_: int, **place: Any) -> str:
    """Send a step; return why it was refused, "" if it wasn't."""
    tensor = triton.InferInput("x", [1, recurrent.WIDE], "FP32")
    tensor.set_data_from_numpy(np.ones((1, recurrent.WIDE), np.float32))
    headers = {"Authorization": f"Bearer {TOKENS[client]}"}
    with triton.InferenceServerClient(server.host) as connection:
        try:
            connection.infer(model, [tensor], sequence_id=id_, headers=headers, **place)
        except InferenceServerException as error:
            return str(error.message())
        return ""


def kept_bytes(server: ServerThread) -> int:
    """Return the bytes that all states take, and check that they are what is counted."""

    def work() -> int:
        repository = server.server.state.repository
        kept = [repository.find(name).sequences for name in ("one", "two")]
        size = sum(each.size_bytes for each in kept if each is not None)
        assert size == repository.states.shares.taken
        return size

    return server.call(work)


def test_states_of_several_models_together_take_no_more_than_the_bound(
    server: ServerThread,
) -> None:
    begun = [
        ask(server, model, "greedy", number, sequence_start=True)
        for number in range(1, 5)
        for model in ("one", "two")
    ]
    said = f"{MOST * EACH:,} bytes of states are kept, which is the limit: end some with sequence_end, or retry later"
    assert begun == [""] * MOST + [said] * 2
    assert kept_bytes(server) == MOST * EACH
    assert ask(server, "two", "greedy", 1, sequence_end=True) == ""
    assert ask(server, "one", "greedy", 4, sequence_start=True) == ""
    assert kept_bytes(server) == MOST * EACH


def test_a_client_that_took_all_memory_loses_the_oldest_sequence_of_any_model(
    server: ServerThread,
) -> None:
    for number in range(1, 4):
        for model in ("one", "two"):
            assert ask(server, model, "greedy", number, sequence_start=True) == ""
    ask(server, "one", "greedy", 1)  # the first one of the other model is now the oldest
    assert ask(server, "one", "other", 1, sequence_start=True) == ""
    assert ask(server, "two", "greedy", 1) == (
        "there is no sequence 1: it was ended because another client needed its place; start it with a request that "
        "sets sequence_start"
    )
    assert ask(server, "two", "greedy", 1, sequence_start=True) == (
        f"this client has {5 * EACH:,} of the {MOST * EACH:,} bytes of states that may be kept, and other clients "
        "have some too: end some with sequence_end, or retry later"
    )
    assert kept_bytes(server) == MOST * EACH


def test_steps_wait_for_room_for_their_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, gru = with_curve({1: 500.0}), Sequences((("h", "h_out"),))  # so steps run on a thread
    bundle = bundle_of(tmp_path, recurrent.gru(tmp_path), sequences=gru, extra=long)
    limits: dict[str, Any] = {"sequence_bytes": TOTAL, "most_wait_ns": 60_000_000_000}
    most = 0
    with ServerThread(place_of(bundle, "one", **limits), place_of(bundle, "two", **limits)) as two:
        states = two.server.state.repository.states
        take = states._take

        def counted(record: Any) -> None:
            nonlocal most
            take(record)
            most = max(most, states.shares.taken + states.copied)

        monkeypatch.setattr(states, "_take", counted)
        asked = [(model, number) for number in range(1, 4) for model in ("one", "two")]
        steps = [{"sequence_start": True}, *({} for _ in range(10)), {"sequence_end": True}]
        with ThreadPoolExecutor(MOST) as threads:
            for place in steps:
                told = [threads.submit(ask, two, m, "other", n, **place) for m, n in asked]
                assert [each.result(PATIENCE_S) for each in told] == [""] * MOST
        left = two.call(lambda: (states.copied, states.shares.taken, len(states._waiting)))
    assert (most, left) == (TOTAL, (0, 0, 0))


@pytest.mark.parametrize("over", ["given up", "late"])
def test_copies_of_a_step_that_is_over_count_until_its_batch_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: str
) -> None:
    """Else a client could fill the memory again and again, while the engine still has the copies."""
    long, gru = with_curve({1: 50.0}), Sequences((("h", "h_out"),))
    bundle = bundle_of(tmp_path, recurrent.gru(tmp_path), sequences=gru, extra=long)
    with ServerThread(place_of(bundle, "one", sequence_bytes=TOTAL)) as server:
        repository = server.server.state.repository
        states, model = repository.states, repository.find("one")
        assert isinstance(model, ServedModel)
        assert model.sequences is not None
        kept, (engine,), runs = model.sequences, model._batching._threads, threading.Event()
        run, goes_on = engine._model, threading.Event()

        def held(inputs: Any) -> Any:
            runs.set()
            assert goes_on.wait(PATIENCE_S)
            return run(inputs)

        monkeypatch.setattr(engine, "_model", held)
        data = [0.0] * recurrent.WIDE
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, recurrent.WIDE], "data": data}
        parameters: dict[str, Any] = {"sequence_id": 1, "sequence_start": True}
        if over == "late":
            parameters["timeout"] = 300_000
        body = json.dumps({"inputs": [tensor], "parameters": parameters})
        connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
        try:
            connection.request("POST", "/v2/models/one/infer", body)
            assert runs.wait(PATIENCE_S)
            if over == "late":
                assert connection.getresponse().status == 504
        finally:
            connection.close()
        until(lambda: server.call(lambda: kept.idle))
        assert server.call(lambda: (states.copied, states.shares.taken)) == (3 * EACH, 0)
        goes_on.set()
        until(lambda: server.call(lambda: states.copied) == 0)
        assert ask(server, "one", "other", 1, sequence_start=True) == ""


def test_a_state_that_is_larger_than_the_bound_is_refused(bundle: Path) -> None:
    with ServerThread(place_of(bundle, sequence_bytes=4 * EACH - 1)) as server:
        assert ask(server, "gru", "greedy", 1, sequence_start=True) == (
            f"a sequence of 'gru' has a state of {EACH:,} bytes, with 3 copies of it in a step, and the server has "
            f"{4 * EACH - 1:,} bytes for states: start it with --sequence-bytes {4 * EACH} or more"
        )


async def learn(new: Any, old: Any) -> None:
    new.sequences.learn_from(old.sequences)


def test_states_of_a_model_that_is_replaced_take_no_memory_while_it_still_answers(
    server: ServerThread,
) -> None:
    find = server.server.state.repository.find
    for number in range(MOST):
        assert ask(server, "one", "other", number + 1, sequence_start=True) == ""
    server.call(partial(learn, find("two"), find("one")))
    assert kept_bytes(server) == 0
    why = "the model was replaced, and the state belonged to the old model"
    assert why in ask(server, "two", "other", 1)
    assert ask(server, "two", "other", 1, sequence_start=True) == ""


LARGE = """<ir_version: 9, opset_import: ["" : 17]>
large (float[batch, 1] x, float[batch, 262144] h) => (float[batch, 1] y, float[batch, 262144] h_out) {
    y = Add(x, x)
    a = Add(h, x)
    b = Tanh(a)
    c = Tanh(b)
    d = Tanh(c)
    e = Tanh(d)
    f = Tanh(e)
    g = Tanh(f)
    h0 = Tanh(g)
    i = Tanh(h0)
    j = Tanh(i)
    h_out = Tanh(j)
}"""
"""A model whose state has 1 MiB."""


def started(server: ServerProcess, count: int) -> list[int]:
    """Start sequences, all at once on a connection each; return the statuses of the answers."""
    sockets, sent = [], 0
    for _ in range(count):
        place = ("127.0.0.1", server.http_port)
        sockets.append(socket.create_connection(place, PATIENCE_S))
    os.kill(server.serving_pid(), signal.SIGSTOP)  # so that the requests share batches
    for number, one in enumerate(sockets):
        parameters = {"sequence_id": number + 1, "sequence_start": True}
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [number]}
        body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
        head = (
            "POST /v2/models/large/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        )
        request = (head % len(body)).encode() + body
        one.sendall(request)
        sent += len(request)
    os.kill(server.serving_pid(), signal.SIGCONT)
    assert sent < 64 << 10
    statuses = []
    for one in sockets:
        response = http.client.HTTPResponse(one)
        response.begin()
        response.read()
        statuses.append(response.status)
        response.close()
        one.close()
    return statuses


@pytest.mark.seconds
def test_states_and_all_copies_of_them_take_less_than_64_mib(tmp_path: Path) -> None:
    model = tmp_path / "large.onnx"
    onnx.save(onnx.parser.parse_model(LARGE), model)
    sequences, curve = Sequences((("h", "h_out"),)), with_curve({1: 1.0, 32: 1.1})
    bundle = bundle_of(tmp_path, model, sequences=sequences, extra=curve)
    with ServerProcess(bundle, "--compiled", "off", "--max-wait", "60s") as server:
        pid = server.serving_pid()
        before_kib = reset_peak(pid)
        statuses = started(server, 100)
        took_mib = (peak_kib(pid) - before_kib) >> 10
        assert (statuses.count(200), statuses.count(503)) == (57, 43)
        assert took_mib < 64
