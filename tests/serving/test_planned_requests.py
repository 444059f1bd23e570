"""Requests whose JSON only seems to be what another request's JSON was."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.support import models
from tests.support.servers import ServerThread, bundle_of, place_of

from hasten.serving.protocol.requests import Query
from hasten.serving.wire.plans import Plans

ROW = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    folder = tmp_path_factory.mktemp("planned")
    with ServerThread(place_of(bundle_of(folder, models.solid(folder)))) as running:
        yield running


def asked(server: ServerThread, text: str, tail: bytes = b"") -> dict[str, Any]:
    headers = {"Inference-Header-Content-Length": str(len(text))} if tail else {}
    url = f"{server.http_url}/v2/models/solid/infer"
    whole = urllib.request.Request(url, text.encode() + tail, headers)
    with urllib.request.urlopen(whole, timeout=60) as answer:
        said: dict[str, Any] = json.load(answer)
    return said


@pytest.mark.parametrize(
    ("own", "id_"),
    [
        ('"id":\n"mine"', "mine"),
        ('"\\u0069d": "mine"', "mine"),
        ('"id": "m\\u0069ne"', "mine"),
        ('"id": null', ""),
        ('"x": "mine"', ""),
    ],
)
@pytest.mark.parametrize("as_bytes", [False, True], ids=["all JSON", "bytes after the JSON"])
def test_an_id_further_inside_is_not_the_requests(
    server: ServerThread, own: str, id_: str, as_bytes: bool
) -> None:
    if as_bytes:
        data, tail = f'"parameters": {{"binary_data_size": {ROW.nbytes}}}', ROW.tobytes()
    else:
        data, tail = '"data": [1, 2, 3, 4]', b""
    tensor = f'{{"name": "x", "datatype": "FP32", "shape": [1, 4], {data}}}'
    for inner in ("mine", "mine", "mine", "your", "his"):
        text = f'{{{own}, "parameters": {{"id": "{inner}"}}, "inputs": [{tensor}]}}'
        said = asked(server, text, tail)
        assert said.get("id", "") == id_
        assert said["outputs"][0]["data"] == [1, 2, 3, 4]


def test_data_further_inside_are_not_the_tensors() -> None:
    """The tensor lies in shared memory, which may hold other numbers next time."""
    tensor = (
        '{"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"shared": "region"}}'
    )
    body = f'{{"parameters": {{"data": [1, 2, 3, 4]}}, "inputs": [{tensor}]}}'.encode()
    plans = Plans()
    for _ in range(3):
        plans.note(Query("model", "1", "", {"x": ROW}), body, None, 1, "key")
    assert plans.find(body, None) is None
