"""The calls to CUDA's runtime: which, in what order, with what arguments; the runtime is a stand-in.

It keeps what is enqueued until it is waited for, so that a wrong order gives wrong answers, and it counts what is
taken and freed. Nothing here shows that a GPU does the same: test_on_a_gpu.py is for that.
"""

# ruff: noqa: N802, N815 (the names are CUDA's)

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hasten.core.devices import find_target
from hasten.core.tensors import Tensors, TensorSpec
from hasten.engines.base import Artifact
from hasten.engines.cuda.runtime import Cuda, array_at
from hasten.engines.cuda.session import DeviceSession
from hasten.engines.cuda.settling import Settling
from hasten.errors import CandidateError

X = TensorSpec("x", "float32", ("batch", 3))
Y = TensorSpec("y", "float32", ("batch", 3))
ARTIFACT = Artifact(Path("none"), (X,), (Y,), (TensorSpec("x", "float32", (1, 3)),))
STREAM = 77


try:  # CUDA's own, where its bindings are installed
    from cuda.bindings import runtime as bindings

    MODES: Any = bindings.cudaStreamCaptureMode
except ImportError:
    MODES = SimpleNamespace(cudaStreamCaptureModeGlobal=0, cudaStreamCaptureModeThreadLocal=1)
GLOBAL, THREAD_LOCAL = 0, 1
"""Values of `cudaStreamCaptureMode` in CUDA's driver_types.h."""


