"""The program that runs in a candidate's own process: it builds, opens, answers and times.

It reads commands and writes replies as JSON lines on one inherited descriptor. A runtime's own
output goes to the log, which the parent set as standard output. A runtime that crashes takes only
this process with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import itertools
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hasten.core.absent import absent
from hasten.core.free_space import free_bytes
from hasten.core.model import Model
from hasten.core.raised import raised
from hasten.core.records import from_record, to_record
from hasten.core.sequences import LENGTHS, Sequences
from hasten.core.shapes import typical
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.together import together
from hasten.core.varying import no_batches, summaries, uneven
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.checked import CheckedArtifact
from hasten.engines.origins import traced
from hasten.engines.padding import Padder, in_one, row_by_row
from hasten.engines.sequences import SequenceSession
from hasten.errors import CandidateError, InputError, NotCovered, Uneven, full_disk, named
from hasten.inputs.data.dataset import Dataset, ShapesOf, like_shaped
from hasten.inputs.data.samples import tensors_hash
from hasten.inputs.data.spool import Spool, SpoolWriter
from hasten.measure import open_loop
from hasten.measure.alike import kinds_of
from hasten.measure.closed_loop import drive, stacked
from hasten.measure.scenario import Offer
from hasten.passes.base import Pass, Skipped

_PR_SET_PDEATHSIG = 1
_REQUESTS_PER_BLOCK = 64
_MIX = 8
"""Requests that a block repeats as a whole where they differ in shape, so that all time the same mix."""
_REQUEST_BYTES = 64 << 20
_LOUD = 8
_KINDS_LOOKED_AT = 256
"""Samples that differ in shape of which a few batches are formed."""
_FULL_BYTES = 64 << 10
"""Free bytes below which a disk counts as full, since a failed write may leave a few."""


def time_requests(
    run: Callable[[dict[str, Array]], Any],
    requests: Sequence[dict[str, Array]],
    *,
    warmup_ns: int,
    block_ns: int,
    at_least: int,
    at_most: int,
    whole: bool = False,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> list[int]:
    """Time requests one after another, after a warm-up that also sets how many.

    Args:
        run: Function that answers one request, and blocks meanwhile.
        requests: Requests to rotate through, in order.
        warmup_ns: Untimed time at the beginning, in nanoseconds, for at least one request.
        block_ns: Intended length of the timed block, in nanoseconds.
        at_least: Fewest timed requests.
        at_most: Largest number of timed requests.
        whole: Whether each request is warmed up, and timed as often as every other: at least once.
        clock_ns: Monotonic clock, in nanoseconds.

    Returns:
        Latency in nanoseconds of each timed request, in order.

    Raises:
        InputError: there are no requests.
    """
    if not requests:
        raise InputError("nothing to time: got no requests")
    begin, done = clock_ns(), 0
    first = len(requests) if whole else 1
    while done < first or clock_ns() - begin < warmup_ns:
        run(requests[done % len(requests)])
        done += 1
    each_ns = max(1, (clock_ns() - begin) // done)
    latencies = []
    count = min(max(block_ns // each_ns, at_least), at_most)
    if whole:
        count = max(1, -(-count // len(requests))) * len(requests)
    for i in range(count):
        request = requests[(done + i) % len(requests)]
        start = clock_ns()
        run(request)
        latencies.append(clock_ns() - start)
    return latencies


def request_of(sample: dict[str, Array], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Shape a sample, given as `(1, ...)` arrays, as the model takes it, batched or not."""
    return {
        spec.name: np.asarray(
            sample[spec.name]
            if sample[spec.name].ndim == len(spec.shape)
            else sample[spec.name][0],
            order="C",
        )
        for spec in specs
    }


def lengths_of(samples: Dataset, sequences: Sequences) -> Array:
    """Return the number of steps of each sequence, `(n,)`, without padding."""
    if sequences.lengths:
        rows = [samples.inputs([index])[LENGTHS] for index in range(len(samples))]
        return np.concatenate(rows)
    first = samples.inputs([0])
    name = next(name for name in first if name not in sequences.inputs)
    return np.full(len(samples), first[name].shape[1], np.int64)


