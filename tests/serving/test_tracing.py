"""Spans, as a real collector gets them from OpenTelemetry's own exporter."""

from __future__ import annotations

import http.client
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from tests.support import chains
from tests.support.chains import png, squares
from tests.support.collector import CALLER, PARENT, TRACE, Collector, values
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S

from hasten.errors import InputError
from hasten.serving.models.batching import Timing
from hasten.serving.models.served import ServedModel, Ticket
from hasten.serving.observation.tracing import Tracing
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.requests import Query
from hasten.serving.run import settings_of
from hasten.testing import models

MS = 1_000_000
WALL_NS = 1_700_000_000_000_000_000


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    receiving = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiving.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield receiving
    receiving.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    return bundle_of(folder, models.linear_classifier(folder))


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[ServedModel]:
    with ServerThread(place_of(bundle, "doors")) as server:
        yield server.server.state.repository.find("doors")


def query(trace: str = PARENT, arrived_ns: int = 5 * MS) -> Query:
    array = np.zeros((3, 16), np.float32)
    return Query("doors", "", "", {"x": array}, trace=trace, arrived_ns=arrived_ns)


def ticket(model: ServedModel, asked: Query) -> Ticket:
    """A request that was queued at 6 ms, left the queue at 8, and was computed from 9 to 12."""
    made = Ticket(model, asked, lambda answer: None, 3, (), math.inf, asked.inputs)
    made.queued_ns = 6 * MS
    made.timing = Timing(8 * MS, 9 * MS, 12 * MS, 8)
    return made


def traced(model: ServedModel, asked: Query, failure: ProtocolError | None = None) -> None:
    """Trace one request from 5 to 13 ms of a clock of its own."""
    tracing = Tracing(wall_ns=lambda: WALL_NS + 13 * MS)
    under_way = None if failure else ticket(model, asked)
    tracing.finished(model, asked, 13 * MS, failure, under_way)
    tracing.close()


def test_an_answer_is_a_server_span_within_its_callers_trace(
    collector: Collector, model: ServedModel
) -> None:
    traced(model, query())
    span = collector.named("infer doors")
    assert span.kind == Span.SPAN_KIND_SERVER
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, CALLER)
    assert values(span) == {
        "hasten.model": "doors",
        "hasten.version": "1",
        "hasten.rows": 3,
        "hasten.batch_rows": 8,
        "hasten.priority": 2,
    }
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert collector.paths == {"/v1/traces"}


def test_its_parts_lie_within_it_on_the_wall_clock(
    collector: Collector, model: ServedModel
) -> None:
    traced(model, query())
    whole = collector.named("infer doors")
    times = {
        span.name: (span.start_time_unix_nano - WALL_NS, span.end_time_unix_nano - WALL_NS)
        for span in collector.spans
    }
    assert times == {
        "infer doors": (5 * MS, 13 * MS),
        "queue": (6 * MS, 8 * MS),
        "batch": (8 * MS, 9 * MS),
        "compute": (9 * MS, 12 * MS),
    }
    for name in ("queue", "batch", "compute"):
        part = collector.named(name)
        assert (part.trace_id, part.parent_span_id) == (whole.trace_id, whole.span_id)
        assert part.kind == Span.SPAN_KIND_INTERNAL


def test_a_failure_is_an_error_with_its_reason(collector: Collector, model: ServedModel) -> None:
    traced(model, query(), ProtocolError(Kind.OVERLOADED, "overloaded: retry later", 1.0))
    (span,) = collector.spans
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.status.message == "overloaded: retry later"
    assert values(span)["error.type"] == "OVERLOADED"
    assert "hasten.batch_rows" not in values(span)


@pytest.mark.parametrize("trace", ["", "no traceparent", f"00-{'0' * 32}-{CALLER}-01"])
def test_without_a_caller_a_trace_begins(
    collector: Collector, model: ServedModel, trace: str
) -> None:
    traced(model, query(trace))
    span = collector.named("infer doors")
    assert span.parent_span_id == b""
    assert span.trace_id.hex() != TRACE
    assert len(span.trace_id) == 16


def test_what_its_caller_does_not_sample_is_not_sent(
    collector: Collector, model: ServedModel
) -> None:
    traced(model, query(f"00-{TRACE}-{CALLER}-00"))
    assert collector.spans == []


def test_the_service_is_hasten_unless_the_environment_names_it(
    collector: Collector, model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced(model, query())
    monkeypatch.setenv("OTEL_SERVICE_NAME", "doors-in-production")
    traced(model, query())
    names = [resource["service.name"] for resource in collector.resources]
    assert names == ["hasten", "doors-in-production"]


def test_a_receiver_that_is_gone_ends_nothing(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    traced(model, query())


def test_without_opentelemetry_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InputError) as caught:
        Tracing()
    assert str(caught.value) == (
        "trace= needs OpenTelemetry (import of opentelemetry.sdk.trace halted; None in "
        "sys.modules): pip install 'hasten[otel]'"
    )


def test_requests_to_a_real_server_become_spans(collector: Collector, bundle: Path) -> None:
    tensor = {"name": "x", "shape": [2, 16], "datatype": "FP32", "data": [1.0] * 32}
    wrong = {**tensor, "shape": [4, 8]}
    with ServerThread(place_of(bundle, "doors"), trace=True) as server:
        connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
        for sent in (tensor, wrong):
            body = json.dumps({"inputs": [sent]})
            connection.request("POST", "/v2/models/doors/infer", body, {"traceparent": PARENT})
            connection.getresponse().read()
        connection.close()
    assert sorted(span.name for span in collector.spans) == [
        *("batch", "compute", "infer doors", "infer doors", "queue")
    ]
    whole, failed = sorted(
        (span for span in collector.spans if span.name == "infer doors"),
        key=lambda span: "error.type" in values(span),
    )
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert values(whole)["hasten.batch_rows"] == 2
    assert values(failed)["error.type"] == "INVALID"
    for span in collector.spans:
        if span is not failed:
            assert whole.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= whole.end_time_unix_nano


def test_a_decision_out_of_the_cache_is_a_span_with_its_samples(
    collector: Collector, tmp_path: Path
) -> None:
    red, green = (
        png(np.full((16, 16, 3), colour, np.uint8)) for colour in ((200, 0, 0), (0, 200, 0))
    )
    place = place_of(chains.classifier(tmp_path), "colour", cache_bytes=1 << 20)
    with ServerThread(place, trace=True) as server:
        raw = triton.InferInput("raw", [2], "BYTES")
        raw.set_data_from_numpy(np.array([red, green], object))
        client = triton.InferenceServerClient(server.host)
        for _ in range(2):
            client.infer("colour", [raw])
        client.close()
        assert server.server.state.repository.find("colour").statistics.cache_hit.count == 1
    spans = [span for span in collector.spans if span.name == "infer colour"]
    assert [values(span)["hasten.rows"] for span in spans] == [2, 2]
    assert sum("hasten.batch_rows" in values(span) for span in spans) == 1


def test_a_computed_decision_of_a_chain_is_a_span_with_its_sample(
    collector: Collector, tmp_path: Path
) -> None:
    chain = f"plates={chains.detector(tmp_path)}+crop+{chains.classifier(tmp_path)}"
    with ServerThread(*settings_of([chain]).models, trace=True) as server:
        connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
        body = png(squares({(2, 5): "red"}))
        connection.request("POST", "/v2/models/plates/infer", body, {"Content-Type": "image/png"})
        assert connection.getresponse().status == 200
        connection.close()
    assert values(collector.named("infer plates"))["hasten.rows"] == 1
