"""Device that a session's network runs on: a CUDA device, or this host, by one interface."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.cuda.error_codes import LOST, explained
from hasten.engines.cuda.gauge import Gauge, gauge_of
from hasten.errors import CandidateError, InputError

Work = Callable[[], None]
"""Function that enqueues work on a device's stream."""
CAPTURING = threading.Lock()
"""Lock that is held during a capture: torch waits for the whole device before it begins one, which
would break a capture of another thread."""


@contextmanager
def capturing() -> Iterator[None]:
    """Let no other thread capture a graph meanwhile, not in a module that torch compiled either.

    Those captures have a lock of torch's own, since torch 2.13.
    Source: torch, torch/_inductor/cudagraph_trees.py.
    """
    trees = sys.modules.get("torch._inductor.cudagraph_trees")
    theirs = getattr(trees, "graph_capture_lock", None) or nullcontext()
    with CAPTURING, theirs:
        yield


@dataclass(frozen=True)
class Transfers:
    """Counts of a session's copies to and from a device, without copies inside the runtime.

    Attributes:
        copies_to_device: Number of copies to the device.
        bytes_to_device: Size of the copies to the device.
        copies_to_host: Number of copies to the host.
        bytes_to_host: Size of the copies to the host.
    """

    copies_to_device: int = 0
    bytes_to_device: int = 0
    copies_to_host: int = 0
    bytes_to_host: int = 0

    def __sub__(self, before: Transfers) -> Transfers:
        """Return the counts added since `before`."""
        return Transfers(
            self.copies_to_device - before.copies_to_device,
            self.bytes_to_device - before.bytes_to_device,
            self.copies_to_host - before.copies_to_host,
            self.bytes_to_host - before.bytes_to_host,
        )


class Device(ABC):
    """Device with one stream of work, its allocated memory, and a count of the copies requested.

    Attributes:
        name: Name of the device, for people.
        kind: Kind of its memory, in ONNX Runtime's words: "cuda", "cpu".
        stream: Handle of the stream.
        transfers: Counts of the copies by `to_device` and `to_host` since the device was opened;
            copies of a captured graph count once.
    """

    name: str
    kind: str
    stream: int = 0
    transfers: Transfers = Transfers()

    @abstractmethod
    def staged(self, shape: Sequence[int], dtype: str, closing: ExitStack) -> Array:
        """Return an array in host memory that the device copies from and to at full speed."""

    @abstractmethod
    def allocate(self, size_bytes: int, closing: ExitStack) -> int:
        """Return the address of new device memory, which is freed when `closing` ends."""

    def to_device(self, address: int, array: Array) -> None:
        """Enqueue a copy of a staged array to the device."""
        self._copy(address, array.ctypes.data, array.nbytes, to_device=True)
        seen = self.transfers
        self.transfers = Transfers(
            seen.copies_to_device + 1,
            seen.bytes_to_device + array.nbytes,
            seen.copies_to_host,
            seen.bytes_to_host,
        )

    def to_host(self, array: Array, address: int) -> None:
        """Enqueue a copy from the device into a staged array."""
        self._copy(array.ctypes.data, address, array.nbytes, to_device=False)
        seen = self.transfers
        self.transfers = Transfers(
            seen.copies_to_device,
            seen.bytes_to_device,
            seen.copies_to_host + 1,
            seen.bytes_to_host + array.nbytes,
        )

    @abstractmethod
    def _copy(self, to: int, source: int, size_bytes: int, *, to_device: bool) -> None: ...

    @abstractmethod
    def synchronize(self) -> None:
        """Wait for all enqueued work."""

    @abstractmethod
    def check(self) -> None:
        """Check that the device still answers in this process, after a runtime has failed.

        Raises:
            DeviceLost: it doesn't, whatever is asked of it.
        """

    @abstractmethod
    def captured(self, work: Work, closing: ExitStack) -> Work:
        """Return a function that enqueues the work that `work` enqueues now, in one launch.

        Raises:
            CandidateError: some of the work can't be captured.
        """

    @abstractmethod
    def elapsed_ns(self, work: Work) -> float | None:
        """Return the time from the start of `work` on the stream to its end, in nanoseconds.

        It is measured by the device's clock, and includes waits of the stream for the host to launch
        the next kernel. None if there is no clock.
        """

    def apart(self) -> AbstractContextManager[object]:
        """Let this thread allocate while another one captures, without harm to either."""
        return nullcontext()

    def gauge(self) -> Gauge:
        """Return what reads the device's clocks, power and temperature."""
        return Gauge(None, "")

    @abstractmethod
    def close(self) -> None:
        """Free the stream."""


