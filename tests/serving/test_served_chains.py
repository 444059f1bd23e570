"""A chain served as one model: a picture in, one decision out, each of its models in its own queue."""

from __future__ import annotations

import gzip
import http.client
import json
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from prometheus_client.parser import text_string_to_metric_families
from tests.support import chains
from tests.support.bundles import forge
from tests.support.chains import CELL, COLOURS, png, squares
from tests.support.collector import CALLER, PARENT, TRACE, Collector, values
from tests.support.servers import ServerThread, with_curve
from tests.support.waiting import until
from tritonclient.utils import InferenceServerException

import hasten
from hasten.core.records import from_record, to_record
from hasten.errors import InputError
from hasten.inputs.pipeline.boxes import GivenBoxes
from hasten.inputs.pipeline.classes import TopK
from hasten.serving.cluster.kserve import write_kserve
from hasten.serving.models import chain_deciding, pace, repository
from hasten.serving.models.scheduling import BatchRun
from hasten.serving.options import ModelOptions
from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.protocol.requests import RAW, Answer, Query
from hasten.serving.run import settings_of
from hasten.serving.settings import ServerSettings

pytestmark = pytest.mark.seconds

PATIENCE_S = 120.0
PLACES = {(0, 0): "red", (2, 5): "green", (7, 7): "blue"}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("chain")
    return f"{chains.detector(folder)}+crop+{chains.classifier(folder)}"


@pytest.fixture(scope="module")
def server(line: str) -> Iterator[ServerThread]:
    places = settings_of([f"plates={line}"]).models
    with ServerThread(*places, grpc=True) as running:
        yield running


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    receiving = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiving.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield receiving
    receiving.close()


def post(
    server: ServerThread, body: bytes, kind: str = "image/png", **headers: str
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
    connection.request("POST", "/v2/models/plates/infer", body, {"Content-Type": kind, **headers})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


def get(server: ServerThread, path: str) -> Any:
    connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
    connection.request("GET", path)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def told(decision: Any) -> dict[tuple[int, int], str]:
    return {
        (round(one["box"][1]) // CELL, round(one["box"][0]) // CELL): one["colour"][0]["label"]
        for one in decision
    }


def test_a_picture_as_the_body_is_answered_by_the_chains_decision(
    server: ServerThread, line: str
) -> None:
    body = png(squares(PLACES))
    status, answer = post(server, body)
    assert (status, answer["model_name"], told(answer["decision"])) == (200, "plates", PLACES)
    with hasten.chain(line) as chain:
        expected = chain.decide(body)
    for one, other in zip(answer["decision"], expected, strict=True):
        assert one["box"] == other["box"]
        assert one["colour"][0]["score"] == pytest.approx(other["colour"][0]["score"], rel=1e-5)
    assert post(server, png(squares({})))[1]["decision"] == []


def test_a_chain_waits_for_models_that_take_longer_to_load_than_their_turns(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "_TURN_S", 0.0)
    with ServerThread(*settings_of([f"plates={line}"]).models) as running:
        status, answer = post(running, png(squares(PLACES)))
        assert (status, told(answer["decision"])) == (200, PLACES)


def test_a_client_of_the_protocol_sends_bytes(server: ServerThread) -> None:
    client = triton_grpc.InferenceServerClient(server.grpc_url)
    tensor = triton_grpc.InferInput("raw", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([png(squares(PLACES))], object))
    (decision,) = client.infer("plates", [tensor]).as_numpy("decision")
    metadata = client.get_model_metadata("plates")
    client.close()
    assert told(json.loads(decision)) == PLACES
    assert (metadata.platform, metadata.inputs[0].name, metadata.inputs[0].datatype) == (
        "hasten_chain",
        "raw",
        "BYTES",
    )


def test_the_configuration_names_the_models_of_a_chain_as_tritons_of_an_ensemble_does(
    server: ServerThread,
) -> None:
    steps = [
        ("plates.det", 1, {"raw": "raw"}, {"decision": "det"}),
        ("plates.colour", 1, {"raw": "crop"}, {"decision": "colour"}),
    ]
    config = get(server, "/v2/models/plates/config")
    assert [tuple(one.values()) for one in config["ensemble_scheduling"]["step"]] == steps
    assert "ensemble_scheduling" not in get(server, "/v2/models/plates.det/config")
    client = triton_grpc.InferenceServerClient(server.grpc_url)
    told = client.get_model_config("plates").config.ensemble_scheduling.step
    client.close()
    assert [
        (one.model_name, one.model_version, dict(one.input_map), dict(one.output_map))
        for one in told
    ] == steps


def test_crops_of_requests_at_the_same_time_share_batches_and_each_gets_its_own_decision(
    server: ServerThread,
) -> None:
    rng = np.random.default_rng(3)
    asked = [
        {(int(rng.integers(8)), column): str(rng.choice(COLOURS)) for column in range(0, 8, 2)}
        for _ in range(96)
    ]
    bodies = [png(squares(places)) for places in asked]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda body: post(server, body), bodies))
    assert [status for status, _ in answers] == [200] * len(asked)
    assert [told(answer["decision"]) for _, answer in answers] == asked
    (stats,) = get(server, "/v2/models/plates.colour/stats")["model_stats"]
    assert max(one["batch_size"] for one in stats["batch_stats"]) > 1


