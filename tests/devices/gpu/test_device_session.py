"""The session of every engine on a GPU, over this host's memory: the same code, another device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from hasten.core.tensors import Tensors, TensorSpec
from hasten.engines.base import Artifact
from hasten.engines.cuda import session as device_session
from hasten.engines.cuda.runtime import Cuda, Device, Host, Transfers, array_at, host_ns
from hasten.engines.cuda.session import DeviceSession
from hasten.engines.cuda.settling import Settling
from hasten.errors import CandidateError, InputError
from hasten.serving.models import opening

X = TensorSpec("x", "float32", ("batch", 3))
Y = TensorSpec("y", "float32", ("batch", 3))
ARTIFACT = Artifact(Path("none"), (X,), (Y,), (TensorSpec("x", "float32", (1, 3)),))


class Doubling:
    """A network that doubles, on a host's memory; it says how often it was asked for what."""

    def __init__(self) -> None:
        self.executions = 0
        self.enqueued = 0
        self.closed = False

    def execution(self, inputs: Tensors) -> DoublingExecution:
        self.executions += 1
        return DoublingExecution(self, inputs["x"].shape)

    def properties(self) -> Mapping[str, str]:
        return {"doubles": "yes"}

    def close(self) -> None:
        self.closed = True


class DoublingExecution:
    lasting = False

    def __init__(self, network: Doubling, shape: tuple[int, ...]) -> None:
        self.network, self.shape = network, shape
        self.outputs: Mapping[str, tuple[tuple[int, ...], str]] = {"y": (shape, "float32")}
        self.addresses: dict[str, int] = {}

    def bind(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        self.addresses[name] = address

    def enqueue(self) -> None:
        self.network.enqueued += 1
        x, y = (array_at(self.addresses[name], self.shape, "float32") for name in ("x", "y"))
        np.multiply(x, 2, out=y)


class Capturing(Host):
    """A host that can capture: what it gives does the work again, and counts."""

    def __init__(self) -> None:
        self.launched = 0
        self.synchronized = 0

    def captured(self, work, closing):  # type: ignore[no-untyped-def]
        def launch() -> None:
            self.launched += 1
            work()

        return launch

    def synchronize(self) -> None:
        self.synchronized += 1

    def elapsed_ns(self, work):  # type: ignore[no-untyped-def]
        work()
        return 1500.0


def opened(device: Device, network: Doubling, *, capture: bool = True) -> DeviceSession:
    return DeviceSession(ARTIFACT, device, network, None, capture=capture)


def ones(batch: int) -> dict[str, np.ndarray]:
    return {"x": np.ones((batch, 3), np.float32)}


def test_a_request_is_copied_in_and_out_once_and_that_is_counted() -> None:
    session = opened(Host(), Doubling())
    assert session.run(ones(2))["y"].tolist() == [[2, 2, 2]] * 2
    said = session.properties()
    assert said["copies_to_device"] == said["copies_to_host"] == "1"
    assert said["bytes_to_device"] == said["bytes_to_host"] == str(2 * 3 * 4)
    assert said["doubles"] == "yes"


def test_a_host_has_no_device_time_and_no_graph_and_says_so() -> None:
    session = opened(Host(), Doubling())
    said = session.properties()
    assert session.device_times() == {}
    assert said["graph"] == "none: a host has no CUDA graphs"
    assert opened(Host(), Doubling(), capture=False).properties()["graph"] == "off"


def test_a_captured_request_is_one_launch_and_one_wait() -> None:
    device = Capturing()
    session = opened(device, Doubling())
    session.run(ones(1))
    launched, synchronized = device.launched, device.synchronized
    session.run(ones(1))
    assert (device.launched - launched, device.synchronized - synchronized) == (1, 1)
    assert session.properties()["graph"] == "captured"


def test_both_clocks_are_told_where_the_device_has_one() -> None:
    session = opened(Capturing(), Doubling())
    session._settling = Settling(session._gauge, iter(range(0, 10**12, 10**7)).__next__)
    said = session.device_times()
    assert said["stream_ns"] == "1500"
    assert float(said["host_ns"]) > 0


def test_a_host_needs_no_warm_up() -> None:
    asked: list[None] = []
    opened(Host(), Doubling()).settle(lambda: asked.append(None))
    assert not asked


def test_the_hosts_clock_stops_when_the_device_is_done() -> None:
    times = iter((100, 350))
    device = Capturing()
    assert host_ns(lambda: None, device, lambda: next(times)) == 250
    assert device.synchronized == 1


def test_every_batch_that_a_server_makes_is_bound_once() -> None:
    network = Doubling()
    session = opened(Host(), network)
    for batch in (*opening.SIZES, *reversed(opening.SIZES), *opening.SIZES):
        assert session.run(ones(batch))["y"].shape == (batch, 3)
    assert network.executions == len(opening.SIZES)


def test_the_shape_that_was_used_least_recently_is_freed() -> None:
    network = Doubling()
    session = opened(Host(), network)
    for batch in (*range(1, device_session._KEPT + 1), 1):
        session.run(ones(batch))
    assert network.executions == device_session._KEPT
    session.run(ones(99))  # 2 goes
    session.run(ones(1))
    assert network.executions == device_session._KEPT + 1
    assert session.run(ones(2))["y"].shape == (2, 3)
    assert network.executions == device_session._KEPT + 2


def test_what_the_network_keeps_stays_bound() -> None:
    network = Doubling()
    session = opened(Host(), network)
    session.run(ones(1))
    first = session._bound[((1, 3),)]
    first.execution.lasting = True
    for batch in range(2, 3 * device_session._KEPT):
        session.run(ones(batch))
    assert session._bound[((1, 3),)] is first
    assert len(session._bound) == device_session._KEPT


def test_what_it_doesnt_take_is_said_in_one_line() -> None:
    session = opened(Host(), Doubling())
    with pytest.raises(CandidateError, match=r"^the session didn't get the input 'x'$"):
        session.run({})
    with pytest.raises(
        CandidateError, match=r"^the session takes x: float32\[batch, 3\]; got float64\[1, 3\]$"
    ):
        session.run({"x": np.ones((1, 3))})
    session.run(ones(1))
    with pytest.raises(CandidateError, match=r"^this host failed: Cannot cast "):
        session.run({"x": np.ones((1, 3))})


def test_after_its_end_it_answers_no_more() -> None:
    network = Doubling()
    session = opened(Host(), network)
    session.close()
    session.close()
    assert network.closed
    assert session.properties() == {}
    with pytest.raises(CandidateError, match=r"^the session is closed: open the artifact again$"):
        session.run(ones(1))


def test_transfers_are_told_from_those_before() -> None:
    assert Transfers(3, 30, 2, 20) - Transfers(1, 10, 1, 5) == Transfers(2, 20, 1, 15)


def test_without_a_gpu_cuda_says_why_in_its_own_words() -> None:
    runtime = pytest.importorskip(
        "cuda.bindings.runtime", reason="needs the extra gpu: pip install 'hasten[gpu]'"
    )
    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU here")
    with pytest.raises(CandidateError, match=r"^CUDA can't find a device: [^\n]+$"):
        Cuda()


def test_bindings_that_arent_installed_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    monkeypatch.setitem(__import__("sys").modules, "cuda", None)
    with pytest.raises(
        InputError, match=r"^CUDA's bindings aren't installed \(.+\): pip install 'hasten\[gpu\]'$"
    ):
        Cuda()
