"""Labels that clients send to a monitored server: what they take, whom they reach, and who waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import io
import json
import re
import select
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tests.support import models
from tests.support.bundles import forge
from tests.support.servers import ServerProcess, ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S, until
from tests.support.watched import OTHER, SAME, certified

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.config import image_pipeline
from hasten.serving.monitoring import kept
from hasten.serving.monitoring.labels import Labels
from hasten.serving.monitoring.line import MOST_WAITING, Line
from hasten.serving.wire.json_labels import labels_of
from hasten.testing.models import write

MIB = 1 << 20
MOST_MIB = 16
"""More than a request of labels takes, and far less than each of the attacks once took."""
LABELS, INFER = "/v2/models/watched/labels", "/v2/models/watched/infer"
KINDS = "a label is a number, a text, or a list of numbers or of such lists"
TOKENS = {"one": "a-token-of-one-client", "other": "a-token-of-the-other"}


def post(
    port: int, path: str, body: bytes, client: str = "", **headers: str
) -> tuple[int, dict[str, Any]]:
    """Post a body, as one of the clients with tokens or as anybody."""
    if client:
        headers["Authorization"] = f"Bearer {TOKENS[client]}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def got(port: int, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())


def asked(port: int, name: str, row: list[float] = OTHER, rows: int = 1, client: str = "") -> None:
    """Ask under an id."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 4], "data": row * rows}
    body = json.dumps({"id": name, "inputs": [tensor]}).encode()
    status, said = post(port, INFER, body, client)
    assert status == 200, said


def told(labels: Mapping[str, Any]) -> bytes:
    return json.dumps(
        {"labels": [{"id": n, "label": label} for n, label in labels.items()]}
    ).encode()


def labelled(port: int, labels: Mapping[str, Any], client: str = "") -> dict[str, Any]:
    status, found = post(port, LABELS, told(labels), client)
    assert status == 200, found
    return found


def serving(tmp_path: Path, guard: str = "lost", **settings: Any) -> ServerThread:
    place = place_of(
        certified(tmp_path / "net", guard=guard, max_drop=0.2),
        "watched",
        shadow=1.0,
        monitor_state=str(tmp_path / "state"),
    )
    return ServerThread(place, **settings)


def watch_of(server: ServerThread) -> Any:
    return server.server.state.repository.find("watched").watch


def audited(server: ServerThread, count: int) -> None:
    until(lambda: bool(watch_of(server).audited == count))


# -- what a request takes


class Watched:
    """A server's process that audits every answer, and its memory."""

    def __init__(self, process: ServerProcess) -> None:
        self.port = process.http_port
        self._files = Path(f"/proc/{process.serving_pid()}")
        self._asked = 0

    def waits(self, rows: int = 1) -> str:
        """Ask, and return the id once the answer waits for its label."""
        self._asked += 1
        name = f"asked-{self._asked}"
        asked(self.port, name, rows=rows)
        until(lambda: bool(self.facts()["audited"] == self._asked))
        return name

    def facts(self) -> Any:
        return got(self.port, "/v2/models/watched/monitor")

    def _memory_mib(self, what: str) -> int:
        found = re.search(rf"{what}:\s+(\d+) kB", (self._files / "status").read_text())
        assert found is not None
        return int(found[1]) // 1024

    def taken_mib(self, body: bytes, **headers: str) -> tuple[int, int, dict[str, Any]]:
        """Memory that the server takes for a request of labels at most, its status and its answer."""
        (self._files / "clear_refs").write_text("5")  # the peak begins anew
        before = self._memory_mib("VmRSS")
        status, said = post(self.port, LABELS, body, **headers)
        return self._memory_mib("VmHWM") - before, status, said


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    path = certified(folder, guard="lost", max_drop=0.2)
    state = ("--monitor-state", folder / "state")
    with ServerProcess(path, "--shadow", "1", *state) as process:
        yield Watched(process)