def test_the_chain_and_each_of_its_models_count_their_requests(server: ServerThread) -> None:
    def counted(name: str) -> int:
        (stats,) = get(server, f"/v2/models/{name}/stats")["model_stats"]
        return int(stats["inference_count"])

    names = ("plates", "plates.det", "plates.colour")
    before = [counted(name) for name in names]
    assert post(server, png(squares(PLACES)))[0] == 200
    assert [counted(name) - n for name, n in zip(names, before, strict=True)] == [1, 1, 3]
    assert [one["name"] for one in server.call(lambda: index(server))] == sorted(names)
    config = get(server, "/v2/models/plates/config")
    assert config["parameters"]["status"]["string_value"] == "uncertified"
    assert "don't add up" in config["parameters"]["why"]["string_value"]


PARTS = [
    *(("source", "wait"), ("source", "decode")),
    *(("det", "prepare"), ("det", "run"), ("det", "decide")),
    ("crop", "cut"),
    *(("colour", "prepare"), ("colour", "run"), ("colour", "decide")),
]


def test_the_time_of_a_chains_requests_is_told_by_node_and_part(line: str) -> None:
    with ServerThread(*settings_of([f"plates={line}"]).models) as server:
        for places in (PLACES, PLACES, {}):
            assert post(server, png(squares(places)))[0] == 200
        connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
        connection.request("GET", "/metrics")
        scraped = connection.getresponse().read().decode()
        connection.close()
        figures = get(server, "/live.json")["models"]
    samples = [
        (one.name.removeprefix("hasten_"), one.labels, one.value)
        for family in text_string_to_metric_families(scraped)
        for one in family.samples
        if one.labels.get("model") == "plates"
    ]

    def of_parts(what: str) -> dict[tuple[str, str], float]:
        return {
            (labels["node"], labels["part"]): value
            for name, labels, value in samples
            if name == f"chain_stage_seconds_{what}"
        }

    def of_stages(what: str) -> dict[str, float]:
        return {
            labels["stage"]: value
            for name, labels, value in samples
            if name == f"stage_seconds_{what}"
        }

    counts, sums, whole = of_parts("count"), of_parts("sum"), of_stages("sum")
    assert list(counts) == PARTS
    # No square, no reader: the third picture's reader took no time.
    assert [counts[part] for part in PARTS] == [3] * 6 + [2] * 3
    assert all(took > 0 for took in sums.values())
    # Every nanosecond of a request is some part's.
    assert sum(sums.values()) + whole["parse"] == pytest.approx(whole["request"], abs=1e-8)
    for stage in ("prepare", "decide"):
        assert of_stages("count")[stage] == 3
    assert whole["decide"] == pytest.approx(
        sums["det", "decide"] + sums["colour", "decide"], abs=1e-8
    )
    (stages,) = (one["served"]["stages"] for one in figures if one["name"] == "plates")
    told = [(one["node"], one["stage"]) for one in stages]
    assert told == [("", "parse"), *PARTS, ("", "encode")]
    assert sum(one["share"] for one in stages) == pytest.approx(1)


