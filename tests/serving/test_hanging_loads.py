"""Models whose warm-up never ends, and those that are served beside them."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tests.support import chains, models, pausing
from tests.support.pausing import Pausing, pausing_installed
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import until

from hasten.errors import CandidateError
from hasten.serving.models import repository
from hasten.serving.models.opening import OpenBundle
from hasten.serving.models.repository import Registered
from hasten.serving.run import settings_of

NEVER_MS = 1e9


@pytest.fixture(autouse=True)
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let turns be short, and end what hangs when the test ends."""
    monkeypatch.setattr(repository, "_TURN_S", 0.1)
    monkeypatch.setattr(repository, "_OVERDUE_S", 0.5)
    loading: list[threading.Event] = []

    def started(work: Callable[..., None], args: tuple[Any, ...]) -> None:
        ended = threading.Event()
        loading.append(ended)

        def run() -> None:
            work(*args)
            ended.set()

        _thread.start_new_thread(run, ())

    monkeypatch.setattr(repository, "_thread", SimpleNamespace(start_new_thread=started))
    pausing.RELEASE.clear()
    with pausing_installed(tmp_path / "plug-in"):
        yield
        pausing.RELEASE.set()
        until(lambda: all(one.is_set() for one in loading))
    pausing.RELEASE.clear()


def asks(folder: Path, name: str, pause_ms: float) -> Path:
    """A bundle whose warm-up asks for a pause."""
    request = {"x": np.array([[pause_ms, 0, 0, 0]], np.float32)}
    model = models.solid(folder)
    return bundle_of(folder, model, name, engine=Pausing(), requests=[request])


def answer(server: ServerThread, model: str) -> Any:
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array([[0, 1, 2, 3]], np.float32))
    client = triton.InferenceServerClient(server.host)
    try:
        return client.infer(model, [tensor]).as_numpy("y").tolist()
    finally:
        client.close()


@contextlib.contextmanager
def guarded_closing() -> Iterator[list[Path]]:
    """The bundles that are closed meanwhile."""
    closed: list[Path] = []
    close = OpenBundle.close

    def told(bundle: OpenBundle) -> None:
        close(bundle)
        closed.append(bundle.path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(OpenBundle, "close", told)
        yield closed


def registered(server: ServerThread, name: str) -> Registered:
    (one,) = server.server.state.repository.registered(name)
    return one


def test_a_model_that_hangs_as_it_is_loaded_keeps_no_other_from_being_served(
    tmp_path: Path,
) -> None:
    stuck, other = asks(tmp_path, "stuck", NEVER_MS), asks(tmp_path, "other", 0)
    with ServerThread(place_of(stuck), place_of(other)) as server:
        until(lambda: server.server.state.ready)
        assert answer(server, "other") == [[0, 1, 2, 3]]
        one = registered(server, "stuck")
        late = "still loading after 0.5 s: other models don't wait for this one"
        assert (one.state, one.reason) == ("LOADING", late)
        pausing.RELEASE.set()
        until(lambda: one.state == "READY")
        assert answer(server, "stuck") == [[0, 1, 2, 3]]


def test_a_model_that_is_slow_to_load_delays_others_for_a_turn_and_readiness_until_it_is_overdue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "_OVERDUE_S", 3600.0)
    stuck, other = asks(tmp_path, "stuck", NEVER_MS), asks(tmp_path, "other", 0)
    with ServerThread(place_of(stuck), place_of(other), loaded=False) as server:
        until(lambda: registered(server, "other").served is not None)
        assert answer(server, "other") == [[0, 1, 2, 3]]
        assert not server.server.state.ready
        pausing.RELEASE.set()
        until(lambda: server.server.state.ready)
        assert answer(server, "stuck") == [[0, 1, 2, 3]]


def test_a_chain_waits_for_its_own_models_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "_OVERDUE_S", 3600.0)
    stuck = asks(tmp_path, "stuck", NEVER_MS)
    line = f"{chains.detector(tmp_path)}+crop+{chains.classifier(tmp_path)}"
    places = settings_of([f"plates={line}", f"again={line}"]).models
    with ServerThread(place_of(stuck), *places, loaded=False) as server:
        for name in ("plates", "again"):
            until(lambda name=name: registered(server, name).served is not None)  # type: ignore[misc]
        assert not server.server.state.ready
        pausing.RELEASE.set()
        until(lambda: server.server.state.ready)


