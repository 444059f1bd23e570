"""From a candidate to an open worker: transform once, build, open, answer; each in its own process."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hasten.candidate import Candidate
from hasten.data.spool import Spool
from hasten.engines.base import Artifact, Engine
from hasten.errors import CandidateError
from hasten.measure.environment import versions
from hasten.measure.process import Worker
from hasten.model import Model
from hasten.passes.base import Pass, Skipped
from hasten.records import digest, from_record, read_json, to_record, write_json
from hasten.target import Target
from hasten.tensors import Tensors

CHUNK = 64
"""Samples answered before the parent reads the outputs, at most: what bounds both sides' memory."""
CHUNK_BYTES = 64 << 20
"""The same in bytes of outputs; never less than one sample."""


@dataclass(frozen=True)
class Opened:
    """A worker with an open session.

    Attributes:
        worker: Its process.
        artifact: What it has open.
        properties: What the engine says that it does.
    """

    worker: Worker
    artifact: Artifact
    properties: dict[str, str]


@dataclass
class Bench:
    """Where built models answer, each in a process of its own. The caller ends the workers.

    Attributes:
        folder: Work folder.
        target: The device.
        limit_s: Most time that one step may take.
        memory_bytes: Most memory that one process may hold.
        chunk: How many samples are answered at once.
    """

    folder: Path
    target: Target
    limit_s: float = 300.0
    memory_bytes: int = 4 << 30
    chunk: int = CHUNK

    @property
    def log(self) -> Path:
        """What the runtimes printed."""
        return self.folder / "workers.log"

    def open_built(self, engine: Engine, artifact: Artifact) -> Opened:
        """Open an artifact in a new process.

        Raises:
            CandidateError: the engine can't, or its process died.
        """
        worker = Worker(self.log, self.memory_bytes)
        try:
            properties = worker.ask(
                "open",
                limit_s=self.limit_s,
                engine=to_record(engine),
                artifact=to_record(artifact),
                target=to_record(self.target),
            )
        except BaseException:
            worker.kill()
            raise
        return Opened(worker, artifact, properties)

    def predict(self, opened: Opened, samples: Spool, *, number_from: int = 0) -> Iterator[Tensors]:
        """Answer samples in chunks.

        Args:
            opened: Who answers.
            samples: What is asked.
            number_from: What the first sample is called in an error.

        Yields:
            Outputs by name, each of shape `(k, ...)`, k at most `chunk`.

        Raises:
            CandidateError: it failed, or an answer isn't finite.
        """
        out = self.folder / f"outputs-{opened.worker.pid}"
        try:
            for first in range(0, len(samples), self.chunk):
                stop = min(first + self.chunk, len(samples))
                yield self._chunk(opened, samples, first, stop, number_from, out)
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def predict_one(self, opened: Opened, samples: Spool) -> Tensors:
        """Answer the first sample only."""
        out = self.folder / f"outputs-{opened.worker.pid}"
        try:
            return self._chunk(opened, samples, 0, 1, 0, out)
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def fit_chunk(self, opened: Opened, samples: Spool) -> None:
        """Set `chunk` by how large one sample's outputs are.

        Raises:
            CandidateError: it failed.
        """
        size_bytes = sum(array.nbytes for array in self.predict_one(opened, samples).values())
        self.chunk = max(1, min(CHUNK, CHUNK_BYTES // max(1, size_bytes)))

    def _chunk(
        self, opened: Opened, samples: Spool, start: int, stop: int, number_from: int, out: Path
    ) -> Tensors:
        names = opened.worker.ask(
            "predict",
            limit_s=self.limit_s,
            samples=str(samples.folder),
            start=start,
            stop=stop,
            first=number_from,
            out=str(out),
        )
        return {name: np.load(out / f"{i}.npy") for i, name in enumerate(names)}


@dataclass
class Workbench(Bench):
    """Where candidates are made: a bench with the original model and calibration data.

    Transformed models stay in `folder` for a resumed run.

    Attributes:
        model: The original, with `request` settled.
        calibration: Samples that passes may see.
        calibration_hash: Digest of their content.
    """

    model: Model = field(kw_only=True)
    calibration: Spool = field(kw_only=True)
    calibration_hash: str = field(kw_only=True)
    _count: Iterator[int] = field(default_factory=itertools.count)
    _failed: dict[str, str] = field(default_factory=dict)
    _transforming: set[Worker] = field(default_factory=set)

    def _key(self, passes: Sequence[Pass]) -> str:
        facts = [to_record(list(passes)), self.model.sha256, self.calibration_hash, versions()]
        return digest(facts)[:16]

    def transform(self, passes: Sequence[Pass]) -> Model:
        """Run passes on the original, or take the result that is already there.

        Raises:
            Skipped: a pass had nothing to do.
            CandidateError: a pass failed, took no effect, or its process died.
        """
        if not passes:
            return self.model
        key = self._key(passes)
        if key in self._failed:
            raise CandidateError(self._failed[key])
        folder = self.folder / "models" / key
        done = folder / "done.json"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                outcome = self._transformed(passes, folder)
            except CandidateError as error:
                shutil.rmtree(folder, ignore_errors=True)
                self._failed[key] = str(error)  # the same again would fail again, as slowly
                raise
            write_json(done, outcome)
        outcome = read_json(done)
        if "skipped" in outcome:
            raise Skipped(outcome["skipped"])
        return from_record(Model, outcome["model"])

    def _transformed(self, passes: Sequence[Pass], folder: Path) -> Any:
        with Worker(self.log, self.memory_bytes) as worker:
            self._transforming.add(worker)
            try:
                return worker.ask(
                    "transform",
                    limit_s=self.limit_s,
                    model=to_record(self.model),
                    passes=to_record(list(passes)),
                    calibration=str(self.calibration.folder),
                    workdir=str(folder),
                )
            finally:
                self._transforming.discard(worker)

    def stop_transforms(self) -> None:
        """End the transformations that other threads wait for: the run is being stopped."""
        for worker in list(self._transforming):
            worker.kill()

    def open(self, candidate: Candidate) -> Opened:
        """Transform, build and open a candidate in a new process.

        Raises:
            Skipped: a pass had nothing to do.
            CandidateError: any step failed.
        """
        model = self.transform(candidate.passes)
        if model.format not in candidate.engine.formats:
            raise CandidateError(f"{candidate.label}: the engine takes no {model.format} model")
        folder = self.folder / "artifacts" / f"{candidate.key}-{next(self._count)}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        worker = Worker(self.log, self.memory_bytes)
        try:
            settings = {"engine": to_record(candidate.engine), "target": to_record(self.target)}
            built = worker.ask(
                "build",
                limit_s=self.limit_s,
                model=to_record(model),
                workdir=str(folder),
                **settings,
            )
            properties = worker.ask("open", limit_s=self.limit_s, artifact=built, **settings)
            return Opened(worker, from_record(Artifact, built), properties)
        except BaseException:
            worker.kill()
            shutil.rmtree(folder, ignore_errors=True)
            raise
