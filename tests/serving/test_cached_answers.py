"""Cached answers are of the model that answers now, whichever answered when they were cached."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tritonclient.http as triton
from tests.support import chains
from tests.support.chains import png, squares
from tests.support.servers import ServerThread, place_of

from hasten.serving.models import batching
from hasten.serving.options import ModelOptions
from hasten.serving.protocol.requests import Answer, Query
from hasten.serving.run import settings_of

PATIENCE_S = 120.0
TURNED = np.eye(3)[[1, 2, 0]]
"""Weights of a fast model that calls red green, green blue, and blue red, unlike its exact model."""
RED = png(np.full((16, 16, 3), (200, 0, 0), np.uint8))
GREEN = png(np.full((16, 16, 3), (0, 200, 0), np.uint8))
PIXELS = np.zeros((1, 3, 16, 16), np.float32)
PIXELS[:, 0] = 1.0


def decided(server: ServerThread, model: str, body: bytes) -> Any:
    connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
    connection.request("POST", f"/v2/models/{model}/infer", body, {"Content-Type": "image/png"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert response.status == 200, answer
    return answer["decision"]


def told(server: ServerThread, model: str, body: bytes) -> str:
    """Return the color that a model, or the model at a chain's end, names."""
    best = decided(server, model, body)[0]
    return str(best["colour"][0]["label"] if "colour" in best else best["label"])


def scores(server: ServerThread, model: str) -> list[float]:
    """Return what a model answers to the tensor of a red picture."""
    client = triton.InferenceServerClient(server.host, network_timeout=PATIENCE_S)
    tensor = triton.InferInput("x", list(PIXELS.shape), "FP32")
    tensor.set_data_from_numpy(PIXELS)
    found: list[float] = client.infer(model, [tensor]).as_numpy("logits")[0].tolist()
    client.close()
    return found


def served(server: ServerThread, name: str) -> Any:
    return server.server.state.repository.find(name)


def test_no_cached_answer_is_the_fast_models_after_the_exact_one_took_over(tmp_path: Path) -> None:
    place = place_of(
        chains.classifier(tmp_path, winner=TURNED), "fast", standby=True, cache_bytes=1 << 20
    )
    with ServerThread(place) as server:
        for _ in range(2):
            assert told(server, "fast", RED) == "green"
            assert scores(server, "fast") == [0.0, 1.0, 0.0]
        statistics = served(server, "fast").statistics
        assert statistics.cache_hit.count >= 2
        served(server, "fast").take_over()
        hits = statistics.cache_hit.count
        for _ in range(2):
            assert told(server, "fast", RED) == "red"
            assert scores(server, "fast") == [1.0, 0.0, 0.0]
        assert statistics.cache_hit.count == hits + 2  # the exact model's answers are cached, too


