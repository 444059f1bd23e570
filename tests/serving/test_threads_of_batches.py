"""Which requests the loop's own thread runs: those of which the warm-up showed how long they take."""

from __future__ import annotations

import json
import threading
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tests.support import models
from tests.support.bundles import stated
from tests.support.servers import ServerThread, bundle_of, place_of

from hasten.bundle import Loaded, part, write
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.models import onnx
from hasten.serving.models import batching

LOOP, ENGINE = "test-server", "hasten-engine"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Threads that ran requests, from now on."""
    threads: list[str] = []
    run = Loaded.run

    def noting(self: Loaded, tensors: Tensors) -> dict[str, Array]:
        threads.append(threading.current_thread().name)
        return run(self, tensors)

    monkeypatch.setattr(Loaded, "run", noting)
    monkeypatch.setattr(batching, "INLINE_NS", 10**12)  # however slow this host is
    monkeypatch.setattr(batching, "_STALL_NS", 10**12)
    return threads


def of_any_length(folder: Path, length: int) -> Path:
    """Write a bundle of a model of x: float32[batch, length], certified at one length."""
    engine = OnnxRuntime(threads=1, spinning=False)
    model = onnx.load(models.identity(folder, sizes="length"))
    model = model.settled_by({"x": np.zeros(length, np.float32)})
    (folder / "built").mkdir()
    winner = part("a label", (), engine, engine.build(model, Target.host(), folder / "built"))
    write(folder / "model.hasten", stated(winner, winner, status="exact"), {})
    return folder / "model.hasten"


def ask(server: ServerThread, *shape: int) -> None:
    data = np.ones(shape).ravel().tolist()
    tensor = {"name": "x", "datatype": "FP32", "shape": shape, "data": data}
    body = json.dumps({"inputs": [tensor]}).encode()
    url = f"{server.http_url}/v2/models/model/infer"
    with urllib.request.urlopen(url, body, timeout=60) as answer:
        assert json.load(answer)["outputs"][0]["data"] == data


def test_a_request_longer_than_the_timed_one_isnt_run_on_the_loops_thread(
    tmp_path: Path, ran: list[str]
) -> None:
    with ServerThread(place_of(of_any_length(tmp_path, 20))) as server:
        ran.clear()
        for shape in ((1, 20), (3, 7), (1, 21), (2, 100), (1, 19)):
            ask(server, *shape)
    assert ran == [LOOP, LOOP, ENGINE, ENGINE, LOOP]


def test_no_request_of_a_model_that_wasnt_warmed_up_is_run_on_the_loops_thread(
    tmp_path: Path, ran: list[str]
) -> None:
    given = {"audio": np.ones((1, 256), np.float32), "state": np.ones((1, 8), np.float32)}
    types = {"audio": "FP32", "state": "FP32", "rate": "INT64"}
    arrays = {**given, "rate": np.array(16_000)}
    with ServerThread(place_of(bundle_of(tmp_path, models.voice_detector(tmp_path)))) as server:
        (one,) = server.server.state.repository
        assert one.served is not None
        assert "served without a warm-up" in " ".join(one.served.opened.notes)
        ran.clear()
        inputs = [
            {"name": n, "datatype": types[n], "shape": a.shape, "data": a.ravel().tolist()}
            for n, a in arrays.items()
        ]
        body = json.dumps({"inputs": inputs}).encode()
        url = f"{server.http_url}/v2/models/voice_detector/infer"
        with urllib.request.urlopen(url, body, timeout=60) as answer:
            assert answer.status == 200
    assert ran == [ENGINE]
