"""Networks made ready for every way to run them, by few processes: importing the libraries takes longest."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from hasten.candidate import Single
from hasten.data.requests import random_requests
from hasten.data.spool import write_spool
from hasten.engines.base import Artifact
from hasten.errors import CandidateError, InputError
from hasten.measure.process import Worker
from hasten.measure.workbench import Bench
from hasten.model import Model
from hasten.passes.base import Pass
from hasten.records import digest, from_record, to_record

_CLOSE = 1.15
"""What is so much slower than the best at first sight may be the best all the same."""
_FINALISTS = 2
_SAMPLES = 4
"""Of random numbers, to quantize with: the ranges that they set are wrong, and as fast as right ones."""


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


def subjects_of(models: Mapping[str, Model], folder: Path, seed: int) -> dict[str, Subject]:
    """Give each model a folder of its own, and random requests; models of one input share them.

    Raises:
        InputError: a model's request isn't settled.
    """
    spools: dict[str, Path] = {}
    found = {}
    for number, (name, model) in enumerate(models.items()):
        if not model.request:
            raise InputError(f"{name}: the model's request isn't settled; call settled_by first")
        key = digest(to_record(model.request))[:12]
        if key not in spools:
            samples = folder / f"samples-{key}"
            shutil.rmtree(samples, ignore_errors=True)
            spools[key] = write_spool(random_requests(model.request, seed), samples).folder
        own = folder / f"prospect-{number}"
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir()
        found[name] = Subject(model, own, spools[key])
    return found


class Makers:
    """Processes that transform and build one model after another: each imports its libraries once."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._own = threading.local()
        self._all: list[Worker] = []
        self._closed = False

    def close(self) -> None:
        """End them; whoever still asks for one gets a `CandidateError`."""
        self._closed = True
        for worker in self._all:
            worker.kill()

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
                        target=to_record(self._bench.target),
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
                    step=to_record(_quick(step)),
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
        if self._closed:
            raise CandidateError("the run is being stopped")
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is None or not worker.alive:
            worker = Worker(self._bench.log, self._bench.memory_bytes)
            self._own.worker = worker
            self._all.append(worker)
        reply: dict[str, object] = worker.ask(do, limit_s=self._bench.limit_s, **command)
        return reply


def _quick(step: Pass) -> Pass:
    """The same with few samples, where it takes samples."""
    if any(f.name == "samples" for f in fields(step)):  # type: ignore[arg-type]
        return replace(step, samples=_SAMPLES)  # type: ignore[type-var]
    return step