def test_a_decision_under_way_at_the_takeover_is_not_told_again(tmp_path: Path) -> None:
    place = place_of(
        chains.classifier(tmp_path, winner=TURNED), "fast", standby=True, cache_bytes=1 << 20
    )
    with ServerThread(place) as server:
        decides = served(server, "fast").deciding._decided

        def taken_over_then(ticket: Any, outputs: Any) -> Any:
            served(server, "fast").take_over()
            return decides(ticket, outputs)

        with patch.object(served(server, "fast").deciding, "_decided", taken_over_then):
            assert told(server, "fast", GREEN) == "blue"  # what runs already is answered
        assert told(server, "fast", GREEN) == "green"


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
@pytest.mark.parametrize("form", ["a picture", "a tensor"])
def test_an_answer_counts_as_that_of_the_model_that_computed_it(
    form: str, cache_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fast model has computed the first answer when the exact one takes over."""
    bundle = chains.classifier(tmp_path, winner=TURNED)
    place = place_of(bundle, "fast", standby=True, cache_bytes=cache_bytes)
    with ServerThread(place) as server:
        model = served(server, "fast")
        (engine,) = model._batching._threads
        runs = engine._model

        def taken_over_then(inputs: Any) -> Any:
            outputs = runs(inputs)
            model.take_over()
            return outputs

        monkeypatch.setattr(engine, "_model", taken_over_then)
        if form == "a picture":
            assert [told(server, "fast", RED) for _ in range(3)] == ["green", "red", "red"]
        else:
            assert [scores(server, "fast").index(1.0) for _ in range(3)] == [1, 0, 0]
        assert model.statistics.replaced == 2


def test_equal_requests_count_as_the_one_whose_answer_they_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "INLINE_NS", -1)
    monkeypatch.setattr(batching, "_LONE_NS", -1)
    go_on = threading.Event()

    async def ask(model: Any, row: Any) -> list[list[float]]:
        futures = [asyncio.get_running_loop().create_future() for _ in range(3)]
        for future in futures:
            query = Query("fast", "", "", {"x": row}, arrived_ns=model.clock_ns())
            model.submit(query, future.set_result)
        go_on.set()
        answers = await asyncio.wait_for(asyncio.gather(*futures), PATIENCE_S)
        return [answer.outputs["logits"][0].tolist() for answer in answers]

    place = place_of(
        chains.classifier(tmp_path, winner=TURNED), "fast", standby=True, cache_bytes=1 << 20
    )
    with ServerThread(place) as server:
        model = served(server, "fast")
        (engine,) = model._batching._threads
        runs = engine._model

        def taken_over_then(inputs: Any) -> Any:
            assert go_on.wait(PATIENCE_S)
            outputs = runs(inputs)
            model.take_over()
            return outputs

        monkeypatch.setattr(engine, "_model", taken_over_then)
        assert server.call(lambda: ask(model, PIXELS)) == [[0.0, 1.0, 0.0]] * 3
        assert model.statistics.replaced == 0
        go_on.clear()
        assert server.call(lambda: ask(model, PIXELS)) == [[1.0, 0.0, 0.0]] * 3
        assert model.statistics.replaced == 3


def test_answers_of_the_exact_model_in_a_bundle_that_crashed_or_was_held_back_are_counted(
    tmp_path: Path,
) -> None:
    bundle = chains.classifier(tmp_path, winner=TURNED)
    for which, label in (("winner", "green"), ("exact", "red")):
        with ServerThread(place_of(bundle, "fast", which=which)) as server:
            assert told(server, "fast", RED) == label
            assert scores(server, "fast")[0] == (label == "red")
            assert served(server, "fast").statistics.replaced == (2 if which == "exact" else 0)


@pytest.mark.parametrize("how", ["its exact model takes over", "it is replaced"])
def test_a_chain_decides_again_after_another_model_answers_in_it(how: str, tmp_path: Path) -> None:
    det, colour = chains.detector(tmp_path), chains.classifier(tmp_path, winner=TURNED)
    body = png(squares({(2, 5): "red"}))
    places = settings_of(
        [f"plates={det}+crop+{colour}"], models=ModelOptions(cache_bytes=1 << 20)
    ).models
    with ServerThread(*places, control=True) as server:
        statistics = served(server, "plates").statistics
        assert [told(server, "plates", body) for _ in range(2)] == ["green", "green"]
        assert statistics.cache_hit.count == 1
        if how == "it is replaced":
            (tmp_path / "new").mkdir()
            new = chains.classifier(tmp_path / "new")
            colour.rename(tmp_path / "old.hasten")
            new.rename(colour)
            client = triton.InferenceServerClient(server.host, network_timeout=PATIENCE_S)
            client.load_model("plates.colour")
            client.close()
        else:
            served(server, "plates.colour").take_over()
        assert [told(server, "plates", body) for _ in range(2)] == ["red", "red"]
        assert statistics.cache_hit.count == 2


def counted(server: ServerThread, name: str) -> dict[str, int]:
    """Return how many requests and samples of a model were answered, and what its cache had."""
    found = served(server, name).statistics
    return server.call(
        lambda: {
            "answered": found.totals["success"].count,
            "samples": found.rows,
            "latencies": found.stages["request"].count,
            "hits": found.cache_hit.count,
            "misses": found.cache_miss.count,
        }
    )


def test_decisions_out_of_the_cache_are_counted_as_answers_and_each_look_once(
    tmp_path: Path,
) -> None:
    det, colour = chains.detector(tmp_path), chains.classifier(tmp_path)
    places = settings_of(
        [f"plates={det}+crop+{colour}"], models=ModelOptions(cache_bytes=1 << 20)
    ).models
    with ServerThread(*places) as server:
        body = png(squares({(2, 5): "red"}))
        for _ in range(5):
            assert told(server, "plates", body) == "red"
            assert told(server, "plates.colour", RED) == "red"
        expected = {"answered": 5, "samples": 5, "latencies": 5, "hits": 4, "misses": 1}
        assert counted(server, "plates") == expected
        own = {name: count + 1 for name, count in expected.items()}  # the chain asked it once
        assert counted(server, "plates.colour") == own | {"hits": 4}


@pytest.mark.parametrize("said", ["an answer", "an error"])
@pytest.mark.parametrize("where", ["on the loop's thread", "on its own"])
def test_equal_requests_get_theirs_after_an_answer_that_nobody_can_take(
    said: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five equal requests nobody takes the first and the third one's answers."""
    if where == "on its own":  # so the others come while the first one runs
        monkeypatch.setattr(batching, "INLINE_NS", -1)
        monkeypatch.setattr(batching, "_LONE_NS", -1)

    def nobody(answer: Any) -> None:
        raise RuntimeError("nobody is there")

    async def ask(model: Any) -> list[Any]:
        futures = [asyncio.get_running_loop().create_future() for _ in range(3)]
        if said == "an error":
            monkeypatch.setattr(model._batching._threads[0], "_model", fails)
        dones = [nobody, futures[0].set_result, nobody, *(each.set_result for each in futures[1:])]
        for done in dones:
            now_ns = model.clock_ns()
            query = Query("fast", "", "", {"x": PIXELS}, arrived_ns=now_ns, parsed_ns=now_ns)
            with contextlib.suppress(
                RuntimeError
            ):  # who asks hears of it, if it is answered at once
                model.submit(query, done)
        answers: list[Any] = await asyncio.wait_for(asyncio.gather(*futures), PATIENCE_S)
        return answers

    def fails(inputs: Any) -> Any:
        raise RuntimeError("a fault in the engine")

    place = place_of(chains.classifier(tmp_path), "fast", cache_bytes=1 << 20)
    with ServerThread(place) as server:
        model = served(server, "fast")
        answers = server.call(lambda: ask(model))
        assert [isinstance(each, Answer) for each in answers] == [said == "an answer"] * 3
        assert not model._flights


def test_each_of_many_equal_requests_behind_a_failing_one_gets_its_own_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one runs on a thread, and those behind it are answered at once, one after another."""
    monkeypatch.setattr(batching, "INLINE_NS", -1)
    monkeypatch.setattr(batching, "_LONE_NS", -1)
    go_on = threading.Event()

    def fails(inputs: Any) -> Any:
        assert go_on.wait(PATIENCE_S)
        raise RuntimeError("a fault in the engine")

    async def ask(model: Any) -> list[Any]:
        monkeypatch.setattr(model._batching._threads[0], "_model", fails)
        futures = [asyncio.get_running_loop().create_future() for _ in range(1000)]
        for future in futures:
            query = Query("fast", "", "", {"x": PIXELS}, arrived_ns=model.clock_ns(), source=1)
            model.submit(query, future.set_result)
        monkeypatch.setattr(batching, "INLINE_NS", 1 << 62)
        go_on.set()
        answers: list[Any] = await asyncio.wait_for(asyncio.gather(*futures), PATIENCE_S)
        return answers

    place = place_of(chains.classifier(tmp_path), "fast", cache_bytes=1 << 20)
    with ServerThread(place) as server:
        model = served(server, "fast")
        answers = server.call(lambda: ask(model))
        assert {str(each) for each in answers} == {
            "the engine failed: RuntimeError: a fault in the engine"
        }
        assert not model._flights


def test_an_unload_refuses_equal_requests_behind_one_in_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "INLINE_NS", -1)
    monkeypatch.setattr(batching, "_LONE_NS", -1)
    go_on = threading.Event()

    async def ask(model: Any) -> list[Any]:
        (engine,) = model._batching._threads
        runs = engine._model

        def held(inputs: Any) -> Any:
            assert go_on.wait(PATIENCE_S)
            return runs(inputs)

        monkeypatch.setattr(engine, "_model", held)
        futures = [asyncio.get_running_loop().create_future() for _ in range(4)]
        for value, future in zip((0.0, 1.0, 1.0, 1.0), futures, strict=True):
            inputs = {"x": np.full_like(PIXELS, value)}
            query = Query("fast", "", "", inputs, arrived_ns=model.clock_ns())
            model.submit(query, future.set_result)
        model._batching.close()
        go_on.set()
        answers: list[Any] = await asyncio.wait_for(asyncio.gather(*futures), PATIENCE_S)
        return answers

    place = place_of(chains.classifier(tmp_path), "fast", cache_bytes=1 << 20)
    with ServerThread(place) as server:
        answered, *refused = server.call(lambda: ask(served(server, "fast")))
    assert isinstance(answered, Answer)
    assert [str(each) for each in refused] == ["the model was unloaded"] * 3
