"""Another architecture in the model's place: the most promising that fits the budget."""

from __future__ import annotations

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
from hasten.lightening.training.examples import Examples
from hasten.lightening.ways import Stage, Way
from hasten.passes.silence import first_line

_EPOCHS = 4.0
"""An architecture that would see the data less often isn't taken where another would do so."""
_SHORTLIST_S = 60.0
"""What follows trains for minutes: longer than who asks for the list alone wants to wait."""
_LOOKED_AT, _STEPS = 5, 3
"""More architectures than are asked for, and steps of each, to see how fast they learn."""


@dataclass(frozen=True)
class StudentNetwork(Way):
    """A network of the catalogue, with fresh weights.

    Attributes:
        architecture: Its name there.
        width: Factor of the number of channels.
        pixels: Side of what it works on; None for the input's own.
        classes: How many it tells apart.
        input_shape: `(channels, height, width)`.
        by_labels: Whether labels alone teach it.
    """

    architecture: str
    width: float
    pixels: int | None
    classes: int
    input_shape: tuple[int, ...]
    by_labels: bool = False

    @property
    def name(self) -> str:  # type: ignore[override]
        """The architecture with its knobs."""
        size = "" if self.pixels is None else f" at {self.pixels} px"
        alone = ", by labels alone" if self.by_labels else ""
        return f"{self.architecture} x{self.width:g}{size}{alone}"

    @property
    def taught(self) -> bool:  # type: ignore[override]
        """Whether the user's own network teaches it."""
        return not self.by_labels

    @property
    def stages(self) -> Sequence[Stage]:
        return (Stage(1.0),)

    def begin(
        self, task: Task, number: int, before: torch.nn.Module | None, folder: Path
    ) -> torch.nn.Module:
        architecture = find(self.architecture)
        return build(
            architecture, self.classes, self.input_shape, self.width, self.pixels, task.seed
        )

    def deployed(self, module: torch.nn.Module) -> torch.nn.Module:
        return deployed(module)

    def epochs(self, task: Task) -> float:
        """Return about how often it would see the training data in the time that there is.

        0 where it can't be trained here, as where a GPU's memory is too small.
        """
        with torch.random.fork_rng(devices=[]):
            try:
                return task.recipe.seconds / self._epoch_s(task)
            except RuntimeError as error:
                task.notes.append(f"{self.name} can't be trained: {first_line(error)}")
                return 0.0

    def _epoch_s(self, task: Task) -> float:
        """Return what an epoch takes, by a few of its steps."""
        module = self.begin(task, 0, None, task.folder).to(task.network.device).train()
        network, teacher = replace(task.network, module=module), task.network.frozen()
        examples = Examples(task.data, min(task.recipe.batch, len(task.data)), seed=task.seed)
        took_s = []
        for step in range(_STEPS):
            began = time.monotonic()
            batch = examples.at(step, network.device)
            with torch.no_grad():
                teacher(batch.inputs)
            torch.stack(
                [o.square().mean() for o in network(batch.inputs).values()]
            ).sum().backward()  # type: ignore[no-untyped-call]
            took_s.append(time.monotonic() - began)
            task.tell("shortlist", f"training {self.name}", step + 1, _STEPS)
        return min(took_s) * examples.steps

    def alone(self) -> StudentNetwork:
        """Return the same architecture, taught by labels alone."""
        return replace(self, by_labels=True)


def fitting(task: Task, count: int, architectures: Sequence[str]) -> list[StudentNetwork]:
    """Return the most promising architectures within the budget, of one family each.

    Args:
        task: What they are to do.
        count: How many.
        architectures: Names to choose among; empty for the whole catalogue.

    Raises:
        InputError: the task isn't one for them, or none fits, with the fastest that there is.
    """
    shape = [spec.sizes for spec in task.source.request]
    kind = task.source.request[0].dtype
    if task.classes is None or len(shape) != 1 or len(shape[0]) != 4 or kind != "float32":
        raise InputError(
            "other architectures tell classes apart in float32 images (1, channels, height, width); "
            f"the model takes {', '.join(map(str, task.source.request))} and gives "
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
            f"{one.name} isn't trained: in the time that there is it would see the data "
            f"{epochs.get(one.name, 0.0):.1f} times"
        )
    return able[:count]


def _cautions(found: Shortlist) -> list[str]:
    """Say what a busy host or the time limit may have kept from the list."""
    notes = []
    if any(not one.prospect.calm for one in found.measured):
        notes.append(
            "the host was busy while architectures were timed: larger ones may fit the budget"
        )
    if not found.complete:
        notes.append("not every architecture that may fit the budget was timed: time was up")
    return notes