def test_the_priority_and_the_trace_of_a_request_go_through_its_chain(
    line: str, collector: Collector
) -> None:
    picture = triton_http.InferInput("raw", [1], "BYTES")
    picture.set_data_from_numpy(np.array([png(squares(PLACES))], object))
    with ServerThread(*settings_of([f"plates={line}"]).models, trace=True) as server:
        client = triton_http.InferenceServerClient(server.host)
        client.infer("plates", [picture], priority=1, headers={"traceparent": PARENT})
        client.close()
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    asked = [collector.named(f"infer {n}") for n in ("plates", "plates.det", "plates.colour")]
    assert [values(span)["hasten.priority"] for span in asked] == [1, 1, 1]
    assert {span.parent_span_id.hex() for span in asked} == {CALLER}
    whole, times = asked[0], {span.name: span for span in asked}
    before_ns = whole.start_time_unix_nano
    for name, rows, asks in (("decode", 1, 0), ("det", 1, 1), ("crop", 3, 0), ("colour", 3, 1)):
        span = collector.named(name)
        assert span.parent_span_id == whole.span_id
        assert before_ns <= span.start_time_unix_nano <= span.end_time_unix_nano
        before_ns = span.end_time_unix_nano
        told = values(span)
        assert (told["hasten.rows"], told.get("hasten.asks", 0)) == (rows, asks)
        if asks:
            run = times[f"infer plates.{name}"]
            assert (
                told["hasten.run_s"] < (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
            )
            assert run.end_time_unix_nano - run.start_time_unix_nano < 1e9 * told["hasten.run_s"]
    assert before_ns <= whole.end_time_unix_nano


def test_a_compressed_body_makes_no_picture_large_for_a_chain(server: ServerThread) -> None:
    picture = png(squares(PLACES))
    few, many = (gzip.compress(picture + bytes(size)) for size in (1000, 100_000))
    assert post(server, few, **{"Content-Encoding": "gzip"})[0] == 200
    status, answer = post(server, many, **{"Content-Encoding": "gzip"})
    assert (status, answer["error"]) == (
        400,
        f"a sample in a compressed body may have 65,536 bytes; got {len(picture) + 100_000:,}: send it without "
        "Content-Encoding",
    )


def index(server: ServerThread) -> list[dict[str, str]]:
    return sorted(
        ({"name": one.name} for one in server.server.state.repository), key=lambda one: one["name"]
    )


def test_what_a_chain_can_not_take_is_refused_in_one_line(server: ServerThread) -> None:
    status, answer = post(server, b"no picture")
    assert (status, answer["error"]) == (
        400,
        "the image can't be read as an image: it is no whole BMP, GIF, JPEG, PNG, PPM, TIFF or WEBP file; it begins with "
        "b'no picture'",
    )
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]})
    status, answer = post(server, body.encode(), "application/json")
    assert (status, answer["error"]) == (
        400,
        "the model 'plates' takes the inputs raw; got x",
    )
    assert post(server, png(squares(PLACES)))[0] == 200


def test_a_deadline_holds_for_the_whole_chain(server: ServerThread) -> None:
    body = {
        "inputs": [{"name": "raw", "datatype": "BYTES", "shape": [1], "data": ["x"]}],
        "parameters": {"timeout": 1},
    }
    status, answer = post(server, json.dumps(body).encode(), "application/json")
    assert status == 504, answer
    assert "deadline" in answer["error"]


class Held:
    """Crops of a served chain's pictures, as long as its classifier isn't asked about them.

    Args:
        server: Server of the chain.
        most: Number of pictures whose crops are held.
    """

    def __init__(self, server: ServerThread, most: int) -> None:
        deciding: Any = server.server.state.repository.find("plates").deciding
        self._server, self._asks, self.held = server, deciding._ask, list[Any]()

        def ask_later(ticket: Any, result: Any) -> None:
            if getattr(result, "model", "") == "colour" and len(self.held) < most:
                self.held.append((ticket, result))
            else:
                self._asks(ticket, result)

        deciding._ask = ask_later

    def ask(self) -> None:
        """Ask about all of them, one right after the other."""
        self._server.call(lambda: [self._asks(*each) for each in self.held])


HARDLY, PATIENT = ModelOptions(max_wait_s=1e-9), ModelOptions(max_wait_s=3600.0)


def asked_first(server: ServerThread, body: bytes) -> Any:
    """Return the decision about a picture that goes before those of the usual priority."""
    raw = triton_http.InferInput("raw", [1], "BYTES")
    raw.set_data_from_numpy(np.array([body], object))
    with triton_http.InferenceServerClient(server.host) as client:
        (decision,) = client.infer("plates", [raw], priority=1).as_numpy("decision")
    return json.loads(decision)


def detected(client: triton_http.InferenceServerClient) -> int:
    """Return how many pictures the chain's detector was asked about."""
    (stats,) = client.get_inference_statistics("plates.det")["model_stats"]
    return int(stats["inference_count"])


