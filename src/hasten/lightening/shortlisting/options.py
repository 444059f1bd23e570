"""List the options for an input: architectures with a width and an image size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from hasten.errors import InputError
from hasten.lightening.architectures.catalogue import CATALOGUE, Architecture, Task, find

_SIZES = (1.0, 0.75, 0.5, 0.375, 0.25)
"""Factors on the input's size for the network's own; rounded to 8 pixels, for detectors to 32."""


@dataclass(frozen=True)
class Option:
    """Architecture with a width and an image size.

    Attributes:
        architecture: Entry of the catalogue.
        width: Factor on the number of channels.
        pixels: Longer side of the image after resizing, in pixels; None to keep the input's size.
        madds: Estimated multiply-adds of one request.
    """

    architecture: Architecture
    width: float
    pixels: int | None
    madds: float

    @property
    def name(self) -> str:
        """Name for people, such as "mobilenetv2-s8 x0.5 at 48 px"."""
        size = f" at {self.pixels} px" if self.pixels else ""
        return f"{self.architecture.name} x{self.width:g}{size}"

    @property
    def promise(self) -> float:
        """Rough expected accuracy, only good for ranking; see `Architecture.promise`."""
        return self.architecture.promise(self.madds)


def options(
    task: Task, input_shape: Sequence[int], names: Sequence[str] = ()
) -> dict[str, list[Option]]:
    """Return the options for an input, by family of architectures.

    Args:
        task: "classify" or "detect".
        input_shape: Channels, height and width of one sample.
        names: Names of architectures, or of families, to choose among; all by default.

    Raises:
        InputError: the task or a name is unknown, an architecture is for another task, or the input
            is too small for all architectures.
    """
    if task not in get_args(Task):
        raise InputError(f"the task is {' or '.join(get_args(Task))}: got {task!r}")
    chosen = [one for one in CATALOGUE if one.task == task]
    check_names(task, names)
    if names:
        chosen = [one for one in chosen if one.name in names or one.family in names]
    found: dict[str, list[Option]] = {one.family: [] for one in chosen}
    for architecture in chosen:
        for pixels in _pixels(architecture, max(input_shape[1:])):
            sides = [
                side * (pixels or max(input_shape[1:])) / max(input_shape[1:])
                for side in input_shape[1:]
            ]
            for width in architecture.widths:
                madds = architecture.estimate(round(sides[0]), round(sides[1]), width)
                found[architecture.family].append(Option(architecture, width, pixels, madds))
    found = {family: own for family, own in found.items() if own}
    if not found:
        least = min(one.least for one in chosen)
        shown = "x".join(map(str, input_shape))
        raise InputError(
            f"an input of {shown} is too small for these architectures: give a longer side of "
            f"{least} pixels or more"
        )
    return found


def check_names(task: Task, names: Sequence[str]) -> None:
    """Check that names of architectures, or of families, are known and fit a task.

    Raises:
        InputError: a name is unknown, or is for another task.
    """
    for name in names:
        task_of = next((a.task for a in CATALOGUE if a.family == name), None)
        if (task_of or find(name).task) != task:
            raise InputError(f"the architecture {name} can't {task}")


def _pixels(architecture: Architecture, side: int) -> list[int | None]:
    """Return the image sizes that an architecture can work on, the input's own first."""
    multiple = 32 if architecture.task == "detect" else 8
    found: list[int | None] = [None] if side >= architecture.least else []
    for share in _SIZES[1:]:
        pixels = round(side * share / multiple) * multiple
        if architecture.least <= pixels < side and pixels not in found:
            found.append(pixels)
    return found
