"""Methods for lighter networks: each makes one that fits the budget and trains it in stages."""

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
from hasten.lightening.training.loop import LOOKS, BeforeStep, Doomed, Trainer, Training
from hasten.lightening.training.teacher import Teacher
from hasten.passes.silence import first_line

_ALIKE = 0.5 / LOOKS
"""Tolerance, as a share of a training, within which two evaluations count as simultaneous."""


@dataclass(frozen=True)
class Stage:
    """Part of a method's training.

    Attributes:
        share: Share of the method's training time.
        rate: Factor on the recipe's highest learning rate.
        epochs: Factor on the recipe's number of epochs.
        settled: Share of the stage from which on weights are kept.
    """

    share: float
    rate: float = 1.0
    epochs: float = 1.0
    settled: float = 0.0


class Way(ABC):
    """Method that makes and trains a lighter network.

    Attributes:
        name: Name for people, from which the folder's name is made.
        taught: Whether the network learns from the user's own network, not from labels alone.
        quantized: Whether the written file is in int8; training then computes in float32.
    """

    name: str
    taught: ClassVar[bool] = True
    quantized: ClassVar[bool] = False

    @property
    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """Stages of the training, in order."""

    @abstractmethod
    def begin(
        self, task: Task, number: int, before: torch.nn.Module | None, folder: Path
    ) -> torch.nn.Module:
        """Return the network that a stage trains.

        The result is the same each time, since the choices are stored in the folder.

        Args:
            task: Task of the lighter network.
            number: Number of the stage, from 0.
            before: Network that the previous stage trained; None for the first stage.
            folder: Existing folder of this stage alone.

        Raises:
            CandidateError: the network can't be made, or not within the budget.
            InputError: the user's network doesn't suit this method.
        """

    def before_step(self, number: int, module: torch.nn.Module) -> BeforeStep:
        """Return what changes a network before each step of a stage, from its number and network."""
        return lambda share: None

    def deployed(self, module: torch.nn.Module) -> torch.nn.Module:
        """Return a trained network without the parts that only training needs."""
        return module

    def export(self, task: Task, module: torch.nn.Module, folder: Path) -> Model:
        """Write a trained network as an ONNX file.

        Raises:
            InputError: the network can't be exported.
        """
        return task.export(self.deployed(module), folder)


@dataclass(frozen=True)
class Unchanged(Way):
    """Keep the user's own network as it is, without training."""

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
    """Lighter network that is trained and written.

    Attributes:
        way: Method that made the network.
        module: Trained module.
        training: Training of the last stage.
        seconds: Training time of all stages together.
        model: ONNX file of the network, with its request settled.
        note: Reason why a stage ended before its time; empty if none did.
    """

    way: Way
    module: torch.nn.Module
    training: Training
    seconds: float
    model: Model
    note: str = ""

    @property
    def in_words(self) -> str:
        """Summary of the training in a line."""
        minutes = self.seconds / 60
        early = f"; ended early: {self.note}" if self.note else ""
        return (
            f"trained {minutes:.1f} min, {self.training.epochs:.3g} epochs in the last stage; "
            f"{100 * self.training.score:.1f}% on held-out samples{early}"
        )


def train_way(task: Task, way: Way, doomed: Doomed) -> Lighter:
    """Train a network stage by stage and write it; continue where a stopped run was.

    Args:
        task: Task of the lighter network.
        way: Method that makes the network.
        doomed: Function that decides in the last stage whether to go on.

    Raises:
        CandidateError: the network can't be made within the budget, trained or exported.
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
        trainer.before_step = way.before_step(number, module)
        if last:
            trainer.doomed = doomed
        try:
            trainings.append(trainer.train())
        except RuntimeError as error:  # torch's errors, such as too little GPU memory
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
        epochs=stage.epochs * task.recipe.epochs,
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
        settled=stage.settled,
    )


def folder_name(name: str) -> str:
    """Return a name in a form that suits a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "way"


def hopeless(finished: Sequence[Training]) -> Doomed:
    """Return a function that tells why a training can't reach the best finished one, or None.

    A training is hopeless, from its middle on, if it would still stay behind after gaining one
    and a half times as much as any finished training gained from the same share on, plus a point.
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
        return (
            f"stopped early: another training reached {100 * best:.1f}%, and this one could reach "
            f"{100 * reach:.1f}% at best"
        )

    return why