def test_no_model_refuses_what_the_chain_has_accepted(tmp_path: Path) -> None:
    body = png(squares(PLACES))
    slow = chains.classifier(tmp_path, evidence=with_curve({1: 500.0}))  # so it runs on a thread
    line = f"plates={chains.detector(tmp_path)}+crop+{slow}"
    places = settings_of([line], models=HARDLY).models
    with ServerThread(*places) as server, ThreadPoolExecutor(2) as threads:
        crops = Held(server, 2)
        first = threads.submit(post, server, body)
        until(lambda: len(crops.held) == 1)
        urgent = threads.submit(asked_first, server, body)
        until(lambda: len(crops.held) == 2)
        crops.ask()  # one runs, so the other would wait for longer than is allowed
        assert told(first.result()[1]["decision"]) == told(urgent.result()) == PLACES


def test_a_picture_that_would_wait_too_long_is_refused_before_any_work(line: str) -> None:
    body = png(squares(PLACES))
    places = settings_of([f"plates={line}"], models=HARDLY).models
    with (
        ServerThread(*places) as server,
        ThreadPoolExecutor(1) as threads,
        triton_http.InferenceServerClient(server.host) as client,
    ):
        assert post(server, body)[0] == 200  # so it is known what a picture takes
        crops = Held(server, 1)
        under_way = threads.submit(post, server, body)
        until(lambda: bool(crops.held))
        assert detected(client) == 2
        status, answer = post(server, body)
        urgent = asked_first(server, body)
        count = detected(client)
        crops.ask()
        assert told(under_way.result()[1]["decision"]) == PLACES
        assert status == 503
        assert "for the chain's models, but at most 0 ms are allowed" in answer["error"]
        assert told(urgent) == PLACES  # what has a lower priority isn't waited for
        assert count == 3
        assert post(server, body)[0] == 200


def one_at_once(server: ServerThread) -> Any:
    """Let a picture begin only if there is little left to do for others; return what lets it in."""
    deciding: Any = server.server.state.repository.find("plates").deciding
    deciding._at_once = 1
    return deciding


def test_a_picture_begins_when_little_is_left_to_do_for_those_before_it(tmp_path: Path) -> None:
    """Else the detector would take the processors from crops of older pictures, which came the later."""
    body = png(squares(PLACES))
    slow = chains.classifier(tmp_path, evidence=with_curve({1: 500.0}))
    line = f"plates={chains.detector(tmp_path)}+crop+{slow}"
    with (
        ServerThread(*settings_of([line], models=PATIENT).models) as server,
        ThreadPoolExecutor(2) as threads,
        triton_http.InferenceServerClient(server.host) as client,
    ):
        deciding = one_at_once(server)
        assert post(server, body)[0] == 200  # so it is known what a picture takes
        before, crops = detected(client), Held(server, 1)
        first = threads.submit(post, server, body)
        until(lambda: len(crops.held) == 1)
        second = threads.submit(post, server, body)
        until(lambda: server.call(lambda: deciding.model.queued_rows) == 1)
        assert told(asked_first(server, body)) == PLACES  # what is more urgent doesn't wait for it
        assert detected(client) == before + 2
        assert server.call(lambda: deciding.model.queued_rows) == 1
        crops.ask()
        assert told(first.result()[1]["decision"]) == told(second.result()[1]["decision"]) == PLACES
        until(lambda: not server.call(lambda: deciding._counts.lines))


def test_a_picture_that_others_keep_waiting_for_far_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = png(squares(PLACES))
    slow = chains.classifier(tmp_path, evidence=with_curve({1: 500.0}))
    line = f"plates={chains.detector(tmp_path)}+crop+{slow}"
    with (
        ServerThread(*settings_of([line], models=PATIENT).models) as server,
        ThreadPoolExecutor(2) as threads,
    ):
        deciding = one_at_once(server)
        assert post(server, body)[0] == 200
        crops = Held(server, 1)
        monkeypatch.setattr(chain_deciding, "ACCEPTED_WAITS", 1e-6)
        first = threads.submit(post, server, body)
        until(lambda: len(crops.held) == 1)
        equal = threads.submit(post, server, body)
        until(lambda: server.call(lambda: deciding.waiting) == 1)
        server.call(lambda: time.sleep(0.1))  # the time is up, but nothing more urgent is there
        assert not equal.done()
        crops.ask()
        assert told(first.result()[1]["decision"]) == told(equal.result()[1]["decision"]) == PLACES
        crops = Held(server, 1)
        urgent = threads.submit(asked_first, server, body)
        until(lambda: len(crops.held) == 1)
        status, answer = post(server, body)
        assert (status, answer["error"]) == (
            503,
            "overloaded: requests of higher priority took all the time; retry later",
        )
        crops.ask()
        assert told(urgent.result()) == PLACES


