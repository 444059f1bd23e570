"""Engines on a small model, each in a process of its own, for tests of what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np

from hasten.core.target import Target
from hasten.core.workers import Worker
from hasten.engines.base import Engine
from hasten.inputs.models.onnx import load
from hasten.measure.workbench import Bench, OpenWorker
from hasten.testing import models


class Desk:
    """Opens engines on the linear classifier (x: float32[1, 16]), and ends their processes.

    Attributes:
        bench: Workbench that runs the models, with one thread each.
        model: The classifier, settled for one sample.
        opened: Engines opened so far, each in a process of its own.
        fresh: Whether these processes are fresh interpreters, and not forked.
    """

    def __init__(self, folder: Path, limit_s: float = 60.0) -> None:
        self.fresh = False
        (folder / "bench").mkdir()
        self.bench = Bench(folder / "bench", Target.host().with_threads(1), limit_s)
        sample = {"x": np.zeros(16, np.float32)}
        self.model = load(models.linear_classifier(folder)).settled_by(sample)
        self.opened: list[OpenWorker] = []

    def open(self, engine: Engine) -> OpenWorker:
        """Build and open an engine."""
        built = self.bench.folder / f"built{len(self.opened)}"
        built.mkdir()
        artifact = engine.build(self.model, self.bench.target, built)
        self.opened.append(self.bench.open_built(engine, artifact, fresh=self.fresh))
        return self.opened[-1]

    def worker(self, engine: Engine) -> Worker:
        """Build and open an engine, and return its process."""
        return self.open(engine).worker

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.opened:
            one.worker.kill()
