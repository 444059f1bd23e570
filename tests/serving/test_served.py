"""What a model's clients rely on, through a real client of the protocol and a real server."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import http.client
import json
import queue
import shutil
import socket
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tritonclient.http as triton
from tests.support import models as own_models
from tests.support.bundles import forge
from tests.support.pausing import RAN, RELEASE, Pausing, pausing_installed
from tests.support.servers import ServerThread, bundle_of, place_of, with_curve
from tests.support.waiting import until
from tritonclient.utils import InferenceServerException

from hasten.core.objects import import_path
from hasten.core.registry import Registry
from hasten.core.target import Target
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.litert.reference import LiteRtReference
from hasten.engines.null import Null, NullSession
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import InputError
from hasten.serving.facts import repository_index
from hasten.serving.models.repository import Repository
from hasten.serving.models.statistics import Statistics
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.requests import Query
from hasten.testing import models

PATIENCE_S = 120.0
HELD = [60_000, 0, 0, 0]
"""To a pausing engine, a minute, or until `RELEASE` is set."""


class _Simulated(NullSession):
    def properties(self) -> dict[str, str]:
        return {"answers": "the RTL, by Verilator 5"}


@dataclass(frozen=True)
class Design(Null):
    """As an FPGA's design is opened: what answers says so."""

    families: ClassVar[frozenset[str]] = frozenset({"fpga"})

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        yield _Simulated(artifact)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `solid`, `guarded` (fragile, exactly solid), and three that pause: `slow`, `known`,
    which is known to be slow: by its curve, and this machine can't be so much faster, and `even`,
    whose batches take the same whatever their size, by its curve."""
    folder = tmp_path_factory.mktemp("served")
    solid = own_models.solid(folder)
    bundle_of(folder, solid)
    bundle_of(folder, own_models.fragile(folder), "guarded", exact=solid)
    bundle_of(folder, own_models.fragile(folder), "unguarded")
    bundle_of(folder, solid, "slow", engine=Pausing(), extra=with_curve({1: 1000.0}))
    bundle_of(folder, solid, "known", engine=Pausing(), extra=with_curve({1: 60_000.0}))
    bundle_of(folder, solid, "even", engine=Pausing(), extra=with_curve({1: 1000.0, 8: 1000.0}))
    return folder


@pytest.fixture(scope="module", autouse=True)
def pausing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pausing_installed(tmp_path_factory.mktemp("plug-in")):
        yield


@pytest.fixture(autouse=True)
def pauses_last() -> Iterator[None]:
    """Let pauses last until a test sets `RELEASE`."""
    yield
    RELEASE.clear()


def infer(server: ServerThread, model: str, row: Any, **options: Any) -> triton.InferResult:
    client = triton.InferenceServerClient(server.host, connection_timeout=PATIENCE_S)
    rows = np.atleast_2d(np.asarray(row, np.float32))
    tensor = triton.InferInput("x", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    try:
        return client.infer(model, [tensor], **options)
    finally:
        client.close()


def answer(server: ServerThread, model: str, row: Any, **options: Any) -> Any:
    return infer(server, model, row, **options).as_numpy("y").tolist()


def served(server: ServerThread, name: str) -> Any:
    return server.server.state.repository.find(name)


@pytest.fixture
def slow_server(bundles: Path) -> Iterator[ServerThread]:
    place = place_of(bundles / "slow.hasten", most_rows=1, most_wait_ns=60 * 10**9)
    with ServerThread(place) as server:
        yield server


def busy(server: ServerThread, name: str = "slow") -> bool:
    return server.call(lambda: len(served(server, name)._batching.scheduler._running)) == 1


def test_a_nan_is_answered_by_the_exact_model_and_so_is_all_after_it(bundles: Path) -> None:
    with ServerThread(place_of(bundles / "guarded.hasten")) as server:
        assert answer(server, "guarded", [1, 2, 3, 4]) == [[1, 2, 3, 4]]
        assert served(server, "guarded").answers == "winner"
        assert answer(server, "guarded", [1, 2, 3, 100]) == [[1, 2, 3, 100]]
        assert served(server, "guarded").answers == "exact"
        assert answer(server, "guarded", [5, 6, 7, 8]) == [[5, 6, 7, 8]]
        assert served(server, "guarded").statistics.replaced == 2


@pytest.mark.parametrize("standby", [True, False])
@pytest.mark.parametrize("large", [2**24 + 1, 2**33])
def test_a_number_that_an_engine_cannot_take_is_the_requests_fault(
    tmp_path: Path, standby: bool, large: int
) -> None:
    """OpenVINO computes Mod in float32; the exact model on ONNX Runtime takes 64 bits."""
    text = (
        "hashed (int64[n, 1] ids) => (int64[n, 1] y) <int64 seven = {7}> { y = Mod (ids, seven) }"
    )
    file = models.write(tmp_path / "hashed.onnx", text, {})
    bundle = bundle_of(tmp_path, file, engine=OpenVino(threads=1), exact=file)
    place = place_of(bundle, standby=standby)
    with ServerThread(place) as server, triton.InferenceServerClient(server.host) as client:

        def rest(number: int) -> Any:
            tensor = triton.InferInput("ids", [1, 1], "INT64")
            tensor.set_data_from_numpy(np.array([[number]]))
            return client.infer("hashed", [tensor]).as_numpy("y").item()

        assert rest(9) == 2
        if standby:
            assert rest(large) == large % 7
        else:
            wanted = rf"float32.*'ids' has {large}: give numbers from -16777216 to 16777216"
            with pytest.raises(InferenceServerException, match=wanted) as refused:
                rest(large)
            assert refused.value.status() == "400"
        assert rest(10) == 3
        assert served(server, "hashed").answers == "winner"
        assert served(server, "hashed").statistics.replaced == int(standby)


def test_nan_that_openvino_would_lose_is_answered_by_the_exact_model(tmp_path: Path) -> None:
    text = "rectified (float[n, 2] x) => (float[n, 2] y) { y = Relu (x) }"
    file = models.write(tmp_path / "rectified.onnx", text, {})
    bundle = bundle_of(tmp_path, file, engine=OpenVino(threads=1), exact=file)
    with ServerThread(place_of(bundle)) as server:
        (row,) = answer(server, "rectified", [np.nan, 3])
        assert np.isnan(row[0])
        assert answer(server, "rectified", [-1, 2]) == [[0, 2]]
        assert served(server, "rectified").answers == "winner"


def test_a_nan_that_was_asked_in_is_nobodys_fault(bundles: Path) -> None:
    with ServerThread(place_of(bundles / "guarded.hasten")) as server:
        (row,) = answer(server, "guarded", [1, 2, 3, np.nan])
        assert row[:3] == [1, 2, 3]
        assert np.isnan(row[3])
        assert served(server, "guarded").answers == "winner"


def test_batches_are_of_certified_sizes_unless_others_are_asked_for(bundles: Path) -> None:
    told = (
        "batches of up to 32 are formed, but only these batch sizes are certified: 1; leave out "
        "--any-batch to form only these"
    )
    rows = [[number, 2, 3, 4] for number in range(5)]
    for any_batch, sizes in ((False, (1,)), (True, (1, 2, 3, 4, 6, 8, 12, 16, 24, 32))):
        with ServerThread(place_of(bundles / "guarded.hasten", any_batch=any_batch)) as server:
            model = served(server, "guarded")
            assert (told in model.opened.notes) == any_batch
            assert (model.opened.sizes, model.most_rows) == (sizes, 32)
            assert answer(server, "guarded", rows) == rows
            client = triton.InferenceServerClient(server.host)
            parameters = client.get_model_config("guarded")["parameters"]
            client.close()
            said = parameters["certified_batch_sizes"]["string_value"]
            assert said.startswith("1; not certified at 2, 3, 4," if any_batch else "1")


@pytest.mark.parametrize(
    ("device", "engine", "instead"),
    [
        ("litert", LiteRtReference(), "what the engine litert_reference has for this host"),
        ("fpga:ecp5-85k", Design(), "the RTL, by Verilator 5"),
        ("tpu:v5e", OnnxRuntime(threads=1), ""),  # the original, for this host
    ],
)
def test_a_device_that_is_not_here_is_told_of_with_what_answers_instead(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    device: str,
    engine: Engine,
    instead: str,
) -> None:
    known = {**Engine.registry, "fpga": import_path(Design)}
    monkeypatch.setattr(Engine, "registry", Registry("engine", "hasten.engines", known))
    path = bundle_of(tmp_path, own_models.solid(tmp_path), engine=engine)
    elsewhere = {"kind": "compile-only", "device": device}
    forge(path, lambda record: record["target"].update(elsewhere))
    with caplog.at_level("WARNING", "hasten.serving"), ServerThread(place_of(path)) as server:
        answer(server, "solid", [[1, 2, 3, 4]])
        client = triton.InferenceServerClient(server.host)
        parameters = client.get_model_config("solid")["parameters"]
        client.close()
        notes = served(server, "solid").opened.notes
    said = f"{device} isn't available; {instead} answers in its place"
    assert [note for note in notes if "isn't available" in note] == ([said] if instead else [])
    assert [m for m in caplog.messages if "isn't available" in m] == ([said] if instead else [])
    assert parameters.get("device") == ({"string_value": said} if instead else None)


def test_a_row_that_was_asked_in_no_numbers_hides_no_other_rows_nan(bundles: Path) -> None:
    with ServerThread(place_of(bundles / "guarded.hasten")) as server:
        first, second = answer(server, "guarded", [[np.nan, 2, 3, 4], [1, 2, 3, 100]])
        assert np.isnan(first[0])
        assert second == [1, 2, 3, 100]
        assert served(server, "guarded").answers == "exact"


def test_without_another_exact_model_a_nan_is_the_answer(bundles: Path) -> None:
    with ServerThread(place_of(bundles / "unguarded.hasten")) as server:
        assert np.isnan(answer(server, "unguarded", [1, 2, 3, 100])[0][3])


def test_a_shadow_finds_where_the_exact_model_disagrees(tmp_path: Path) -> None:
    """The winner here is another model altogether: what it answers is wrong for one in two."""
    solid = own_models.solid(tmp_path)
    other = own_models.mirrored(tmp_path)
    path = bundle_of(tmp_path, other, "strange", exact=solid)
    with ServerThread(place_of(path, shadow=1.0)) as server:
        statistics = served(server, "strange").statistics
        for number in range(20):
            row = [1, 0, 0, 2] if number % 2 else [3, 1, 1, 3]  # mirrored, the first changes
            answer(server, "strange", row)
            until(functools.partial(_shadowed, statistics, number + 1))
        assert statistics.disagreed == 10


class Uncopied(np.ndarray):
    """Array for whose copy there is no memory."""

    def copy(self, order: Any = "C") -> Any:
        raise MemoryError


def test_an_answer_that_memory_lacks_to_copy_is_left_out_of_the_comparison(tmp_path: Path) -> None:
    solid, other = own_models.solid(tmp_path), own_models.mirrored(tmp_path)
    path = bundle_of(tmp_path, other, "strange", exact=solid)
    with ServerThread(place_of(path, shadow=1.0)) as server:
        model = served(server, "strange")
        shadow: Any = model._shadow
        row = np.ones((1, 4), np.float32)
        server.call(lambda: shadow.look({"x": row.view(Uncopied)}, {"y": row}, "", 0, 0))
        answer(server, "strange", [1, 2, 3, 4])
        until(functools.partial(_shadowed, model.statistics, 1))


def _shadowed(statistics: Statistics, count: int) -> bool:
    return statistics.shadowed == count


def test_equal_requests_are_answered_out_of_the_cache(bundles: Path) -> None:
    with ServerThread(place_of(bundles / "solid.hasten", cache_bytes=1 << 20)) as server:
        for _ in range(3):
            assert answer(server, "solid", [1, 2, 3, 4]) == [[1, 2, 3, 4]]
        assert answer(server, "solid", [4, 3, 2, 1]) == [[4, 3, 2, 1]]
        statistics = served(server, "solid").statistics
        assert (statistics.cache_hit.count, statistics.cache_miss.count) == (2, 2)
        until(lambda: statistics.executions == 2)  # an answer is sent before its run is counted


def test_the_cache_keeps_no_more_than_it_may(bundles: Path) -> None:
    most_bytes = 3 * (512 + 16)
    with ServerThread(place_of(bundles / "solid.hasten", cache_bytes=most_bytes)) as server:
        for number in range(10):
            answer(server, "solid", [number] * 4)
        cache = served(server, "solid").cache
        assert cache is not None
        assert (len(cache), cache.size_bytes) == (3, most_bytes)
        statistics = served(server, "solid").statistics
        answer(server, "solid", [9] * 4)
        until(lambda: statistics.executions == 10)
        answer(server, "solid", [0] * 4)
        until(lambda: statistics.executions == 11)
        assert statistics.cache_miss.count == 11


def test_equal_requests_at_the_same_time_run_once(bundles: Path) -> None:
    place = place_of(
        bundles / "slow.hasten", cache_bytes=1 << 20, most_rows=1, most_wait_ns=60 * 10**9
    )
    with ServerThread(place) as server, concurrent.futures.ThreadPoolExecutor(8) as threads:
        statistics = served(server, "slow").statistics
        calls = [threads.submit(answer, server, "slow", HELD) for _ in range(8)]
        until(lambda: statistics.cache_hit.count == 7)
        RELEASE.set()
        assert [call.result() for call in calls] == [[HELD]] * 8
        assert statistics.executions == 1
        assert (statistics.cache_hit.count, statistics.cache_miss.count) == (7, 1)


def test_who_asked_the_same_is_answered_though_the_first_goes_away(bundles: Path) -> None:
    place = place_of(
        bundles / "slow.hasten", cache_bytes=1 << 20, most_rows=1, most_wait_ns=60 * 10**9
    )
    with ServerThread(place) as server, concurrent.futures.ThreadPoolExecutor(8) as threads:
        blocker = threads.submit(answer, server, "slow", HELD)
        until(lambda: busy(server))
        first = raw_request(server, [1, 2, 3, 4])
        until(lambda: served(server, "slow").statistics.cache_miss.count == 2)
        second = threads.submit(answer, server, "slow", [1, 2, 3, 4])
        until(lambda: served(server, "slow").statistics.cache_hit.count == 1)
        first.close()
        until(lambda: served(server, "slow").statistics.cancel.count == 1)
        RELEASE.set()
        assert second.result() == [[1, 2, 3, 4]]
        blocker.result()
        assert served(server, "slow").statistics.executions == 2


def test_who_waits_for_an_equal_request_takes_it_to_its_own_place(bundles: Path) -> None:
    place = place_of(
        bundles / "slow.hasten", cache_bytes=1 << 20, most_rows=1, most_wait_ns=60 * 10**9
    )

    def ask(row: list[int], priority: int) -> concurrent.futures.Future[Any]:
        return threads.submit(answer, server, "slow", row, priority=priority)

    with ServerThread(place) as server, concurrent.futures.ThreadPoolExecutor(8) as threads:
        statistics = served(server, "slow").statistics
        calls = [ask(HELD, 2)]
        until(lambda: busy(server))
        calls.append(ask([8, 8, 8, 8], 2))
        until(lambda: statistics.cache_miss.count == 2)
        calls.append(ask([1, 2, 3, 4], 2))
        until(lambda: statistics.cache_miss.count == 3)
        calls.append(ask([1, 2, 3, 4], 1))  # urgent
        until(lambda: statistics.cache_hit.count == 1)
        RELEASE.set()
        for call in calls:
            call.result()
    assert RAN[-3:] == [HELD, [1, 2, 3, 4], [8, 8, 8, 8]]


def raw_request(
    server: ServerThread, row: Sequence[float] = HELD, model: str = "slow"
) -> socket.socket:
    """Ask for a row, and don't wait."""
    connection = socket.create_connection(("127.0.0.1", server.http_port))
    body = np.array(row, np.float32).tobytes()
    connection.sendall(
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: here\r\n".encode()
        + b"Content-Length: 16\r\nInference-Header-Content-Length: 0\r\n\r\n"
        + body
    )
    return connection


