"""The ways to a lighter network: each makes one that fits the budget, and is trained in stages."""

from __future__ import annotations

import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from hasten.core.model import Model
from hasten.errors import CandidateError, InputError
from hasten.lightening.task import Task
from hasten.lightening.training.loop import LOOKS, Doomed, Trainer, Training
from hasten.lightening.training.teacher import Teacher
from hasten.passes.silence import first_line

_ALIKE = 0.5 / LOOKS
"""Of a training: looks so near to each other are at the same time."""


@dataclass(frozen=True)
class Stage:
    """A part of a way's training.

    Attributes:
        share: Of the way's time.
        rate: Of the recipe's highest learning rate.
    """

    share: float
    rate: float = 1.0


class Way(ABC):
    """A way to a lighter network.

    Attributes:
        name: For people, and of its folder.
        taught: Whether it learns from the user's own network, not from labels alone.
        quantized: Whether what it writes is in int8, and training therefore in float32.
    """

    name: str
    taught: ClassVar[bool] = True
    quantized: ClassVar[bool] = False

    @property
    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """The parts of its training, in order."""

    @abstractmethod
    def begin(
        self, task: Task, number: int, before: torch.nn.Module | None, folder: Path
    ) -> torch.nn.Module:
        """Return the network that a stage trains.

        The same whenever it is asked again: what was chosen lies in the folder.

        Args:
            task: What it is to do.
            number: The stage's, from 0.
            before: What the stage before came to; None for the first.
            folder: The stage's own, exists.

        Raises:
            CandidateError: it can't be made, or not within the budget.
            InputError: the user's network can't be used for it.
        """

    def deployed(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return what was trained as it is to answer: what exists for training alone is gone."""
        return module

    def export(self, task: Task, module: torch.nn.Module, folder: Path) -> Model:
        """Write what was trained as an ONNX file.

        Raises:
            InputError: it can't be exported.
        """
        return task.export(self.deployed(module), folder)


@dataclass(frozen=True)
class Unchanged(Way):
    """The user's own network as it is; nothing of it is trained."""

    name: str = "the model"

    @property
    def stages(self) -> Sequence[Stage]:
        return ()

    def begin(
        self, task: Task, number: int, before: torch.nn.Module | None, folder: Path
    ) -> torch.nn.Module:
        return task.network.frozen().module


@dataclass(frozen=True)
class Lighter:
    """A lighter network, trained and written.

    Attributes:
        way: How it came about.
        module: Holds the weights.
        training: Of its last stage.
        seconds: Of all its stages.
        model: Its file, with its request settled.
        note: Why a stage ended before its time; empty where none did.
    """

    way: Way
    module: torch.nn.Module
    training: Training
    seconds: float
    model: Model
    note: str = ""

    @property
    def in_words(self) -> str:
        """How it came about, in a line."""
        minutes = self.seconds / 60
        early = f"; ended early: {self.note}" if self.note else ""
        return (
            f"trained {minutes:.1f} min, {self.training.epochs:.3g} epochs at last; "
            f"{100 * self.training.score:.1f}% on what was held out{early}"
        )


def train_way(task: Task, way: Way, doomed: Doomed) -> Lighter:
    """Train a network stage by stage, or go on where a stopped run was, and write it.

    Args:
        task: What it is to do.
        way: How.
        doomed: Asked in the last stage whether to go on.

    Raises:
        CandidateError: it can't be made within the budget, trained or exported.
        InputError: the data can't be read, or the disk is full.
    """
    folder = task.folder / "ways" / folder_name(way.name)
    module: torch.nn.Module | None = None
    trainings: list[Training] = []
    for number, stage in enumerate(way.stages):
        own = folder / f"stage-{number}"
        own.mkdir(parents=True, exist_ok=True)
        module = way.begin(task, number, module, own).to(task.network.device)
        last = number == len(way.stages) - 1
        trainer = _trainer(task, way, stage, module, own / "checkpoint.pt")
        if last:
            trainer.doomed = doomed
        try:
            trainings.append(trainer.train())
        except RuntimeError as error:  # torch's, as of a GPU without memory left
            raise CandidateError(first_line(error)) from error
    assert module is not None
    out = folder / "exported"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    try:
        model = way.export(task, module.eval(), out)
    except InputError as error:
        raise CandidateError(str(error)) from error
    seconds = sum(training.seconds for training in trainings)
    note = "; ".join(training.note for training in trainings if training.note)
    return Lighter(way, module, trainings[-1], seconds, model, note)


def _trainer(
    task: Task, way: Way, stage: Stage, module: torch.nn.Module, checkpoint: Path
) -> Trainer:
    recipe = replace(
        task.recipe,
        seconds=stage.share * task.recipe.seconds,
        rate=stage.rate * task.recipe.rate,
        mixed=task.recipe.mixed if way.taught else 0.0,
    )
    lower = task.network.low_precision and not way.quantized
    return Trainer(
        network=replace(task.network, module=module, low_precision=lower),
        teacher=Teacher(task.network, len(task.data), repeats=task.repeats) if way.taught else None,
        data=task.data,
        judged=task.held_out,
        metric=task.metric,
        objective=task.objective,
        recipe=recipe,
        checkpoint=checkpoint,
        listen=task.listen,
        name=way.name,
        reference=task.network,
    )


def folder_name(name: str) -> str:
    """Return a name as a folder's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "way"


def hopeless(finished: Sequence[Training]) -> Doomed:
    """Tell of a training whether it can't reach the best of those that are through.

    From the middle on: were it to gain half as much again as any of them gained from here to its
    end, and a point more, it would still stay behind.
    """

    def why(share: float, score: float) -> str | None:
        if share < 0.5 or not finished:
            return None
        best = max(training.score for training in finished)
        gains = [
            training.score
            - min((s for at, s in training.curve if at >= share - _ALIKE), default=training.score)
            for training in finished
        ]
        reach = score + 1.5 * max(0.0, *gains) + 0.01
        if reach >= best:
            return None
        return f"left early: {100 * best:.1f}% is reached otherwise, and it would come to {100 * reach:.1f}% at best"

    return why