def test_pictures_that_wait_for_memory_keep_no_other_at_the_door(line: str) -> None:
    """With 24 large pictures of another client, small ones took 200 ms in place of 5."""
    body = png(squares(PLACES))
    with ServerThread(*settings_of([f"plates={line}"], models=PATIENT).models) as server:
        deciding, answers = one_at_once(server), list[Any]()
        assert post(server, body)[0] == 200
        query = Query("plates", "1", "", {RAW: np.array([body], object)})
        crops = Held(server, 1)
        waiting = server.call(lambda: deciding.submit(query, answers.append))
        until(lambda: bool(crops.held))
        line_of = server.call(lambda: deciding._counts.lines[waiting.level])
        assert line_of.begun == 1
        waiting.asked_rows = dict.fromkeys(waiting.asked_rows, 0)  # as before it has asked anything
        server.call(lambda: deciding._waits(waiting))
        assert (line_of.begun, set(line_of.left.values())) == (0, {0.0})
        assert post(server, body)[0] == 200
        crops.ask()
        until(lambda: bool(answers))
        assert isinstance(answers[0], Answer)
        assert not server.call(lambda: deciding._counts.lines)


def test_a_named_clients_picture_goes_before_its_own_of_lower_priority(line: str) -> None:
    with ServerThread(*settings_of([f"plates={line}"], models=HARDLY).models) as server:
        assert post(server, png(squares(PLACES)))[0] == 200
        crops, answers = Held(server, 1), list[Any]()
        deciding: Any = server.server.state.repository.find("plates").deciding
        inputs = {RAW: np.array([png(squares(PLACES))], object)}

        def ask(priority: int) -> None:
            query = Query("plates", "1", "", inputs, priority=priority, client="ann", name="ann")
            server.call(lambda: deciding.submit(query, answers.append))

        ask(5)
        until(lambda: bool(crops.held))
        with pytest.raises(ProtocolError, match="for the chain's models"):
            ask(5)
        ask(4)
        until(lambda: len(answers) == 1)
        crops.ask()
        until(lambda: len(answers) == 2)
        assert all(isinstance(each, Answer) for each in answers)


def test_a_picture_is_accepted_as_fast_behind_many_others(line: str) -> None:
    """Behind a thousand each one took two milliseconds of the loop's thread, also those that were refused."""
    with ServerThread(*settings_of([f"plates={line}"], models=PATIENT).models) as server:
        deciding: Any = server.server.state.repository.find("plates").deciding
        query = Query("plates", "1", "", {RAW: np.array([png(squares(PLACES))], object)})
        steps = [0]

        def count(*_: Any) -> None:
            steps[-1] += 1

        def ask_many() -> None:
            before, tickets = sys.getprofile(), []
            sys.setprofile(count)
            for _ in range(500):
                steps.append(0)
                tickets.append(deciding.submit(query, lambda _: None))
            sys.setprofile(before)
            for each in tickets:
                each.cancel()
            assert not deciding._counts.lines

        server.call(ask_many)
        assert max(steps[-10:]) < 2 * max(steps[1:10])
        assert told(post(server, png(squares(PLACES)))[1]["decision"]) == PLACES
        until(lambda: not server.call(lambda: deciding._counts.lines))


def test_a_picture_is_not_refused_for_a_model_that_pictures_do_not_ask(tmp_path: Path) -> None:
    slow = chains.classifier(tmp_path, evidence=with_curve({1: 500.0}))
    line = f"plates={chains.detector(tmp_path)}+crop+{slow}"
    with ServerThread(*settings_of([line], models=HARDLY).models) as server:
        assert post(server, png(squares({})))[1]["decision"] == []  # it has nothing to classify
        scheduler = server.server.state.repository.find("plates.colour")._batching.scheduler
        busy = BatchRun[Any]([], 1)
        server.call(lambda: scheduler.begun(busy, time.perf_counter_ns() + 3600 * 10**9))
        assert scheduler.wait_ns(time.perf_counter_ns()) > 1e9
        assert post(server, png(squares({})))[1].get("decision") == []