class Host(Device):
    """This host in place of a device: enqueued work is done at once."""

    name = "this host"
    kind = "cpu"

    def staged(self, shape: Sequence[int], dtype: str, closing: ExitStack) -> Array:
        return np.zeros(shape, dtype)

    def allocate(self, size_bytes: int, closing: ExitStack) -> int:
        memory = np.zeros(max(size_bytes, 1), np.uint8)
        closing.callback(lambda: memory.shape)  # keeps the memory alive until then
        return int(memory.ctypes.data)

    def _copy(self, to: int, source: int, size_bytes: int, *, to_device: bool) -> None:
        ctypes.memmove(to, source, size_bytes)

    def synchronize(self) -> None:
        pass

    def check(self) -> None:
        pass

    def captured(self, work: Work, closing: ExitStack) -> Work:
        raise CandidateError("a host has no CUDA graphs")

    def elapsed_ns(self, work: Work) -> float | None:
        return None

    def close(self) -> None:
        pass


def named(properties: Any) -> str:
    """Return the name in a device's properties, which the bindings give as text or as bytes."""
    text = properties.name
    return (text.decode() if isinstance(text, bytes) else str(text)).strip("\0")


class Cuda(Device):
    """First CUDA device, with a stream that waits for no other.

    Args:
        runtime: Module `cuda.bindings.runtime`; None to import it.

    Raises:
        InputError: the bindings aren't installed.
        CandidateError: there is no device, or no driver for it.
    """

    kind = "cuda"

    def __init__(self, runtime: Any = None) -> None:
        self._runtime = runtime or cuda_runtime()
        rt = self._runtime
        self._call("find a device", rt.cudaSetDevice(0))
        self.name = named(self._call("look at the device", rt.cudaGetDeviceProperties(0)))
        self._stream = self._call(
            "make a stream", rt.cudaStreamCreateWithFlags(rt.cudaStreamNonBlocking)
        )
        self.stream = int(self._stream)

    def _call(self, what: str, result: tuple[Any, ...]) -> Any:
        """Return the result of a call, or raise with the runtime's own message."""
        code, *values = result
        if int(code) != 0:
            raise explained(self._runtime, what, code)
        return values[0] if values else None

    def staged(self, shape: Sequence[int], dtype: str, closing: ExitStack) -> Array:
        rt = self._runtime
        size_bytes = max(1, int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
        address = self._call(
            f"pin {size_bytes} bytes", rt.cudaHostAlloc(size_bytes, rt.cudaHostAllocDefault)
        )
        closing.callback(lambda: rt.cudaFreeHost(address))
        return array_at(int(address), shape, dtype)

    def allocate(self, size_bytes: int, closing: ExitStack) -> int:
        rt = self._runtime
        address = self._call(f"allocate {size_bytes} bytes", rt.cudaMalloc(max(1, size_bytes)))
        closing.callback(lambda: rt.cudaFree(address))
        return int(address)

    def _copy(self, to: int, source: int, size_bytes: int, *, to_device: bool) -> None:
        rt = self._runtime
        kinds = rt.cudaMemcpyKind
        kind = kinds.cudaMemcpyHostToDevice if to_device else kinds.cudaMemcpyDeviceToHost
        self._call("copy", rt.cudaMemcpyAsync(to, source, size_bytes, kind, self._stream))

    def synchronize(self) -> None:
        self._call("finish", self._runtime.cudaStreamSynchronize(self._stream))

    def check(self) -> None:
        code, *_ = self._runtime.cudaStreamSynchronize(self._stream)
        if int(code) in LOST:
            raise explained(self._runtime, "answer", code)

    def captured(self, work: Work, closing: ExitStack) -> Work:
        rt, stream = self._runtime, self._stream
        mode = rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        with capturing(), ExitStack() as captured:
            self._call("capture a graph", rt.cudaStreamBeginCapture(stream, mode))
            try:
                work()
            finally:  # otherwise the stream stays in capture, and nothing else can run on it
                code, *graph = rt.cudaStreamEndCapture(stream)
                if int(code) == 0:
                    captured.callback(rt.cudaGraphDestroy, *graph)
            self._call("capture a graph", (code,))
            launched = self._call("instantiate a graph", rt.cudaGraphInstantiate(*graph, 0))
        closing.callback(lambda: rt.cudaGraphExecDestroy(launched))
        return lambda: self._call("launch a graph", rt.cudaGraphLaunch(launched, stream))

    def elapsed_ns(self, work: Work) -> float | None:
        rt = self._runtime
        with ExitStack() as events:
            first, last = self._event(events), self._event(events)
            self._call("record an event", rt.cudaEventRecord(first, self._stream))
            work()
            self._call("record an event", rt.cudaEventRecord(last, self._stream))
            self._call("finish", rt.cudaEventSynchronize(last))
            milliseconds = self._call("read an event", rt.cudaEventElapsedTime(first, last))
            return float(milliseconds) * 1e6

    @contextmanager
    def apart(self) -> Iterator[None]:
        # The device is current only in threads that have named it, and a plan is compiled by calls
        # of CUDA's driver, which take the current one.
        # By default a thread can't allocate while another one captures in CUDA's "global" mode, as
        # ONNX Runtime does: the allocation fails, and so does the capture.
        # Source: CUDA's runtime API, cudaThreadExchangeStreamCaptureMode.
        rt = self._runtime
        mode = rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        rt.cudaSetDevice(0)
        code, before = rt.cudaThreadExchangeStreamCaptureMode(mode)
        try:
            yield  # also on a device that failed, whose memory is to be freed all the same
        finally:
            if int(code) == 0:
                rt.cudaThreadExchangeStreamCaptureMode(before)

    def gauge(self) -> Gauge:
        return gauge_of(self._runtime)

    def _event(self, closing: ExitStack) -> Any:
        event = self._call("make an event", self._runtime.cudaEventCreate())
        closing.callback(self._runtime.cudaEventDestroy, event)
        return event

    def close(self) -> None:
        self._runtime.cudaStreamSynchronize(self._stream)
        self._runtime.cudaStreamDestroy(self._stream)


def array_at(address: int, shape: Sequence[int], dtype: str) -> Array:
    """Return an array over existing host memory, which its owner must keep alive."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    memory = (ctypes.c_ubyte * max(1, count * kind.itemsize)).from_address(address)
    return np.ndarray(tuple(shape), kind, memoryview(memory))


def cuda_runtime() -> Any:
    """Return the CUDA runtime's bindings.

    Raises:
        InputError: the bindings aren't installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise InputError(
            f"CUDA's bindings aren't installed ({error}): pip install 'hasten[gpu]'"
        ) from error
    return runtime


def host_ns(work: Work, device: Device, clock_ns: Callable[[], int] = time.perf_counter_ns) -> int:
    """Return how long `work` takes to complete by the host's clock, in nanoseconds."""
    begin = clock_ns()
    work()
    device.synchronize()
    return clock_ns() - begin