class Runtime:
    """What `cuda.bindings.runtime` has of what is used, over this host's memory.

    Attributes:
        calls: Names of the calls without "cuda", in order; a copy's name ends with its direction.
        failing: Number of further calls that succeed before they fail, by the call's name.
        held: Kind and handle of everything that was taken and isn't freed.
        mode: The calling thread's mode of capture.
        captured_elsewhere: Whether another thread captures in the "global" mode meanwhile.
    """

    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")
    cudaStreamCaptureMode = MODES

    def __init__(self, **failing: int) -> None:
        self.calls: list[str] = []
        self.failing = failing
        self.mode, self.captured_elsewhere = GLOBAL, False
        self.held: dict[tuple[str, int], Any] = {}
        self._enqueued: list[Callable[[], object]] = []
        self._capturing: list[Callable[[], object]] | None = None
        self._handles = 1000

    def enqueue(self, work: Callable[[], object]) -> None:
        """Put work on the stream, or into the graph that is captured."""
        (self._enqueued if self._capturing is None else self._capturing).append(work)

    def _code(self, name: str) -> int:
        self.calls.append(name.split()[0] if "Memcpy" not in name else name)
        left = self.failing.get(name.split()[0])
        if left is None:
            return 0
        self.failing[name.split()[0]] = left - 1
        return 2 if left <= 0 else 0

    def _taken(self, name: str, kind: str, what: Any = None) -> tuple[Any, ...]:
        if code := self._code(name):
            return code, None
        self._handles += 1
        handle = ctypes.addressof(what) if isinstance(what, ctypes.Array) else self._handles
        self.held[kind, handle] = what
        return 0, handle

    def _unsafe(self) -> None:
        """Do what a capture can't include: it breaks another thread's in its own "global" mode."""
        assert self._capturing is None, "it isn't allowed in a capture"
        assert not self.captured_elsewhere or self.mode == THREAD_LOCAL, "it breaks a capture"

    def cudaThreadExchangeStreamCaptureMode(self, mode: Any) -> tuple[int, Any]:
        if code := self._code("ThreadExchange"):
            return code, None
        self.calls.pop()  # it is part of no request
        before, self.mode = self.mode, int(mode)
        return 0, before

    def cudaDeviceGetPCIBusId(self, length: int, number: int) -> tuple[int, bytes]:
        assert (length, number) == (64, 0)
        return 0, b"0000:01:00.0" + bytes(length - 12)

    def _freed(self, name: str, kind: str, handle: int) -> tuple[int]:
        del self.held[kind, handle]  # nothing is freed twice
        return (self._code(name),)

    def cudaGetErrorString(self, code: int) -> tuple[int, bytes]:
        return 0, {2: b"out of memory"}[code]

    def cudaSetDevice(self, number: int) -> tuple[int]:
        assert number == 0
        return (self._code("SetDevice"),)

    def cudaGetDeviceProperties(self, number: int) -> tuple[int, Any]:
        return self._code("GetDeviceProperties"), SimpleNamespace(name=b"A stand-in\0\0")

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        assert flags == self.cudaStreamNonBlocking
        code = self._code("StreamCreate")
        if not code:
            self.held["stream", STREAM] = None
        return code, STREAM

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        return self._freed("StreamDestroy", "stream", stream)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert stream == STREAM
        assert self._capturing is None, "a stream in capture can't be waited for"
        code = self._code("StreamSynchronize")
        for work in self._enqueued:
            work()
        self._enqueued.clear()
        return (code,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        self._unsafe()
        return self._taken("HostAlloc", "pinned", (ctypes.c_ubyte * size)())

    def cudaFreeHost(self, address: int) -> tuple[int]:
        self._unsafe()
        return self._freed("FreeHost", "pinned", address)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        self._unsafe()
        return self._taken("Malloc", "memory", (ctypes.c_ubyte * size)())

    def cudaFree(self, address: int) -> tuple[int]:
        self._unsafe()
        return self._freed("Free", "memory", address)

    def cudaMemcpyAsync(
        self, to: int, source: int, size: int, kind: str, stream: int
    ) -> tuple[int]:
        assert stream == STREAM
        assert (("memory" if kind == "in" else "pinned"), to) in self.held
        assert (("pinned" if kind == "in" else "memory"), source) in self.held
        self.enqueue(lambda: ctypes.memmove(to, source, size))
        return (self._code(f"Memcpy {kind}"),)

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> tuple[int]:
        assert (stream, int(mode)) == (STREAM, THREAD_LOCAL)
        self._capturing = []
        return (self._code("StreamBeginCapture"),)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        captured, self._capturing = self._capturing, None
        return self._taken("StreamEndCapture", "graph", captured)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, ...]:
        return self._taken("GraphInstantiate", "launched", self.held["graph", graph])

    def cudaGraphDestroy(self, graph: int) -> tuple[int]:
        return self._freed("GraphDestroy", "graph", graph)

    def cudaGraphExecDestroy(self, launched: int) -> tuple[int]:
        return self._freed("GraphExecDestroy", "launched", launched)

    def cudaGraphLaunch(self, launched: int, stream: int) -> tuple[int]:
        assert stream == STREAM
        for work in self.held["launched", launched]:
            self.enqueue(work)
        return (self._code("GraphLaunch"),)

    def cudaEventCreate(self) -> tuple[Any, ...]:
        return self._taken("EventCreate", "event")

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:
        assert stream == STREAM
        return (self._code("EventRecord"),)

    def cudaEventSynchronize(self, event: int) -> tuple[int]:
        return (self._code("EventSynchronize"),)

    def cudaEventElapsedTime(self, first: int, last: int) -> tuple[int, float]:
        assert first < last
        return self._code("EventElapsedTime"), 0.25

    def cudaEventDestroy(self, event: int) -> tuple[int]:
        return self._freed("EventDestroy", "event", event)


class Doubling:
    """A network whose kernel doubles, on the stand-in's stream."""

    def __init__(self, runtime: Runtime, *, captures: bool = True) -> None:
        self.runtime, self.captures = runtime, captures

    def execution(self, inputs: Tensors) -> Any:
        return DoublingExecution(self, inputs["x"].shape)

    def properties(self) -> Mapping[str, str]:
        return {}

    def close(self) -> None:
        self.runtime.calls.append("network closed")


