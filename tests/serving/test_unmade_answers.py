"""Nobody waits for ever because an answer can't be made, or can't be handed over."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import chains, recurrent
from tests.support.servers import ONE_THREAD, ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S

from hasten.core.sequences import Sequences
from hasten.serving.http import exchange
from hasten.serving.models import batching, chain_deciding
from hasten.serving.models.served import Ticket
from hasten.serving.options import ModelOptions
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.requests import RAW, Answer, Query, SequenceStep, WantedOutput
from hasten.serving.run import settings_of

PIXELS = np.zeros((1, 3, 16, 16), np.float32)
PICTURE = chains.png(np.full((64, 64, 3), 90, np.uint8))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerThread]:
    """A server of `fast`, which keeps answers, `gru`, which keeps sequences, and the chain `plates`."""
    fast = place_of(chains.classifier(tmp_path, "fast"), "fast", cache_bytes=1 << 20)
    steps = Sequences((("h", "h_out"),))
    gru = bundle_of(tmp_path, recurrent.gru(tmp_path), engine=ONE_THREAD, sequences=steps)
    line = f"plates={chains.detector(tmp_path)}+crop+{chains.classifier(tmp_path)}"
    places = settings_of([line], models=ModelOptions()).models
    with ServerThread(fast, place_of(gru, "gru"), *places) as running:
        yield running


def asked(server: ServerThread, name: str, inputs: dict[str, Any], **fields: Any) -> Any:
    """Return a model and a query for it."""
    model = server.server.state.repository.find(name)
    now_ns = model._clock_ns()
    return model, Query(name, "", "", inputs, arrived_ns=now_ns, parsed_ns=now_ns, **fields)


def nobody(_: Any) -> None:
    raise RuntimeError("nobody is there")


def test_a_client_whose_answer_can_not_be_sent_is_told(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: Any) -> int:
        raise MemoryError

    monkeypatch.setattr(exchange, "_LITTLE_BYTES", 0)
    monkeypatch.setattr(exchange, "slow_bytes", short)
    given = {"name": "x", "shape": [1, 3, 16, 16], "datatype": "FP32", "data": PIXELS.tolist()}
    client = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
    client.request("POST", "/v2/models/fast/infer", json.dumps({"inputs": [given]}))
    answer = client.getresponse()
    assert (answer.status, json.load(answer)["error"]) == (
        503,
        "the server is short of memory: retry later",
    )
    client.close()


@pytest.mark.parametrize("unmade", [False, True], ids=["nobody takes it", "it can't be made"])
def test_a_sequence_goes_on_after_an_answer_that_nobody_gets(
    server: ServerThread, unmade: bool
) -> None:
    async def work() -> list[Any]:
        told = list[Any]()
        for start in (True, True):
            step = SequenceStep(5, start=start, end=False)
            inputs = {"x": np.zeros((1, recurrent.WIDE), np.float32)}
            model, query = asked(server, "gru", inputs, sequence=step)
            thread = model._batching._threads[0]
            runs = thread._model
            if unmade and not told:
                thread._model = lambda inputs, runs=runs: {"h_out": runs(inputs)["h_out"]}
            answer = asyncio.get_running_loop().create_future()
            model.accept(query, answer.set_result if unmade or told else nobody)
            if unmade or told:
                told.append(await asyncio.wait_for(answer, PATIENCE_S))
            else:
                told.append(None)
            thread._model = runs
        await asyncio.wait_for(model.drained(), PATIENCE_S)
        return told

    first, second = server.call(work)
    assert isinstance(second, Answer)
    assert (isinstance(first, ProtocolError) and first.kind is Kind.INTERNAL) == unmade


def test_an_equal_request_whose_own_outputs_are_missing_is_told(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "INLINE_NS", -1)
    monkeypatch.setattr(batching, "_LONE_NS", -1)

    async def work() -> list[Any]:
        answers = []
        for name in "aba":
            outputs = [WantedOutput(name, True)]
            model, query = asked(server, "fast", {"x": PIXELS}, outputs=outputs)
            model._names = ["a", "b", "c"]
            model._batching._threads[0]._model = lambda inputs: {
                name: np.ones((len(inputs["x"]), 2)) for name in "ac"
            }
            answers.append(asyncio.get_running_loop().create_future())
            model.submit(query, answers[-1].set_result)
        return await asyncio.wait_for(asyncio.gather(*answers), PATIENCE_S)

    kinds = [type(answer) for answer in server.call(work)]
    assert kinds == [Answer, ProtocolError, Answer]


def test_a_picture_at_the_door_fails_alone(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that failed at once was the error of the request that let it in, which was answered besides."""

    async def work() -> list[Any]:
        chain, bad = asked(server, "plates", {RAW: np.array([b"no picture"], object)})
        _, good = asked(server, "plates", {RAW: np.array([PICTURE], object)})
        deciding, answers, room = chain.deciding, list[Any](), False
        monkeypatch.setattr(deciding, "_quick", lambda *_: True)
        monkeypatch.setattr(deciding, "_is_room", lambda _: room)
        chain.accept(bad, nobody)
        room = True
        chain.accept(good, answers.append)
        await asyncio.wait_for(deciding.drained(), PATIENCE_S)
        return answers

    (answer,) = server.call(work)
    assert isinstance(answer, Answer)


def test_nothing_is_kept_of_a_picture_that_failed_after_a_model(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(go_on: Any, kind: Kind = Kind.INTERNAL) -> Any:
        if kind is Kind.INTERNAL:
            raise ProtocolError(kind, "no decision")
        return going_on(go_on, kind)

    going_on = chain_deciding._next
    monkeypatch.setattr(chain_deciding, "_next", fails)

    async def work() -> int:
        gc.collect()
        gc.disable()
        for _ in range(5):
            chain, query = asked(server, "plates", {RAW: np.array([PICTURE], object)})
            answer = asyncio.get_running_loop().create_future()
            chain.accept(query, answer.set_result)
            assert isinstance(await asyncio.wait_for(answer, PATIENCE_S), ProtocolError)
            del answer
        kept = 1
        for _ in range(200):
            kept = sum(isinstance(one, Ticket) for one in gc.get_objects())
            if not kept:
                break
            await asyncio.sleep(0.01)
        gc.enable()
        return kept

    assert server.call(work) == 0


def test_equal_requests_are_told_when_a_model_is_closed_while_the_first_runs(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "INLINE_NS", -1)
    monkeypatch.setattr(batching, "_LONE_NS", -1)
    closed = threading.Event()

    def fails(_: Any) -> Any:
        assert closed.wait(PATIENCE_S)
        raise RuntimeError("no answer")

    async def work() -> list[str]:
        answers = []
        for _ in range(3):
            model, query = asked(server, "fast", {"x": PIXELS})
            model._batching._threads[0]._model = fails
            answers.append(asyncio.get_running_loop().create_future())
            model.submit(query, answers[-1].set_result)
        model._batching.close()
        closed.set()
        return [str(one) for one in await asyncio.wait_for(asyncio.gather(*answers), PATIENCE_S)]

    assert server.call(work) == [
        "the engine failed: RuntimeError: no answer",
        *["the model was unloaded"] * 2,
    ]
