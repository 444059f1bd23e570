"""Which batches a server makes of what a session takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tests.support import models
from tests.support.bundles import forge
from tests.support.servers import ServerThread, bundle_of, place_of, with_curve

from hasten.bundle import Loaded
from hasten.bundle.manifest import untimed_yet
from hasten.core.tensors import Array, Tensors
from hasten.errors import CandidateError, IntegrityError
from hasten.serving.models.opening import ModelSettings, open_bundle
from hasten.serving.options import ModelOptions
from hasten.serving.run import settings_of


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("opened")
    return bundle_of(folder, models.solid(folder))


def test_a_models_threads_leave_the_processors_to_the_server_between_requests(bundle: Path) -> None:
    opened = open_bundle(bundle, ModelSettings(standby=True))
    try:
        assert {one.properties()["lingering"] for one in opened.everything} == {"False"}
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("takes", "most_rows", "batched", "sizes"),
    [
        (None, 8, True, (1, 2, 3, 4, 6, 8)),
        (tuple(range(1, 7)), 32, True, (1, 2, 3, 4, 6)),
        (tuple(range(1, 33)), 4, True, (1, 2, 3, 4)),
        ((1,), 32, False, (1,)),
        ((4,), 32, False, (1,)),
        ((1, 8), 32, False, (1,)),
    ],
)
def test_batches_are_as_large_as_the_engine_takes_them(
    bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    takes: tuple[int, ...] | None,
    most_rows: int,
    batched: bool,
    sizes: tuple[int, ...],
) -> None:
    asked: set[int] = set()
    run = Loaded.run

    def noted(self: Loaded, tensors: dict[str, object]) -> object:
        asked.update(len(array) for array in tensors.values())  # type: ignore[arg-type]
        return run(self, tensors)  # type: ignore[arg-type]

    monkeypatch.setattr(Loaded, "batch_sizes", property(lambda self: takes))
    monkeypatch.setattr(Loaded, "run", noted)
    opened = open_bundle(bundle, ModelSettings(most_rows=most_rows))
    try:
        assert (opened.batched, opened.sizes) == (batched, sizes)
        assert asked == set(sizes)
    finally:
        opened.close()


def kept(count: int) -> list[dict[str, Array]]:
    """Requests to a model of 4 floats, each unlike any other."""
    return [{"x": np.full((1, 4), 10.0 + number, np.float32)} for number in range(count)]


def noting(monkeypatch: pytest.MonkeyPatch) -> list[Array]:
    """Note what sessions are asked from now on."""
    asked: list[Array] = []
    run = Loaded.run

    def noted(self: Loaded, tensors: Tensors) -> dict[str, Array]:
        asked.append(tensors["x"])
        return run(self, tensors)

    monkeypatch.setattr(Loaded, "run", noted)
    return asked


def test_every_request_that_a_bundle_keeps_warms_every_session_and_the_standby(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solid = models.solid(tmp_path)
    path = bundle_of(tmp_path, solid, exact=solid, requests=kept(3))
    asked: list[tuple[int, float]] = []
    run = Loaded.run

    def noted(self: Loaded, tensors: Tensors) -> dict[str, Array]:
        asked.append((id(self), float(tensors["x"][0, 0])))
        return run(self, tensors)

    monkeypatch.setattr(Loaded, "run", noted)
    opened = open_bundle(path, ModelSettings(sessions=1, most_rows=1))
    try:
        assert opened.standby is not None
        assert len(opened.everything) == 2
        for session in opened.everything:
            assert {value for who, value in asked if who == id(session)} == {10.0, 11.0, 12.0}
    finally:
        opened.close()


def test_batches_are_made_of_what_is_kept_and_louder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle_of(tmp_path, models.solid(tmp_path), requests=kept(2))
    asked = noting(monkeypatch)
    opened = open_bundle(path, ModelSettings(most_rows=4))
    try:
        assert (opened.batched, opened.sizes) == (True, (1, 2, 3, 4))
    finally:
        opened.close()
    batches = {len(array): array[:, 0].tolist() for array in asked if len(array) > 1}
    assert batches == {2: [10, 88], 3: [10, 80, 88], 4: [10, 80, 88, 80]}


def test_a_failing_request_of_the_data_is_a_failure(tmp_path: Path) -> None:
    path = bundle_of(
        tmp_path,
        models.voice_detector(tmp_path),
        requests=[
            {
                "audio": np.ones((1, 256), np.float32),
                "state": np.ones((1, 8), np.float32),
                "rate": np.array(8_000),
            }
        ],
    )
    with pytest.raises(CandidateError, match="ONNX Runtime failed"):
        open_bundle(path, ModelSettings())


def test_damaged_requests_are_no_model_to_serve(tmp_path: Path) -> None:
    path = bundle_of(tmp_path, models.solid(tmp_path), requests=kept(1))
    forge(path, lambda record: record.update(requests=9))
    with pytest.raises(IntegrityError, match="it states 9 requests"):
        open_bundle(path, ModelSettings())


def test_what_the_engine_compiles_is_kept_for_the_next_start(bundle: Path, tmp_path: Path) -> None:
    found = []
    for compiled in (str(tmp_path / "kept"), str(tmp_path / "kept"), "off"):
        opened = open_bundle(bundle, ModelSettings(compiled=compiled, sessions=1))
        found.append(opened.sessions[0].from_cache)
        opened.close()
    assert found == [False, True, False]


def test_a_folder_of_compiled_models_is_named_from_where_the_server_was_started(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [
        settings_of([bundle], models=ModelOptions(compiled=one))
        for one in ("", "off", "kept", Path("kept"))
    ]
    kept = str(tmp_path / "kept")
    assert [settings.models[0].settings.compiled for settings in asked] == ["", "off", kept, kept]


def test_what_is_certified_before_its_run_has_finished_says_so(tmp_path: Path) -> None:
    why = untimed_yet("sure enough")
    path = bundle_of(tmp_path, models.solid(tmp_path))
    forge(path, lambda record: record.update(status="certified", why=why))
    with ServerThread(place_of(path)) as server:
        (one,) = server.server.state.repository
        assert one.served is not None
        assert why in one.served.opened.notes


@pytest.mark.parametrize("exact", [False, True], ids=["alone", "beside its exact model"])
def test_a_request_that_a_manifest_says_is_huge_is_not_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    solid = models.solid(tmp_path)
    path = bundle_of(tmp_path, solid, exact=solid if exact else None)

    def huge(record: dict[str, Any]) -> None:
        for part in (record["winner"], record["exact"]):
            for spec in (*part["artifact"]["inputs"], *part["artifact"]["request"]):
                spec["shape"][-1] = 1 << 29

    forge(path, huge)
    asked = noting(monkeypatch)
    place = place_of(path)
    with ServerThread(place, control=True) as server:
        client = triton.InferenceServerClient(server.host, network_timeout=120.0)
        client.load_model(place.name)  # compared with what it replaces
        client.close()
        (one,) = server.server.state.repository
        assert one.served is not None
        assert (
            "served without a warm-up: the bundle keeps no requests, and a random one failed: a "
            "request of x: float32[1, 536870912] takes 2,147,483,648 bytes; made-up requests "
            "take at most 67,108,864"
        ) in one.served.opened.notes
        assert (
            "it replaces the model served before, but their answers weren't compared: no request of the "
            "server's own was answered by both"
        ) in one.served.opened.notes
    assert asked == []


def test_a_curve_that_cant_be_this_models_is_not_used(tmp_path: Path) -> None:
    curve = with_curve(dict.fromkeys((1, 2, 4), 1e-06))
    opened = open_bundle(bundle_of(tmp_path, models.solid(tmp_path), extra=curve), ModelSettings())
    try:
        assert opened.latencies.measured_ns(1) != 1.0
    finally:
        opened.close()
