"""Session on a device with its own memory: copy in, enqueue, copy out, and wait once."""

from __future__ import annotations

import statistics
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol, runtime_checkable

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Session
from hasten.engines.cuda.gauge import Gauge
from hasten.engines.cuda.replays import answers_another
from hasten.engines.cuda.runtime import Device, Transfers, Work, host_ns
from hasten.engines.cuda.settling import Settling
from hasten.engines.failures import failed
from hasten.errors import CandidateError, DeviceLost, HastenError

_KEPT = 16
"""Number of request shapes whose buffers and graphs are kept: a server makes batches of at most 12
sizes (`SIZES` in serving/models/opening.py), and clients may send other numbers of rows."""
_TIMED = 20
COPIED_INTO = ("pinned memory", "the device's memory")
"""Places into which a session copies a request's inputs, for people."""


class Execution(Protocol):
    """Network for the shapes of one request, with its inputs and outputs bound to addresses.

    Attributes:
        outputs: Sizes and element type of each output, by name.
        lasting: Whether the network refers to the buffers until it is closed, so that the session
            must keep them.
    """

    outputs: Mapping[str, tuple[tuple[int, ...], str]]
    lasting: bool

    def bind(self, name: str, address: int, shape: tuple[int, ...], dtype: str) -> None:
        """Set the address that an input is read from, or an output written to."""

    def enqueue(self) -> None:
        """Put the network's work on the device's stream.

        Raises:
            CandidateError: the runtime failed.
        """


@runtime_checkable
class Replaying(Execution, Protocol):
    """Execution of a runtime that captures graphs by itself while it runs, and replays them."""

    def enqueue_without_graph(self) -> None:
        """Put the network's work on the device's stream, without the runtime's graph.

        Raises:
            CandidateError: the runtime failed.
        """


class DeviceNetwork(Protocol):
    """Network that a runtime loaded onto a device."""

    def execution(self, inputs: Tensors) -> Execution:
        """Return a new execution for requests of these shapes.

        Raises:
            CandidateError: the network doesn't take these shapes.
        """

    def properties(self) -> Mapping[str, str]:
        """Facts that the runtime reports about itself."""

    def close(self) -> None:
        """Free the network."""


@dataclass
class _Bound:
    """Execution with its buffers.

    Attributes:
        execution: Execution whose inputs and outputs are bound.
        work: Function that copies in, enqueues the network and copies out.
        launch: Function that does the work of `work`, in one launch if it could be captured.
        graph: State of the capture: "captured", "off", or why there is none.
        transfers: Counts of the session's copies for one request, of its inputs and outputs.
        staged_in: Input buffers in pinned host memory, by name.
        staged_out: Output buffers in pinned host memory, by name.
        closing: Stack that frees the buffers and the graph.
    """

    execution: Execution
    work: Work
    launch: Work
    graph: str
    transfers: Transfers
    staged_in: dict[str, Array]
    staged_out: dict[str, Array]
    closing: ExitStack


