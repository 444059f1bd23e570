"""Outputs whose size depends on a request's values: each client gets its own, whoever else asks at the same time."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tritonclient.grpc as triton
from tests.support import varying
from tests.support.bundles import stated
from tests.support.servers import ServerThread, place_of
from tests.support.waiting import until

import hasten
from hasten.bundle import part, write
from hasten.core.target import Target
from hasten.core.tensors import BY_VALUE, Array, TensorSpec
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.models import onnx
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.serving.models import batching
from hasten.serving.models.comparison import broken_rows
from hasten.serving.settings import ModelPlace

ENGINE = OnnxRuntime(threads=1, spinning=False)
COLUMNS = tuple("abcdef")
LIKE_ROWS = [np.where(np.eye(6)[n] > 0, 1, -1)[None].astype(np.float32) for n in range(4)]
"""Requests of which each finds one place, so that in any batch as many are found as there are rows."""
NONE = np.full((1, 6), -1, np.float32)
TWO = np.array([[-1, 1, -1, -1, 1, -1]], np.float32)


def bundle(
    folder: Path,
    pipeline: Pipeline | None = None,
    varying_outputs: tuple[str, ...] = ("positive",),
    axis: str = "found",
) -> Path:
    model = onnx.load(varying.places(folder)).settled_by({"x": LIKE_ROWS[0][0]})
    model = replace(model, outputs=(model.outputs[0], TensorSpec("positive", "int64", (axis, 2))))
    (folder / "built").mkdir()
    winner = part("a label", (), ENGINE, ENGINE.build(model, Target.host(), folder / "built"))
    manifest = stated(winner, winner, status="exact", pipeline=pipeline, varying=varying_outputs)
    path = folder / "places.hasten"
    write(path, manifest, {}, requests=[{"x": x} for x in LIKE_ROWS])
    return path


@contextmanager
def server_of(*places: ModelPlace) -> Iterator[ServerThread]:
    """Serve bundles whose batches all run on threads, so that requests meet in the queue."""
    with (
        patch.object(batching, "INLINE_NS", 0),
        patch.object(batching, "_LONE_NS", 0),
        ServerThread(*places, grpc=True) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    path = bundle(tmp_path_factory.mktemp("arrays"))
    rows = bundle(tmp_path_factory.mktemp("rows"), Pipeline((Row(COLUMNS),)))
    with server_of(place_of(path, sessions=1), place_of(rows, "rows")) as running:
        yield running


def posted(url: str, body: object) -> dict[str, object]:
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=60) as answer:
        return dict(json.load(answer))


def by_http(server: ServerThread, x: Array) -> Array:
    given = {"name": "x", "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}
    said = posted(f"{server.http_url}/v2/models/places/infer", {"inputs": [given]})
    (found,) = (one for one in said["outputs"] if one["name"] == "positive")  # type: ignore[attr-defined]
    return np.array(found["data"], np.int64).reshape(found["shape"])


def by_grpc(client: triton.InferenceServerClient, x: Array) -> Array:
    tensor = triton.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    found = client.infer("places", [tensor]).as_numpy("positive")
    assert found is not None
    return np.asarray(found)


class Gate:
    """Holds the engine's thread while requests queue."""

    def __init__(self, server: ServerThread, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._server, self._open = server, threading.Event()
        self._model = server.server.state.repository.find(name)
        run = batching._Thread.run

        def once_all_wait(thread: batching._Thread, batch: Any) -> Any:
            self._open.wait(60)
            return run(thread, batch)

        monkeypatch.setattr(batching._Thread, "run", once_all_wait)

    def answers(self, *asks: Callable[[], Array]) -> list[Any]:
        """Return the answers to requests of which all but the first are in the queue together."""
        self._open.clear()
        first, *others = asks
        with ThreadPoolExecutor(len(asks)) as pool:
            told = [pool.submit(first)]
            self._until(lambda: not self._model.idle and self._model.queued_rows == 0)
            for number, other in enumerate(others, 1):
                told.append(pool.submit(other))
                self._until(lambda number=number: self._model.queued_rows == number)  # type: ignore[misc]
            self._open.set()
            return [one.result().tolist() for one in told]

    def _until(self, condition: Callable[[], bool]) -> None:
        until(lambda: bool(self._server.call(condition)))


def test_clients_that_ask_at_once_each_get_what_was_found_in_theirs(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    with triton.InferenceServerClient(server.grpc_url) as client:
        # The last two find none and two: as many together as a batch of them has rows.
        answers = Gate(server, "places", monkeypatch).answers(
            lambda: by_http(server, LIKE_ROWS[0]),
            lambda: by_http(server, NONE),
            lambda: by_grpc(client, TWO),
        )
    assert answers == [[[0, 0]], [], [[0, 1], [0, 4]]]


def test_no_batch_is_formed_where_the_graph_says_that_values_size_an_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle(tmp_path, varying_outputs=(), axis=BY_VALUE)  # it never varied in the run
    with server_of(place_of(path, sessions=1)) as server:
        asks = [lambda x=x: by_http(server, x) for x in (LIKE_ROWS[0], NONE, TWO)]
        answers = Gate(server, "places", monkeypatch).answers(*asks)
        assert server.server.state.repository.find("places").opened.sizes == (1,)
        x = np.concatenate([TWO, NONE, NONE, *LIKE_ROWS])
        assert by_http(server, x).tolist() == np.argwhere(x > 0).tolist()
    assert answers == [[[0, 0]], [], [[0, 1], [0, 4]]]


def test_a_batch_that_cannot_be_divided_is_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle(tmp_path, varying_outputs=())  # its output never varied in the run
    with server_of(place_of(path, sessions=1)) as server:
        gate = Gate(server, "places", monkeypatch)
        one, none, two = (lambda x=x: by_http(server, x) for x in (LIKE_ROWS[0], NONE, TWO))
        wanted = {one: [[0, 0]], none: [], two: [[0, 1], [0, 4]]}
        for asks in ((one, two, two), (one, none, two)):
            assert gate.answers(*asks) == [wanted[ask] for ask in asks]
        known = server.server.state.repository.find("places")._batching.scheduler.latencies
        assert (known.sizes, known.best, known.first[2]) == (
            (1,),
            1,
            1,
        )  # by which the queue is bounded


def test_a_client_s_own_batch_is_answered_as_the_model_answers_it(server: ServerThread) -> None:
    x = np.concatenate([TWO, NONE, NONE, *LIKE_ROWS])
    assert by_http(server, x).tolist() == np.argwhere(x > 0).tolist()


def test_a_server_says_why_it_forms_no_batches(server: ServerThread) -> None:
    notes = server.server.state.repository.find("places").opened.notes
    assert (
        "served without batching: nothing says which sample of a batch each row belongs to in the output 'positive', "
        "whose size depends on the sample's values"
    ) in notes


def test_a_row_is_answered_with_all_that_was_found(server: ServerThread, tmp_path: Path) -> None:
    row = dict(zip(COLUMNS, [1.0, -1, 2, -1, 3, -1], strict=True))
    none = dict.fromkeys(COLUMNS, -1.0)
    wanted = [[[0, 0], [0, 2], [0, 4]], []]
    with hasten.load(bundle(tmp_path, Pipeline((Row(COLUMNS),)))) as loaded:
        assert [np.asarray(loaded.decide(x)["positive"]).tolist() for x in (row, none)] == wanted
    url = f"{server.http_url}/v2/models/rows/infer"
    told = [posted(url, x)["decision"]["positive"] for x in (row, none)]  # type: ignore[index]
    assert told == wanted


def test_a_model_with_boxes_is_served_with_its_exact_model_beside_it(tmp_path: Path) -> None:
    """Before a bundle is served, both models' answers to its requests are compared."""
    model = varying.detector(tmp_path)
    given = varying.pictures(4)["picture"]
    settled = onnx.load(model).settled_by({"picture": given[0]})
    parts = []
    for which in ("winner", "exact"):
        (tmp_path / which).mkdir()
        built = ENGINE.build(settled, Target.host(), tmp_path / which)
        parts.append(part(which, (), ENGINE, built))
    manifest = stated(*parts, varying=("selected", "boxes"))
    path = tmp_path / "detector.hasten"
    write(path, manifest, {}, requests=[{"picture": one[None]} for one in given])
    with server_of(place_of(path, shadow=1.0, monitor_state="off")) as server:
        answer = server.server.state.repository.find("detector")
        assert [note for note in answer.opened.notes if "differ" in note] == []


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_an_answer_without_rows_is_not_broken(dtype: type) -> None:
    assert broken_rows({"found": np.zeros((0, 2), dtype)}).tolist() == []