def test_what_a_client_that_went_away_asked_is_not_computed(slow_server: ServerThread) -> None:
    statistics = served(slow_server, "slow").statistics
    connections = [raw_request(slow_server) for _ in range(4)]
    until(lambda: slow_server.call(lambda: served(slow_server, "slow").queued_rows) == 3)
    for connection in connections[1:]:
        connection.close()
    until(lambda: statistics.cancel.count == 3)
    assert slow_server.call(lambda: served(slow_server, "slow").queued_rows) == 0
    RELEASE.set()
    assert connections[0].recv(100).startswith(b"HTTP/1.1 200 OK")
    connections[0].close()
    assert statistics.executions == 1


def test_a_client_that_closes_its_half_while_it_waits_counts_as_gone(
    slow_server: ServerThread,
) -> None:
    statistics = served(slow_server, "slow").statistics
    connection = raw_request(slow_server)
    until(lambda: busy(slow_server))
    connection.shutdown(socket.SHUT_WR)
    until(lambda: statistics.cancel.count == 1)
    assert connection.recv(100) == b""
    connection.close()
    RELEASE.set()
    assert answer(slow_server, "slow", [1, 2, 3, 4])


def test_a_deadline_holds_while_another_batch_runs(slow_server: ServerThread) -> None:
    """It was thought to be in time: the batch before it takes longer than such batches do."""
    model = served(slow_server, "slow")
    connection = raw_request(slow_server)
    until(lambda: busy(slow_server))

    def mistake() -> None:
        model.opened.latencies._factor = model.opened.latencies._tail = 1e-6
        for running in model._batching.scheduler._running.values():
            running.end_ns = 0

    slow_server.call(mistake)
    with pytest.raises(InferenceServerException, match="the deadline passed in the queue"):
        infer(slow_server, "slow", [1, 2, 3, 4], timeout=2_000_000)
    assert busy(slow_server)
    RELEASE.set()
    assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
    connection.close()
    assert model.statistics.refusals == {"LATE": 1}


