"""The checks of a device, run over this host's memory: each holds, and each sees what it is for."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.devices.gpu.test_cuda import Runtime

from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Session
from hasten.engines.cuda.gauge import Reading
from hasten.engines.cuda.onnxruntime import OnnxRuntimeCuda
from hasten.engines.cuda.runtime import Device, Host, Work
from hasten.engines.tensorrt import rtx
from hasten.engines.tensorrt.engine import Tensorrt
from hasten.engines.tensorrt.rtx import TensorrtRtx
from hasten.errors import CandidateError, InputError
from hasten.evaluation.deep import checks, memory, network, runtimes
from hasten.evaluation.deep.finding import Failing, NotDone
from hasten.evaluation.deep.same import RaceLengths, against_itself, state

QUICK = RaceLengths(warmups_s=(0.0, 0.001, 0.002), idle_s=0.0, rounds=3, block_s=0.001)


@pytest.mark.parametrize(
    "check", [memory.identity, memory.pinned, memory.copies, memory.graph, memory.threads]
)
def test_what_concerns_memory_holds_on_this_host(check: Any) -> None:
    assert check("host").said


class Jetson(Runtime):
    """CUDA's runtime on a module whose GPU computes in the host's memory, or on another GPU."""

    cudaDeviceAttr = SimpleNamespace(  # noqa: N815
        cudaDevAttrComputeCapabilityMajor="major",
        cudaDevAttrComputeCapabilityMinor="minor",
        cudaDevAttrComputeMode="mode",
        cudaDevAttrIntegrated="integrated",
    )

    def __init__(self, *, integrated: bool) -> None:
        super().__init__()
        self._facts = {"major": 8, "minor": 7, "mode": 0, "integrated": int(integrated)}

    def cudaDeviceGetAttribute(self, attribute: str, device: int) -> tuple[int, int]:  # noqa: N802
        return 0, self._facts[attribute]

    def cudaRuntimeGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return 0, 12090

    def cudaDriverGetVersion(self) -> tuple[int, int]:  # noqa: N802
        return 0, 12060

    def cudaMemGetInfo(self) -> tuple[int, int, int]:  # noqa: N802
        return 0, 3 << 30, 8 << 30


@pytest.mark.parametrize("integrated", [True, False])
def test_a_gpu_is_said_to_share_the_hosts_memory_where_it_does(
    integrated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bindings: Any = ModuleType("cuda.bindings")
    bindings.runtime = Jetson(integrated=integrated)
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", bindings.runtime)
    found = memory.identity("cuda")
    assert found.said == "A stand-in, sm87, driver for CUDA 12.6, bindings for CUDA 12.9"
    shared = ", shared with the host" if integrated else ""
    assert found.details == (f"memory: 3.0 of 8.0 GiB free{shared}", "compute mode: shared")


def test_the_real_bindings_have_what_a_gpu_is_asked() -> None:
    real = pytest.importorskip(
        "cuda.bindings.runtime", reason="needs the extra gpu: pip install 'hasten[gpu]'"
    )
    assert set(vars(Jetson.cudaDeviceAttr)) <= set(real.cudaDeviceAttr.__members__)
    assert callable(real.cudaMemGetInfo)


def test_this_host_has_no_clocks_to_read() -> None:
    with pytest.raises(NotDone, match=r"^this host has no NVML$"):
        memory.clocks("host")


class Lossy(Host):
    """A host whose copies lose the last byte."""

    def _copy(self, to: int, source: int, size_bytes: int, *, to_device: bool) -> None:
        super()._copy(to, source, size_bytes - 1, to_device=to_device)


class Stale(Host):
    """A host whose graphs keep the first answer."""

    def captured(self, work: Work, closing: ExitStack) -> Work:
        return lambda: None


@pytest.mark.parametrize(
    ("device", "check", "said"),
    [
        (Lossy(), memory.copies, "1 bytes come back changed: 1 of 1 bytes"),
        (
            Lossy(),
            memory.graph,
            "the kernel's output differs from its input: 1 of 262144 bytes",
        ),
        (Stale(), memory.graph, "replay 0 returns the answer to another request: "),
        (Stale(), memory.threads, "thread [01] didn't get back the data that it sent: "),
        (Host(), memory.graph, "a host has no CUDA graphs"),
    ],
)
def test_wrong_bytes_and_stale_replays_are_found(
    device: Device, check: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def other(place: str) -> Iterator[Device]:
        yield device

    monkeypatch.setattr(memory, "opened", other)
    with pytest.raises(CandidateError, match=said):
        check("host")


def test_a_runtime_answers_as_float64_does_in_any_thread() -> None:
    pytest.importorskip("onnx")
    engine = OnnxRuntimeCuda()
    assert runtimes.answers(engine, "host").said.endswith("graph: off")
    assert "two sessions in two threads" in runtimes.threads(engine, "host").said


class Changed(Session):
    """A session that changes the answers of another, by how often it was asked."""

    def __init__(self, session: Session, change: Any) -> None:
        self.session, self.change, self.asked = session, change, itertools.count()

    def run(self, inputs: Any) -> dict[str, Array]:
        number = next(self.asked)
        return {
            name: self.change(array, number) for name, array in self.session.run(inputs).items()
        }


def changing(change: Any) -> Any:
    class Changing(OnnxRuntimeCuda):
        @contextmanager
        def open(self, artifact: Any, target: Any) -> Iterator[Session]:
            with super().open(artifact, target) as session:
                yield Changed(session, change)

    return Changing()


@pytest.mark.parametrize("bad", [lambda y, n: y + 1e-3, lambda y, n: y * np.nan])
def test_answers_that_are_off_by_what_tf32_rounds_are_not_exact(bad: Any) -> None:
    pytest.importorskip("onnx")
    with pytest.raises(CandidateError, match=r"answers are off by .* of float64's size"):
        runtimes.answers(changing(bad), "host")


def test_a_session_that_answers_otherwise_in_another_thread_is_found() -> None:
    pytest.importorskip("onnx")
    late = changing(lambda y, n: y + (n >= 8))
    with pytest.raises(
        CandidateError,
        match="that one thread opened and another runs gives other answers than alone: 8 of 8",
    ):
        runtimes.threads(late, "host")
    beside = changing(lambda y, n: y + (n >= 20))
    with pytest.raises(
        CandidateError,
        match="a session next to another session's thread gives other answers than alone: 1 of 1",
    ):
        runtimes.threads(beside, "host")


def test_the_network_in_float32_is_within_the_bound_and_in_tf32_is_not() -> None:
    """Weights with 10 bits stand for TF32's."""
    w = network.weights()
    rounded = {
        name: (array.view(np.int32) & -(1 << 13)).view(np.float32) for name, array in w.items()
    }
    request = network.requests(1)[0]
    right = network.answer(request)
    off = runtimes._off(network.answer(request, rounded), right)
    assert runtimes._EXACT * 10 < off < runtimes._ROUNDED