def test_a_client_that_goes_away_is_given_up_and_others_are_answered(server: ServerThread) -> None:
    chain = server.server.state.repository.find("plates")
    before, refused = chain.statistics.cancel.count, dict(chain.statistics.refusals)
    answers: list[Any] = []

    def come_and_go() -> None:
        sample = np.array([png(squares(PLACES))], object)
        now_ns = time.perf_counter_ns()
        query = Query("plates", "1", "", {RAW: sample}, arrived_ns=now_ns, parsed_ns=now_ns)
        chain.accept(query, answers.append).cancel()

    for _ in range(5):
        server.call(come_and_go)
    until(lambda: chain.idle)
    assert chain.statistics.cancel.count == before + 5
    assert chain.statistics.refusals == refused
    assert told(post(server, png(squares(PLACES)))[1]["decision"]) == PLACES
    assert answers == []


def test_a_model_of_the_chain_that_is_unloaded_is_named_and_its_return_is_noticed(
    line: str,
) -> None:
    places = settings_of([f"plates={line}"]).models
    with ServerThread(*places) as server:
        repository = server.server.state.repository
        (colour,) = repository.registered("plates.colour")
        server.call(lambda: repository.unload(colour))
        status, answer = post(server, png(squares(PLACES)))
        assert (status, answer["error"]) == (
            503,
            "colour: the model 'plates.colour' isn't ready: unloaded",
        )
        assert post(server, png(squares({})))[1]["decision"] == []
        server.call(lambda: repository.load(colour))
        server.call(repository.reload_changed)
        assert told(post(server, png(squares(PLACES)))[1]["decision"]) == PLACES


def test_a_request_at_a_model_that_is_unloaded_meanwhile_is_answered(tmp_path: Path) -> None:
    det = chains.detector(tmp_path)
    colour = chains.classifier(tmp_path, evidence=with_curve({1: 500.0}))  # it runs on a thread
    places = settings_of([f"plates={det}+crop+{colour}"], models=PATIENT).models
    with ServerThread(*places) as server, ThreadPoolExecutor(2) as threads:
        repository = server.server.state.repository
        (member,) = repository.registered("plates.colour")
        begun, go_on = threading.Event(), threading.Event()
        (engine,) = repository.find("plates.colour")._batching._threads
        runs = engine._model

        def held(inputs: Any) -> Any:
            begun.set()
            assert go_on.wait(PATIENCE_S)
            return runs(inputs)

        engine._model = held
        under_way = threads.submit(post, server, png(squares(PLACES)))
        assert begun.wait(PATIENCE_S)
        unloading = threads.submit(server.call, lambda: repository.unload(member))
        until(lambda: member.state == "UNLOADING")
        go_on.set()
        status, answer = under_way.result()
        assert (status, told(answer["decision"])) == (200, PLACES)
        unloading.result()


def replaced(path: Path, new: Path) -> None:
    """Put a bundle in another's place, which is kept beside it."""
    path.rename(path.with_suffix(".old"))
    new.rename(path)


@pytest.mark.parametrize("unloaded", [False, True], ids=["swapped", "unloaded and loaded"])
def test_a_chain_answers_with_the_steps_of_the_bundle_that_a_client_loaded(
    tmp_path: Path, unloaded: bool
) -> None:
    """Here the new bundle names its classes in another order, and its pictures are prepared otherwise."""
    det, colour = chains.detector(tmp_path), chains.classifier(tmp_path)
    (tmp_path / "new").mkdir()
    labels = COLOURS[::-1]
    new = chains.classifier(tmp_path / "new", after=(TopK(labels=labels),))
    forge(new, lambda record: record["pipeline"]["steps"][2].update(mean=[0.0, 0.0, -3.0]))
    body = png(squares(PLACES))
    with ServerThread(*settings_of([f"plates={det}+crop+{colour}"]).models, control=True) as server:
        client = triton_http.InferenceServerClient(server.host, network_timeout=PATIENCE_S)
        assert told(post(server, body)[1]["decision"]) == PLACES
        if unloaded:
            client.unload_model("plates.colour")
        replaced(colour, new)
        client.load_model("plates.colour")
        found = told(post(server, body)[1]["decision"])
        client.close()
    with hasten.chain(f"{det}+crop+{colour}") as chain:
        assert found == told(chain.decide(body))
    assert found != PLACES


