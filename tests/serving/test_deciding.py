"""From the bytes of a picture to a decision: by a plain body, or as an element of the protocol's BYTES."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import gzip
import http.client
import io
import json
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from PIL import Image
from tests.support.models import COLOUR, COLOURS
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import until
from tritonclient.utils import InferenceServerException

import hasten
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.serving.fairness import Shares
from hasten.serving.models import batching, deciding
from hasten.serving.models.decisions import as_json
from hasten.serving.models.statistics import Statistics
from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.protocol.requests import RAW, Query
from hasten.testing import models

PATIENCE_S = 120.0
PIPELINE = Pipeline(image_pipeline(8).steps, (TopK(2, COLOURS, softmax=False),))


def picture(colour: int, form: str = "JPEG", size: int = 24) -> bytes:
    """Return an encoded picture of one colour."""
    pixels = np.zeros((size, 2 * size, 3), np.uint8)
    pixels[..., colour] = 200
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


LARGE = COLOUR.replace("8, 8", "512, 512")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of colours, with its pipeline."""
    folder = tmp_path_factory.mktemp("colour")
    return bundle_of(folder, models.write(folder / "colour.onnx", COLOUR, {}), pipeline=PIPELINE)


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[ServerThread]:
    """A server of the classifier, and of one that takes tensors only."""
    bare = bundle_of(bundle.parent, models.linear_classifier(bundle.parent), "bare")
    places = (place_of(bundle), place_of(bundle, "cached", cache_bytes=1 << 20), place_of(bare))
    with ServerThread(*places, grpc=True) as running:
        yield running


def post(
    server: ServerThread, body: bytes, kind: str = "image/jpeg", model: str = "colour"
) -> tuple[int, Any]:
    """Send a plain body, and return the status and the JSON that came."""
    connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
    connection.request("POST", f"/v2/models/{model}/infer", body, {"Content-Type": kind})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def raw(module: Any, samples: list[bytes], binary: bool = True) -> list[Any]:
    """Return the input of raw samples, for Triton's client of HTTP or of gRPC."""
    tensor = module.InferInput("raw", [len(samples)], "BYTES")
    array = np.array(samples, object)
    if module is triton:
        tensor.set_data_from_numpy(array, binary_data=binary)
    else:
        tensor.set_data_from_numpy(array)
    return [tensor]


@pytest.mark.parametrize(("form", "kind"), [("JPEG", "image/jpeg"), ("PNG", "image/png")])
def test_a_picture_as_the_body_is_answered_by_the_decision(
    server: ServerThread, bundle: Path, form: str, kind: str
) -> None:
    with hasten.load(bundle) as loaded:
        for colour, name in enumerate(COLOURS):
            body = picture(colour, form)
            status, answer = post(server, body, kind)
            assert status == 200
            assert answer == {
                "model_name": "colour",
                "model_version": "1",
                "decision": loaded.decide(body),
            }
            assert answer["decision"][0]["label"] == name


@pytest.mark.parametrize(
    ("stage", "timeout_us", "said"),
    [
        ("_prepared", 1_000, "the deadline passed before the sample was prepared"),
        ("_decided", 1_000_000, "the deadline passed before the decision was made"),
    ],
)
def test_a_sample_gets_its_error_at_the_deadline_though_a_thread_goes_on_with_it(
    server: ServerThread,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    timeout_us: int,
    said: str,
) -> None:
    model = server.server.state.repository.find("colour")
    over, worked = threading.Event(), getattr(model.deciding, stage)

    def held(*given: Any) -> Any:
        assert over.wait(PATIENCE_S)
        return worked(*given)

    monkeypatch.setattr(deciding, "_QUICK_NS", -1)  # on a thread, always
    monkeypatch.setattr(model.deciding, stage, held)
    with triton.InferenceServerClient(server.host, network_timeout=PATIENCE_S) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("colour", raw(triton, [picture(1)]), timeout=timeout_us)
        assert (caught.value.status(), caught.value.message()) == ("504", said)
        assert server.call(lambda: model.idle)
        over.set()
        assert client.infer("colour", raw(triton, [picture(1)])).as_numpy("decision").size == 1


