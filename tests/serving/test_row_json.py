"""Rows of a table as JSON over HTTP: one or several, beside the protocol's own tensors, and what is refused."""

import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tests.bundle.test_bind import unnamed
from tests.support.servers import ONE_THREAD, ServerThread, bundle_of, place_of
from tests.support.waiting import until
from tritonclient.utils import InferenceServerException

import hasten
from hasten.engines.base import Engine
from hasten.engines.compiled.engine import CompiledC
from hasten.errors import CandidateError, InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.threshold import Threshold
from hasten.testing import models

PATIENCE_S = 60.0
COLUMNS = tuple(f"c{number}" for number in range(16))
NAMED = ("inputs", *COLUMNS[1:])
SCORED = (Threshold(0.4, position=1, activation="softmax", labels=("bad", "good")),)
ROWS = [
    dict(zip(COLUMNS, map(float, row), strict=True))
    for row in np.random.default_rng(0).standard_normal((6, 16), np.float32)
]
ENGINES: dict[str, Engine] = {"quick": CompiledC(), "usual": ONE_THREAD}
JSON = "application/json"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The linear classifier of rows: one that takes microseconds, one that doesn't say so, and others."""
    folder = tmp_path_factory.mktemp("rows")
    model = models.linear_classifier(folder)
    scored = Pipeline((Row(COLUMNS),), SCORED)
    found = {
        name: bundle_of(folder, model, name, engine=engine, pipeline=scored)
        for name, engine in ENGINES.items()
    }
    inputs = Pipeline((Row(NAMED),), SCORED)
    found["named"] = bundle_of(folder, model, "named", engine=CompiledC(), pipeline=inputs)
    found["bare"] = bundle_of(folder, model, "bare")
    return found


@pytest.fixture(scope="module")
def server(bundles: dict[str, Path]) -> Iterator[ServerThread]:
    """A server of all of them."""
    places = [place_of(path, compiled=str(path.parent)) for path in bundles.values()]
    late = place_of(bundles["quick"], "late", deadline_ns=1, compiled=str(bundles["quick"].parent))
    with ServerThread(*places, late, grpc=True) as running:
        assert running.call(lambda: served(running, "quick").quick_rows is not None)
        assert running.call(lambda: served(running, "usual").quick_rows is None)
        yield running