def test_a_bundle_that_no_chain_can_be_made_with_takes_no_models_place(tmp_path: Path) -> None:
    det, colour = chains.detector(tmp_path), chains.classifier(tmp_path)
    (tmp_path / "new").mkdir()
    body = png(squares(PLACES))
    with ServerThread(*settings_of([f"plates={det}+crop+{colour}"]).models, control=True) as server:
        client = triton_http.InferenceServerClient(server.host, network_timeout=PATIENCE_S)
        before = server.server.state.repository.find("plates.det")
        replaced(det, chains.detector(tmp_path / "new", after=()))
        with pytest.raises(InferenceServerException) as caught:
            client.load_model("plates.det")
        assert str(caught.value) == (
            f"[400] can't load 'plates.det': {det} doesn't fit the chain 'plates': crop needs boxes, but det "
            "returns its raw outputs: make its bundle with steps after the model; unload the chain "
            "first, or give another bundle"
        )
        assert server.server.state.repository.find("plates.det") is before
        assert told(post(server, body)[1]["decision"]) == PLACES
        client.unload_model("plates.colour")
        (tmp_path / "other").mkdir()
        other = chains.detector(tmp_path / "other", after=(GivenBoxes(labels=("it",), least=0.5),))
        det.rename(tmp_path / "refused.hasten")
        other.rename(det)
        with pytest.raises(
            InferenceServerException,
            match=r"the model 'plates.colour' isn't ready: unloaded; unload",
        ):
            client.load_model("plates.det")
        client.unload_model("plates")
        for name in ("det", "colour"):
            client.load_model(f"plates.{name}")
        client.load_model("plates")
        client.close()
        assert told(post(server, body)[1]["decision"]) == PLACES


def test_a_request_under_way_ends_with_the_model_that_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_LOOKS", 1)  # else each run of the warm-up waits for the request
    det, colour = chains.detector(tmp_path), chains.classifier(tmp_path)
    (tmp_path / "new").mkdir()
    turned, labels = np.eye(3)[[1, 2, 0]], COLOURS[::-1]
    new = chains.classifier(tmp_path / "new", winner=turned, after=(TopK(labels=labels),))
    body = png(squares(PLACES))
    places = settings_of([f"plates={det}+crop+{colour}"]).models
    with ServerThread(*places) as server, ThreadPoolExecutor(2) as threads:
        repository = server.server.state.repository
        (member,) = repository.registered("plates.colour")
        deciding: Any = repository.find("plates").deciding
        asks, held = deciding._ask, []

        def ask_later(ticket: Any, result: Any) -> None:
            """Ask the detector at once, and the classifier when the test says so."""
            if getattr(result, "model", "") == "colour":
                held.append((ticket, result))
            else:
                asks(ticket, result)

        deciding._ask = ask_later
        under_way = threads.submit(post, server, body)
        until(lambda: bool(held))
        before = repository.find("plates.colour")
        replaced(colour, new)
        loading = threads.submit(server.call, lambda: repository.load(member))
        until(lambda: repository.find("plates.colour") is not before)
        after = told(post(server, body)[1]["decision"])
        server.call(lambda: asks(*held[0]))
        assert told(under_way.result()[1]["decision"]) == PLACES
        loading.result()
    with hasten.chain(f"{det}+crop+{colour}") as chain:
        assert after == told(chain.decide(body)) != PLACES