def outcomes(server: ServerThread) -> dict[str, Any]:
    """Return how the requests to the classifier ended so far, and how long the answered ones took."""
    found = server.server.state.repository.find("colour").statistics
    return server.call(
        lambda: {
            "answered": found.totals["success"].count,
            "rows": found.rows,
            "failed": found.fail.count,
            "given up": found.cancel.count,
            "whole_ns": found.totals["success"].ns,
            "decide_ns": found.stages["decide"].sum_ns,
        }
    )


def changes(server: ServerThread, before: dict[str, Any]) -> dict[str, Any]:
    return {name: count - before[name] for name, count in outcomes(server).items()}


def test_a_request_whose_decision_fails_counts_as_failed_alone(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("a fault in a step")

    model, before = server.server.state.repository.find("colour"), outcomes(server)
    monkeypatch.setattr(model.deciding, "_decided", fails)
    assert post(server, picture(0))[0] == 500
    found = changes(server, before)
    assert (found["answered"], found["rows"], found["failed"]) == (0, 0, 1)


def test_a_client_that_goes_away_while_its_sample_is_decided_on_counts_as_such(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, before = server.server.state.repository.find("colour"), outcomes(server)
    assert model.deciding is not None
    begun, over, decides = threading.Event(), threading.Event(), model.deciding._decided

    def held(*given: Any) -> Any:
        begun.set()
        assert over.wait(PATIENCE_S)
        return decides(*given)

    monkeypatch.setattr(deciding, "_QUICK_NS", -1)  # on a thread, always
    monkeypatch.setattr(model.deciding, "_decided", held)
    connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
    connection.request(
        "POST", "/v2/models/colour/infer", picture(0), {"Content-Type": "image/jpeg"}
    )
    assert begun.wait(PATIENCE_S)
    connection.close()
    until(lambda: server.call(lambda: model.idle))
    over.set()
    found = changes(server, before)
    assert (found["answered"], found["failed"], found["given up"]) == (0, 0, 1)


def test_the_time_of_a_request_holds_that_of_its_decision(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, before = server.server.state.repository.find("colour"), outcomes(server)
    assert model.deciding is not None
    decides = model.deciding._decided

    def slowly(*given: Any) -> Any:
        time.sleep(0.3)
        return decides(*given)

    monkeypatch.setattr(model.deciding, "_decided", slowly)
    assert post(server, picture(0))[0] == 200
    found = changes(server, before)
    assert (found["answered"], found["rows"]) == (1, 1)
    assert found["whole_ns"] > found["decide_ns"] > 0


def test_samples_that_an_unload_refuses_count_once_wherever_they_are(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One runs, one waits in the queue, and one is being prepared."""
    monkeypatch.setattr(batching, "INLINE_NS", -1)
    monkeypatch.setattr(batching, "_LONE_NS", -1)
    monkeypatch.setattr(deciding, "_QUICK_NS", -1)  # on threads, always
    go_on, begun, preparing = threading.Event(), threading.Event(), threading.Event()
    with (
        ServerThread(place_of(bundle, "colour", most_rows=1, most_wait_ns=60 * 10**9)) as server,
        concurrent.futures.ThreadPoolExecutor(3) as threads,
    ):
        repository = server.server.state.repository
        model: Any = repository.find("colour")
        (engine,) = model._batching._threads
        runs, prepares = engine._model, model.deciding._prepared

        def held(inputs: Any) -> Any:
            begun.set()
            assert go_on.wait(PATIENCE_S)
            return runs(inputs)

        def held_before(*given: Any) -> Any:
            preparing.set()
            assert go_on.wait(PATIENCE_S)
            return prepares(*given)

        engine._model = held
        calls = [threads.submit(post, server, picture(0))]
        assert begun.wait(PATIENCE_S)
        calls.append(threads.submit(post, server, picture(1)))
        until(lambda: server.call(lambda: model.queued_rows) == 1)
        monkeypatch.setattr(model.deciding, "_prepared", held_before)
        calls.append(threads.submit(post, server, picture(2)))
        assert preparing.wait(PATIENCE_S)
        server.call(repository.close)
        go_on.set()
        assert [call.result()[0] for call in calls] == [503] * 3
        found = model.statistics
        assert (found.refusals, found.totals["success"].count) == ({"UNAVAILABLE": 3}, 0)


def test_answers_of_the_exact_model_are_counted_once_and_only_clients(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("a fault in a step")

    with ServerThread(place_of(bundle, "colour", which="exact")) as server:
        model = server.server.state.repository.find("colour")
        assert post(server, picture(0))[0] == 200
        assert model.statistics.replaced == 1
        server.call(lambda: model.ask({"pixels": np.zeros((1, 3, 8, 8), np.float32)}))
        monkeypatch.setattr(model.deciding, "_decided", fails)
        assert post(server, picture(0))[0] == 500
        assert model.statistics.replaced == 1


@pytest.mark.parametrize("kind", ["application/octet-stream", "text/plain; charset=utf-8"])
def test_the_body_counts_and_not_what_it_is_called(server: ServerThread, kind: str) -> None:
    status, answer = post(server, picture(2, "PNG"), kind)
    assert (status, answer["decision"][0]["label"]) == (200, "blue")


def test_a_compressed_body_makes_no_picture_large(server: ServerThread) -> None:
    padded = picture(1, "PNG") + bytes(200_000)

    def status(body: bytes, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
        connection.request("POST", "/v2/models/colour/infer", body, headers)
        answer = connection.getresponse()
        found = answer.status, json.loads(answer.read())
        connection.close()
        return found

    kind = {"Content-Type": "image/png"}
    assert status(padded, **kind)[0] == 200
    packed = {**kind, "Content-Encoding": "gzip"}
    assert status(gzip.compress(picture(1, "PNG")), **packed)[0] == 200
    assert status(gzip.compress(padded), **packed) == (
        400,
        {
            "error": f"a sample in a compressed body may have 65,536 bytes; got {len(padded):,}: send it "
            "without Content-Encoding"
        },
    )


def test_clients_of_the_protocol_send_several_pictures_at_once(server: ServerThread) -> None:
    samples = [picture(colour) for colour in (2, 0, 1)]
    http_client = triton.InferenceServerClient(server.host, connection_timeout=PATIENCE_S)
    grpc_client = triton_grpc.InferenceServerClient(server.grpc_url)
    answers = [
        http_client.infer("colour", raw(triton, samples)),
        http_client.infer(
            "colour",
            raw(triton, samples),
            outputs=[triton.InferRequestedOutput("decision", binary_data=False)],
        ),
        grpc_client.infer("colour", raw(triton_grpc, samples)),
    ]
    http_client.close()
    grpc_client.close()
    for answer in answers:
        found = answer.as_numpy("decision")
        assert found.shape == (3,)
        assert [json.loads(one)[0]["label"] for one in found] == ["blue", "red", "green"]


def test_tensors_are_taken_as_before(server: ServerThread) -> None:
    client = triton.InferenceServerClient(server.host, connection_timeout=PATIENCE_S)
    pixels = np.zeros((1, 3, 8, 8), np.float32)
    pixels[:, 1] = 1
    tensor = triton.InferInput("pixels", [1, 3, 8, 8], "FP32")
    tensor.set_data_from_numpy(pixels)
    np.testing.assert_allclose(client.infer("colour", [tensor]).as_numpy("scores"), [[0, 1, 0]])
    client.close()


def test_many_clients_at_once_each_get_their_own_decision(server: ServerThread) -> None:
    bodies = [picture(colour, size=24 + 8 * colour) for colour in range(3)]

    def asked(number: int) -> bool:
        status, answer = post(server, bodies[number % 3])
        return bool(status == 200 and answer["decision"][0]["class"] == number % 3)

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        assert all(threads.map(asked, range(200)))


def test_equal_pictures_are_decided_once_where_answers_are_cached(server: ServerThread) -> None:
    body = picture(0, size=40)
    first, second = post(server, body, model="cached"), post(server, body, model="cached")
    assert first == second
    (stats,) = server.call(lambda: stats_of(server, "cached"))
    assert stats["cache_hit"]["count"] >= 1


def stats_of(server: ServerThread, name: str) -> Any:
    from hasten.serving import facts

    repository = server.server.state.repository
    found = facts.model_statistics(facts.found(repository, name, ""))
    return [one["inference_stats"] for one in found["model_stats"]]


def test_each_stage_is_a_histogram_of_the_metrics(server: ServerThread) -> None:
    post(server, picture(0))
    connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    for stage in ("prepare", "decide"):
        lines = [
            line
            for line in text.splitlines()
            if f'stage="{stage}"' in line and 'model="colour"' in line and "_count" in line
        ]
        assert lines
        assert float(lines[0].split()[-1]) >= 1


@pytest.mark.parametrize(
    ("body", "kind", "model", "words"),
    [
        (
            picture(0)[:200],
            "image/jpeg",
            "colour",
            "the image can't be read as an image",
        ),
        (b"no picture", "image/png", "colour", "the image can't be read as an image"),
        (b"", "image/png", "colour", "the image can't be read as an image"),
        (
            picture(0),
            "image/jpeg",
            "bare",
            "the model 'bare' takes tensors, but got image/jpeg: send tensors, or make its bundle "
            "with a pipeline",
        ),
    ],
)
def test_what_is_no_picture_gets_one_line(
    server: ServerThread, body: bytes, kind: str, model: str, words: str
) -> None:
    status, answer = post(server, body, kind, model)
    assert status == 400
    assert answer["error"].startswith(words)
    assert "\n" not in answer["error"]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "application/json"])
def test_a_picture_that_is_sent_as_something_else_is_told_its_content_type(
    server: ServerThread, kind: str
) -> None:
    status, answer = post(server, picture(0), kind, "colour")
    assert status == 400
    assert answer["error"].startswith("the request is not JSON: ")
    assert answer["error"].endswith(
        "; a picture, a sound or a text needs its own Content-Type, such as image/jpeg"
    )


def test_an_empty_body_is_not_taken_for_a_picture(server: ServerThread) -> None:
    status, answer = post(server, b"", "application/json", "colour")
    assert status == 400
    assert "Content-Type" not in answer["error"]


@pytest.mark.parametrize(
    ("shape", "datatype", "words"),
    [
        (
            [1, 1],
            "BYTES",
            "input 'raw': the model takes BYTES[1 to 32], one element per sample; got BYTES[1, 1]",
        ),
        (
            [33],
            "BYTES",
            "input 'raw': the model takes BYTES[1 to 32], one element per sample; got BYTES[33]",
        ),
        (
            [4],
            "UINT8",
            "input 'raw': the model takes BYTES[1 to 32], one element per sample; got UINT8[4]",
        ),
    ],
)
def test_what_is_no_list_of_samples_gets_one_line(
    server: ServerThread, shape: list[int], datatype: str, words: str
) -> None:
    count = int(np.prod(shape))
    data: list[Any] = ["a"] * count if datatype == "BYTES" else [1] * count
    entry = {"name": "raw", "datatype": datatype, "shape": shape, "data": data}
    status, answer = post(server, json.dumps({"inputs": [entry]}).encode(), "application/json")
    assert (status, answer["error"]) == (400, words)


def test_another_output_than_the_decision_is_refused(server: ServerThread) -> None:
    client = triton.InferenceServerClient(server.host, connection_timeout=PATIENCE_S)
    with pytest.raises(InferenceServerException) as error:
        client.infer(
            "colour",
            raw(triton, [picture(0)]),
            outputs=[triton.InferRequestedOutput("scores")],
        )
    client.close()
    assert error.value.message() == (
        "raw samples are answered by the output 'decision'; got 'scores': send tensors to get the "
        "model's own outputs"
    )


def test_a_client_that_goes_away_leaves_nothing_under_way(server: ServerThread) -> None:
    body = picture(0, size=2000)
    for _ in range(5):
        connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
        connection.request("POST", "/v2/models/colour/infer", body, {"Content-Type": "image/jpeg"})
        connection.close()
    model = server.server.state.repository.find("colour")
    until(lambda: server.call(lambda: model.idle))
    assert post(server, picture(1))[0] == 200


class Waiting:
    """A pipeline that keeps the first sample until it is told to go on, and never has a tensor."""

    steps = ()
    deterministic, reads_text = True, False

    def __init__(self) -> None:
        self.order: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def prepared(self, sample: Any) -> Any:
        self.order.append(sample.decode())
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        raise InputError("no sample")


async def _asked(pipeline: Waiting, first: str, others: list[str]) -> tuple[list[str], Shares]:
    """Ask for samples named after their clients, the others while the first one is prepared."""
    model = SimpleNamespace(name="m", most_rows=0, cache=None, statistics=Statistics(), inputs=())
    model.refused = lambda query, failure: None
    loop, answers = asyncio.get_running_loop(), []
    under_way = deciding.Deciding(model, pipeline, loop, 0, time.perf_counter_ns, 10**9)  # type: ignore[arg-type]
    under_way._threads = concurrent.futures.ThreadPoolExecutor(1)

    def ask(name: str) -> None:
        query = Query("m", "1", "", {RAW: np.array([name.encode()], object)}, client=name[0])
        try:
            under_way.submit(query, lambda answer: answers.append(str(answer)))
        except ProtocolError as failure:
            answers.append(str(failure))

    ask(first)
    await asyncio.to_thread(pipeline.begun.wait, PATIENCE_S)
    for name in others:
        ask(name)
    pipeline.go_on.set()
    await under_way.drained()
    under_way.close()
    return answers, under_way._shares


def test_samples_are_prepared_in_turns_by_client() -> None:
    pipeline = Waiting()
    answers, shares = asyncio.run(_asked(pipeline, "a0", ["a1", "a2", "a3", "b0"]))
    assert pipeline.order == ["a0", "a1", "b0", "a2", "a3"]
    assert answers == ["no sample"] * 5
    assert shares.taken == 0


def by_one_thread(pipeline: Any) -> deciding.Deciding:
    """Return what prepares samples on one thread, for the event loop that runs."""
    model = SimpleNamespace(name="m", most_rows=0, cache=None, statistics=Statistics(), inputs=())
    model.refused = lambda query, failure: None
    loop = asyncio.get_running_loop()
    found = deciding.Deciding(model, pipeline, loop, 0, time.perf_counter_ns, 10**9)
    found._threads = concurrent.futures.ThreadPoolExecutor(1)
    return found


def test_samples_of_a_client_that_went_away_do_not_wait_for_a_thread() -> None:
    async def work() -> None:
        pipeline = Waiting()
        under_way = by_one_thread(pipeline)

        def ask(name: bytes) -> tuple[deciding.RawTicket, weakref.ref[Any]]:
            samples = np.array([name], object)
            query = Query("m", "1", "", {RAW: samples}, client="c")
            return under_way.submit(query, lambda answer: None), weakref.ref(samples)

        ask(b"first")
        await asyncio.to_thread(pipeline.begun.wait, PATIENCE_S)
        ticket, samples = ask(b"gone")
        assert samples() is not None
        gc.disable()  # only a garbage collection would find samples that are part of a cycle
        try:
            ticket.cancel()
            del ticket
            assert samples() is None
        finally:
            gc.enable()
        ask(b"last")
        pipeline.go_on.set()
        await under_way.drained()
        under_way.close()
        assert pipeline.order == ["first", "last"]

    asyncio.run(work())


def test_requests_that_are_given_up_count_until_their_place_in_the_queue_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deciding, "_MOST_WAITING", 4)

    async def work() -> None:
        pipeline = Waiting()
        under_way = by_one_thread(pipeline)

        def ask(name: bytes) -> deciding.RawTicket:
            query = Query("m", "1", "", {RAW: np.array([name], object)}, client="c")
            return under_way.submit(query, lambda answer: None)

        ask(b"first")
        await asyncio.to_thread(pipeline.begun.wait, PATIENCE_S)
        for number in range(3):
            ask(b"gone%d" % number).cancel()
        with pytest.raises(ProtocolError, match="overloaded: 4 requests with raw samples"):
            ask(b"more")
        pipeline.go_on.set()
        await under_way.drained()
        while under_way._shares.taken:
            await asyncio.sleep(0.001)
        assert pipeline.order == ["first"]
        under_way.close()

    asyncio.run(work())


def test_no_client_has_all_places_of_raw_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "_MOST_WAITING", 4)
    answers, shares = asyncio.run(_asked(Waiting(), "a0", ["a1", "b0", "a2", "c0", "d0"]))
    assert answers[:2] == [
        "overloaded: 2 of the 4 requests with raw samples that may be in progress are this "
        "client's, and other clients are waiting; retry later",
        "overloaded: 4 requests with raw samples are in progress; retry later",
    ]
    assert answers[2:] == ["no sample"] * 4
    assert shares.taken == 0


def test_short_rows_are_answered_alike_once_they_are_known_to_be_quick(tmp_path: Path) -> None:
    columns = tuple(f"c{number}" for number in range(16))
    pipeline = Pipeline((Row(columns),), (TopK(1),))
    bundle = bundle_of(tmp_path, models.linear_classifier(tmp_path), "rows", pipeline=pipeline)
    rows = np.random.default_rng(0).standard_normal((60, 16), dtype=np.float32)
    bodies = [json.dumps(dict(zip(columns, map(float, row), strict=True))).encode() for row in rows]
    with ServerThread(place_of(bundle)) as running, hasten.load(bundle) as loaded:
        model = running.server.state.repository.find("rows")
        deciding = model.deciding
        assert deciding is not None
        threads = deciding._threads
        for turn in range(3):
            if turn == 2:  # by now a stage's latest spans are known, however slow this machine is
                deciding._recent_ns = {
                    stage: deque([1] * 16, 16) for stage in ("prepare", "decide")
                }
                deciding._threads = None  # type: ignore[assignment]  # it would be missed
            for body in bodies[: 6 if turn == 2 else None]:
                status, answer = post(running, body, "text/plain", "rows")
                assert (status, answer["decision"]) == (200, loaded.decide(body))
            stages = running.call(lambda: model.statistics.stages)
            asked = 60 * min(turn + 1, 2) + 6 * (turn == 2)
            assert [stages[stage].count for stage in ("prepare", "decide")] == [asked + turn, asked]
            assert len(deciding._recent_ns["decide"]) == 16
            if turn == 2:
                deciding._recent_ns["prepare"].clear()
                deciding._threads = threads
            status, answer = post(running, b'{"c0": 1}', "text/plain", "rows")
            assert status == 400
            assert "c1" in answer["error"]


def test_a_decision_that_json_cannot_hold_is_refused() -> None:
    scores = {"y": np.array([1.5, 2.0], np.float16), "n": (1, None, "a")}
    assert json.loads(as_json(scores)) == {"y": [1.5, 2.0], "n": [1, None, "a"]}
    for wrong in (float("nan"), np.float32("nan"), {"y": [float("inf")]}, np.array([np.nan])):
        with pytest.raises(InputError) as error:
            as_json(wrong)
        assert str(error.value) == (
            "the decision has NaN or infinite values, which JSON can't represent"
        )


@pytest.mark.seconds
def test_small_samples_that_become_large_come_in_several_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Pipeline(image_pipeline(512).steps, (TopK(1, COLOURS, softmax=False),))
    model = models.write(tmp_path / "colour.onnx", LARGE, {})
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    with ServerThread(place_of(bundle_of(tmp_path, model, pipeline=large)), grpc=True) as server:
        client = triton.InferenceServerClient(server.host, connection_timeout=PATIENCE_S)
        grpc_client = triton_grpc.InferenceServerClient(server.grpc_url)
        for module, one in ((triton, client), (triton_grpc, grpc_client)):
            with pytest.raises(InferenceServerException) as error:
                one.infer("colour", raw(module, [picture(0)] * 7))
            assert error.value.message() == (
                "once they are prepared, 6 of the 7 samples take more than the 16 MiB that are "
                "allowed for a request of so few bytes: send several requests"
            )
        for samples in ([picture(2)] * 5, [file.getvalue()] * 7):
            found = client.infer("colour", raw(triton, samples)).as_numpy("decision")
            assert len(found) == len(samples)
        # Where all together are too many, one is refused, and the others are answered.
        monkeypatch.setattr(deciding, "_ALTOGETHER_BYTES", 1)
        statuses = set[int]()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:

            def both() -> bool:
                asked = [pool.submit(post, server, picture(1)) for _ in range(4)]
                for one in asked:
                    status, answer = one.result()
                    statuses.add(status)
                    assert status == 503 or answer["decision"][0]["label"] == "green"
                return statuses == {200, 503}

            until(both)
        client.close()
        grpc_client.close()
