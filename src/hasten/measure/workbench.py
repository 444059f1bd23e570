"""Steps from a candidate to an open worker: transform, build, open, answer; each in a process."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.model import Model
from hasten.core.records import digest, from_record, read_json, to_record, write_json
from hasten.core.sequences import Sequences
from hasten.core.shapes import representative
from hasten.core.target import Target
from hasten.core.tensors import Tensors, TensorSpec
from hasten.core.varying import Summarized
from hasten.core.workers import KilledError, Worker
from hasten.engines.base import Artifact, Engine
from hasten.engines.estimates import Estimate
from hasten.engines.layers import LayerTime
from hasten.errors import CandidateError, NotCovered, OutOfTime
from hasten.inputs.data.dataset import ShapesOf
from hasten.inputs.data.spool import Spool
from hasten.measure.candidate import Candidate
from hasten.measure.deadline import Deadline
from hasten.measure.environment import versions
from hasten.measure.roofline import LayerWork
from hasten.passes.base import Pass, Skipped

CHUNK = 64
"""Largest number of samples to answer before the parent reads the outputs, to bound the memory of both sides."""
CHUNK_BYTES = 64 << 20
"""Largest number of bytes of outputs before the parent reads them, but at least one sample."""
REQUESTS = 12
"""Number of requests of one profile."""


@dataclass(frozen=True)
class OpenWorker:
    """A worker with an open session.

    Attributes:
        worker: Process with the session.
        artifact: Artifact that it has open.
        properties: Properties that the engine reports.
        batch: Number of samples that `Bench.predict` asks about at once.
    """

    worker: Worker
    artifact: Artifact
    properties: dict[str, str]
    batch: int = 1


@dataclass
class Bench:
    """Runs built models, each in a process of its own; the caller ends the workers.

    Attributes:
        folder: Work folder.
        target: Device to run on.
        limit_s: Longest time of one step, in seconds.
        memory_bytes: Most memory that one process may hold.
        chunk: Number of samples answered at once.
        original: Path of the ONNX file that everything was made from, whose nodes a profile names;
            None where it is unknown.
        sequences: States to carry, where samples are whole sequences; None where a sample is one
            request.
        deadline: End of the command, which cuts steps short; it never comes by default.
        varying: Names of outputs whose size depends on a sample's values, of which answers hold summaries.
    """

    folder: Path
    target: Target
    limit_s: float = 300.0
    memory_bytes: int = 4 << 30
    chunk: int = CHUNK
    original: Path | None = None
    sequences: Sequences | None = None
    deadline: Deadline = field(default_factory=Deadline)
    varying: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        """Return the path of the file with the runtimes' output."""
        return self.folder / "workers.log"

    def ask(self, worker: Worker, do: str, **command: Any) -> Any:
        """Ask a worker, for no longer than a step may take and the deadline allows.

        Raises:
            OutOfTime: the deadline came, and the process was ended.
            CandidateError: the candidate failed, its process died, or it took too long.
        """
        limit_s, began = self.deadline.step_s(self.limit_s), time.monotonic()
        try:
            return worker.ask(do, limit_s=limit_s, **command)
        except CandidateError as error:
            if limit_s < self.limit_s and time.monotonic() - began >= limit_s:
                raise OutOfTime("the time limit ended it") from error
            raise

    def open_built(
        self, engine: Engine, artifact: Artifact, sessions: int = 1, *, fresh: bool = True
    ) -> OpenWorker:
        """Open an artifact in a new process; once more where the system killed that.

        Args:
            engine: Engine that runs the artifact.
            artifact: Artifact to open.
            sessions: Number of parallel sessions.
            fresh: Whether the process is a fresh interpreter, as published figures need; see
                `Worker`.

        Raises:
            CandidateError: the engine can't open it, or its process died.
        """
        try:
            return self._open_built(engine, artifact, sessions, fresh)
        except KilledError:
            return self._open_built(engine, artifact, sessions, fresh)

    def _open_built(
        self, engine: Engine, artifact: Artifact, sessions: int, fresh: bool
    ) -> OpenWorker:
        began = time.monotonic()
        worker = Worker(self.log, self.memory_bytes, fresh=fresh)
        try:
            properties = self.ask(
                worker,
                "open",
                engine=engine,
                artifact=artifact,
                target=self.target,
                sessions=sessions,
                sequences=self.sequences,
            )
        except BaseException:
            worker.kill()
            raise
        self.deadline.saw("open" if fresh else "open forked", time.monotonic() - began)
        return OpenWorker(worker, artifact, properties)

    def build(self, engine: Engine, model: Model, folder: Path) -> Artifact:
        """Build an artifact in a process that ends with it.

        Raises:
            CandidateError: the engine can't take the model, or its process died.
        """
        with Worker(self.log, self.memory_bytes) as worker:
            built = self.ask(
                worker,
                "build",
                engine=engine,
                model=model,
                target=self.target,
                workdir=folder,
            )
        return from_record(Artifact, built)

    def estimate(self, engine: Engine, artifact: Artifact, folder: Path) -> Estimate:
        """Have a device's own tools estimate an artifact, in a process that ends with it.

        Args:
            engine: Engine of the artifact.
            artifact: Artifact that the engine built.
            folder: Existing folder for the tools to write to.

        Raises:
            CandidateError: the device can't hold it, or a tool failed or hung.
            InputError: a tool isn't installed.
        """
        return from_record(Estimate, self._told("estimate", engine, artifact, folder))

    def further_figures(self, engine: Engine, artifact: Artifact, folder: Path) -> dict[str, float]:
        """Have a device's own tools compute figures needed for a winner only; see `estimate`."""
        return dict(self._told("further_figures", engine, artifact, folder))

    def _told(self, what: str, engine: Engine, artifact: Artifact, folder: Path) -> Any:
        with Worker(self.log, self.memory_bytes) as worker:
            return self.ask(
                worker,
                what,
                engine=engine,
                artifact=artifact,
                target=self.target,
                workdir=folder,
            )

    def profile(
        self,
        engine: Engine,
        artifact: Artifact,
        samples: Spool,
        *,
        requests: int = REQUESTS,
        named: bool = True,
    ) -> tuple[LayerTime, ...]:
        """Time each step of an artifact, in a process of its own.

        Args:
            engine: Engine that runs the artifact.
            artifact: Artifact to run.
            samples: Samples that requests rotate through.
            requests: Number of requests to time.
            named: Whether it was made from the original, so that steps stem from its nodes.

        Returns:
            The steps in the order of execution; see `Engine.profile`. Their sources are nodes of
            the original, where that is known.

        Raises:
            CandidateError: the engine has no profiler, failed, or its process died.
        """
        original = self.original if named else None
        with Worker(self.log, self.memory_bytes, fresh=True) as worker:
            records = self.ask(
                worker,
                "profile",
                engine=engine,
                artifact=artifact,
                target=self.target,
                samples=samples.folder,
                requests=requests,
                original=original,
            )
        return tuple(from_record(LayerTime, record) for record in records)

    def predict(
        self,
        opened: OpenWorker,
        samples: Spool,
        *,
        number_from: int = 0,
        infinite: bool = True,
    ) -> Generator[Tensors, None, None]:
        """Answer samples in chunks.

        Args:
            opened: Worker that answers.
            samples: Samples to answer.
            number_from: Number of the first sample in error messages.
            infinite: Whether answers may be infinite; they are never NaN.

        Yields:
            Outputs by name, each of shape `(k, ...)`, k at most `chunk`. Where samples differ in shape,
            each of these is cut wherever a sample's shape isn't that of the one before. Outputs in `varying`
            are left out of the mapping, which holds their summaries beside it.

        Raises:
            CandidateError: the worker failed, or an answer has NaN, or isn't finite though it must be.
        """
        out = self.folder / f"outputs-{opened.worker.pid}"
        try:
            for first in range(0, len(samples), self.chunk):
                stop = min(first + self.chunk, len(samples))
                yield from self._chunk(opened, samples, first, stop, number_from, out, infinite)
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def predict_one(self, opened: OpenWorker, samples: Spool, index: int = 0) -> Tensors:
        """Answer one sample only, by default the first."""
        out = self.folder / f"outputs-{opened.worker.pid}"
        try:
            (answer,) = self._chunk(opened, samples, index, index + 1, 0, out)
            return answer
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def fit_chunk(self, opened: OpenWorker, samples: Spool) -> None:
        """Set `chunk` by the size of one sample's outputs, the largest sample's where they differ.

        Raises:
            CandidateError: the worker failed.
        """
        largest = 0
        if samples.ragged:
            largest = representative(ShapesOf(samples), 2)[-1]
        answer = self.predict_one(opened, samples, largest)
        size_bytes = sum(array.nbytes for array in answer.values())
        self.chunk = max(1, min(CHUNK, CHUNK_BYTES // max(1, size_bytes)))

    def unroll(self, opened: OpenWorker, samples: Spool, folder: Path, count: int) -> Spool:
        """Answer sequences, and keep single steps of them with the states that they began with.

        Args:
            opened: Worker that answers.
            samples: Sequences to answer.
            folder: Folder to write the steps to, empty or not yet there.
            count: Largest number of steps to keep; they are spread evenly over the sequences.

        Raises:
            CandidateError: the worker failed.
        """
        self.ask(
            opened.worker,
            "unroll",
            samples=samples.folder,
            out=folder,
            count=count,
        )
        return Spool.open(folder)

    def _chunk(
        self,
        opened: OpenWorker,
        samples: Spool,
        start: int,
        stop: int,
        number_from: int,
        out: Path,
        infinite: bool = True,
    ) -> list[Tensors]:
        done = self.ask(
            opened.worker,
            "predict",
            samples=samples.folder,
            start=start,
            stop=stop,
            first=number_from,
            out=out,
            batch=opened.batch,
            infinite=infinite,
            varying=self.varying,
        )
        names, summed = done["names"], done["summed"]
        found = []
        for part in range(done["parts"]):
            arrays = [np.load(out / f"{part}-{i}.npy") for i in range(len(names) + len(summed))]
            outputs: Tensors = dict(zip(names, arrays, strict=False))
            if summed:
                outputs = Summarized(outputs, dict(zip(summed, arrays[len(names) :], strict=True)))
            found.append(outputs)
        return found


@dataclass
class Workbench(Bench):
    """Makes candidates: a bench with the original model and calibration data.

    Transformed models stay in `folder` for a resumed run.

    Attributes:
        model: The original model, with `request` settled.
        calibration: Samples that passes may see.
        calibration_hash: Digest of the calibration samples.
    """

    model: Model = field(kw_only=True)
    calibration: Spool = field(kw_only=True)
    calibration_hash: str = field(kw_only=True)
    _count: Iterator[int] = field(default_factory=itertools.count)
    _failed: dict[str, CandidateError] = field(default_factory=dict)
    _counted: dict[str, tuple[LayerWork, ...]] = field(default_factory=dict)
    _making: dict[str, threading.Lock] = field(default_factory=dict)
    _transforming: set[Worker] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.original = self.model.path

    def _key(self, passes: Sequence[Pass]) -> str:
        facts = [to_record(list(passes)), self.model.sha256, self.calibration_hash, versions()]
        return digest(facts)[:16]

    def transform(self, passes: Sequence[Pass]) -> Model:
        """Run passes on the original, or return the result if it exists already.

        Raises:
            Skipped: a pass had nothing to do.
            CandidateError: a pass failed, took no effect, or its process died.
        """
        if not passes:
            return self.model
        key = self._key(passes)
        with self._making.setdefault(key, threading.Lock()):
            return self._made(key, passes)

    def _made(self, key: str, passes: Sequence[Pass]) -> Model:
        """Run the last pass on the result of the others, unless its own result exists."""
        if key in self._failed:
            raise type(self._failed[key])(str(self._failed[key]))
        folder = self.folder / "models" / key
        done = folder / "done.json"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            try:
                model = self.transform(passes[:-1])
                (folder / "0").mkdir(parents=True)
                outcome = self._transformed(model, passes[-1], folder / "0")
            except OutOfTime:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            except CandidateError as error:
                shutil.rmtree(folder, ignore_errors=True)
                self._failed[key] = error  # another try would fail too, and as slowly
                raise
            write_json(done, outcome)
        outcome = read_json(done)
        if "skipped" in outcome:
            raise Skipped(outcome["skipped"])
        return replace(from_record(Model, outcome["model"]), origin=self.model)

    def _transformed(self, model: Model, step: Pass, folder: Path) -> Any:
        with self._own_worker() as worker:
            return self.ask(
                worker,
                "transform",
                model=model,
                original=model is self.model,
                step=step,
                calibration=self.calibration.folder,
                workdir=folder,
            )

    def sensitivities(self, weight_bits: int, within_s: float = 30.0) -> dict[str, float]:
        """Return how far each layer of the original, alone in int8, moves the answers.

        Args:
            weight_bits: 8, or 7 where the processor sums products in 16 bits.
            within_s: Approximate time that it may take, in seconds.

        Raises:
            Skipped: the model has no layer to quantize.
            CandidateError: the effect can't be measured.
        """
        with self._own_worker() as worker:
            found = self.ask(
                worker,
                "sensitivities",
                model=self.model,
                calibration=self.calibration.folder,
                # It may take up to four times as long.
                within_s=min(within_s, self.deadline.step_s(self.limit_s) / 5),
                weight_bits=weight_bits,
                threads=self.target.threads,
            )
        if "skipped" in found:
            raise Skipped(found["skipped"])
        return dict(found["noise"])

    def work(self, passes: Sequence[Pass] = ()) -> tuple[LayerWork, ...]:
        """Count a model's work for one request; each model once, in a process of its own.

        Args:
            passes: Passes that make the model from the original.

        Returns:
            Layers of the model: see `hasten.measure.work.work`.

        Raises:
            Skipped: a pass had nothing to do.
            CandidateError: a pass failed, or the process died.
            InputError: the result isn't an ONNX model.
        """
        key = self._key(passes)
        if key not in self._counted:
            model = self.transform(passes)
            with self._own_worker() as worker:
                layers = self.ask(
                    worker,
                    "work",
                    model=model,
                    samples=self.calibration.folder,
                )
            self._counted[key] = tuple(from_record(LayerWork, layer) for layer in layers)
        return self._counted[key]

    def rows_apart(self, passes: Sequence[Pass], request: Sequence[TensorSpec]) -> bool:
        """Whether a model's graph provably answers each row of a batch by itself.

        Operators are followed from the inputs' batch axis to the outputs'; where one isn't known, or the
        model isn't an ONNX file, nothing is proven.

        Args:
            passes: Passes that make the model from the original.
            request: Inputs of one request, with every size settled.
        """
        try:
            model = self.transform(passes)
            with self._own_worker() as worker:
                return bool(
                    self.ask(
                        worker,
                        "rows_apart",
                        model=model,
                        request=tuple(request),
                    )
                )
        except (CandidateError, Skipped):
            return False

    @contextlib.contextmanager
    def _own_worker(self) -> Iterator[Worker]:
        """Yield a process that is ended when the run is stopped."""
        with Worker(self.log, self.memory_bytes) as worker:
            self._transforming.add(worker)
            try:
                yield worker
            finally:
                self._transforming.discard(worker)

    def stop_transforms(self) -> None:
        """End the transformations that other threads wait for, since the run is being stopped."""
        for worker in list(self._transforming):
            worker.kill()

    def open(self, candidate: Candidate) -> OpenWorker:
        """Transform, build and open a candidate in a new process.

        Raises:
            Skipped: a pass had nothing to do.
            NotCovered: the engine isn't made for the model.
            CandidateError: any step failed.
        """
        model = self.transform(candidate.passes)
        if model.format not in candidate.engine.formats:
            raise NotCovered(f"{candidate.label}: the engine takes no {model.format} model")
        folder = self.folder / "artifacts" / f"{candidate.key}-{next(self._count)}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        worker = Worker(self.log, self.memory_bytes)
        try:
            settings = {"engine": candidate.engine, "target": self.target}
            built = self.ask(
                worker,
                "build",
                model=model,
                workdir=folder,
                **settings,
            )
            properties = self.ask(
                worker,
                "open",
                artifact=built,
                sequences=self.sequences,
                **settings,
            )
            return OpenWorker(worker, from_record(Artifact, built), properties)
        except BaseException:
            worker.kill()
            shutil.rmtree(folder, ignore_errors=True)
            raise
