"""Build networks for every candidate in a few processes, as importing libraries takes longest."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from hasten.core.model import Model
from hasten.core.records import digest, from_record, to_record
from hasten.core.target import Target
from hasten.core.workers import Worker
from hasten.engines.base import Artifact
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.requests import random_requests
from hasten.inputs.data.spool import write_spool
from hasten.measure.candidate import Single
from hasten.measure.workbench import Bench
from hasten.passes.base import Pass

AT_ONCE = 2
"""Number of processes that build models; each keeps one core busy most of the time."""
_CLOSE = 1.15
"""Factor on the best first timing up to which a slower candidate may still turn out the best."""
_FINALISTS = 2


@dataclass
class Subject:
    """Network to build and time, with the results so far.

    Attributes:
        model: Model with its request settled.
        folder: Work folder of this network alone.
        samples: Folder of the spool that holds the requests.
        built: Artifact of each candidate.
        looks: First short timing of each candidate, in nanoseconds.
        left_out: Reason why a candidate can't run the network, by the candidate's label.
    """

    model: Model
    folder: Path
    samples: Path
    built: dict[Single, Artifact] = field(default_factory=dict)
    looks: dict[Single, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def finalists(self) -> list[Single]:
        """Candidates that may be the fastest, judging by their first short timings."""
        ranked = sorted(self.looks, key=self.looks.__getitem__)
        return [way for way in ranked if self.looks[way] <= _CLOSE * self.looks[ranked[0]]][
            :_FINALISTS
        ]


def subject_of(name: str, model: Model, folder: Path, number: int, seed: int) -> Subject:
    """Give a model its own folder and random requests, which models with equal inputs share.

    Raises:
        InputError: the model's request isn't settled.
    """
    if not model.request:
        raise InputError(
            f"{name}: the shapes of the model's request aren't fixed; call settled_by first"
        )
    samples = folder / f"samples-{digest([to_record(model.request), seed])[:12]}"
    if not samples.exists():
        write_spool(random_requests(model.request, seed), samples)
    own = folder / f"prospect-{number}"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    return Subject(model, own, samples)


class Makers:
    """Processes that transform and build models in turn, each importing its libraries once.

    Args:
        folder: Folder for the output of the processes; must exist when the first is started.
        target: Device to build for.
    """

    def __init__(self, folder: Path, target: Target) -> None:
        self.bench = Bench(folder, target, limit_s=120.0, memory_bytes=target.memory_bytes // 4)
        self._idle: list[Worker] = []
        self._all: list[Worker] = []
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; later requests raise `CandidateError`."""
        self._closed = True
        for worker in self._all:
            worker.kill()

    def start(self, most: int) -> None:
        """Start processes until `most` are idle, or `AT_ONCE` if that is fewer.

        The calling thread should outlive the processes: where they can't be forked, they end with
        it.

        Raises:
            CandidateError: the processes were ended.
        """
        self._idle = [worker for worker in self._idle if worker.alive]
        while len(self._idle) < min(most, AT_ONCE):
            self._idle.append(self._started())

    def rest(self) -> None:
        """Suspend the processes until the next request, so that they don't disturb timings."""
        for worker in self._idle:
            if worker.alive:
                worker.sleep()

    def make(self, subject: Subject, chosen: Sequence[Single]) -> None:
        """Build a network for every candidate that supports it."""
        made: dict[tuple[Pass, ...], Model | str] = {(): subject.model}
        for number, way in enumerate(chosen):
            try:
                if way.passes not in made:
                    made[way.passes] = self._transformed(subject, way.passes)
                model = made[way.passes]
                if isinstance(model, str):
                    raise CandidateError(model)
                subject.built[way] = from_record(
                    Artifact,
                    self._ask(
                        "build",
                        engine=way.engine,
                        model=model,
                        target=self.bench.target,
                        workdir=subject.folder / f"artifact-{number}",
                    ),
                )
            except CandidateError as error:
                subject.left_out[way.label] = str(error)

    def _transformed(self, subject: Subject, passes: Sequence[Pass]) -> Model | str:
        """Return the model that passes make, or the reason why they can't."""
        model = subject.model
        for number, step in enumerate(passes):
            workdir = subject.folder / f"{digest(to_record(list(passes)))[:12]}-{number}"
            workdir.mkdir()
            try:
                outcome = self._ask(
                    "transform",
                    model=model,
                    original=False,
                    step=step,
                    draft=True,
                    calibration=subject.samples,
                    workdir=workdir,
                )
            except CandidateError as error:
                return str(error)
            if "skipped" in outcome:
                return str(outcome["skipped"])
            model = from_record(Model, outcome["model"])
        return model

    def _ask(self, do: str, **command: object) -> dict[str, object]:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = self._started()
        if not worker.alive:
            worker = self._started()
        try:
            reply: dict[str, object] = worker.ask(do, limit_s=self.bench.limit_s, **command)
        finally:
            self._idle.append(worker)
        return reply

    def _started(self) -> Worker:
        if self._closed:
            raise CandidateError("the run is being stopped")
        worker = Worker(self.bench.log, self.bench.memory_bytes)
        self._all.append(worker)
        if self._closed:  # closed while the process was starting
            worker.kill()
        return worker