def test_a_request_that_cant_be_in_time_is_refused_at_once(bundles: Path) -> None:
    value = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}],
        "parameters": {"timeout": 30_000},
    }
    place = place_of(bundles / "known.hasten", most_rows=1, most_wait_ns=60 * 10**9)
    with ServerThread(place) as server:
        client = http.client.HTTPConnection("127.0.0.1", server.http_port)
        client.request("POST", "/v2/models/known/infer", json.dumps(value))
        response = client.getresponse()
        assert (response.status, int(response.headers["Retry-After"]) >= 1) == (503, True)
        assert "can't answer in time: " in json.loads(response.read())["error"]
        client.close()
        assert served(server, "known").statistics.executions == 0


def test_the_queue_is_bounded_by_the_wait(bundles: Path) -> None:
    place = place_of(bundles / "known.hasten", most_rows=1, most_wait_ns=1)
    with ServerThread(place) as server:
        connection = raw_request(server, model="known")
        until(lambda: busy(server, "known"))
        with pytest.raises(InferenceServerException, match="overloaded: the request would wait"):
            infer(server, "known", [1, 2, 3, 4])
        RELEASE.set()
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
        connection.close()


def test_the_urgent_go_first(slow_server: ServerThread) -> None:
    patient, urgent = [1, 2, 3, 4], [0, 2, 3, 4]
    with concurrent.futures.ThreadPoolExecutor(3) as threads:

        def ask(row: list[int], priority: int) -> concurrent.futures.Future[Any]:
            return threads.submit(answer, slow_server, "slow", row, priority=priority)

        calls = [ask(HELD, 2)]
        until(lambda: busy(slow_server))
        calls.append(ask(patient, 2))
        until(lambda: slow_server.call(lambda: served(slow_server, "slow").queued_rows) == 1)
        calls.append(ask(urgent, 1))
        until(lambda: slow_server.call(lambda: served(slow_server, "slow").queued_rows) == 2)
        RELEASE.set()
        for call in calls:
            call.result()
    assert RAN[-3:] == [HELD, urgent, patient]


