"""The program that runs in a candidate's own process: it builds, opens, answers and times.

It reads commands and writes replies as JSON lines on one inherited descriptor; what a runtime
prints goes to the log that its parent gave as standard output. A runtime that crashes takes only
this process with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hasten.data.spool import Spool
from hasten.engines.base import Artifact, Engine, Session
from hasten.errors import CandidateError, InputError, full_disk
from hasten.model import Model
from hasten.passes.base import Pass, Skipped
from hasten.records import from_record, to_record
from hasten.target import Target
from hasten.tensors import Array, TensorSpec

_PR_SET_PDEATHSIG = 1
_REQUESTS_PER_BLOCK = 64
_REQUEST_BYTES = 64 << 20
_FULL_BYTES = 64 << 10
"""A disk with less free is full: a runtime that couldn't write its file there left the rest of it."""


def time_requests(
    run: Callable[[dict[str, Array]], Any],
    requests: Sequence[dict[str, Array]],
    *,
    warmup_ns: int,
    block_ns: int,
    at_least: int,
    at_most: int,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> list[int]:
    """Time requests one after another, after a warm-up that also sets how many.

    Args:
        run: Answers one request, blocking.
        requests: Rotated through, in order.
        warmup_ns: How long to run untimed, at least once.
        block_ns: How long the timed block should last.
        at_least: Fewest timed requests.
        at_most: Most timed requests.
        clock_ns: Monotonic clock, in nanoseconds.

    Returns:
        One latency in nanoseconds per timed request, in order.

    Raises:
        InputError: there are no requests.
    """
    if not requests:
        raise InputError("nothing to time: got no requests")
    begin, done = clock_ns(), 0
    while done == 0 or clock_ns() - begin < warmup_ns:
        run(requests[done % len(requests)])
        done += 1
    each_ns = max(1, (clock_ns() - begin) // done)
    latencies = []
    for i in range(min(max(block_ns // each_ns, at_least), at_most)):
        request = requests[(done + i) % len(requests)]
        start = clock_ns()
        run(request)
        latencies.append(clock_ns() - start)
    return latencies


def request_of(sample: dict[str, Array], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Shape one sample, read as `(1, ...)` arrays, as the model takes it: with a batch axis or not."""
    return {
        spec.name: np.asarray(
            sample[spec.name]
            if sample[spec.name].ndim == len(spec.shape)
            else sample[spec.name][0],
            order="C",
        )
        for spec in specs
    }


class _Process:
    """What the commands share: at most one open session."""

    def __init__(self) -> None:
        self.closing = contextlib.ExitStack()
        self.session: Session | None = None
        self.request: tuple[TensorSpec, ...] = ()

    def transform(self, command: dict[str, Any]) -> Any:
        """Run a chain of passes; each writes into a folder of its own."""
        model = from_record(Model, command["model"])
        calibration = Spool.open(Path(command["calibration"]))
        for number, record in enumerate(command["passes"]):
            step = from_record(Pass, record, trusted=True)
            folder = Path(command["workdir"]) / f"{number}"
            folder.mkdir(parents=True)
            try:
                model = step(model, calibration, folder)
            except InputError as error:
                if number == 0:
                    raise
                raise CandidateError(str(error)) from error  # an earlier pass's doing
            except Skipped as skipped:
                return {"skipped": f"{type(step).__name__}: {skipped}"}
        return {"model": to_record(model)}

    def build(self, command: dict[str, Any]) -> Any:
        """Make what the engine opens."""
        engine = from_record(Engine, command["engine"], trusted=True)
        folder = Path(command["workdir"])
        folder.mkdir(parents=True, exist_ok=True)
        artifact = engine.build(
            from_record(Model, command["model"]), from_record(Target, command["target"]), folder
        )
        return to_record(artifact)

    def open(self, command: dict[str, Any]) -> Any:
        """Load an artifact; it stays open until the process ends."""
        engine = from_record(Engine, command["engine"], trusted=True)
        artifact = from_record(Artifact, command["artifact"])
        self.session = self.closing.enter_context(
            engine.open(artifact, from_record(Target, command["target"]))
        )
        self.request = artifact.request
        return dict(self.session.properties())

    def predict(self, command: dict[str, Any]) -> Any:
        """Answer samples one by one; write the outputs, stacked, as one .npy per output."""
        assert self.session is not None
        spool, out = Spool.open(Path(command["samples"])), Path(command["out"])
        collected: dict[str, list[Array]] = {spec.name: [] for spec in self.session.outputs}
        for index in range(command["start"], command["stop"]):
            answer = self.session.run(request_of(spool.inputs([index]), self.request))
            for name, array in answer.items():
                if array.dtype.kind in "fc" and not np.isfinite(array).all():
                    raise CandidateError(
                        f"output {name!r} has NaN or Inf for sample {command['first'] + index}"
                    )
                collected[name].append(array)
        out.mkdir(parents=True, exist_ok=True)
        for number, (name, arrays) in enumerate(collected.items()):
            if len({array.shape for array in arrays}) > 1:
                raise CandidateError(f"output {name!r} changes its shape from sample to sample")
            batched = arrays[0].ndim > 0 and arrays[0].shape[0] == 1
            np.save(out / f"{number}.npy", np.concatenate(arrays) if batched else np.stack(arrays))
        return list(collected)

    def time(self, command: dict[str, Any]) -> Any:
        """Time a block of requests, rotating through real samples."""
        assert self.session is not None
        spool = Spool.open(Path(command["samples"]))
        requests = self._requests(spool, command["first"])
        gc.collect()
        gc.disable()
        try:
            return time_requests(
                self.session.run,
                requests,
                warmup_ns=command["warmup_ns"],
                block_ns=command["block_ns"],
                at_least=command["at_least"],
                at_most=command["at_most"],
            )
        finally:
            gc.enable()

    def _requests(self, spool: Spool, first: int) -> list[dict[str, Array]]:
        """Read a stretch of the samples, as many as memory should hold."""
        requests: list[dict[str, Array]] = []
        left = _REQUEST_BYTES
        for i in range(min(len(spool), _REQUESTS_PER_BLOCK)):
            requests.append(request_of(spool.inputs([(first + i) % len(spool)]), self.request))
            left -= sum(array.nbytes for array in requests[-1].values())
            if left <= 0:
                break
        return requests


def _first_to_go() -> None:
    """Where memory runs out before a limit is seen, the kernel ends this process, not its parent."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _disk_is_full(error: Exception, folder: str) -> bool:
    """Whether a step failed for want of space; a runtime may say so in words of its own, or not."""
    try:
        return full_disk(error) is not None or shutil.disk_usage(folder).free < _FULL_BYTES
    except OSError:
        return False  # the folder isn't there: nothing was written


def _reply(process: _Process, command: dict[str, Any]) -> dict[str, Any]:
    """Carry out one command; a failure of the candidate becomes a reply."""
    try:
        return _answered(process, command)
    except InputError as error:
        return {"input_error": str(error)}
    except CandidateError as error:
        return {"candidate_error": str(error)}
    except MemoryError:
        return {"candidate_error": "ran out of memory"}
    except Exception as error:  # a runtime may raise anything; the parent decides
        import traceback

        traceback.print_exc()
        first = (str(error).strip() or "no message").splitlines()[0]
        return {"candidate_error": f"{type(error).__name__}: {first:.300}"}


def _answered(process: _Process, command: dict[str, Any]) -> dict[str, Any]:
    """Carry out one command.

    Raises:
        InputError: the caller's input is at fault, or the disk is full.
    """
    try:
        return {"ok": getattr(process, command["do"])(command)}
    except Exception as error:
        folder = command.get("workdir") or command.get("out")
        if folder is None or not _disk_is_full(error, str(Path(folder).parent)):
            raise
        raise InputError(f"can't write {folder}: {os.strerror(errno.ENOSPC)}") from error


def main() -> None:
    """Serve commands until the other end closes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[2]):
        return  # the parent died before the line above
    _first_to_go()
    process = _Process()
    with socket.socket(fileno=int(sys.argv[1])) as channel, channel.makefile("rwb") as stream:
        for line in stream:
            stream.write(json.dumps(_reply(process, json.loads(line))).encode() + b"\n")
            stream.flush()
    os._exit(0)  # a runtime's own clean-up at exit has nothing left to save, and may hang


if __name__ == "__main__":
    main()
