"""How each role is drawn, the same in every plot."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hasten.reporting.drawing import AFTER, BEFORE, EXACT, LOOSE, Tone


@dataclass(frozen=True)
class Mark:
    """How a role is drawn: by its colour, its line and its sign, so that one of them would do."""

    tone: Tone
    line: str
    sign: str


MARKS = {
    "default engine": Mark(BEFORE, "--", "s"),
    "fastest exact": Mark(EXACT, "-.", "D"),
    "winner": Mark(AFTER, "-", "o"),
    "fastest uncertified": Mark(LOOSE, ":", "^"),
}
"""Roles of rows; no other is drawn."""


def legend(axes: Axes, columns: int) -> None:
    """Put a legend beneath, each label once, in so many columns."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if once:
        assert isinstance(axes.figure, Figure)
        axes.figure.legend(once.values(), once.keys(), loc="outside lower left", ncols=columns)
