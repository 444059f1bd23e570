"""What the lighter networks are to do: the user's own network, the data, and how an answer is judged."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hasten.data.dataset import Dataset, Subset
from hasten.data.spool import Spool, write_spool
from hasten.errors import InputError
from hasten.frontends import torch as frontend
from hasten.metrics.base import Metric
from hasten.metrics.outputs import class_labels
from hasten.metrics.top_k import Top1, Top5
from hasten.model import Model
from hasten.progress import Listener, Progress, nobody
from hasten.records import type_name
from hasten.target import Target
from hasten.training.loop import Recipe
from hasten.training.network import Network
from hasten.training.objective import Kind, Objective

HELD_OUT = 2000
"""Training samples that nothing is trained on, at most: they tell how a training does."""
_CLASSES = {"top1", "top5", "agreement"}


@dataclass(frozen=True)
class Task:
    """What every way to a lighter network has in common.

    Attributes:
        network: The user's own, the teacher.
        source: The same as a file, with its request settled.
        data: What is trained on.
        held_out: Training data that tells how a training does, on disk.
        calibration: Training samples that set the ranges of quantizers, on disk.
        metric: How answers are judged.
        objective: What training makes small.
        recipe: How long and how fast each way is trained.
        budget_ns: What one request may take.
        max_drop: The most that the mean score may fall, in absolute share.
        target: The device.
        engines: Which runtimes to try.
        folder: Where all is written.
        repeats: Whether a training sample is the same whenever it is read.
        seed: Of all orders.
        listen: Told of each step.
        notes: What the reader should know is added here.
    """

    network: Network
    source: Model
    data: Dataset
    held_out: Spool
    calibration: Spool
    metric: Metric
    objective: Objective
    recipe: Recipe
    budget_ns: float
    max_drop: float
    target: Target
    engines: tuple[str, ...]
    folder: Path
    repeats: bool = True
    seed: int = 0
    listen: Listener = nobody
    notes: list[str] = field(default_factory=list)

    @property
    def sample(self) -> dict[str, Any]:
        """One sample of the training data, without an axis for samples."""
        return {name: array[0] for name, array in self.data.inputs([0]).items()}

    def export(self, module: torch.nn.Module, folder: Path) -> Model:
        """Write a network as an ONNX file that takes its inputs under the original's names.

        Raises:
            InputError: it can't be exported.
        """
        names = [spec.name for spec in self.source.inputs]
        model = frontend.export(module, [self.sample[name] for name in names], folder, names)
        return model.settled_by(self.sample)

    @property
    def classes(self) -> int | None:
        """How many classes there are; None where the answers aren't one row of class scores."""
        (first, *more) = self.source.outputs
        size = first.shape[-1]
        single = not more and len(first.shape) == 2 and isinstance(size, int)
        return int(size) if single and self.objective.kind == "classes" else None

    def tell(
        self, stage: str, doing: str, done: int, total: int, outcome: str | None = None
    ) -> None:
        """Tell of a step."""
        self.listen(Progress(stage, doing, done, total, outcome))


def kind_of(metric: Metric) -> Kind:
    """Whether answers count as classes or as numbers."""
    return "classes" if type_name(metric) in _CLASSES else "values"


def check_labels(training: Dataset, judged: Dataset, metric: Metric, source: Model) -> None:
    """Check that the training data knows the classes that it will be judged by.

    Raises:
        InputError: labels that are no classes of the model, or classes that the training data lacks.
    """
    if not isinstance(metric, (Top1, Top5)) or training.labels is None or judged.labels is None:
        return
    size = source.outputs[0].shape[-1]
    if not isinstance(size, int):
        return
    found = []
    for which, data in (("the training data", training), ("the data to judge on", judged)):
        assert data.labels is not None
        try:
            numbers = class_labels(data.labels, np.empty((len(data), size)), "top1")
        except InputError as error:
            raise InputError(f"{which}: {str(error).removeprefix('top1: ')}") from error
        found.append(set(np.unique(numbers).tolist()))
    lacking = sorted(found[1] - found[0])
    if lacking:
        raise InputError(
            f"the training data has other classes than the data to judge on: it lacks {_listed(lacking)}; "
            "give training data of all classes"
        )


def _listed(classes: list[int]) -> str:
    shown = ", ".join(map(str, classes[:5]))
    return shown if len(classes) <= 5 else f"{shown} and {len(classes) - 5} more"


def spooled(data: Dataset, folder: Path, count: int | None = None, seed: int = 0) -> Spool:
    """Write samples to disk, some or all; what a stopped run left there is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    if count is not None and count < len(data):
        rows = np.random.default_rng(seed).permutation(len(data))[:count]
        data = Subset(data, np.sort(rows))
    return write_spool(data, folder)