class DoublingExecution:
    lasting = False

    def __init__(self, network: Doubling, shape: tuple[int, ...]) -> None:
        self.network, self.shape = network, shape
        self.outputs: Mapping[str, tuple[tuple[int, ...], str]] = {"y": (shape, "float32")}
        self.addresses: dict[str, int] = {}

    def bind(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        assert ("memory", address) in self.network.runtime.held
        self.addresses[name] = address

    def enqueue(self) -> None:
        runtime = self.network.runtime
        if runtime._capturing is not None and not self.network.captures:
            raise CandidateError("this kernel can't be captured")
        x, y = (array_at(self.addresses[name], self.shape, "float32") for name in ("x", "y"))
        runtime.enqueue(lambda: np.multiply(x, 2, out=y))
        runtime.calls.append("kernel")


def runtime_is_without_a_gpu() -> bool:
    return find_target("cuda").kind != "attached"


def opened(runtime: Runtime, **settings: bool) -> DeviceSession:
    network = Doubling(runtime, captures=settings.pop("captures", True))
    return DeviceSession(ARTIFACT, Cuda(runtime), network, None, **settings)


def request(value: float, batch: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((batch, 3), value, np.float32)}


def test_the_first_device_gets_a_stream_of_its_own() -> None:
    runtime = Runtime()
    device = Cuda(runtime)
    assert (device.name, device.stream) == ("A stand-in", STREAM)
    assert runtime.calls == ["SetDevice", "GetDeviceProperties", "StreamCreate"]
    device.close()
    assert runtime.calls[3:] == ["StreamSynchronize", "StreamDestroy"]
    assert not runtime.held


def test_a_request_goes_in_is_computed_and_comes_out_and_is_waited_for_once() -> None:
    runtime = Runtime()
    session = opened(runtime, capture=False)
    assert session.run(request(3))["y"].tolist() == [[6, 6, 6]]
    runtime.calls.clear()
    assert session.run(request(5))["y"].tolist() == [[10, 10, 10]]
    assert runtime.calls == ["Memcpy in", "kernel", "Memcpy out", "StreamSynchronize"]


def test_a_capture_begins_after_a_first_run_that_was_waited_for() -> None:
    runtime = Runtime()
    session = opened(runtime)
    del runtime.calls[:]
    assert session.run(request(3))["y"].tolist() == [[6, 6, 6]]
    work = ["Memcpy in", "kernel", "Memcpy out"]
    captured = ["StreamBeginCapture", *work, "StreamEndCapture", "GraphInstantiate"]
    taken = ["HostAlloc", "Malloc"] * 2
    launched = ["GraphLaunch", "StreamSynchronize"]
    plain = [*work, "StreamSynchronize"]
    checked = [*plain, *launched * 4, *plain]  # two requests, without the graph and with it
    assert runtime.calls == [
        "SetDevice",
        *taken,
        *work,
        "StreamSynchronize",
        *captured,
        "GraphDestroy",
        *checked,
        *launched,
    ]
    runtime.calls.clear()
    assert session.run(request(5))["y"].tolist() == [[10, 10, 10]]
    assert runtime.calls == launched


@pytest.mark.parametrize("capture", [True, False])
def test_all_that_was_taken_is_freed_before_the_network_and_the_stream(capture: bool) -> None:
    runtime = Runtime()
    session = opened(runtime, capture=capture)
    for batch in (1, 2, 3):
        session.run(request(1, batch))
    session.properties()
    kinds = [kind for kind, _ in runtime.held]
    assert (kinds.count("memory"), kinds.count("pinned")) == (6, 6)
    assert (kinds.count("launched"), kinds.count("event")) == (3 if capture else 0, 0)
    runtime.calls.clear()
    session.close()
    assert not runtime.held
    assert runtime.calls.pop(0) == "SetDevice"
    freed = 15 if capture else 12
    assert runtime.calls[freed:] == ["network closed", "StreamSynchronize", "StreamDestroy"]
    assert set(runtime.calls[:freed]) <= {"FreeHost", "Free", "GraphExecDestroy"}


def test_what_is_forgotten_is_freed_at_once() -> None:
    runtime = Runtime()
    session = opened(runtime)
    counts = []
    for batch in range(1, 40):
        session.run(request(1, batch))
        counts.append(len(runtime.held))
    assert max(counts) == counts[-1] == 1 + 16 * 5
    session.close()
    assert not runtime.held


def test_the_devices_time_is_what_lies_between_two_events() -> None:
    runtime = Runtime()
    device = Cuda(runtime)
    runtime.calls.clear()
    took_ns = device.elapsed_ns(lambda: runtime.calls.append("work"))
    assert took_ns == 250_000
    assert runtime.calls == [
        "EventCreate",
        "EventCreate",
        "EventRecord",
        "work",
        "EventRecord",
        "EventSynchronize",
        "EventElapsedTime",
        "EventDestroy",
        "EventDestroy",
    ]


def test_copies_are_counted_where_they_are_enqueued() -> None:
    runtime = Runtime()
    said = opened(runtime).properties()
    assert (said["copies_to_device"], said["copies_to_host"]) == ("1", "1")
    assert (said["bytes_to_device"], said["bytes_to_host"]) == ("12", "12")
    assert (said["device"], said["graph"]) == ("A stand-in", "captured")


def test_another_threads_capture_is_left_alone() -> None:
    runtime = Runtime()
    runtime.captured_elsewhere = True
    session = opened(runtime)
    for batch in range(1, 20):
        assert session.run(request(3, batch))["y"].tolist() == [[6, 6, 6]] * batch
        assert runtime.mode == GLOBAL
    session.close()
    assert runtime.mode == GLOBAL
    assert not runtime.held


def test_a_capture_waits_for_one_of_what_torch_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = SimpleNamespace(graph_capture_lock=threading.Lock())
    monkeypatch.setitem(sys.modules, "torch._inductor.cudagraph_trees", trees)
    runtime, locked = Runtime(), []
    device = Cuda(runtime)
    with ExitStack() as closing:
        device.captured(lambda: locked.append(trees.graph_capture_lock.locked()), closing)
    assert locked == [True]
    assert not trees.graph_capture_lock.locked()


def test_torchs_own_lock_of_captures_has_that_name() -> None:
    trees = pytest.importorskip(
        "torch._inductor.cudagraph_trees", reason="needs the extra gpu: pip install 'hasten[gpu]'"
    )
    if not hasattr(trees, "graph_capture_lock"):
        pytest.skip("torch before 2.13 has no such lock")
    assert trees.graph_capture_lock.acquire(blocking=False)
    trees.graph_capture_lock.release()


def test_a_thread_names_the_device_before_it_binds_or_frees() -> None:
    runtime = Runtime()
    session = opened(runtime)
    del runtime.calls[:]
    session.run(request(3))
    assert runtime.calls[0] == "SetDevice"
    del runtime.calls[:]
    session.run(request(3))
    assert "SetDevice" not in runtime.calls
    session.close()
    assert runtime.calls.index("SetDevice") < runtime.calls.index("Free")


def test_a_device_that_fails_is_freed_all_the_same() -> None:
    runtime = Runtime()
    session = opened(runtime)
    session.run(request(3))
    runtime.failing["ThreadExchange"] = 0
    session.close()
    assert not runtime.held
    assert runtime.calls[-1] == "StreamDestroy"


def test_cudas_bindings_have_the_modes_that_are_asked_for() -> None:
    runtime = pytest.importorskip(
        "cuda.bindings.runtime", reason="needs the extra gpu: pip install 'hasten[gpu]'"
    )
    modes = runtime.cudaStreamCaptureMode
    assert int(modes.cudaStreamCaptureModeGlobal) == GLOBAL
    assert int(modes.cudaStreamCaptureModeThreadLocal) == THREAD_LOCAL
    exchange = runtime.cudaThreadExchangeStreamCaptureMode
    code, before = exchange(modes.cudaStreamCaptureModeThreadLocal)
    assert int(code) != 0 or exchange(before)[1] == modes.cudaStreamCaptureModeThreadLocal


def test_times_are_told_after_a_warm_up_with_the_reason_why_clocks_arent() -> None:
    runtime, time_ns = Runtime(), iter(range(0, 10**12, 10**7))
    session = opened(runtime)
    assert "stream_ns" not in session.properties()
    session._settling = Settling(session._gauge, lambda: next(time_ns))
    runtime.calls.clear()
    said = session.device_times()
    assert said["stream_ns"] == "250000"
    assert float(said["host_ns"]) > 0
    assert said["clocks_stood_still"] == "yes"
    before = runtime.calls[: runtime.calls.index("EventRecord", 10)]
    assert (
        before.count("GraphLaunch") > 15
    )  # half a second of them, by the clock that was handed in
    if runtime_is_without_a_gpu():
        assert said["gpu_state"].startswith("the GPU's clocks can't be read")
        assert "\n" not in said["gpu_state"]
    session.close()
    assert session.device_times() == {}
    assert not runtime.held


def test_a_kernel_that_cant_be_captured_is_launched_as_it_is() -> None:
    runtime = Runtime()
    session = opened(runtime, captures=False)
    assert session.run(request(3))["y"].tolist() == [[6, 6, 6]]
    assert session.properties()["graph"] == "none: this kernel can't be captured"
    assert session.run(request(5))["y"].tolist() == [[10, 10, 10]]
    session.close()
    assert not runtime.held


def test_a_graph_that_cant_be_checked_isnt_used() -> None:
    runtime = Runtime(GraphLaunch=1)
    session = opened(runtime)
    assert session.run(request(3))["y"].tolist() == [[6, 6, 6]]
    assert session.properties()["graph"] == (
        "none: the graph couldn't be checked: CUDA can't launch a graph: out of memory"
    )
    session.close()
    assert not runtime.held


def test_a_graph_that_answers_the_request_of_its_capture_isnt_used() -> None:
    class Stale(Runtime):
        """Its graphs copy in what was staged when they were captured."""

        def enqueue(self, work: Callable[[], object]) -> None:
            if self._capturing is not None and not self._capturing:
                (pinned,) = [what for (kind, _), what in self.held.items() if kind == "pinned"][:1]
                then = bytes(pinned)
                super().enqueue(lambda: ctypes.memmove(pinned, then, len(then)))
            super().enqueue(work)

    session = opened(Stale())
    for value in (3, 5):
        assert session.run(request(value))["y"].tolist() == [[2 * value] * 3]
    assert session.properties()["graph"] == (
        "none: the graph returns the answer to another request"
    )


def test_a_graph_that_cant_be_made_leaves_nothing_behind() -> None:
    for call, what in (
        ("StreamEndCapture", "capture"),
        ("GraphInstantiate", "instantiate"),
    ):
        runtime = Runtime(**{call: 0})
        session = opened(runtime)
        assert session.run(request(3))["y"].tolist() == [[6, 6, 6]]
        assert session.properties()["graph"] == f"none: CUDA can't {what} a graph: out of memory"
        session.close()
        assert not runtime.held


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("SetDevice", "CUDA can't find a device: out of memory"),
        ("GetDeviceProperties", "CUDA can't look at the device: out of memory"),
        ("StreamCreate", "CUDA can't make a stream: out of memory"),
    ],
)
def test_a_device_that_cant_be_had_is_said_in_one_line(call: str, said: str) -> None:
    runtime = Runtime(**{call: 0})
    with pytest.raises(CandidateError) as caught:
        Cuda(runtime)
    assert str(caught.value) == said
    assert not runtime.held