def filled(unit: bytes, size: int = MIB) -> Callable[[bytes], bytes]:
    """Return what makes a request with a label that repeats a text."""

    def body(name: bytes) -> bytes:
        begin, end = b'{"labels":[{"id":"%s","label":[' % name, unit.rstrip(b",") + b"]}]}"
        return begin + unit * ((size - len(begin) - len(end)) // len(unit)) + end

    return body


def written(label: bytes) -> Callable[[bytes], bytes]:
    return lambda name: b'{"labels":[{"id":"%s","label":%s}]}' % (name, label)


LONG = "a label with texts has at most 131,072 bytes of JSON; got "
ATTACKS = [
    pytest.param(
        written(b'["%s"%s]' % (b"a" * 32_000, b',""' * 10_600)),
        f"a list of texts is no label; {KINDS}",
        id="texts that numpy makes as long as the longest",
    ),
    pytest.param(filled(b"[],"), "a label has at most 4,096 lists", id="lists of a megabyte"),
    pytest.param(filled(b"[],", 128_000), "a label has at most 4,096 lists", id="lists"),
    pytest.param(filled(b'"",'), LONG, id="texts of a megabyte"),
    pytest.param(written(b'"%s"' % (b"a" * (MIB - 100))), LONG, id="a text of a megabyte"),
    pytest.param(written(b"[" * 200 + b"]" * 200), f"{KINDS}; got '[[[[[[", id="a deep list"),
    pytest.param(written(b"9" * 100_000), f"{KINDS}; got '9999", id="a number of 100,000 digits"),
    pytest.param(written(b"9" * 4000), f"{KINDS}; got '9999", id="a number of 4,000 digits"),
    pytest.param(written(b'{"a":1}'), f"{KINDS}; got '{{\"a\":1}}'", id="an object"),
    pytest.param(written(b"null"), f"{KINDS}; got 'null'", id="null"),
    pytest.param(written(b'[1,"a"]'), "a list of texts is no label", id="a text among numbers"),
    pytest.param(written(b"[1,[2]]"), f"{KINDS}; got '[1,[2]]'", id="lists of different lengths"),
]


@pytest.mark.parametrize(("body", "why"), ATTACKS)
def test_a_label_that_no_metric_reads_takes_little_and_is_refused(
    watched: Watched, body: Callable[[bytes], bytes], why: str
) -> None:
    name = watched.waits()

    packed = gzip.compress(body(name.encode()))
    taken, status, said = watched.taken_mib(packed, **{"Content-Encoding": "gzip"})

    assert (status, said) == (200, {"unread": 1})
    assert taken < MOST_MIB
    found = watched.facts()["labels"]
    assert found["last"].startswith(f"request '{name}': {why}")
    assert labelled(watched.port, {name: 3}) == {
        "taken": 1
    }  # the answer still waited for its label
    assert watched.facts()["labels"]["counted"] == found["counted"] + 1


def test_the_mask_of_a_picture_may_fill_a_request(watched: Watched) -> None:
    row = b"[%s]" % b",".join([b"0"] * 700)
    each: list[int] = []
    while not each or (min(each) >= MOST_MIB and len(each) < 3):  # it depends on what else it frees
        body = written(b"[%s]" % b",".join([row] * 700))(watched.waits().encode())
        taken, status, said = watched.taken_mib(body)
        assert (status, said) == (200, {"taken": 1})
        each.append(taken)
    assert min(each) < MOST_MIB


@pytest.mark.parametrize(
    "label",
    [b"[0,0,0]", b"[0,0]", b"[%s]" % b",".join([b"0"] * 60_000), b"[" * 500 + b"]" * 500, b'"abc"'],
)
def test_a_request_of_several_rows_takes_a_label_for_each(watched: Watched, label: bytes) -> None:
    name = watched.waits(rows=3)

    taken, status, said = watched.taken_mib(written(label)(name.encode()))

    fits = label == b"[0,0,0]"
    assert (status, said) == (200, {"taken" if fits else "unread": 1})
    assert taken < MOST_MIB
    if not fits:
        last = watched.facts()["labels"]["last"]
        assert last.startswith(f"request '{name}': the request has 3 rows; its label is ")
        assert labelled(watched.port, {name: [3, 3, 3]}) == {"taken": 1}


def many(count: int) -> bytes:
    return b'{"labels":[%s]}' % b",".join([b'{"id":"","label":0}'] * count)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (many(10_000), 200, {"unknown": 10_000}),
        (
            many(10_001),
            413,
            {
                "error": "a request has at most 10,000 labels, and each { in it counts as one: send "
                "several requests"
            },
        ),
        (many(40_000), 413, None),
        (b'{"labels":[{"id":"%s","label":0}]}' % (b"a" * (MIB - 100)), 200, {"unknown": 1}),
        (b'{"labels":%s}' % (b" " * 2 * MIB), 413, None),
        (b'{"labels":%s' % (b"[" * 100_000), 400, None),
        (b'{"labels":[{"id":"a","label":%s' % (b"[" * 100_000), 400, None),
        (
            b'{"labels":[{"id":3,"label":0}]}',
            400,
            {
                "error": 'labels are {"labels": [{"id": "a request\'s id", "label": 3}, ...]}: Expected '
                "`str`, got `int` - at `$.labels[0].id`"
            },
        ),
        (b'{"labels":[{"id":"a"}]}', 400, None),
        (b'{"labels":3}', 400, None),
        (b"[]", 400, None),
        (b"\xff", 400, None),
        (b'{"labels":[{"id":"\\ud800","label":0}]}', 400, None),
    ],
)
def test_a_request_of_labels_is_bounded_whatever_it_holds(
    watched: Watched, body: bytes, status: int, said: dict[str, Any] | None
) -> None:
    packed = gzip.compress(body)
    taken, answered, found = watched.taken_mib(packed, **{"Content-Encoding": "gzip"})

    assert answered == status, found
    assert said is None or found == said
    assert taken < MOST_MIB


