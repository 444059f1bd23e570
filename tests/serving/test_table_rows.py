"""Numbers beyond a model's tables: their requests alone are refused, before they share a batch."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tests.support.servers import ServerThread, bundle_of, place_of
from tritonclient.utils import InferenceServerException

from hasten.bundle import load
from hasten.core.sequences import Sequences
from hasten.core.tensors import Array
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.openvino.engine import OpenVino
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.serving.models import batching
from hasten.serving.models.opening import ModelSettings, open_bundle
from hasten.serving.models.scheduling import BatchRun
from hasten.testing import models

PATIENCE_S = 60.0
IDS = np.random.default_rng(0).integers(-10, 10, (60, 1, 3))
WRONG = np.array([[0, 10, 1]])
SAID = (
    "input 'ids' has the number 10, and the table that it looks up has 10 rows: give numbers from 0 to 9, as the "
    "model's own tokenizer or categories do"
)
COLUMNS = ("income", "branch")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of engines that answer numbers beyond a table: of tokens, of rows, and of steps of a sequence."""
    folder = tmp_path_factory.mktemp("tables")
    weights: models.Weights = {"table": (10, 4), "w": (4, 4)}
    tokens = """m (int64[batch, 3] ids) => (float[batch, 4] y) {
        rows = Gather(table, ids)
        row = ReduceMean <axes = [1], keepdims = 0> (rows)
        y = MatMul(row, w) }"""
    steps = """m (int64[batch, 3] ids, float[batch, 4] h) => (float[batch, 4] y, float[batch, 4] h_out) {
        rows = Gather(table, ids)
        row = ReduceMean <axes = [1], keepdims = 0> (rows)
        h_out = Add(row, h)
        y = MatMul(h_out, w) }"""
    rows = """m (float[batch, 2] x) => (float[batch, 4] y) <int64 one = {1}> {
        column = Gather <axis = 1> (x, one)
        whole = Cast <to = 7> (column)
        row = Gather(table, whole)
        y = MatMul(row, w) }"""
    engine = OpenVino(threads=1)
    found = {
        name: models.write(folder / f"{name}.onnx", text, weights)
        for name, text in {"tokens": tokens, "steps": steps, "rows": rows}.items()
    }
    return {
        "tokens": bundle_of(folder, found["tokens"], engine=engine),
        "steps": bundle_of(
            folder, found["steps"], engine=engine, sequences=Sequences((("h", "h_out"),))
        ),
        "rows": bundle_of(
            folder, found["rows"], engine=CompiledC(), pipeline=Pipeline((Row(COLUMNS),))
        ),
    }


@pytest.fixture(scope="module")
def server(bundles: dict[str, Path]) -> Iterator[ServerThread]:
    with ServerThread(*map(place_of, bundles.values()), grpc=True) as running:
        yield running


def over_http(server: ServerThread, inputs: list[Any], model: str, **asked: Any) -> Any:
    url = f"{server.http_url}/v2/models/{model}/infer"
    return httpx.post(url, json={"inputs": inputs, **asked}, timeout=PATIENCE_S)


def of_ids(ids: Array) -> list[Any]:
    return [{"name": "ids", "datatype": "INT64", "shape": [1, 3], "data": ids.ravel().tolist()}]


def test_each_protocol_refuses_them_in_one_line(server: ServerThread) -> None:
    answer = over_http(server, of_ids(WRONG), "tokens")
    assert (answer.status_code, answer.json()) == (400, {"error": SAID})
    for module, address, status in (
        (triton, server.host, "400"),
        (triton_grpc, server.grpc_url, "StatusCode.INVALID_ARGUMENT"),
    ):
        client = module.InferenceServerClient(address)
        for ids in (WRONG, IDS[0], WRONG):  # the last one's heading was seen before
            tensor = module.InferInput("ids", [1, 3], "INT64")
            tensor.set_data_from_numpy(ids)
            if ids is not WRONG:
                assert client.infer("tokens", [tensor]).as_numpy("y").shape == (1, 4)
                continue
            with pytest.raises(InferenceServerException) as error:
                client.infer("tokens", [tensor])
            assert (error.value.status(), error.value.message()) == (status, SAID)
        client.close()


def test_requests_beside_them_are_answered_in_batches_without_them(
    server: ServerThread, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Array] = []
    run = batching._Thread.run

    def noted(self: batching._Thread, asked: BatchRun[batching.ServerTask]) -> object:
        ran.extend(item.inputs["ids"] for item in asked.items)
        return run(self, asked)

    monkeypatch.setattr(batching._Thread, "run", noted)
    with load(bundles["tokens"]) as loaded:
        alone = [loaded(ids)["y"] for ids in IDS]
    given = [ids for one in IDS for ids in (one, WRONG)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda ids: over_http(server, of_ids(ids), "tokens"), given))
    for right, refused, own in zip(answers[::2], answers[1::2], alone, strict=True):
        assert (refused.status_code, refused.json()) == (400, {"error": SAID})
        (found,) = right.json()["outputs"]
        np.testing.assert_allclose(found["data"], own.ravel(), rtol=1e-4, atol=1e-5)
    assert ran
    assert all(ids.max() < 10 for ids in ran)


def test_a_step_that_is_refused_leaves_its_sequence(server: ServerThread) -> None:
    def step(ids: Array, **parameters: bool) -> Any:
        return over_http(
            server, of_ids(ids), "steps", parameters={"sequence_id": 7, **parameters}
        ).json()

    first = step(IDS[0], sequence_start=True)
    assert step(WRONG) == {"error": SAID}
    again = step(IDS[0], sequence_end=True)
    np.testing.assert_allclose(
        again["outputs"][0]["data"], 2 * np.array(first["outputs"][0]["data"]), rtol=1e-4, atol=1e-5
    )


def test_rows_and_raw_samples_are_refused_alike(server: ServerThread) -> None:
    url = f"{server.http_url}/v2/models/rows/infer"
    good, wrong = {"income": 0.5, "branch": 3.0}, {"income": 0.5, "branch": 10.0}
    said = SAID.replace("'ids'", "'x'").replace("number 10,", "number 10.0,")
    assert httpx.post(url, json=good, timeout=PATIENCE_S).status_code == 200
    for body in (wrong, [good, wrong]):
        answer = httpx.post(url, json=body, timeout=PATIENCE_S)
        assert (answer.status_code, answer.json()) == (400, {"error": said})
    raw = [{"name": "raw", "datatype": "BYTES", "shape": [1], "data": [json.dumps(wrong)]}]
    answer = over_http(server, raw, "rows")
    assert (answer.status_code, answer.json()) == (400, {"error": said})


@pytest.mark.parametrize("given", ["int64", "float"])
def test_a_warm_up_without_requests_keeps_to_the_smallest_table(given: str, tmp_path: Path) -> None:
    text = f"""m ({given}[batch, 3] ids) => (float[batch, 4] y) {{
        whole = Cast <to = 7> (ids)
        rows = Gather(table, whole)
        y = ReduceMean <axes = [1], keepdims = 0> (rows) }}"""
    model = models.write(tmp_path / "m.onnx", text, {"table": (1, 4)})
    opened = open_bundle(bundle_of(tmp_path, model), ModelSettings())
    try:
        assert opened.notes == []
        assert len(opened.sizes) > 1
    finally:
        opened.close()