def test_a_request_under_way_ends_with_both_models_that_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the second is replaced while the request waits to be asked about by the first."""
    monkeypatch.setattr(pace, "_LOOKS", 1)  # else each run of the warm-up waits for the request
    det, colour = chains.detector(tmp_path), chains.classifier(tmp_path)
    for name in ("new", "newer"):
        (tmp_path / name).mkdir()
    turned, labels = np.eye(3)[[1, 2, 0]], COLOURS[::-1]
    new = chains.classifier(tmp_path / "new", winner=turned, after=(TopK(labels=labels),))
    newer = chains.detector(tmp_path / "newer", after=(GivenBoxes(labels=("it",), least=1.0),))
    body = png(squares(PLACES))
    places = settings_of([f"plates={det}+crop+{colour}"]).models
    with ServerThread(*places) as server, ThreadPoolExecutor(3) as threads:
        repository = server.server.state.repository
        deciding: Any = repository.find("plates").deciding
        asks, held = deciding._ask, []

        def ask_later(ticket: Any, result: Any) -> None:
            """Ask both models when the test says so."""
            held.append((ticket, result))

        deciding._ask = ask_later
        under_way = threads.submit(post, server, body)
        until(lambda: bool(held))
        loading = []
        for name, path, bundle in (("plates.det", det, newer), ("plates.colour", colour, new)):
            (member,) = repository.registered(name)
            before = repository.find(name)
            replaced(path, bundle)
            loading.append(threads.submit(server.call, lambda one=member: repository.load(one)))
            until(lambda one=name, old=before: repository.find(one) is not old)  # type: ignore[misc]
        assert told(post(server, body)[1]["decision"]) == {}
        deciding._ask = asks
        server.call(lambda: asks(*held[0]))
        assert told(under_way.result()[1]["decision"]) == PLACES
        for each in loading:
            each.result()


def test_the_chains_own_certificate_is_shown_until_one_of_its_models_is_replaced(
    tmp_path: Path,
) -> None:
    record: dict[str, list[str]] = {"hashes": [], "seen": [], "groups": []}
    det, colour = (
        make(tmp_path, evidence={"sealed.json": record})
        for make in (chains.detector, chains.classifier)
    )
    line, pictures = f"{det}+crop+{colour}", tmp_path / "pictures"
    pictures.mkdir()
    for number in range(60):
        (pictures / f"{number}.png").write_bytes(
            png(squares({(number % 8, number // 8): "red", (7, 7): COLOURS[number % 3]}))
        )

    def shown(server: ServerThread) -> tuple[str, str]:
        said = get(server, "/v2/models/plates/config")["parameters"]
        assert "certified_batch_sizes" not in said
        return said["status"]["string_value"], said["why"]["string_value"]

    with ServerThread(*settings_of([f"plates={line}"]).models) as server:
        repository = server.server.state.repository
        assert shown(server)[0] == "uncertified"
        before = repository.find("plates")
        hasten.certify(line, pictures, max_drop=0.05).keep()
        server.call(repository.reload_changed)
        assert repository.find("plates") is before  # its bundles haven't changed
        assert shown(server) == (
            "certified",
            "95% confident that at most 5% of answers change (n=60: 0 changed)",
        )
        assert told(post(server, png(squares(PLACES)))[1]["decision"]) == PLACES

        repository.find("plates.colour").fell_back = True  # as after NaN in an answer
        status, why = shown(server)
        assert status == "uncertified"
        assert why.endswith("; not certified now: the exact model of colour answers")
        repository.find("plates.colour").fell_back = False
        assert shown(server)[0] == "certified"

        (tmp_path / "new").mkdir()
        other = chains.classifier(tmp_path / "new", winner=2 * np.eye(3))
        colour.rename(tmp_path / "old.hasten")
        other.rename(colour)
        (member,) = repository.registered("plates.colour")
        server.call(lambda: repository.load(member))
        status, why = shown(server)
        assert status == "uncertified"
        assert why.endswith("; its certificate is of another chain: colour changed since")
    colour.rename(tmp_path / "replaced.hasten")
    (tmp_path / "old.hasten").rename(colour)
    for any_batch, expected in ((False, "certified"), (True, "uncertified")):
        models = settings_of([f"plates={line}"], models=ModelOptions(any_batch=any_batch)).models
        with ServerThread(*models) as server:
            assert shown(server)[0] == expected


def test_a_server_is_told_its_chains_by_a_record(line: str) -> None:
    settings = settings_of([f"plates:2={line}"])
    assert from_record(ServerSettings, json.loads(json.dumps(to_record(settings)))) == settings
    assert [(one.name, one.version) for one in settings.models] == [
        ("plates.colour", "2"),
        ("plates.det", "2"),
        ("plates", "2"),
    ]


def test_chains_that_can_not_be_served_are_refused(line: str, tmp_path: Path) -> None:
    for asked, words in (
        ([line], f"{line!r}: a chain needs a name: write NAME={line}"),
        ([f"a={line}", f"a={line}"], "version 1 of 'a' is given twice"),
        ([f"a={tmp_path / 'none.yaml'}"], f"no such file: {tmp_path / 'none.yaml'}"),
    ):
        with pytest.raises(InputError) as error:
            settings_of(asked)
        assert str(error.value) == words
    with pytest.raises(InputError, match="a chain can't be written for KServe"):
        write_kserve(tmp_path / "kserve", settings_of([f"plates={line}"]))