def test_requests_that_come_together_share_a_batch_and_get_their_own_rows(bundles: Path) -> None:
    rows = [[0, n, n + 1, n + 2] for n in range(8)]
    with ServerThread(place_of(bundles / "even.hasten", most_rows=8)) as server:
        model = served(server, "even")
        before = model.statistics.executions
        with concurrent.futures.ThreadPoolExecutor(9) as threads:
            blocker = threads.submit(answer, server, "even", HELD)
            until(lambda: busy(server, "even"))
            calls = [threads.submit(answer, server, "even", row) for row in rows]
            until(lambda: server.call(lambda: model.queued_rows) == 8)
            RELEASE.set()
            assert [call.result() for call in calls] == [[row] for row in rows]
            blocker.result()
        assert model.statistics.executions == before + 2


def test_a_model_whose_answers_depend_on_batch_mates_is_served_one_by_one(tmp_path: Path) -> None:
    path = bundle_of(tmp_path, own_models.sociable(tmp_path))
    with ServerThread(place_of(path)) as server:
        model = served(server, "sociable")
        assert model.opened.sizes == (1,)
        assert model.opened.notes[-1] == (
            "served without batching: in a batch of 2 the answers depend on the batch mates"
        )
        with pytest.raises(InferenceServerException, match="has at most 1 row; got 2"):
            infer(server, "sociable", [[1, 2, 3, 4]] * 2)