def test_labels_that_metrics_read_are_taken_as_arrays() -> None:
    taken: list[Array] = []

    def loss(outputs: Tensors, exact: Tensors, label: Array) -> float:
        taken.append(label)
        return 0.0

    labels = Labels(loss, lambda losses: None)
    boxes, masks = [[0, 0, 1, 1, 3], [0.5, 0, 1, 1, 2]], [[[0, 1], [2, 255]]]
    given = [3, 0.5, True, "ein Text", ["a text"], [0, 0, 1], boxes, masks, [True, False]]
    for number in range(len(given)):
        key = labels.expect("", str(number), 1, 0)
        labels.audited(key, {}, {})
    body = told({str(number): label for number, label in enumerate(given)})
    assert labels.take("", labels_of(body)) == {"taken": len(given)}
    for label, array in zip(given, taken, strict=True):
        expected = np.asarray(label)[np.newaxis]
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


def test_what_is_kept_of_long_ids_and_labels_is_short() -> None:
    labels = Labels(lambda outputs, exact, label: 0.0, lambda losses: None)

    def comes(number: int, label: str) -> dict[str, int]:
        name = f"{number}-{'i' * 50_000}"
        labels.audited(labels.expect("client" * 1000, name, 1, 0), {}, {})
        return labels.take("client" * 1000, labels_of(told({name: label})))

    waiting = Labels(labels.loss, labels.found)
    comes(0, "first")
    tracemalloc.start()
    try:
        for number in range(1, 401):
            assert comes(number, "t" * 50_000) == {"taken": 1}
            waiting.expect("client", f"{number}-{'w' * 50_000}", 1, 0)
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < MIB  # and not 60 MB
    name = f"400-{'i' * 50_000}"
    for label, became in (("t" * 50_000, "twice"), ("t" * 49_999, "contradicting")):
        assert labels.take("client" * 1000, labels_of(told({name: label}))) == {became: 1}
    assert len(labels.last) < 500


def test_labels_that_wait_are_given_up_where_they_take_much_memory() -> None:
    """None of the answers is compared yet, so that every label waits."""
    labels = Labels(lambda outputs, exact, label: 0.0, lambda losses: None)
    tracemalloc.start()
    try:
        for number in range(400):
            labels.expect("", str(number), 1, 0)
            labels.take("", labels_of(told({str(number): "t" * 60_000})))
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 66 * MIB  # and not 92
    assert labels.counts.given_up + labels.waiting == 400


# -- what is lost with a label


@pytest.mark.parametrize(
    "error", [MemoryError(), KeyError("a"), AttributeError("b"), InputError("c")]
)
def test_a_label_that_fails_loses_nobody_elses_evidence(tmp_path: Path, error: Exception) -> None:
    with serving(tmp_path) as server:
        for name in "abc":
            asked(server.http_port, name)
        audited(server, 3)
        labels = watch_of(server).labels
        scored = labels.loss

        def loss(outputs: Tensors, exact: Tensors, label: Array) -> float:
            if label[0] == 2:
                raise error
            return float(scored(outputs, exact, label))

        labels.loss = loss
        assert labelled(server.http_port, {"a": 3, "b": 2, "c": 3}) == {"taken": 3}
        found = got(server.http_port, "/v2/models/watched/monitor")
    assert (found["labels"]["counted"], found["labels"]["unread"]) == (2, 1)
    assert found["labels"]["last"].startswith("request 'b': ")
    lost = found["limits"][1]
    assert (lost["what"], lost["n"], lost["losses"]) == ("lost", 2, 2.0)