class _Process:
    """State of the commands: an artifact's open sessions, of which most commands use the first."""

    def __init__(self) -> None:
        self.closing = contextlib.ExitStack()
        self.session: Session | None = None
        self.sessions: list[Session] = []
        self.inputs: tuple[TensorSpec, ...] = ()
        self.request: tuple[TensorSpec, ...] = ()
        self.padder: Padder | None = None
        self.sequences: Sequences | None = None
        self.of_torch: Any = None

    def read_torch(self, command: dict[str, Any]) -> Any:
        """Load a file of torch, and say what it states; it stays in memory."""
        from hasten.inputs.models import torch_apart

        self.of_torch = torch_apart.read(
            Path(command["path"]), command["kind"], torchvision=command["torchvision"]
        )
        return to_record(torch_apart.stated(self.of_torch))

    def export_torch(self, command: dict[str, Any]) -> Any:
        """Export what was loaded to ONNX."""
        from hasten.inputs.models import torch_apart

        torch_apart.export(
            self.of_torch,
            command["names"],
            Path(command["samples"]),
            Path(command["workdir"]),
            keep_program=command["keep_program"],
        )

    def convert_tensorflow(self, command: dict[str, Any]) -> Any:
        """Convert a model of TensorFlow to ONNX by tf2onnx, and say how that ended."""
        from hasten.inputs.models import tensorflow_apart

        flag, path, out = command["flag"], Path(command["path"]), Path(command["out"])
        return tensorflow_apart.convert(flag, path, command["opset"], out)

    def answer_tflite(self, command: dict[str, Any]) -> Any:
        """Open a TFLite file, and answer a request if there is one."""
        from hasten.inputs.models import tensorflow_apart

        path, arrays = Path(command["path"]), Path(command["arrays"])
        stated = tensorflow_apart.answer(path, command["given"], command["wanted"], arrays)
        return to_record(stated)

    def transform(self, command: dict[str, Any]) -> Any:
        """Run one pass, or its draft, on the original or on the result of earlier passes."""
        step = from_record(Pass, command["step"], trusted=True)
        run = step.draft if command.get("draft") else step
        calibration = Spool.open(Path(command["calibration"]))
        try:
            with absent(step.needless):
                model = run(
                    from_record(Model, command["model"]), calibration, Path(command["workdir"])
                )
        except InputError as error:
            if command["original"]:
                raise
            raise CandidateError(str(error)) from error  # an earlier pass is at fault
        except Skipped as skipped:
            return {"skipped": f"{type(step).__name__}: {skipped}"}
        return {"model": to_record(model)}

    def sensitivities(self, command: dict[str, Any]) -> Any:
        """Find how far each layer in int8 moves the answers."""
        from hasten.passes.sensitivity import sensitivities

        try:
            noise = sensitivities(
                from_record(Model, command["model"]),
                Spool.open(Path(command["calibration"])),
                limit_s=command["within_s"],
                weight_bits=command["weight_bits"],
                threads=command["threads"],
            )
        except Skipped as skipped:
            return {"skipped": str(skipped)}
        return {"noise": noise}

    def work(self, command: dict[str, Any]) -> Any:
        """Count a model's work for the first of the samples, or for that of median size."""
        from hasten.measure.work import work

        model = from_record(Model, command["model"])
        spool = Spool.open(Path(command["samples"]))
        place = typical(ShapesOf(spool)) if spool.ragged else 0
        sample = spool.inputs([place])
        return to_record(work(model, request_of(sample, model.request)))

    def build(self, command: dict[str, Any]) -> Any:
        """Build the artifact that the engine opens."""
        engine = from_record(Engine, command["engine"], trusted=True)
        folder = Path(command["workdir"])
        folder.mkdir(parents=True, exist_ok=True)
        artifact = engine.build(
            from_record(Model, command["model"]), from_record(Target, command["target"]), folder
        )
        return to_record(artifact)

    def estimate(self, command: dict[str, Any]) -> Any:
        """Have the device's own tools estimate an artifact."""
        engine = from_record(Engine, command["engine"], trusted=True)
        return to_record(engine.estimate(*_of_device(command)))

    def further_figures(self, command: dict[str, Any]) -> Any:
        """Have the device's own tools compute the figures needed for a winner only."""
        engine = from_record(Engine, command["engine"], trusted=True)
        return dict(engine.further_figures(*_of_device(command)))

    def open(self, command: dict[str, Any]) -> Any:
        """Load an artifact once for each session; it stays open until the next is loaded."""
        self.closing.close()
        engine = from_record(Engine, command["engine"], trusted=True)
        artifact = from_record(CheckedArtifact, command["artifact"])
        target = from_record(Target, command["target"])
        self.sessions = [
            self.closing.enter_context(engine.open(artifact, target))
            for _ in range(command.get("sessions", 1))
        ]
        self.inputs, self.request = artifact.inputs, artifact.request
        self.padder = engine.shared_padder(artifact)
        self.sequences = None
        if command.get("sequences") is not None:
            carry = self.sequences = from_record(Sequences, command["sequences"])
            self.sessions = [SequenceSession(one, carry, self.request) for one in self.sessions]
        self.session = self.sessions[0]
        return dict(self.session.properties())

    def properties(self, command: dict[str, Any]) -> Any:
        """Return what the engine reports about itself by now."""
        assert self.session is not None
        return dict(self.session.properties())

    def device_times(self, command: dict[str, Any]) -> Any:
        """Return what a device's own clock says of a request now; nothing without such a device."""
        assert self.session is not None
        return dict(self.session.device_times())

    def _settle(self, requests: Sequence[dict[str, Array]]) -> None:
        """Have a device warm up until its clocks stand still."""
        assert self.session is not None
        session, turns = self.session, itertools.cycle(requests)
        session.settle(lambda: session.run(next(turns)))

    def predict(self, command: dict[str, Any]) -> Any:
        """Answer samples one by one, or in batches; write the outputs as one .npy per output.

        Of the outputs that the command calls varying, summaries are written instead, after the others.
        """
        assert self.session is not None
        spool, out = Spool.open(Path(command["samples"])), Path(command["out"])
        collected: dict[str, list[Array]] = {spec.name: [] for spec in self.session.outputs}
        batch, varying = command.get("batch", 1), command.get("varying", ())
        collected = {name: kept for name, kept in collected.items() if name not in varying}
        summed: dict[str, list[Array]] = {}
        by_sample = batch == 1 or spool.ragged
        if batch > 1 and varying:
            raise CandidateError(no_batches(varying))
        for index, answer in self._answers(spool, command["start"], command["stop"], batch):
            for name, array in answer.items():
                usable = _no_nan if command.get("infinite") else _finite
                if array.dtype.kind in "fc" and not usable(array):
                    said = "NaN" if command.get("infinite") else "NaN or Inf"
                    raise CandidateError(
                        f"output {name!r} has {said} for sample {command['first'] + index}"
                        f"{f', in a batch of {batch}' if batch > 1 else ''}"
                    )
                if name not in varying:
                    collected[name].append(array)
                    continue
                for told, summary in summaries(name, array).items():
                    summed.setdefault(told, []).append(summary)
        out.mkdir(parents=True, exist_ok=True)
        counts = [command["stop"] - command["start"]]
        if spool.ragged:  # a part for each run of like shapes
            counts = list(map(len, like_shaped(spool, range(command["start"], command["stop"]))))
        ends = np.cumsum(counts).tolist()
        for number, (name, every) in enumerate([*collected.items(), *summed.items()]):
            for part, (end, count) in enumerate(zip(ends, counts, strict=True)):
                arrays = every[end - count : end] if by_sample else every
                np.save(
                    out / f"{part}-{number}.npy", _rows(name, arrays, 1 if by_sample else batch)
                )
        return {"names": list(collected), "summed": list(summed), "parts": len(counts)}

    def _answers(
        self, spool: Spool, start: int, stop: int, batch: int
    ) -> Iterator[tuple[int, Tensors]]:
        """Answer samples in their order; yield the first sample's number with the answers of one or of a batch."""
        assert self.session is not None
        if batch == 1:
            for index in range(start, stop):
                yield index, self.session.run(self._request(spool.inputs([index])))
        elif not spool.ragged:
            for index in range(start, stop, batch):
                yield index, self._in_batch(spool, index, start, stop, batch)
        else:
            yield from enumerate(self._in_batches_of_kinds(spool, start, stop, batch), start)

    def _in_batches_of_kinds(
        self, spool: Spool, start: int, stop: int, batch: int
    ) -> list[Tensors]:
        """Answer samples that differ in shape in batches of those that may share one; return each one's answer."""
        assert self.session is not None
        found: list[Tensors] = [{}] * (stop - start)
        for own, mates in together(self._kinds(spool, range(start, stop)), batch):
            requests = [self._request(spool.inputs([start + place])) for place in (*own, *mates)]
            answers = row_by_row(self.session.run, requests, self.padder)
            for place, answer in zip(own, answers, strict=False):
                found[place] = answer
        return found

    def _kinds(self, spool: Spool, places: Iterable[int]) -> list[int]:
        """Return the kind of each sample; those of one kind may share a batch."""
        return kinds_of(self.padder, spool, places, self.request)

    def _in_batch(
        self, spool: Spool, first: int, start: int, stop: int, batch: int
    ) -> dict[str, Array]:
        """Answer the samples from `first` on in one batch, filled up with those from `start` on.

        Returns:
            Answers of the samples before `stop` only.
        """
        assert self.session is not None
        own = min(batch, stop - first)
        mates = [start + number % (stop - start) for number in range(batch - own)]
        wanted = [*range(first, first + own), *mates]
        alone = self._request(spool.inputs(wanted[:1]))
        answer = self.session.run(stacked(spool.inputs(wanted), alone, self.inputs))
        for name, array in answer.items():
            if array.shape[:1] != (batch,):
                raise CandidateError(
                    f"the output {name!r} of a batch of {batch} has the shape {list(array.shape)}"
                )
        return {name: array[:own] for name, array in answer.items()}

    def takes(self, command: dict[str, Any]) -> Any:
        """Return the batch sizes that the session takes, None for any, and whether rows are apart."""
        assert self.session is not None
        sizes = self.session.batch_sizes
        return [None if sizes is None else list(sizes), self.session.rows_apart]

    def moved_by_mates(self, command: dict[str, Any]) -> Any:
        """Say whether the first answer of a batch changes by a bit where the others are eight times as loud."""
        assert self.session is not None
        spool, size = Spool.open(Path(command["samples"])), command["batch"]
        for request in self._several(spool, size):
            louder = {
                name: np.concatenate([array[:1], _LOUD * array[1:]]).astype(array.dtype)
                if array.dtype.kind == "f"
                else np.concatenate([array[:1], array[:0:-1]])
                for name, array in request.items()
            }
            answers, others = self.session.run(request), self.session.run(louder)
            if any(array[:1].tobytes() != others[n][:1].tobytes() for n, array in answers.items()):
                return True
        return False

    def _several(self, spool: Spool, size: int) -> Iterator[dict[str, Array]]:
        """Yield a few batches of samples, padded up to their bucket where they differ in shape."""
        if not spool.ragged:
            for first in range(0, min(len(spool), 4 * size), size):
                wanted = [(first + number) % len(spool) for number in range(size)]
                alone = self._request(spool.inputs(wanted[:1]))
                yield stacked(spool.inputs(wanted), alone, self.inputs)
            return
        few = range(min(len(spool), _KINDS_LOOKED_AT))
        batches = together(self._kinds(spool, few), size)
        for own, mates in sorted(batches, key=lambda each: len(each[1]))[:4]:
            requests = [self._request(spool.inputs([place])) for place in (*own, *mates)]
            yield in_one(requests, self.padder)[0]

    def rows_apart(self, command: dict[str, Any]) -> Any:
        """Say whether a model's graph provably answers each row of a batch by itself."""
        from hasten.engines.compiled.lowering import lower

        model = from_record(Model, command["model"])
        request = from_record(tuple[TensorSpec, ...], command["request"])
        if model.format != "onnx":
            return False
        try:
            plan, _ = lower(model.path, request, model.outputs, most_work=1 << 62)
        except CandidateError:  # an operator that isn't known may mix rows
            return False
        return plan.by_row

    def time(self, command: dict[str, Any]) -> Any:
        """Time a block of requests, rotating through real samples."""
        assert self.session is not None
        spool = Spool.open(Path(command["samples"]))
        requests = self._requests(spool, command["first"])
        if spool.ragged:
            requests = requests[:_MIX]
        self._settle(requests)
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
                whole=spool.ragged,
            )
        finally:
            gc.enable()

    def profile(self, command: dict[str, Any]) -> Any:
        """Time each step of a freshly loaded artifact, rotating through real samples."""
        engine = from_record(Engine, command["engine"], trusted=True)
        artifact = from_record(CheckedArtifact, command["artifact"])
        self.request = artifact.request
        samples = self._requests(Spool.open(Path(command["samples"])), 0)
        requests = [samples[i % len(samples)] for i in range(command["requests"])]
        layers = engine.profile(artifact, from_record(Target, command["target"]), requests)
        if command["original"] is not None:
            from hasten.inputs.models.onnx import read

            layers = traced(layers, read(Path(command["original"])).graph)
        return to_record(layers)

    def look(self, command: dict[str, Any]) -> Any:
        """Answer one request of several samples; return its size and its answer's, in bytes."""
        assert self.session is not None
        batch = command["batch"]
        (request,) = self._requests(Spool.open(Path(command["samples"])), 0, batch, at_most=1)
        answer = self.session.run(request)
        rows = [array.shape[0] for array in answer.values() if array.ndim]
        if batch > 1 and not any(count >= batch and count % batch == 0 for count in rows):
            raise CandidateError(f"a request of {batch} samples gets fewer answers than that")
        return sum(array.nbytes for array in (*request.values(), *answer.values()))

    def drive(self, command: dict[str, Any]) -> Any:
        """Keep all sessions busy for a while with requests of several real samples each."""
        spool = Spool.open(Path(command["samples"]))
        requests = self._requests(
            spool, command["first"], command["batch"], at_most=command["requests"]
        )
        self._settle(requests)
        gc.collect()
        gc.disable()
        try:
            block = drive(
                [session.run for session in self.sessions],
                requests,
                warmup_ns=command["warmup_ns"],
                block_ns=command["block_ns"],
                at_least=command["at_least"],
                at_most=command["at_most"],
            )
        finally:
            gc.enable()
        return to_record(block)

    def load(self, command: dict[str, Any]) -> Any:
        """Put all sessions under a load generator."""
        offer = from_record(Offer, command["offer"])
        requests = self._requests(Spool.open(Path(command["samples"])), 0)
        self._settle(requests)
        return to_record(
            open_loop.take(offer, [session.run for session in self.sessions], requests)
        )

    def unroll(self, command: dict[str, Any]) -> Any:
        """Answer sequences, and write single steps of them with the states that they began with.

        The steps are spread evenly over all sequences, `count` of them at most.
        """
        assert isinstance(self.session, SequenceSession)
        assert self.sequences is not None
        spool = Spool.open(Path(command["samples"]))
        steps = lengths_of(spool, self.sequences)
        total = int(steps.sum())
        wanted = np.linspace(0, total - 1, min(command["count"], total)).round().astype(np.int64)
        before = np.concatenate([[0], np.cumsum(steps)])
        batched = {s.name: bool(s.shape) and s.shape[0] == 1 for s in self.request}
        with SpoolWriter(Path(command["out"]), [s.name for s in self.request]) as writer:
            for index in np.unique(np.searchsorted(before, wanted, side="right") - 1).tolist():
                places = set((wanted - before[index]).tolist())

                def keep(step: int, request: Tensors, places: set[int] = places) -> None:
                    if step in places:
                        taken = {n: a if batched[n] else a[np.newaxis] for n, a in request.items()}
                        one = {name: array[0] for name, array in taken.items()}
                        writer.append(taken, [tensors_hash(one)])

                self.session.run(self._request(spool.inputs([index])), keep)
            writer.finish(None, None)
        return {"steps": total}

    def _request(self, sample: dict[str, Array]) -> dict[str, Array]:
        """Shape a sample, given as `(1, ...)` arrays, as the session takes it."""
        if self.sequences is None:
            return request_of(sample, self.request)
        return {name: array[0, ...] for name, array in sample.items()}

    def _requests(
        self, spool: Spool, first: int, batch: int = 1, at_most: int = _REQUESTS_PER_BLOCK
    ) -> list[dict[str, Array]]:
        """Read consecutive samples, as many as memory should hold."""
        requests: list[dict[str, Array]] = []
        left = _REQUEST_BYTES
        for i in range(min(len(spool), at_most)):
            wanted = [(first + i * batch + j) % len(spool) for j in range(batch)]
            if spool.ragged:  # a batch is of one shape
                wanted = [(first + i) % len(spool)] * batch
            requests.append(self._request(spool.inputs(wanted[:1])))
            if batch > 1:
                requests[-1] = stacked(spool.inputs(wanted), requests[-1], self.inputs)
            left -= sum(array.nbytes for array in requests[-1].values())
            if left <= 0:
                break
        return requests