class DeviceSession(Session):
    """Session that takes requests from host memory to a network on a device and back.

    A request is copied into pinned buffers. Copies to the device, the network, and copies back are
    enqueued, as one CUDA graph if they can be captured. Then the host waits once, and copies the
    answers out.

    Args:
        artifact: Artifact that was opened.
        device: Device to run on; it is closed with the session.
        network: Network to run.
        batch_sizes: Batch sizes that the network takes; None for any.
        capture: Whether to capture graphs.
    """

    def __init__(
        self,
        artifact: Artifact,
        device: Device,
        network: DeviceNetwork,
        batch_sizes: tuple[int, ...] | None,
        *,
        capture: bool = True,
    ) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.batch_sizes = batch_sizes
        self._request = artifact.request
        self._device, self._capture = device, capture
        self._network: DeviceNetwork | None = network
        self._bound: OrderedDict[tuple[tuple[int, ...], ...], _Bound] = OrderedDict()

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer one request.

        Raises:
            CandidateError: the runtime failed, or an input is missing or doesn't fit.
            DeviceLost: the device answers nothing more in this process, whoever asks it.
        """
        try:
            bound = self._bound_for(inputs)
            for name, staged in bound.staged_in.items():
                np.copyto(staged, inputs[name], casting="no")
            bound.launch()
            self._device.synchronize()
            return {name: staged.copy() for name, staged in bound.staged_out.items()}
        except DeviceLost:
            raise
        except Exception as error:
            if self._network is not None:
                self._device.check()
            if isinstance(error, HastenError):
                raise
            raise failed(f"{self._device.name} failed", error) from error

    def properties(self) -> Mapping[str, str]:
        """Runtime's facts, and the copies and waits of a request.

        Copies and waits are the session's own: each input in, each output out, and one wait. Copies
        inside the runtime's run (ONNX Runtime's, for nodes on the host) aren't counted.
        """
        if self._network is None:
            return {}
        found = {"device": self._device.name, **self._network.properties()}
        bound = self._latest()
        if bound is not None:
            found |= {name: str(count) for name, count in vars(bound.transfers).items()}
            found |= {"graph": bound.graph, "synchronizations": "1"}
        return found

    @cached_property
    def _gauge(self) -> Gauge:
        return self._device.gauge()

    @cached_property
    def _settling(self) -> Settling:
        return Settling(self._gauge)

    def settle(self, again: Callable[[], object]) -> None:
        if self._device.kind == "cuda":
            self._settling(again)

    def device_times(self) -> Mapping[str, str]:
        """Times of the latest request by the device's and the host's clock, after a warm-up.

        `stream_ns` is the time between the request's first copy on the stream and its last one, by
        CUDA's events. It includes what the stream waits for the next launch, so it is no sum of
        kernels. `host_ns` is the time from the launch to the end of the wait. Both are medians.
        """
        bound = self._latest()
        if bound is None or self._device.elapsed_ns(bound.launch) is None:
            return {}
        warm = self._settling(lambda: host_ns(bound.launch, self._device))
        by_device = [self._device.elapsed_ns(bound.launch) or 0.0 for _ in range(_TIMED)]
        reading = self._gauge.reading()
        by_host = [host_ns(bound.launch, self._device) for _ in range(_TIMED)]
        return {
            "stream_ns": f"{statistics.median(by_device):.0f}",
            "host_ns": f"{statistics.median(by_host):.0f}",
            "clocks_stood_still": "yes" if warm else "no",
            **({"gpu_state": self._gauge.why} if reading is None else reading.text()),
        }

    def _latest(self) -> _Bound | None:
        """Return the execution that was used last, or one for zeros where none was."""
        if not self._bound and self._request and self._network is not None:
            # Zeros may take a branch that can't answer, in which case there is nothing to time yet.
            with suppress(CandidateError):
                self._bound_for({s.name: np.zeros(s.sizes, s.dtype) for s in self._request})
        return next(reversed(self._bound.values()), None)

    def close(self) -> None:
        """Free the network, the buffers and the stream."""
        if self._network is not None:
            with self._device.apart():
                for bound in self._bound.values():
                    bound.closing.close()
                self._bound.clear()
                self._network.close()
            self._network = None
            self._device.close()

    def _bound_for(self, inputs: Tensors) -> _Bound:
        """Return the bound execution for requests of these shapes."""
        if self._network is None:
            raise CandidateError("the session is closed: open the artifact again")
        for spec in self.inputs:
            if spec.name not in inputs:
                raise CandidateError(f"the session didn't get the input {spec.name!r}")
        key = tuple(inputs[spec.name].shape for spec in self.inputs)
        bound = self._bound.get(key)
        if bound is None:
            for spec in self.inputs:
                if not spec.fits(inputs[spec.name]):
                    got = f"{inputs[spec.name].dtype}{list(inputs[spec.name].shape)}"
                    raise CandidateError(f"the session takes {spec}; got {got}")
            with self._device.apart(), ExitStack() as closing:
                bound = self._bind(self._network.execution(inputs), inputs, closing)
                bound.closing = closing.pop_all()
            self._bound[key] = bound
            self._forget_one()
        else:
            self._bound.move_to_end(key)
        return bound

    def _forget_one(self) -> None:
        """Free the least recently used execution once there are more than are kept."""
        passing = [key for key, one in self._bound.items() if not one.execution.lasting]
        if len(self._bound) > _KEPT and len(passing) > 1:
            with self._device.apart():
                self._bound.pop(passing[0]).closing.close()

    def _bind(self, execution: Execution, inputs: Tensors, closing: ExitStack) -> _Bound:
        """Give an execution its buffers, run it once, and capture it."""
        device = self._device
        into = {s.name: (inputs[s.name].shape, str(inputs[s.name].dtype)) for s in self.inputs}
        addresses, staged = {}, {}
        for name, (shape, dtype) in (*into.items(), *execution.outputs.items()):
            staged[name] = device.staged(shape, dtype, closing)
            addresses[name] = device.allocate(staged[name].nbytes, closing)
            execution.bind(name, addresses[name], shape, dtype)
        for name in into:
            np.copyto(staged[name], inputs[name], casting="no")

        def request(enqueue: Work) -> Work:
            def work() -> None:
                for name in into:
                    device.to_device(addresses[name], staged[name])
                enqueue()
                for name in execution.outputs:
                    device.to_host(staged[name], addresses[name])

            return work

        work = plain = request(execution.enqueue)
        if execution.lasting and isinstance(execution, Replaying):
            plain = request(execution.enqueue_without_graph)
        before = device.transfers
        work()  # before the capture, which can't include the loading that a first run does
        device.synchronize()
        transfers = device.transfers - before
        launch, graph = self._launch(work, closing)
        if launch is not plain and (refusal := self._refusal(inputs, staged, plain, launch)):
            launch, graph = plain, f"none: {refusal}"
        return _Bound(
            execution,
            work,
            launch,
            graph,
            transfers,
            {name: staged[name] for name in into},
            {spec.name: staged[spec.name] for spec in self.outputs},
            closing,
        )

    def _launch(self, work: Work, closing: ExitStack) -> tuple[Work, str]:
        """Return what does the work, in one launch if it can be captured, and the capture's state."""
        if not self._capture:
            return work, "off"
        try:
            return self._device.captured(work, closing), "captured"
        except CandidateError as why:
            return work, f"none: {why}"

    def _refusal(self, inputs: Tensors, staged: dict[str, Array], plain: Work, launch: Work) -> str:
        """Return why a graph isn't used; "" where it answers two requests as the plain work does."""

        def answer(work: Work, asked: Tensors) -> Mapping[str, Array]:
            for spec in self.inputs:
                np.copyto(staged[spec.name], asked[spec.name], casting="no")
            work()
            self._device.synchronize()
            return {spec.name: staged[spec.name] for spec in self.outputs}

        try:
            if answers_another(inputs, partial(answer, plain), partial(answer, launch)):
                return "the graph returns the answer to another request"
        except DeviceLost:
            raise
        except CandidateError as why:
            return f"the graph couldn't be checked: {why}"
        return ""