def test_a_metric_that_says_nonsense_of_one_label_loses_no_other() -> None:
    found: list[list[float]] = []
    labels = Labels(lambda outputs, exact, label: float(label[0]), found.append)
    for name in "abc":
        labels.audited(labels.expect("", name, 1, 0), {}, {})
    assert labels.take("", labels_of(told({"a": 1, "b": 7, "c": 0.5}))) == {"taken": 3}
    assert found == [[1.0, 0.5]]
    assert (
        labels.last == "request 'b': the metric says that 7 is lost, which isn't between -1 and 1"
    )


# -- whom a label counts for


def of_clients(folder: Path) -> Path:
    """Write the tokens of two clients."""
    file = folder / "tokens"
    scopes = '["infer", "read"]'
    file.write_text(
        "".join(f'[{n}]\nscopes = {scopes}\ntoken = "{token}"\n' for n, token in TOKENS.items())
    )
    file.chmod(0o600)
    return file


def test_a_label_counts_for_the_client_alone_who_asked(tmp_path: Path) -> None:
    with serving(tmp_path, guard="net", tokens=of_clients(tmp_path)) as server:
        asked(server.http_port, "1", client="one")
        audited(server, 1)
        assert labelled(server.http_port, {"1": 3}, "other") == {"unknown": 1}
        asked(server.http_port, "1", SAME, client="other")  # an id that is in use, but by one
        audited(server, 2)
        assert labelled(server.http_port, {"1": 1}, "other") == {"waiting": 1}
        assert labelled(server.http_port, {"1": 3}, "one") == {"taken": 1}
        assert labelled(server.http_port, {"1": 3}, "other") == {"contradicting": 1}
        assert labelled(server.http_port, {"1": 3}, "one") == {"twice": 1}
        counts = watch_of(server).labels.counts
        limit = watch_of(server).facts()["limits"][1]
    assert (counts.counted, counts.unknown) == (2, 1)
    assert (limit["n"], limit["losses"]) == (2, 1.0)


def test_a_picture_is_labelled_by_the_client_who_sent_it(tmp_path: Path) -> None:
    model, exact = (
        write(tmp_path / name, models.COLOUR, {}) for name in ("colour.onnx", "exact.onnx")
    )
    pipeline = Pipeline(image_pipeline(8).steps, (TopK(2, models.COLOURS, softmax=False),))
    path = bundle_of(tmp_path, model, exact=exact, pipeline=pipeline)
    judgement = {"guard": "lost", "max_drop": 0.2, "n": 1000, "lost": 1, "gained": 0}
    forge(path, lambda record: record.update(certificate={"judgement": judgement}))
    place = place_of(path, "watched", shadow=1.0, monitor_state="off")
    with ServerThread(place, tokens=of_clients(tmp_path)) as server:
        client = triton.InferenceServerClient(server.host)
        tensor = triton.InferInput("raw", [1], "BYTES")
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (200, 0, 0)).save(file, "PNG")
        tensor.set_data_from_numpy(np.array([file.getvalue()], object))
        known = {"Authorization": f"Bearer {TOKENS['one']}"}
        client.infer("watched", [tensor], request_id="a picture", headers=known)
        client.close()
        audited(server, 1)
        assert labelled(server.http_port, {"a picture": 0}, "other") == {"unknown": 1}
        assert labelled(server.http_port, {"a picture": 0}, "one") == {"taken": 1}
        assert watch_of(server).labels.counts.counted == 1


# -- who waits


@contextlib.contextmanager
def held(server: ServerThread) -> Iterator[threading.Event]:
    """Let the first label be scored for as long as the block takes; yield an event for its beginning."""
    labels, began, over = watch_of(server).labels, threading.Event(), threading.Event()
    scored = labels.loss

    def loss(outputs: Tensors, exact: Tensors, label: Array) -> float:
        began.set()
        assert over.wait(PATIENCE_S)
        return float(scored(outputs, exact, label))

    labels.loss = loss
    try:
        yield began
    finally:
        over.set()