@pytest.mark.parametrize(
    ("call", "succeed", "said"),
    [
        ("HostAlloc", 0, "CUDA can't pin 12 bytes: out of memory"),
        ("HostAlloc", 1, "CUDA can't pin 12 bytes: out of memory"),
        ("Malloc", 1, "CUDA can't allocate 12 bytes: out of memory"),
        ("Memcpy", 0, "CUDA can't copy: out of memory"),
        ("Memcpy", 1, "CUDA can't copy: out of memory"),
        ("StreamSynchronize", 0, "CUDA can't finish: out of memory"),
        ("StreamSynchronize", 1, "CUDA can't finish: out of memory"),
        ("GraphLaunch", 4, "CUDA can't launch a graph: out of memory"),
    ],
)
def test_what_cuda_says_is_one_line_and_the_rest_is_freed(
    call: str, succeed: int, said: str
) -> None:
    runtime = Runtime(**{call: succeed})
    session = opened(runtime)
    with pytest.raises(CandidateError) as caught:
        session.run(request(1))
    assert str(caught.value) == said
    session.close()
    assert not runtime.held


def test_events_that_cant_be_made_are_not_kept() -> None:
    runtime = Runtime(EventCreate=1)
    device = Cuda(runtime)
    with pytest.raises(CandidateError, match=r"^CUDA can't make an event: out of memory$"):
        device.elapsed_ns(lambda: None)
    assert [kind for kind, _ in runtime.held] == ["stream"]


def test_a_capture_ends_where_its_work_fails() -> None:
    runtime = Runtime()
    device = Cuda(runtime)

    def fail() -> None:
        raise CandidateError("it fails")

    with ExitStack() as closing:
        with pytest.raises(CandidateError, match=r"^it fails$"):
            device.captured(fail, closing)
        device.synchronize()
        assert [kind for kind, _ in runtime.held] == ["stream"]