@pytest.mark.parametrize("quick", [True, False])
def test_rows_of_a_file_whose_axis_of_rows_has_no_name_are_served(
    quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unbound(self: hasten.bundle.Loaded) -> None:
        raise InputError("it can't be bound")

    if not quick:
        monkeypatch.setattr(hasten.bundle.Loaded, "bind_row", unbound)
    model = unnamed(models.linear_classifier(tmp_path))
    scored = Pipeline((Row(COLUMNS),), SCORED)
    bundle = bundle_of(tmp_path, model, engine=CompiledC(), pipeline=scored)
    with hasten.load(bundle, cache=tmp_path) as opened:
        expected = opened.decide(ROWS[0])
    with ServerThread(place_of(bundle, compiled=str(tmp_path))) as running:
        has = running.call(lambda: served(running, "linear_classifier").quick_rows is not None)
        status, answer = post(running, ROWS[0], "linear_classifier")
    assert has == quick
    assert (status, answer["decision"]) == (200, pytest.approx(expected))


def test_a_model_that_cant_be_served_once_it_is_open_says_why(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unbound(self: hasten.bundle.Loaded) -> None:
        raise CandidateError("no session is left for rows")

    monkeypatch.setattr(hasten.bundle.Loaded, "bind_row", unbound)
    quick = bundles["quick"]
    with pytest.raises(InputError) as error:
        with ServerThread(place_of(quick, compiled=str(quick.parent))):
            pass
    assert str(error.value) == "quick: no session is left for rows"


def served(server: ServerThread, name: str) -> Any:
    return server.server.state.repository.find(name)


def post(
    server: ServerThread, body: Any, model: str = "quick", kind: str | None = JSON, **headers: str
) -> tuple[int, Any]:
    """Send a body, as JSON unless it is bytes, and return the status and the JSON that came."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers |= {"Content-Type": kind} if kind is not None else {}
    url = f"{server.http_url}/v2/models/{model}/infer"
    answer = httpx.post(url, content=content, headers=headers, timeout=PATIENCE_S)
    return answer.status_code, answer.json()


@pytest.fixture(scope="module")
def decided(bundles: dict[str, Path]) -> list[Any]:
    """The decision on each row, in Python."""
    with hasten.load(bundles["quick"], cache=bundles["quick"].parent) as opened:
        return opened.decide_rows(ROWS)


@pytest.mark.parametrize("model", list(ENGINES))
@pytest.mark.parametrize(
    "kind",
    [
        JSON,
        "application/json; charset=utf-8",
        "application/x-www-form-urlencoded",
        "text/plain",
        None,
    ],
)
def test_a_row_is_answered_by_its_decision(
    server: ServerThread, decided: list[Any], model: str, kind: str | None
) -> None:
    expected = {"model_name": model, "model_version": "1", "decision": pytest.approx(decided[0])}
    shuffled = dict(reversed(ROWS[0].items()))
    for body in (ROWS[0], list(ROWS[0].values()), shuffled, json.dumps(ROWS[0], indent=2).encode()):
        assert post(server, body, model, kind) == (200, expected)


@pytest.mark.parametrize("model", list(ENGINES))
def test_several_rows_are_answered_by_a_list_of_decisions(
    server: ServerThread, decided: list[Any], model: str
) -> None:
    rows: list[Any] = [ROWS[0], list(ROWS[1].values()), *ROWS[2:]]
    status, answer = post(server, rows, model)
    assert (status, answer) == (
        200,
        {
            "model_name": model,
            "model_version": "1",
            "decisions": [pytest.approx(d) for d in decided],
        },
    )
    assert post(server, rows[:1], model)[1]["decisions"] == [pytest.approx(decided[0])]


@pytest.mark.parametrize("model", list(ENGINES))
def test_tensors_of_the_protocol_are_taken_beside_rows(
    server: ServerThread, decided: list[Any], model: str
) -> None:
    client = triton.InferenceServerClient(server.host, connection_timeout=PATIENCE_S)
    for binary in (True, False):
        tensor = triton.InferInput("x", [1, 16], "FP32")
        x = np.array([list(ROWS[0].values())], np.float32)
        tensor.set_data_from_numpy(x, binary_data=binary)
        answer = client.infer(model, [tensor])
        assert answer.as_numpy("logits").shape == (1, 4)
        samples = triton.InferInput("raw", [1], "BYTES")
        samples.set_data_from_numpy(np.array([json.dumps(ROWS[0]).encode()], object), binary)
        (decision,) = client.infer(model, [samples]).as_numpy("decision")
        assert json.loads(decision) == pytest.approx(decided[0])
    client.close()


@pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])
@pytest.mark.parametrize("model", list(ENGINES))
def test_tensors_are_refused_where_their_rows_would_be(
    server: ServerThread, model: str, protocol: str
) -> None:
    module: Any = triton if protocol == "HTTP" else triton_grpc
    client = module.InferenceServerClient(server.host if protocol == "HTTP" else server.grpc_url)
    good = np.zeros((2, 16), np.float32)
    for value, why in (
        (None, ""),
        (None, ""),  # repeated requests take a shorter way
        (np.nan, "has no value"),
        (np.inf, "isn't a number that float32 holds"),
        (None, ""),
    ):
        rows = good.copy()
        rows[1, 4] = 1 if value is None else value
        tensor = module.InferInput("x", [2, 16], "FP32")
        tensor.set_data_from_numpy(rows)
        if value is None:
            assert client.infer(model, [tensor]).as_numpy("logits").shape == (2, 4)
            continue
        with pytest.raises(InferenceServerException) as error:
            client.infer(model, [tensor])
        assert error.value.message() == f"input 'x': row 1: the column 'c4' {why}"
        assert error.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    bare = module.InferInput("x", [1, 16], "FP32")
    bare.set_data_from_numpy(np.full((1, 16), np.nan, np.float32))
    assert np.isnan(client.infer("bare", [bare]).as_numpy("logits")).all()
    client.close()


def test_a_column_may_be_named_as_the_inputs_of_the_protocol(
    server: ServerThread, decided: list[Any]
) -> None:
    row = dict(zip(NAMED, ROWS[0].values(), strict=True))
    status, answer = post(server, row, "named")
    assert (status, answer["error"].partition(":")[0]) == (
        400,
        "the request doesn't follow the protocol",
    )
    assert post(server, row, "named", "text/plain")[1]["decision"] == pytest.approx(decided[0])
    assert post(server, [row], "named")[1]["decisions"] == [pytest.approx(decided[0])]


@pytest.mark.parametrize("model", list(ENGINES))
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"c0": 1}, "the row has no column 'c1'"),
        ({"id": "a", "outputs": []}, "the row has no column 'c0', but 'id'"),
        ({**ROWS[0], "c3": "x"}, "the column 'c3' needs a number: got a text"),
        ({**ROWS[0], "c3": None}, "the column 'c3' has no value: give one"),
        ({**ROWS[0], "c3": 1e39}, "the column 'c3' needs a number that float32 holds"),
        ([1, 2], "a row has 16 values, from 'c0' to 'c15': got 2"),
        ([ROWS[0], {"c0": 1}], "row 1: the row has no column 'c1'"),
        ([ROWS[0], 3], "row 1: a row is an object, a list or their JSON: got a number"),
        ([], "there are no rows in the list: send at least 1"),
        ([[]] * 33, "a request to '{model}' has at most 32 rows; got 33: send several requests"),
        (b"{", "the request is not JSON: "),
        (b"[1, 2", "the request is not JSON: "),
        (b"[" * 10_000, "the request is not JSON: "),
        (b"[" + b"{}," * 1_000_000, "the rows of one request take at most "),
        (b"3", "the request doesn't follow the protocol: "),
        ({"inputs": ROWS[0]}, "the request doesn't follow the protocol: "),
    ],
)
def test_what_is_no_row_gets_one_line(
    server: ServerThread, model: str, body: Any, words: str
) -> None:
    status, answer = post(server, body, model)
    assert status == 400
    assert answer["error"].startswith(words.format(model=model))
    assert "\n" not in answer["error"]


def test_a_model_of_tensors_takes_no_row(server: ServerThread) -> None:
    status, answer = post(server, ROWS[0], "bare")
    assert (status, answer["error"].partition(":")[0]) == (
        400,
        "the request doesn't follow the protocol",
    )


def test_a_row_may_come_compressed_and_is_answered_compressed(
    server: ServerThread, decided: list[Any]
) -> None:
    body = gzip.compress(json.dumps(ROWS[0]).encode())
    status, answer = post(server, body, **{"Content-Encoding": "gzip", "Accept-Encoding": "gzip"})
    assert (status, answer["decision"]) == (200, pytest.approx(decided[0]))


def test_rows_are_answered_in_their_order_on_one_connection(
    server: ServerThread, decided: list[Any]
) -> None:
    head = (
        b"POST /v2/models/quick/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
    )
    bodies = [json.dumps(row).encode() for row in ROWS]
    wrong = b'{"c0": 1}'
    sent = b"".join(head % (len(body), body) for body in (*bodies, wrong, bodies[0]))
    found: list[Any] = []
    with socket.create_connection(("127.0.0.1", server.http_port), PATIENCE_S) as connection:
        connection.sendall(sent)
        with connection.makefile("rb") as answers:
            while len(found) < len(bodies) + 2:
                lines = iter(lambda: answers.readline() or b"\r\n", b"\r\n")
                size = next(
                    int(line[15:]) for line in list(lines) if line.startswith(b"Content-Length")
                )
                found.append(json.loads(answers.read(size)))
    assert found[-2] == {"error": "the row has no column 'c1'"}
    del found[-2]
    assert [one["decision"] for one in found] == [
        pytest.approx(one) for one in (*decided, decided[0])
    ]


def test_quick_rows_are_counted_as_any_request(server: ServerThread) -> None:
    def counts() -> tuple[int, int, int, int]:
        statistics = served(server, "quick").statistics
        stages = {name: each.count for name, each in statistics.stages.items()}
        return (
            statistics.totals["success"].count,
            statistics.executions,
            stages["prepare"],
            stages["decide"],
        )

    before = server.call(counts)
    for row in ROWS:
        post(server, row)
    assert server.call(counts) == tuple(count + len(ROWS) for count in before)
    failed = server.call(lambda: served(server, "quick").statistics.fail.count)
    post(server, {"c0": 1})
    assert server.call(lambda: served(server, "quick").statistics.fail.count) == failed + 1
    text = httpx.get(f"{server.http_url}/metrics", timeout=PATIENCE_S).text
    for stage in ("prepare", "compute", "decide", "encode", "request"):
        assert f'stage="{stage}"' in text


def test_a_row_whose_deadline_passed_is_told_so(server: ServerThread) -> None:
    status, answer = post(server, ROWS[0], "late")
    assert status in (503, 504)
    assert "deadline" in answer["error"]


@pytest.mark.parametrize(
    "step",
    [
        Threshold(0.1, labels=("100 % no", 'yes, "ja"')),
        Threshold(-0.5),
        Threshold(0.1, margin=0.2),
    ],
)
def test_a_decision_by_one_score_is_written_as_the_step_takes_it(
    tmp_path: Path, step: Threshold
) -> None:
    text = """
        single (float[batch, 16] x) => (float[batch, 1] score) {
            linear = Gemm(x, weight, bias)
            square = Mul(linear, linear)
            score = Mul(square, linear)
        }"""
    model = models.write(tmp_path / "single.onnx", text, {"weight": (16, 1), "bias": (1,)})
    pipeline = Pipeline((Row(COLUMNS),), (step,))
    path = bundle_of(tmp_path, model, "single", engine=CompiledC(), pipeline=pipeline)
    rng = np.random.default_rng(1)
    sizes = (1e-3, 1, 1e6)
    rows = [[*map(float, size * rng.standard_normal(16))] for size in sizes for _ in range(20)]
    with hasten.load(path, cache=tmp_path) as opened:
        expected = opened.decide_rows(rows)
    place = place_of(path, compiled=str(tmp_path))
    with ServerThread(place) as running, httpx.Client(base_url=running.http_url) as client:
        quick = running.call(lambda: served(running, "single").quick_rows)
        assert quick is not None
        for row, decision in zip(rows, expected, strict=True):
            body = json.dumps(row).encode()
            assert json.loads(running.call(lambda: quick.answer(body, 2**62))) == decision  # noqa: B023
            url = "/v2/models/single/infer"
            assert client.post(url, content=body, timeout=PATIENCE_S).json()["decision"] == decision
        overflows = json.dumps([1e20] * 16).encode()
        assert running.call(lambda: quick.answer(overflows, 2**62)) is None
        answer = client.post(url, content=overflows, timeout=PATIENCE_S)
        assert (answer.status_code, "NaN or infinite" in answer.json()["error"]) == (500, True)
    if not step.margin:
        assert {one["positive"] for one in expected} == {False, True}


def test_only_the_steps_own_plain_form_names_its_decisions_beforehand() -> None:
    class Own(Threshold):
        """Whatever this decides, a server has to ask it."""

    assert Threshold(0.1).either_or(np.dtype(np.float32)) is not None
    assert Own(0.1).either_or(np.dtype(np.float32)) is None
    assert Threshold(0.1).either_or(np.dtype(np.float64)) is None
    assert SCORED[0].either_or(np.dtype(np.float32)) is None


def test_a_row_waits_while_the_model_is_busy_or_has_fallen_back(
    server: ServerThread, decided: list[Any]
) -> None:
    model = served(server, "quick")
    quick = model.quick_rows
    body = json.dumps(ROWS[0]).encode()
    try:
        model.fell_back = True
        assert server.call(lambda: quick.answer(body, 0)) is None
    finally:
        model.fell_back = False
    assert json.loads(server.call(lambda: quick.answer(body, 0))) == pytest.approx(decided[0])


def test_rows_that_are_answered_at_once_are_audited_each_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a row is read into is used again by the next, before the exact model is asked."""
    text = """
        exact (float[batch, 16] x) => (float[batch, 4] logits) {
            sizes = Abs(x)
            logits = Gemm(sizes, weight, bias)
        }"""
    exact = models.write(tmp_path / "exact.onnx", text, {"weight": (16, 4), "bias": (4,)})
    path = bundle_of(
        tmp_path,
        models.linear_classifier(tmp_path),
        "watched",
        engine=CompiledC(),
        exact=exact,
        pipeline=Pipeline((Row(COLUMNS),), SCORED),
    )
    changed = 0
    with hasten.load(path) as fast, hasten.load(path, which="exact") as slow:
        for row in ROWS:
            values = np.array([[*row.values()]], np.float32)
            changed += int(fast(values)["logits"].argmax() != slow(values)["logits"].argmax())
    assert 0 < changed < len(ROWS)
    monkeypatch.setattr("hasten.serving.models.shadow._LOOKS", 10_000)
    monkeypatch.setattr("hasten.serving.models.quick_rows.INLINE_NS", 10**12)  # on any host
    place = place_of(
        path, shadow=1.0, shadow_limit=0.1, monitor_state="off", compiled=str(tmp_path)
    )
    with ServerThread(place) as running, httpx.Client(base_url=running.http_url) as client:
        found = served(running, "watched")
        assert running.call(lambda: found.quick_rows is not None)
        idle, found._shadow._idle = found._shadow._idle, lambda: False
        for row in ROWS:
            url = "/v2/models/watched/infer"
            assert client.post(url, json=row, timeout=PATIENCE_S).status_code == 200
        found._shadow._idle = idle
        until(lambda: found.watch.audited + found.watch.dropped == len(ROWS))
        (limit,) = found.watch.facts()["limits"]
    assert (limit["n"], limit["losses"]) == (len(ROWS), float(changed))