def _finite(array: Array) -> bool:
    return bool(np.isfinite(array).all())


def _no_nan(array: Array) -> bool:
    return not np.isnan(array).any()


def _rows(name: str, arrays: Sequence[Array], batch: int) -> Array:
    """Return an output's answers as rows, `(n, ...)`.

    Raises:
        Uneven: answers to samples of one shape differ in shape.
    """
    shapes = list(dict.fromkeys(a.shape[1:] if batch > 1 else a.shape for a in arrays))
    if len(shapes) > 1:
        raise uneven(name, shapes[0], shapes[1])
    batched = batch > 1 or (arrays[0].ndim > 0 and arrays[0].shape[0] == 1)
    return np.concatenate(arrays) if batched else np.stack(arrays)


def _of_device(command: dict[str, Any]) -> tuple[Artifact, Target, Path]:
    artifact = from_record(CheckedArtifact, command["artifact"])
    return artifact, from_record(Target, command["target"]), Path(command["workdir"])


def _first_to_go() -> None:
    """Have the kernel end this process, not its parent, if memory runs out too fast for a limit."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _disk_is_full(error: Exception, folder: str) -> bool:
    """Whether a step failed for lack of space, which a runtime may report in its own words."""
    try:
        return full_disk(error) is not None or free_bytes(folder) < _FULL_BYTES
    except OSError:
        return False  # the folder is missing, so nothing was written


def _reply(process: _Process, command: dict[str, Any]) -> dict[str, Any]:
    """Carry out one command; turn a failure of the candidate into a reply."""
    try:
        return _answered(process, command)
    except InputError as error:
        return {"input_error": str(error)}
    except CandidateError as error:
        kind = next((kind for kind in (NotCovered, Uneven) if isinstance(error, kind)), None)
        output = error.output if isinstance(error, Uneven) else ""
        return {"candidate_error": str(error), "kind": kind and kind.__name__, "output": output}
    except MemoryError:
        return {"candidate_error": "ran out of memory"}
    except Exception as error:  # a runtime may raise anything; the parent decides
        import traceback

        traceback.print_exc()
        return {"candidate_error": _broken_off(command, error)}


def _broken_off(command: dict[str, Any], error: Exception) -> str:
    """Return in one line what a pass or a runtime raised, and which it was."""
    try:
        who = (
            from_record(Pass, command["step"], trusted=True).words()
            if "step" in command
            else from_record(Engine, command["engine"], trusted=True).words()
        )
    except (InputError, KeyError):
        return f"{named(error):.300}"
    return f"{who} failed: {raised(error)}"


def _answered(process: _Process, command: dict[str, Any]) -> dict[str, Any]:
    """Carry out one command.

    Raises:
        InputError: the caller's input is at fault, or the disk is full.
    """
    try:
        return {"ok": getattr(process, command["do"])(command)}
    except Exception as error:
        folder = command.get("workdir") or command.get("out") or tempfile.gettempdir()
        if not _disk_is_full(error, str(Path(folder).parent)):
            raise
        raise InputError(f"can't write {folder}: {os.strerror(errno.ENOSPC)}") from error


def serve(channel_number: int, parent: int) -> NoReturn:
    """Serve commands until the other end closes, then end this process.

    Args:
        channel_number: Descriptor of this end of the channel.
        parent: Process whose death ends this one.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:  # otherwise the parent died before the line above
        _first_to_go()
        process = _Process()
        with socket.socket(fileno=channel_number) as channel, channel.makefile("rwb") as stream:
            for line in stream:
                stream.write(json.dumps(_reply(process, json.loads(line))).encode() + b"\n")
                stream.flush()
    os._exit(0)  # a runtime's own clean-up at exit has nothing left to save, and may hang


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
