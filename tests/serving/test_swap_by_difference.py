"""A served bundle is replaced by the one that a downloaded difference leads to, under load."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from tests.support import models
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import until

import hasten

pytestmark = pytest.mark.seconds

BEFORE, AFTER = [[1, 2, 3, 4], [5, 6, 7, 8]], [[4, 3, 2, 1], [8, 7, 6, 5]]


def asking(server: ServerThread, name: str, ended: threading.Event, answers: list[object]) -> None:
    client = triton.InferenceServerClient(server.host)
    tensor = triton.InferInput("x", [2, 4], "FP32")
    tensor.set_data_from_numpy(np.array(BEFORE, np.float32))
    while not ended.is_set():
        answers.append(client.infer(name, [tensor]).as_numpy("y").tolist())
    client.close()


def load(server: ServerThread) -> None:
    client = triton.InferenceServerClient(server.host, network_timeout=120.0)
    client.load_model("model")
    client.close()


def hang_up(server: ServerThread) -> None:
    server.call(server.server.state.repository.reload_changed)  # as SIGHUP does


@pytest.mark.parametrize("suffix", [".hasten", ".hastenz"], ids=["a folder", "a packed file"])
@pytest.mark.parametrize("reload", [load, hang_up], ids=["by a request", "by SIGHUP"])
def test_the_answers_switch_and_no_request_is_lost(
    tmp_path: Path, suffix: str, reload: Callable[[ServerThread], None]
) -> None:
    old = bundle_of(tmp_path, models.solid(tmp_path), "model")
    new = bundle_of(tmp_path, models.mirrored(tmp_path), "newer")
    place, difference = tmp_path / "served" / f"model{suffix}", tmp_path / "newer.hastenz"
    place.parent.mkdir()
    hasten.pack(new, difference, since=old)
    old.rename(place) if suffix == ".hasten" else hasten.pack(old, place)
    with (
        ServerThread(place_of(place, "model", most_rows=4), control=True) as server,
        concurrent.futures.ThreadPoolExecutor(3) as threads,
    ):
        ended, answers = threading.Event(), list[object]()
        calls = [threads.submit(asking, server, "model", ended, answers) for _ in range(3)]
        try:
            until(lambda: len(answers) > 50)
            hasten.unpack(difference, place, base=place)
            seen = len(answers)
            until(lambda: len(answers) > seen + 20)
            assert answers[-1] == BEFORE  # until it is told
            reload(server)
            until(lambda: answers[-1] == AFTER)
            assert (
                hasten.unpack(difference, place, base=place) == place
            )  # a second try does nothing
            seen = len(answers)
            until(lambda: len(answers) > seen + 20)
        finally:
            ended.set()
        for call in calls:
            call.result()  # none raised
        assert all(each in (BEFORE, AFTER) for each in answers)
        assert answers[-1] == AFTER
        assert server.server.state.repository.find("model").statistics.fail.count == 0