def test_nothing_waits_for_scoring_but_labels_in_a_bounded_line(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    scopes = '["infer", "read"]'
    file.write_text(f'[one]\nscopes = {scopes}\ntoken = "{TOKENS["one"]}"\n')
    file.chmod(0o600)
    with serving(tmp_path, tokens=file) as server:
        port = server.http_port
        asked(port, "a", client="one")
        audited(server, 1)
        headers = {"Authorization": f"Bearer {TOKENS['one']}"}
        with contextlib.ExitStack() as stack:
            with held(server) as began:
                senders = {}
                for _ in range(MOST_WAITING + 1):
                    one = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
                    stack.callback(one.close)
                    one.request("POST", LABELS, told({"a": 3}), headers)
                    senders[one.sock] = one
                assert began.wait(PATIENCE_S)
                ready, _, _ = select.select([*senders], [], [], PATIENCE_S)
                assert len(ready) == 1
                refused = senders.pop(ready[0]).getresponse()
                assert refused.status == 503
                assert json.loads(refused.read())["error"] == (
                    "overloaded: requests of labels wait, of which the server holds 64; retry later"
                )
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
                stack.callback(connection.close)
                connection.request("GET", "/metrics", headers=headers)
                assert b"hasten_monitor_limit" in connection.getresponse().read()
                file.write_text(f'[new]\nscopes = {scopes}\ntoken = "another-token-than-that"\n')
                until(lambda: post(port, INFER, b"", "one")[0] == 401)  # the token is revoked
            found = [json.loads(each.getresponse().read()) for each in senders.values()]
        assert found.count({"taken": 1}) == 1
        assert found.count({"twice": 1}) == MOST_WAITING - 1


def test_a_client_with_few_labels_does_not_wait_behind_all_of_anothers() -> None:
    async def worked() -> list[str]:
        line, over, order = Line(), threading.Event(), list[str]()

        def held() -> None:
            assert over.wait(PATIENCE_S)

        waiting = [line.work("greedy", 64_000, held)]
        waiting += [line.work("greedy", 64_000, order.append, "greedy") for _ in range(9)]
        waiting += [line.work("other", 30, order.append, "other") for _ in range(3)]
        tasks = [asyncio.ensure_future(each) for each in waiting]
        await asyncio.sleep(0)  # each task takes its place
        over.set()
        await asyncio.gather(*tasks)
        line.close()
        return order

    assert asyncio.run(worked()) == ["other"] * 3 + ["greedy"] * 9


def test_a_line_that_closes_drops_what_waits() -> None:
    async def closed() -> list[Any]:
        line, began, over = Line(), threading.Event(), threading.Event()

        def held() -> str:
            began.set()
            over.wait(PATIENCE_S)
            return "worked"

        first = asyncio.ensure_future(line.work("one", 1, held))
        second = asyncio.ensure_future(line.work("one", 1, held))
        await asyncio.to_thread(began.wait, PATIENCE_S)
        line.close()
        over.set()
        return [*await asyncio.gather(first, second, return_exceptions=True)]

    first, second = asyncio.run(closed())
    assert first == "worked"
    assert isinstance(second, asyncio.CancelledError)


def test_answers_go_out_while_a_label_is_scored_and_the_audit_is_full(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        asked(server.http_port, "a")
        audited(server, 1)
        with contextlib.ExitStack() as stack, held(server) as began:
            one = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
            stack.callback(one.close)
            one.request("POST", LABELS, told({"a": 3}))
            assert began.wait(PATIENCE_S)
            for number in range(100):
                asked(server.http_port, str(number))
            dropped = watch_of(server).dropped
            assert dropped > 0
            assert got(server.http_port, "/v2/models/watched/monitor")["dropped"] == dropped
        audited(server, 101 - dropped)
        assert watch_of(server).labels.waiting == 100 - dropped


def test_a_request_of_labels_is_written_down_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as server:
        for number in range(20):
            asked(server.http_port, str(number))
        audited(server, 20)
        writes, write = [], kept.Kept._write

        def counted(self: kept.Kept, path: Path, record: kept.Record) -> None:
            writes.append(record)
            write(self, path, record)

        monkeypatch.setattr(kept.Kept, "_write", counted)
        labelled(server.http_port, {str(number): 3 for number in range(20)})
        limit = watch_of(server).facts()["limits"][1]
    assert len(writes) == 1
    assert (limit["n"], limit["losses"]) == (20, 20.0)
