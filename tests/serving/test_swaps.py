"""What a swap leaves as it was: speed that was learned, rows that may come, deadlines that are kept."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tests.support import models
from tests.support.pausing import Pausing, pausing_installed
from tests.support.servers import ServerThread, bundle_of, place_of, with_curve
from tests.support.waiting import until

from hasten.serving.models.opening import SIZES
from hasten.serving.models.scheduling import BatchRun
from hasten.serving.protocol.errors import ProtocolError

pytestmark = pytest.mark.seconds


def infer(
    client: triton.InferenceServerClient, rows: int = 1, pause_ms: float = 0, **options: Any
) -> Any:
    data = np.arange(4 * rows, dtype=np.float32).reshape(rows, 4)
    data[0, 0] = pause_ms
    tensor = triton.InferInput("x", [rows, 4], "FP32")
    tensor.set_data_from_numpy(data)
    return client.infer("model", [tensor], **options).as_numpy("y")


def load(server: ServerThread) -> None:
    client = triton.InferenceServerClient(server.host, network_timeout=120.0)
    client.load_model("model")
    client.close()


@pytest.mark.parametrize("curve", [True, False], ids=["by its curve", "without one"])
def test_deadlines_go_by_this_machine_after_a_swap_too(tmp_path: Path, curve: bool) -> None:
    """The machine that the bundle was made on was slower by far: by its curve nothing is in time.

    The deadline is longer than this machine takes however busy it is.
    """
    extra = with_curve({size: 100_000.0 * size for size in (1, 2, 4)}) if curve else {}
    bundle = bundle_of(tmp_path, models.solid(tmp_path), "model", extra=extra)
    with ServerThread(place_of(bundle), control=True) as server:
        client = triton.InferenceServerClient(server.host)
        for _ in range(3):
            for _ in range(5):
                assert infer(client, timeout=60_000_000).tolist() == [[0, 1, 2, 3]]
            load(server)
        client.close()


def test_a_swap_beside_load_leaves_the_batches_as_they_were(tmp_path: Path) -> None:
    model = models.solid(tmp_path)
    curve = with_curve({size: 1.0 + 0.1 * size for size in (1, 2, 4)})
    with (
        pausing_installed(tmp_path / "plug-in"),
        ServerThread(
            place_of(
                bundle_of(tmp_path, model, "model", engine=Pausing(), extra=curve), most_rows=4
            ),
            control=True,
        ) as server,
        concurrent.futures.ThreadPoolExecutor(3) as threads,
    ):
        served = server.server.state.repository
        before = served.find("model").opened.sizes
        assert before == tuple(size for size in SIZES if size <= 4)
        ended, counts = threading.Event(), dict.fromkeys((1, 3, 4), 0)

        def ask(rows: int) -> None:
            client = triton.InferenceServerClient(server.host)
            while not ended.is_set():
                assert infer(client, rows, pause_ms=10).shape == (rows, 4)
                counts[rows] += 1
            client.close()

        calls = [threads.submit(ask, rows) for rows in counts]
        old = served.find("model")
        try:
            until(lambda: min(counts.values()) > 3 or any(call.done() for call in calls))
            load(server)
            until(lambda: served.find("model") is not old)
        finally:
            ended.set()
        for call in calls:
            call.result()  # none raised
        assert served.find("model").opened.sizes == before


def test_only_another_answer_after_a_swap_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The bundle is replaced by one that answers alike, then by one whose classes are reversed."""
    bundle = bundle_of(tmp_path, models.solid(tmp_path), "model")
    requests = [{"x": np.arange(4, dtype=np.float32)[None]}]
    caplog.set_level("INFO", "hasten")
    with ServerThread(place_of(bundle), control=True) as server:
        for make, differing in ((models.solid, 0), (models.mirrored, 1)):
            caplog.clear()
            bundle_of(tmp_path, make(tmp_path), "model", requests=requests)
            load(server)
            until(lambda: "in place of the model served before" in caplog.text)
            (said,) = [one for one in caplog.records if "answers differ" in one.getMessage()]
            assert f"{differing} of 1 answers differ" in said.getMessage()
            assert (said.levelname == "WARNING") == bool(differing)


def test_what_a_swap_asks_the_older_model_counts_as_no_clients_request(tmp_path: Path) -> None:
    """Nor does it count as refused, where the older model is overloaded."""
    requests = [{"x": np.full((1, 4), number, np.float32)} for number in range(3)]
    bundle = bundle_of(tmp_path, models.solid(tmp_path), "model", requests=requests)
    with ServerThread(place_of(bundle, cache_bytes=1 << 20), control=True) as server:
        client = triton.InferenceServerClient(server.host, network_timeout=120.0)
        infer(client)
        load(server)
        infer(client)
        client.close()
        model = server.server.state.repository.find("model")
        found, busy = model.statistics, BatchRun[Any]([], 1)
        server.call(lambda: model.scheduler.begun(busy, time.perf_counter_ns() + 3600 * 10**9))
        with pytest.raises(ProtocolError, match="overloaded"):
            server.call(lambda: model.ask(requests[0]))
        counts = server.call(
            lambda: (found.totals["success"].count, found.fail.count, found.cache_miss.count)
        )
    assert counts == (2, 0, 2)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_bundle_that_was_replaced_while_it_was_unloaded_is_served_by_its_winner(
    tmp_path: Path, replaced: bool
) -> None:
    """After a crash, the exact model answers in the place of the one that crashed, and of no other."""
    solid, mirrored = models.solid(tmp_path), models.mirrored(tmp_path)
    bundle = bundle_of(tmp_path, solid, "model", exact=mirrored)
    with ServerThread(place_of(bundle, which="exact"), control=True) as server:
        client = triton.InferenceServerClient(server.host, network_timeout=120.0)
        assert infer(client).tolist() == [[3, 2, 1, 0]]
        client.unload_model("model")
        if replaced:
            requests = [{"x": np.zeros((1, 4), np.float32)}]
            bundle_of(tmp_path, solid, "model", exact=mirrored, requests=requests)
        load(server)
        found = infer(client).tolist()
        client.close()
    assert found == ([[0, 1, 2, 3]] if replaced else [[3, 2, 1, 0]])
