"""Choose other architectures to replace the model: the most promising that fit the budget."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hasten.errors import InputError
from hasten.lightening.architectures.building import build, deployed
from hasten.lightening.architectures.catalogue import find
from hasten.lightening.shortlisting import Shortlist, shortlist
from hasten.lightening.task import Task
from hasten.lightening.training.examples import Batch, Examples
from hasten.lightening.training.network import Network
from hasten.lightening.training.threads import chosen_threads
from hasten.lightening.ways import Stage, Way
from hasten.passes.silence import first_line

_EPOCHS = 4.0
"""Passes over the data below which an architecture is skipped if another reaches them."""
_SHORTLIST_S = 60.0
"""Time limit of the shortlist, longer than its default, since training takes minutes anyway."""
_LOOKED_AT = 5
"""Number of extra architectures whose speed of training is measured."""
_LEAST_STEPS, _MOST_STEPS = 3, 6
"""Numbers of steps that measure the speed of training, the most if threads are chosen too."""


@dataclass(frozen=True)
class StudentNetwork(Way):
    """Train a network of the catalogue from random weights.

    Attributes:
        architecture: Architecture's name in the catalogue.
        width: Factor on the number of channels.
        pixels: Longer side of the image after resizing, in pixels; None to keep the input's size.
        classes: Number of classes.
        input_shape: Shape of one sample, `(channels, height, width)`.
        by_labels: Whether labels alone teach the network.
    """

    architecture: str
    width: float
    pixels: int | None
    classes: int
    input_shape: tuple[int, ...]
    by_labels: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the architecture with its width and image size."""
        size = "" if self.pixels is None else f" at {self.pixels} px"
        alone = ", by labels alone" if self.by_labels else ""
        return f"{self.architecture} x{self.width:g}{size}{alone}"

    @property
    def taught(self) -> bool:  # type: ignore[override]
        """Whether the user's own network teaches this one."""
        return not self.by_labels

    @property
    def stages(self) -> Sequence[Stage]:
        return (Stage(1.0),)

    def begin(
        self, task: Task, number: int, before: torch.nn.Module | None, folder: Path
    ) -> torch.nn.Module:
        architecture = find(self.architecture)
        network = build(
            architecture, self.classes, self.input_shape, self.width, self.pixels, task.seed
        )
        # Who reads the scores reads the model's own, which may be compared with a fixed number.
        if task.scale == "logits":
            return network
        last = {
            "probabilities": torch.nn.Softmax(1),
            "log-probabilities": torch.nn.LogSoftmax(1),
            "sigmoids": torch.nn.Sigmoid(),
        }
        return torch.nn.Sequential(network, last[task.scale])

    def deployed(self, module: torch.nn.Module) -> torch.nn.Module:
        return deployed(module)

    def epochs(self, task: Task) -> float:
        """Estimate the number of passes over the training data that fit into the time for training.

        The result is 0 if the network can't be trained here, for example for lack of GPU memory.
        """
        with torch.random.fork_rng(devices=[]):
            try:
                return task.recipe.seconds / self._epoch_s(task)
            except RuntimeError as error:
                task.notes.append(f"{self.name} can't be trained: {first_line(error)}")
                return 0.0

    def _epoch_s(self, task: Task) -> float:
        """Estimate the duration of an epoch in seconds from a few of its steps."""
        module = self.begin(task, 0, None, task.folder).to(task.network.device).train()
        network, teacher = replace(task.network, module=module), task.network.frozen()
        examples = Examples(task.data, min(task.recipe.batch, len(task.data)), seed=task.seed)
        reading_s = math.inf
        with chosen_threads(network.device) as threads:
            for step in range(_MOST_STEPS):
                began = time.monotonic()
                batch = examples.at(step, network.device)
                reading_s = min(reading_s, time.monotonic() - began)
                with threads.step():
                    self._pretend(network, teacher, batch)
                task.tell("shortlist", f"training {self.name}", step + 1, _MOST_STEPS)
                if threads.settled and step + 1 >= _LEAST_STEPS:
                    break
        return (reading_s + threads.seconds) * examples.steps

    @staticmethod
    def _pretend(network: Network, teacher: Network, batch: Batch) -> None:
        """Compute as much as a step of training does, without learning."""
        with torch.no_grad():
            teacher(batch.inputs)
        outputs = network(batch.inputs).values()
        torch.stack([o.square().mean() for o in outputs]).sum().backward()  # type: ignore[no-untyped-call]

    def alone(self) -> StudentNetwork:
        """Return the same architecture, taught by labels alone."""
        return replace(self, by_labels=True)


def fitting(task: Task, count: int, architectures: Sequence[str]) -> list[StudentNetwork]:
    """Return the most promising architectures within the budget, one per family.

    Args:
        task: Task of the lighter networks.
        count: Number of architectures.
        architectures: Names of architectures to choose among; empty for the whole catalogue.

    Raises:
        InputError: the task isn't classification of images, or no architecture fits the budget (the
            message names the fastest).
    """
    shape = [spec.sizes for spec in task.source.request]
    kind = task.source.request[0].dtype
    if task.classes is None or len(shape) != 1 or len(shape[0]) != 4 or kind != "float32":
        raise InputError(
            "other architectures classify float32 images (1, channels, height, width), but the "
            f"model takes {', '.join(map(str, task.source.request))} and returns "
            f"{', '.join(map(str, task.source.outputs))}"
        )
    classes, sizes = task.classes, shape[0][1:]

    def chosen() -> list[tuple[str, float, int | None]]:
        found = shortlist(
            "classify",
            classes,
            sizes,
            task.budget_ns / 1e9,
            engines=task.engines,
            architectures=architectures,
            target=task.target,
            time_limit_s=_SHORTLIST_S,
            insist=True,
            listen=task.listen,
        )
        task.notes.extend(_cautions(found))
        return [(one.architecture, one.width, one.pixels) for one in found.entries]

    known = task.kept("shortlist", chosen)
    found = [StudentNetwork(name, width, pixels, classes, sizes) for name, width, pixels in known]
    epochs: dict[str, float] = task.kept(
        "epochs", lambda: {one.name: one.epochs(task) for one in found[: count + _LOOKED_AT]}
    )
    able = [one for one in found if epochs.get(one.name, 0.0) >= min(_EPOCHS, task.recipe.epochs)]
    if not able:
        return sorted(found, key=lambda one: -epochs.get(one.name, 0.0))[:count]
    for one in found[: found.index(able[0])]:
        task.notes.append(
            f"{one.name} isn't trained: the training time is enough for only "
            f"{epochs.get(one.name, 0.0):.1f} passes over the training data"
        )
    return able[:count]


def _cautions(found: Shortlist) -> list[str]:
    """Return notes on what a busy host or the time limit may have kept off the list."""
    notes = []
    if any(not one.prospect.calm for one in found.measured):
        notes.append(
            "the host was busy while architectures were timed: larger ones may fit the budget"
        )
    if not found.complete:
        notes.append(
            "the time limit left no time to measure some architectures that may fit the budget"
        )
    return notes