def test_where_no_other_is_ready_a_slow_model_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "_OVERDUE_S", 0.15)
    slow = asks(tmp_path, "slow", 200)
    missing = place_of(tmp_path / "missing.hasten")
    with ServerThread(place_of(slow, most_rows=1), missing) as server:
        assert answer(server, "slow") == [[0, 1, 2, 3]]


@pytest.mark.seconds
def test_a_replacement_that_hangs_keeps_no_other_model_from_being_replaced_or_unloaded(
    tmp_path: Path,
) -> None:
    stuck, other = asks(tmp_path, "stuck", 0), asks(tmp_path, "other", 0)
    with ServerThread(place_of(stuck), place_of(other), control=True) as server:
        before = {name: registered(server, name).served for name in ("stuck", "other")}
        asks(tmp_path, "stuck", NEVER_MS)
        asks(tmp_path, "other", 1)
        server.call(server.server.state.repository.reload_changed)  # as SIGHUP does
        until(lambda: registered(server, "other").served is not before["other"])
        assert registered(server, "stuck").served is before["stuck"]
        assert answer(server, "stuck") == answer(server, "other") == [[0, 1, 2, 3]]
        client = triton.InferenceServerClient(server.host, network_timeout=120.0)
        client.load_model("other")
        client.unload_model("other")
        client.close()
        assert registered(server, "other").served is None


def test_a_model_that_hangs_as_it_is_loaded_can_be_unloaded_and_what_it_opens_is_closed(
    tmp_path: Path,
) -> None:
    stuck, other = asks(tmp_path, "stuck", NEVER_MS), asks(tmp_path, "other", 0)
    with ServerThread(place_of(stuck), place_of(other), control=True) as server:
        repository_, one = server.server.state.repository, registered(server, "stuck")
        until(lambda: server.server.state.ready)
        server.call(lambda: repository_.unload(one))
        assert (one.state, one.reason, one.served) == ("UNAVAILABLE", "unloaded", None)
        still = "is still being opened for an earlier load that was given up: load it again when that has ended"
        with pytest.raises(CandidateError, match=still):
            server.call(lambda: repository_.load(one))
        with guarded_closing() as closed:
            pausing.RELEASE.set()
            until(lambda: closed == [stuck])
        assert one.served is None
        server.call(lambda: repository_.load(one))
        assert answer(server, "stuck") == [[0, 1, 2, 3]]


def test_a_model_whose_replacement_hangs_can_be_unloaded(tmp_path: Path) -> None:
    stuck = asks(tmp_path, "stuck", 0)
    with ServerThread(place_of(stuck), control=True) as server:
        repository_, one = server.server.state.repository, registered(server, "stuck")
        asks(tmp_path, "stuck", NEVER_MS)
        server.call(repository_.reload_changed)
        server.call(lambda: repository_.unload(one))
        assert (one.state, one.reason, one.served) == ("UNAVAILABLE", "unloaded", None)


def test_a_load_that_a_client_asks_for_while_all_others_fail_is_waited_for(tmp_path: Path) -> None:
    stuck = asks(tmp_path, "stuck", NEVER_MS)

    async def begin() -> None:
        places = (place_of(tmp_path / "mended.hasten"), place_of(stuck))
        mended, hangs = (place.registered() for place in places)
        models_ = repository.Repository([mended, hangs], asyncio.get_running_loop())
        starting = asyncio.create_task(models_.load_all())
        await reached(lambda: mended.state == "UNAVAILABLE" and hangs.state == "LOADING")
        asks(tmp_path, "mended", NEVER_MS)
        asked = asyncio.create_task(models_.load(mended))
        await reached(lambda: mended.state == "LOADING")
        await models_.unload(hangs)
        await reached(lambda: hangs.state == "UNAVAILABLE")
        await asyncio.sleep(0)
        pausing.RELEASE.set()
        await asyncio.gather(starting, asked)
        assert (mended.state, hangs.state) == ("READY", "UNAVAILABLE")
        models_.close()

    asyncio.run(begin())


async def reached(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_loop_doesnt_wait_for_threads_that_die_as_they_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with too little memory; `threading.Thread.start` would wait for ever."""

    def dies(thread: threading.Thread) -> None:
        raise MemoryError

    async def asked() -> int:
        return await repository._on_a_thread(lambda: 7)

    monkeypatch.setattr(threading.Thread, "_bootstrap_inner", dies)
    assert asyncio.run(asked()) == 7