def test_a_model_that_draws_random_numbers_is_served_one_by_one_and_why(tmp_path: Path) -> None:
    path = bundle_of(tmp_path, own_models.drawing(tmp_path))
    with ServerThread(place_of(path)) as server:
        model = served(server, "drawing")
        assert model.opened.sizes == (1,)
        assert model.opened.notes[-1] == (
            "served without batching: the model answers the same request differently each time, as one does that "
            "draws random numbers or counts its calls"
        )


def test_a_bundle_is_swapped_under_load_and_no_answer_is_mixed_or_lost(tmp_path: Path) -> None:
    solid = own_models.solid(tmp_path)
    path = bundle_of(tmp_path, solid, "swapped")
    with ServerThread(place_of(path, most_rows=4), control=True) as server:
        stop, answers = [False], []

        def ask() -> None:
            client = triton.InferenceServerClient(server.host)
            rows = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
            tensor = triton.InferInput("x", [2, 4], "FP32")
            tensor.set_data_from_numpy(rows)
            while not stop[0]:
                answers.append(client.infer("swapped", [tensor]).as_numpy("y").tolist())
            client.close()

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            calls = [threads.submit(ask) for _ in range(4)]
            until(lambda: len(answers) > 100)
            bundle_of(tmp_path, own_models.mirrored(tmp_path), "swapped")
            control = triton.InferenceServerClient(server.host, network_timeout=PATIENCE_S)
            control.load_model("swapped")
            control.close()
            seen = len(answers)
            until(lambda: len(answers) > seen + 100)
            stop[0] = True
            for call in calls:
                call.result()  # none raised
        old, new = [[1, 2, 3, 4], [5, 6, 7, 8]], [[4, 3, 2, 1], [8, 7, 6, 5]]
        assert all(each in (old, new) for each in answers)
        assert answers[0] == old
        assert answers[-1] == new
        assert served(server, "swapped").statistics.fail.count == 0


