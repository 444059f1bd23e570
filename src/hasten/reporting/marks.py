"""Marks of the roles, which are drawn alike in every plot."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hasten.reporting.svg import AFTER, BEFORE, EXACT, LOOSE, Tone


@dataclass(frozen=True)
class Mark:
    """The look of a role: colour, line and sign, any one of which tells it from the others."""

    tone: Tone
    line: str
    sign: str


MARKS = {
    "default engine": Mark(BEFORE, "--", "s"),
    "fastest exact": Mark(EXACT, "-.", "D"),
    "winner": Mark(AFTER, "-", "o"),
    "fastest uncertified": Mark(LOOSE, ":", "^"),
}
"""Marks by the role of a row; rows of other roles aren't drawn."""


def legend(axes: Axes, columns: int) -> None:
    """Put a legend beneath the plot, with each label once, in a number of columns."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        assert isinstance(axes.figure, Figure)
        axes.figure.legend(once.values(), once.keys(), loc="outside lower left", ncols=columns)