class Clock:
    """A clock that requests move: each takes the next of some lengths."""

    def __init__(self, *lengths_ns: int) -> None:
        self.now, self.lengths = 0, itertools.cycle(lengths_ns)

    def __call__(self) -> int:
        return self.now

    def run(self, request: Any) -> None:
        self.now += next(self.lengths)


def test_a_race_against_itself_tells_each_warm_up_with_the_clocks() -> None:
    clock, slept = Clock(1000), list[float]()
    warm = Reading(1980, 1980, 100.0, 40, held_back=())
    states = iter([Reading(345, 1980, held_back=("gpu idle",)), warm, None] * 3)
    pace = RaceLengths(warmups_s=(0.0, 1e-5, 1e-4), idle_s=2.0, rounds=3, block_s=1e-5)
    found = against_itself(
        clock.run,
        network.requests(2),
        lambda: next(states),
        pace,
        clock_ns=clock,
        sleep=slept.append,
    )
    assert slept == [2.0] * 3
    assert [one.ratio.estimate for one in found] == [1.0] * 3
    assert str(found[1]) == (
        "after 1e-05 s: 1.0000 (1.0000 to 1.0000), p50 1.0 µs; clocks before it 345 of 1980 MHz, held back by gpu idle; "
        "after it 1980 of 1980 MHz, 40 °C, 100 W, held back by nothing; at the end unknown"
    )
    assert state(Reading(held_back=("sw power cap",))) == "held back by sw power cap"