def test_what_cant_take_a_models_place_leaves_it_there(tmp_path: Path) -> None:
    path = bundle_of(tmp_path, own_models.solid(tmp_path), "kept")
    with ServerThread(place_of(path), control=True) as server:
        client = triton.InferenceServerClient(server.host, network_timeout=PATIENCE_S)
        bundle_of(tmp_path, models.linear_classifier(tmp_path), "kept")
        with pytest.raises(InferenceServerException, match="takes and returns x: float32"):
            client.load_model("kept")
        bundle_of(tmp_path, own_models.undefined(tmp_path), "kept")
        with pytest.raises(InferenceServerException, match="answers NaN here, but its exact"):
            client.load_model("kept")
        shutil.rmtree(path)
        with pytest.raises(InferenceServerException, match="can't load 'kept': no bundle at"):
            client.load_model("kept")
        assert answer(server, "kept", [1, 2, 3, 4]) == [[1, 2, 3, 4]]
        assert client.get_model_repository_index() == [
            {"name": "kept", "version": "1", "state": "READY", "reason": ""}
        ]
        client.close()


def test_models_that_are_not_loaded_yet_say_that_they_are_queued(bundles: Path) -> None:
    async def asked() -> tuple[str, list[dict[str, str]]]:
        places = [place_of(bundles / "solid.hasten", name) for name in ("first", "second")]
        repository = Repository([p.registered() for p in places], asyncio.get_running_loop())
        await repository.load(next(iter(repository)))
        with pytest.raises(ProtocolError) as refused:
            repository.find("second")
        told = repository_index(repository, ready=False)
        for one in repository:
            await repository.unload(one)
        return str(refused.value), told

    why, index = asyncio.run(asked())
    queued = "queued: models are loaded one after another, and others are first"
    assert why == f"the model 'second' isn't ready: {queued}"
    assert [(one["name"], one["state"], one["reason"]) for one in index] == [
        ("first", "READY", ""),
        ("second", "UNAVAILABLE", queued),
    ]


