"""Networks made ready for every way to run them, by few processes: importing the libraries takes longest."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from hasten.core.model import Model
from hasten.core.records import digest, from_record, to_record
from hasten.core.target import Target
from hasten.engines.base import Artifact
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.requests import random_requests
from hasten.inputs.data.spool import write_spool
from hasten.measure.candidate import Single
from hasten.measure.process import Worker
from hasten.measure.workbench import Bench
from hasten.passes.base import Pass

AT_ONCE = 2
"""Processes that make models ready: what they run takes one core each, most of the time."""
_CLOSE = 1.15
"""What is so much slower than the best at first sight may be the best all the same."""
_FINALISTS = 2


@dataclass
class Subject:
    """A network on its way through.

    Attributes:
        model: With its request settled.
        folder: Of its own.
        samples: A spool's folder.
        built: What each way made.
        looks: What each way took at first sight, in ns.
        left_out: Label -> why a way can't run it.
    """

    model: Model
    folder: Path
    samples: Path
    built: dict[Single, Artifact] = field(default_factory=dict)
    looks: dict[Single, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def finalists(self) -> list[Single]:
        """The ways that may be the best, by what they took at first sight."""
        ranked = sorted(self.looks, key=self.looks.__getitem__)
        return [way for way in ranked if self.looks[way] <= _CLOSE * self.looks[ranked[0]]][
            :_FINALISTS
        ]


def subject_of(name: str, model: Model, folder: Path, number: int, seed: int) -> Subject:
    """Give a model a folder of its own, and random requests; models of one input share those.

    Raises:
        InputError: the model's request isn't settled.
    """
    if not model.request:
        raise InputError(f"{name}: the model's request isn't settled; call settled_by first")
    samples = folder / f"samples-{digest([to_record(model.request), seed])[:12]}"
    if not samples.exists():
        write_spool(random_requests(model.request, seed), samples)
    own = folder / f"prospect-{number}"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    return Subject(model, own, samples)


class Makers:
    """Processes that transform and build one model after another: each imports its libraries once.

    Args:
        folder: Where their output goes; must exist when one is asked.
        target: The device.
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
        """End them; whoever still asks for one gets a `CandidateError`."""
        self._closed = True
        for worker in self._all:
            worker.kill()

    def start(self, most: int) -> None:
        """Start what is missing of two, or of fewer.

        The calling thread should outlive them: where none can be forked, they end with it.

        Raises:
            CandidateError: these were ended.
        """
        self._idle = [worker for worker in self._idle if worker.alive]
        while len(self._idle) < min(most, AT_ONCE):
            self._idle.append(self._started())

    def rest(self) -> None:
        """Stop them until they are asked again: while others are timed, they had better not run."""
        for worker in self._idle:
            if worker.alive:
                worker.sleep()

    def make(self, subject: Subject, chosen: Sequence[Single]) -> None:
        """Build a network for every way that can have it."""
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
                        engine=to_record(way.engine),
                        model=to_record(model),
                        target=to_record(self.bench.target),
                        workdir=str(subject.folder / f"artifact-{number}"),
                    ),
                )
            except CandidateError as error:
                subject.left_out[way.label] = str(error)

    def _transformed(self, subject: Subject, passes: Sequence[Pass]) -> Model | str:
        """Run passes, or return why that can't be done."""
        model = subject.model
        for number, step in enumerate(passes):
            workdir = subject.folder / f"{digest(to_record(list(passes)))[:12]}-{number}"
            workdir.mkdir()
            try:
                outcome = self._ask(
                    "transform",
                    model=to_record(model),
                    original=False,
                    step=to_record(step),
                    draft=True,
                    calibration=str(subject.samples),
                    workdir=str(workdir),
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
        if self._closed:  # meanwhile
            worker.kill()
        return worker