def test_the_race_is_judged_after_its_longest_warm_up() -> None:
    clock = Clock(1000)
    found = against_itself(
        clock.run, network.requests(1), lambda: None, QUICK, clock_ns=clock, sleep=lambda s: None
    )
    assert "against itself: 1.0000 after 0.002 s" in runtimes._raced(OnnxRuntimeCuda(), found).said
    apart = [
        found[0],
        type(found[0])(3.0, type(found[0].ratio)(1.02, 1.01, 1.03, 3), 1e3, None, None, None),
    ]
    with pytest.raises(
        Failing, match=r"against itself: 1\.0200 after 3 s, more than 1% apart"
    ) as why:
        runtimes._raced(OnnxRuntimeCuda(), apart)
    assert why.value.details == tuple(map(str, apart))


def test_the_race_takes_the_first_runtime_that_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr(runtimes, "_AGREE", np.inf)
    monkeypatch.setattr(runtimes, "RACED", (Tensorrt(), OnnxRuntimeCuda()))
    said = runtimes.race("host", QUICK).said
    assert said.startswith(("original", "ONNX Runtime", "TensorRT"))
    monkeypatch.setattr(runtimes, "RACED", ())
    with pytest.raises(NotDone, match="no runtime to race"):
        runtimes.race("host", QUICK)


def attached(monkeypatch: pytest.MonkeyPatch, part: str) -> Target:
    """Return the target of a GPU that CUDA says is here, of one part."""
    target = Target.host().with_device("cuda", present=True)
    for module in (runtimes, rtx):
        monkeypatch.setattr(module, "known_part", lambda target: part)
    for kind in (OnnxRuntimeCuda, TensorrtRtx):
        monkeypatch.setattr(kind, "version", classmethod(lambda cls: "1"))
        monkeypatch.setattr(kind, "check_tools", classmethod(lambda cls, target: None))
    return target


def test_a_runtime_that_isnt_for_this_gpu_is_not_done(monkeypatch: pytest.MonkeyPatch) -> None:
    target = attached(monkeypatch, "sm90")
    with pytest.raises(
        NotDone, match=r"this GPU, sm90, needs TensorRT: pip install tensorrt-cu13$"
    ):
        runtimes.check_wanted(TensorrtRtx(), target)
    with monkeypatch.context() as patched:
        patched.setattr(rtx, "find_spec", lambda name: object())  # TensorRT is here, too
        with pytest.raises(NotDone):
            runtimes.check_wanted(TensorrtRtx(), target)
    runtimes.check_wanted(TensorrtRtx(), attached(monkeypatch, "sm89"))


def test_a_provider_whose_library_isnt_installed_is_not_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = attached(monkeypatch, "sm90")
    missing = InputError("TensorRT isn't installed")

    def version(cls: Any) -> str:
        raise missing

    monkeypatch.setattr(Tensorrt, "version", classmethod(version))
    runtimes.check_wanted(OnnxRuntimeCuda(), target)
    with pytest.raises(InputError) as caught:
        runtimes.check_wanted(OnnxRuntimeCuda("tensorrt"), target)
    assert caught.value is missing


def test_every_check_has_a_name_and_together_they_take_at_most_as_long_as_each() -> None:
    found = list(checks.cuda())
    assert len(dict(found)) == len(found) == 7 + len(runtimes.ENGINES) + len(runtimes.IN_THREADS)
    assert found[0][0] == "device"
