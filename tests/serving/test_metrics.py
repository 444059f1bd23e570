"""What Prometheus reads from a real server: names, sums, and both formats."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S, until

from hasten.serving.models.statistics import BOUNDS_NS, STAGES
from hasten.serving.observation import metrics, scrapes
from hasten.serving.observation.scrapes import Scrapes
from hasten.testing import models

DOORS = {"model": "doors", "version": "1"}
TRITON_COUNTERS = {
    *("nv_inference_request_success", "nv_inference_request_failure", "nv_inference_count"),
    *("nv_inference_exec_count", "nv_inference_request_duration_us"),
    *("nv_inference_queue_duration_us", "nv_inference_compute_input_duration_us"),
    *("nv_inference_compute_infer_duration_us", "nv_inference_compute_output_duration_us"),
    *("nv_cache_num_hits_per_model", "nv_cache_num_misses_per_model"),
    *("nv_cache_hit_duration_per_model", "nv_cache_miss_duration_per_model"),
}
OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5"
HOSTILE = 'a"b\\c\n# TYPE nv_x untyped\n'


class Scrape:
    """One answer of /metrics, read by Prometheus' own parser."""

    def __init__(self, text: str, parse: Any = parser.text_string_to_metric_families) -> None:
        self.text = text
        self.families = {family.name: family for family in parse(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float:
        # The parser itself puts "_total" behind counters that have another name.
        names = {name, f"{name}_total"} if name in TRITON_COUNTERS else {name}
        found = [s.value for s in self.samples if s.name in names and s.labels == labels]
        assert len(found) == 1, (name, labels, found)
        return float(found[0])


def ask(server: ServerThread, method: str, path: str, body: Any = None, **headers: str) -> Any:
    connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read().decode()
    finally:
        connection.close()


def scrape(server: ServerThread) -> Scrape:
    status, content_type, text = ask(server, "GET", "/metrics")
    assert (status, content_type.partition(";")[0]) == (200, "text/plain")
    return Scrape(text)


def infer(server: ServerThread, value: float, rows: int = 1, model: str = "doors") -> int:
    tensor = {"name": "x", "shape": [rows, 16], "datatype": "FP32", "data": [value] * 16 * rows}
    return int(ask(server, "POST", f"/v2/models/{model}/infer", {"inputs": [tensor]})[0])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    return bundle_of(folder, models.linear_classifier(folder))


@pytest.fixture
def server(bundle: Path) -> Iterator[ServerThread]:
    with ServerThread(place_of(bundle, "doors", cache_bytes=1 << 20)) as running:
        yield running


def test_what_triton_counts_has_tritons_exact_names_and_types(server: ServerThread) -> None:
    lines = scrape(server).text.splitlines()
    types = dict(line.split()[2:] for line in lines if line.startswith("# TYPE nv_"))
    assert types == {
        **dict.fromkeys(TRITON_COUNTERS, "counter"),
        "nv_inference_pending_request_count": "gauge",
    }
    written = {line.partition("{")[0] for line in lines if line.startswith("nv_")}
    assert written == set(types)


def test_every_metric_has_its_line_on_the_page_with_type_and_labels(bundle: Path) -> None:
    page = Path(__file__, "../../../docs/reference/exported-metrics.md").resolve().read_text()
    rows = re.findall(
        r"^\| `((?:nv|hasten)_\w+)` \| (\w+) \| [^|]+ \| (.*) \|$", page, re.MULTILINE
    )
    place = place_of(bundle, "doors", shadow=1.0, shadow_limit=0.5, monitor_state="off")
    with ServerThread(place) as server:
        families = scrape(server).families
    own = {
        name.removesuffix("_total"): family
        for name, family in families.items()
        if name.startswith(("nv_", "hasten_"))
    }
    assert {name: kind for name, kind, _ in rows} == {name: one.type for name, one in own.items()}
    for name, _, said in rows:
        labels = {label for sample in own[name].samples for label in sample.labels}
        more = labels - {"model", "version", "le"}
        assert {label for label in more if f"`{label}`" not in said} == set(), name


def test_sums_are_of_the_requests_that_were_made(server: ServerThread) -> None:
    before = scrape(server)
    assert before("nv_inference_request_success", **DOORS) == 0
    assert [infer(server, value, rows) for value, rows in ((1, 1), (2, 3), (1, 1))] == [200] * 3
    assert infer(server, 1, rows=1000) == 400
    after = scrape(server)
    assert after("nv_inference_request_success", **DOORS) == 3
    assert after("nv_inference_count", **DOORS) == 5
    assert after("nv_inference_exec_count", **DOORS) == 2
    assert after("nv_inference_pending_request_count", **DOORS) == 0
    assert after("nv_cache_num_hits_per_model", **DOORS) == 1
    assert after("nv_cache_num_misses_per_model", **DOORS) == 2
    reasons = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
    failures = [after("nv_inference_request_failure", **DOORS, reason=each) for each in reasons]
    assert failures == [0, 0, 0, 1]
    assert after("hasten_refusals_total", **DOORS, kind="INVALID") == 1
    assert after("hasten_cancelled_total", **DOORS) == 0
    assert after("hasten_cache_entries", **DOORS) == 2
    assert after("hasten_cache_bytes", **DOORS) > 0
    assert after("hasten_answers_exact", **DOORS) == 0
    until(lambda: scrape(server)("hasten_connections") == 1)  # the scraper's own
    assert after("process_resident_memory_bytes") > 1 << 20


def test_a_request_takes_what_its_parts_take(server: ServerThread) -> None:
    for value in range(20):
        infer(server, value)
    found = scrape(server)
    whole = found("nv_inference_request_duration_us", **DOORS)
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    assert 0 < sum(found(f"nv_inference_{part}_duration_us", **DOORS) for part in parts) <= whole
    assert whole == pytest.approx(
        1e6 * found("hasten_stage_seconds_sum", **DOORS, stage="request"), abs=1
    )
    for stage in STAGES:
        of_raw_samples = stage in ("prepare", "decide")
        count = 0 if of_raw_samples else 20
        assert found("hasten_stage_seconds_count", **DOORS, stage=stage) == count
        bounds = [str(bound / 1e9) for bound in BOUNDS_NS]
        counts = [
            found("hasten_stage_seconds_bucket", **DOORS, stage=stage, le=bound)
            for bound in (*bounds, "+Inf")
        ]
        assert counts == sorted(counts)
        assert counts[-1] == count


def test_batches_are_counted_by_their_rows(server: ServerThread) -> None:
    for value, rows in ((1, 1), (2, 3), (3, 3)):
        infer(server, value, rows)
    found = scrape(server)
    below = {le: found("hasten_batch_rows_bucket", **DOORS, le=le) for le in ("1.0", "2.0", "3.0")}
    assert below == {"1.0": 1, "2.0": 1, "3.0": 3}
    assert found("hasten_batch_rows_sum", **DOORS) == 7
    assert found("hasten_batch_rows_count", **DOORS) == found("nv_inference_exec_count", **DOORS)


def test_openmetrics_is_written_where_it_is_asked_for(server: ServerThread) -> None:
    infer(server, 1)
    status, content_type, text = ask(server, "GET", "/metrics", Accept=OPENMETRICS)
    assert (status, content_type.partition(";")[0]) == (200, "application/openmetrics-text")
    found = Scrape(text, openmetrics.text_string_to_metric_families)
    assert found("nv_inference_count", **DOORS) == 1
    assert found.families["nv_inference_count"].type == "unknown"


@pytest.mark.parametrize(
    "accept",
    ["", "*/*", "text/plain;version=x.y", "application/openmetrics-text;version=no", ";;,"],
)
def test_any_accept_header_gets_metrics(server: ServerThread, accept: str) -> None:
    status, _, text = ask(server, "GET", "/metrics", Accept=accept)
    assert (status, "nv_inference_count{" in text) == (200, True)


def test_a_name_can_not_write_metrics_of_its_own(bundle: Path) -> None:
    with ServerThread(place_of(bundle, HOSTILE)) as running:
        found = scrape(running)
    assert found("nv_inference_count", model=HOSTILE, version="1") == 0
    assert "nv_x" not in found.families


def test_a_model_that_is_not_loaded_is_not_ready(server: ServerThread) -> None:
    repository = server.server.state.repository
    assert scrape(server)("hasten_model_ready", **DOORS) == 1
    info = {"status": "exact", "platform": "hasten_onnxruntime", "answers": "winner"}
    assert scrape(server)("hasten_model_info", **DOORS, **info) == 1
    (registered,) = repository

    async def unloaded() -> str:
        await repository.unload(registered)
        return registered.state

    assert server.call(unloaded) == "UNAVAILABLE"
    found = scrape(server)
    assert found("hasten_model_ready", **DOORS) == 0
    assert found.families["nv_inference_count"].samples == []


# -- many scrapes


class Held:
    """Writing of the metrics' text, which waits until it is let go."""

    def __init__(self) -> None:
        self.go, self.forms = threading.Event(), list[str]()
        self._written = metrics.written

    def __call__(self, families: list[Any], form: str) -> tuple[bytes, str]:
        self.forms.append(form)
        self.go.wait(PATIENCE_S)
        return self._written(families, form)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    writing = Held()
    monkeypatch.setattr(metrics, "written", writing)
    monkeypatch.setattr(scrapes, "_KEPT_NS", 3_600_000_000_000)
    yield writing
    writing.go.set()


def scraping(server: ServerThread, accept: str = "", leaves: bool = False) -> socket.socket:
    """Connect and ask for the metrics; close at once, with RST, if `leaves`."""
    one = socket.create_connection(("127.0.0.1", server.http_port), PATIENCE_S)
    if leaves:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.sendall(f"GET /metrics HTTP/1.1\r\nHost: here\r\nAccept: {accept}\r\n\r\n".encode())
    if leaves:
        one.close()
    return one


def told_to(one: socket.socket) -> bytes:
    answer = http.client.HTTPResponse(one)
    answer.begin()
    assert answer.status == 200
    return answer.read()


def test_one_text_is_made_for_all_who_ask_meanwhile_or_soon_after(
    server: ServerThread, held: Held
) -> None:
    state = server.server.state
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(scraping(server)) for _ in range(40)]
        until(lambda: bool(held.forms) and len(state.connections) == 40)
        until(lambda: not any(one.idle for one in list(state.connections)))
        for _ in range(100):
            scraping(server, leaves=True)
        until(lambda: len(state.connections) == 40)
        held.go.set()
        texts = {told_to(one) for one in clients}
    assert len(texts) == 1
    assert scrape(server).text.encode() in texts
    assert held.forms == [metrics.PROMETHEUS]


def test_no_header_makes_a_text_of_its_own_but_openmetrics(
    server: ServerThread, held: Held
) -> None:
    held.go.set()
    versions = [f"{kind};version=1.{n}.0" for n in range(9) for kind in ("text/plain", OPENMETRICS)]
    escaped = [f"{kind};escaping={how}" for how in ("dots", "values") for kind in versions]
    for accept in (*versions, *escaped, "a/b," * 2000 + OPENMETRICS):
        assert ask(server, "GET", "/metrics", Accept=accept)[0] == 200
    assert sorted(held.forms) == [metrics.OPENMETRICS, metrics.PROMETHEUS]


def test_a_text_is_made_again_once_its_moment_is_over(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrapes, "_KEPT_NS", 100)
    now_ns = 0
    shared = Scrapes(server.server.state, clock_ns=lambda: now_ns)
    try:
        first, _ = server.call(lambda: shared.text(""))
        infer(server, 1)
        now_ns = 99
        assert server.call(lambda: shared.text(""))[0] is first
        now_ns = 100
        assert Scrape(server.call(lambda: shared.text(""))[0].decode())(
            "nv_inference_count", **DOORS
        )
    finally:
        shared.close()


def test_a_text_that_cant_be_made_is_no_reason_not_to_make_the_next(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(metrics, "written", lambda *_: 1 // 0)
        assert ask(server, "GET", "/metrics")[0] == 500
    assert ask(server, "GET", "/metrics")[0] == 200