def test_a_model_can_be_unloaded_and_loaded_again(bundles: Path) -> None:
    with ServerThread(place_of(bundles / "solid.hasten"), control=True) as server:
        client = triton.InferenceServerClient(server.host, network_timeout=PATIENCE_S)
        client.unload_model("solid")
        assert not client.is_model_ready("solid")
        with pytest.raises(InferenceServerException, match="'solid' isn't ready: unloaded"):
            answer(server, "solid", [1, 2, 3, 4])
        client.load_model("solid")
        assert answer(server, "solid", [1, 2, 3, 4]) == [[1, 2, 3, 4]]
        with pytest.raises(InferenceServerException, match="no bundle is registered as 'other'"):
            client.load_model("other")
        client.close()


def test_more_sessions_than_there_are_threads_are_refused(bundles: Path) -> None:
    with (
        pytest.raises(
            InputError, match=r"1000 parallel sessions were asked for, but .* has threads"
        ),
        ServerThread(place_of(bundles / "solid.hasten", sessions=1000)),
    ):
        pass


def test_nothing_is_loaded_or_registered_unless_a_flag_allows_it(bundles: Path) -> None:
    with ServerThread(place_of(bundles / "solid.hasten")) as server:
        client = triton.InferenceServerClient(server.host)
        for forbidden in (
            functools.partial(client.load_model, "solid"),
            functools.partial(client.unload_model, "solid"),
            functools.partial(client.update_log_settings, {"log_info": False}),
        ):
            with pytest.raises(InferenceServerException, match="start the server with --allow-con"):
                forbidden()
        with pytest.raises(InferenceServerException, match="shared memory is off"):
            client.register_system_shared_memory("r", "/r", 16)
        client.close()


@pytest.mark.parametrize("cached", [False, True], ids=["without a cache", "with one"])
@pytest.mark.parametrize("how", ["its client goes away", "its deadline passes"])
def test_who_leaves_the_queue_frees_its_memory_while_others_wait(
    bundles: Path, how: str, cached: bool
) -> None:
    """Without a collection, and though the queue and the cache look at what has left only later."""

    def leaves(data: float) -> list[weakref.ref[Any]]:
        """Let a request leave; return what must be freed: its tensor, and who gets its answer."""
        array = np.full((1, 4), data, np.float32)
        now_ns = model.clock_ns()
        query = Query("slow", "", "", {"x": array}, arrived_ns=now_ns, raw=[])
        done = functools.partial(told.put)
        kept = [weakref.ref(each) for each in (array, done)]
        if how == "its deadline passes":
            query.timeout_ns = 2 * 10**9
        ticket = server.call(lambda: model.submit(query, done))
        kept += [weakref.ref(each) for each in ticket.inputs.values()]
        if how == "its client goes away":
            server.call(ticket.cancel)
        return kept

    told: queue.SimpleQueue[Any] = queue.SimpleQueue()

    place = place_of(
        bundles / "slow.hasten", cache_bytes=cached << 20, most_rows=1, most_wait_ns=60 * 10**9
    )
    with ServerThread(place) as server, concurrent.futures.ThreadPoolExecutor(2) as threads:
        model = served(server, "slow")
        calls = [threads.submit(answer, server, "slow", HELD)]
        until(lambda: busy(server))
        calls.append(threads.submit(answer, server, "slow", [8, 8, 8, 8]))  # waits from now on
        until(lambda: model.queued_rows == 1)
        kept = [ref for data in (0, 1, 8) for ref in leaves(data)]  # the last waits for its equal's
        if how == "its deadline passes":
            assert all(told.get(timeout=PATIENCE_S).kind is Kind.LATE for _ in range(3))
        until(lambda: server.call(lambda: [ref() for ref in kept if ref() is not None]) == [])
        assert model.queued_rows == 1
        RELEASE.set()
        for call in calls:
            call.result()


def test_a_lone_request_frees_its_memory_at_once(bundles: Path) -> None:
    """Nothing of a request is part of a cycle: memory isn't held until a collection."""
    import gc

    with ServerThread(place_of(bundles / "solid.hasten")) as server:
        answer(server, "solid", [1, 2, 3, 4])

        def tickets() -> int:
            from hasten.serving.models.served import Ticket

            return sum(type(each) is Ticket for each in gc.get_objects())

        gc.collect()  # what earlier tests left in cycles
        gc.disable()
        try:
            for _ in range(50):
                answer(server, "solid", [1, 2, 3, 4])
            until(lambda: server.call(tickets) == 0)  # an engine's thread lets go of its last one
        finally:
            gc.enable()
