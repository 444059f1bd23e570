"""Checks of a device's memory, copies, graphs and threads, without any runtime for models."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from hasten.core.devices import find_target
from hasten.core.tensors import Array
from hasten.engines.cuda.copying import copy_kernel
from hasten.engines.cuda.facts import cuda_version, device_facts
from hasten.engines.cuda.gauge import gauge_of
from hasten.engines.cuda.runtime import Cuda, Device, Host, Work, cuda_runtime, host_ns
from hasten.errors import CandidateError
from hasten.evaluation.deep.finding import Found, NotDone, Place
from hasten.evaluation.deep.same import state
from hasten.measure.closed_loop import all_of

_SIZES = (1, 4096, 16 << 20)
_PINNED_BYTES = 64 << 20
_WORDS = 1 << 16
_REPLAYS = 20
_CAPTURES = 20
_PAGE_BYTES = 4096
_BOTH_OPEN_S = 20.0
"""Longest time that a thread waits for the other to open the device, in seconds."""


class _Replaying(Host):
    """This host, which does captured work again at each launch."""

    def captured(self, work: Work, closing: ExitStack) -> Work:
        return work


@contextmanager
def opened(place: Place) -> Iterator[Device]:
    """Open the device of a place.

    Raises:
        InputError: CUDA's bindings aren't installed.
        NotDone: there is no GPU here.
        CandidateError: there is one, and CUDA can't open it.
    """
    if place == "host":
        yield _Replaying()
        return
    try:
        device = Cuda()
    except CandidateError as error:
        if find_target("cuda").kind != "attached":
            raise NotDone(f"no NVIDIA GPU here ({error})") from error
        raise
    try:
        yield device
    finally:
        device.close()


@contextmanager
def aborting(barrier: threading.Barrier) -> Iterator[None]:
    """Let no other thread wait at a barrier for one that failed."""
    try:
        yield
    except BaseException:
        barrier.abort()
        raise


def identity(place: Place) -> Found:
    """Open the device and say what it is."""
    with opened(place) as device:
        if place == "host":
            return Found(device.name)
        rt, facts = cuda_runtime(), device_facts()
        _, version = rt.cudaRuntimeGetVersion()
        free, total = rt.cudaMemGetInfo()[1:]
        attributes = rt.cudaDeviceAttr
        mode = int(rt.cudaDeviceGetAttribute(attributes.cudaDevAttrComputeMode, 0)[1])
        integrated = int(rt.cudaDeviceGetAttribute(attributes.cudaDevAttrIntegrated, 0)[1])
        modes = {0: "shared", 2: "prohibited", 3: "one process at a time"}
        return Found(
            f"{device.name}, {facts.part}, driver for CUDA {facts.driver}, bindings for CUDA "
            f"{cuda_version(int(version))}",
            (
                f"memory: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
                f"{', shared with the host' if integrated else ''}",
                f"compute mode: {modes.get(mode, str(mode))}",
            ),
        )


def clocks(place: Place) -> Found:
    """Read the device's clocks."""
    with opened(place):
        if place == "host":
            raise NotDone("this host has no NVML")
        gauge = gauge_of(cuda_runtime())
        if (reading := gauge.reading()) is None:
            raise NotDone(gauge.why)
        return Found(state(reading))


def pinned(place: Place) -> Found:
    """Pin host memory, and write and read it."""
    with opened(place) as device, ExitStack() as closing:
        memory = device.staged((_PINNED_BYTES,), "uint8", closing)
        memory[::_PAGE_BYTES] = 0xA5
        if not (memory[::_PAGE_BYTES] == 0xA5).all():
            raise CandidateError("pinned memory doesn't keep what is written to it")
        return Found(f"{_PINNED_BYTES >> 20} MiB pinned, written and read")


def copies(place: Place) -> Found:
    """Copy bytes to the device and back, and compare them."""
    rates = []
    with opened(place) as device, ExitStack() as closing:
        for size in _SIZES:
            sent, got, there = _buffers(device, size, closing)

            def both(sent: Array = sent, got: Array = got, there: int = there) -> None:
                device.to_device(there, sent)
                device.to_host(got, there)

            took_ns = min(host_ns(both, device) for _ in range(3))
            _compare(got, sent, f"{size} bytes come back changed")
            rates.append(2 * size / max(took_ns, 1))
    return Found(
        f"{', '.join(map(str, _SIZES))} bytes copied there and back unchanged; {rates[-1]:.1f} "
        "GB/s both ways "
        "at the last size"
    )


def graph(place: Place) -> Found:
    """Capture copies and a kernel as one graph, and replay it on changing data."""
    with opened(place) as device, ExitStack() as closing:
        sent, got, work = _round_trip(device, closing)
        work()
        device.synchronize()
        _compare(got, sent, "the kernel's output differs from its input")
        launch = device.captured(work, closing)
        for number in range(_REPLAYS):
            sent[:] = _random(sent.nbytes, number)
            launch()
            device.synchronize()
            _compare(got, sent, f"replay {number} returns the answer to another request")
        device_ns, by_host_ns = device.elapsed_ns(launch), host_ns(launch, device)
        by_device = "" if device_ns is None else f", {device_ns / 1e3:.1f} µs by the device's clock"
    return Found(
        f"copies and a kernel in one graph, replayed {_REPLAYS} times on changing data; "
        f"{by_host_ns / 1e3:.1f} µs by the host's clock{by_device}"
    )


def threads(place: Place) -> Found:
    """Capture and replay in two threads at once, while each also allocates."""
    barrier = threading.Barrier(2)

    def one(number: int) -> None:
        with aborting(barrier), opened(place) as device:
            barrier.wait(_BOTH_OPEN_S)
            for turn in range(_CAPTURES):
                with ExitStack() as captured:
                    sent, got, work = _round_trip(device, captured)
                    work()
                    device.synchronize()
                    launch = device.captured(work, captured)
                    sent[:] = _random(sent.nbytes, 100 * number + turn)
                    launch()
                    device.synchronize()
                    _compare(got, sent, f"thread {number} didn't get back the data that it sent")

    all_of(one, 2)
    return Found(f"two threads captured and replayed {_CAPTURES} graphs each, side by side")


def _round_trip(device: Device, closing: ExitStack) -> tuple[Array, Array, Work]:
    """Return two buffers, and the work that carries the first to the second by a kernel."""
    sent, got, there = _buffers(device, 4 * _WORDS, closing)
    copied = device.allocate(4 * _WORDS, closing)
    kernel = copy_kernel(device, copied, there, _WORDS, closing)

    def work() -> None:
        device.to_device(there, sent)
        kernel()
        device.to_host(got, copied)

    return sent, got, work


def _buffers(device: Device, size: int, closing: ExitStack) -> tuple[Array, Array, int]:
    sent, got = (device.staged((size,), "uint8", closing) for _ in range(2))
    sent[:] = _random(size, size)
    got[:] = 0
    return sent, got, device.allocate(size, closing)


def _random(size: int, seed: int) -> Array:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def _compare(got: Array, sent: Array, wrong: str) -> None:
    if different := np.flatnonzero(got != sent).size:
        raise CandidateError(f"{wrong}: {different} of {sent.size} bytes")
