"""Labels beside points, none of which overlaps another or hides a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from hasten.reporting.svg import INK, PAPER, Tone

_PLACES = [
    (right, up, away)
    for away in (8, 15, 24)
    for right, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
]
"""Places of a label to try, nearest first: direction to the right and up, and distance in points."""
_POINT = 7
"""Width of a point that a label may not hide, in points."""


@dataclass(frozen=True)
class Label:
    """A text beside a point.

    Attributes:
        x: Place of the point on the horizontal axis.
        y: Place of the point on the vertical axis.
        text: The text.
        tone: Colour of the text.
        bold: Whether the text is bold.
        clear: Whether lines behind the text are hidden.
    """

    x: float
    y: float
    text: str
    tone: Tone = INK
    bold: bool = False
    clear: bool = True


def place(axes: Axes, labels: Sequence[Label], points: Sequence[tuple[float, float]]) -> list[str]:
    """Put labels beside their points, the first ones first, and return the texts that found room.

    A label that would overlap another, hide a point or leave the axes is left out.

    Args:
        axes: Axes whose layout is final.
        labels: Labels, the most important first.
        points: All points on the axes.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    scale = figure.dpi / 72
    half = _POINT * scale / 2
    centres = np.reshape(axes.transData.transform(points), (-1, 2)) if points else np.empty((0, 2))
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in centres]
    within, placed = axes.get_window_extent(), []
    for label in labels:
        written = axes.annotate(
            label.text,
            (label.x, label.y),
            (0, 0),
            textcoords="offset points",
            color=label.tone.colour,
            weight="bold" if label.bold else "normal",
            bbox={
                "facecolor": PAPER.colour,
                "edgecolor": "none",
                "alpha": 0.75 * label.clear,
                "pad": 0.5,
            },
        )
        own = Text.get_window_extent(written)
        found = _found(label, axes, own.width, own.height, scale, taken, within)
        if found is None:
            written.remove()
            continue
        box, shift = found
        taken.append(box)
        placed.append(label.text)
        written.set_position(shift)
    return placed


def _found(
    label: Label,
    axes: Axes,
    width: float,
    height: float,
    scale: float,
    taken: Sequence[Bbox],
    within: Bbox,
) -> tuple[Bbox, tuple[float, float]] | None:
    """Return the first free box for a label, and its shift from the point; None where none is free."""
    x, y = axes.transData.transform((label.x, label.y))
    for right, up, away in _PLACES:
        # A label to the side begins or ends at the shift, one above or below is centred on it.
        left = x + right * away * scale - width * (1 - right) / 2
        bottom = y + up * away * scale - height * (1 - up) / 2
        box = Bbox.from_bounds(left, bottom, width, height)
        if _inside(box, within) and not box.padded(scale).count_overlaps(taken):
            return box, ((left - x) / scale, (bottom - y) / scale)
    return None


def _inside(box: Bbox, within: Bbox) -> bool:
    return bool(
        box.x0 >= within.x0 and box.x1 <= within.x1 and box.y0 >= within.y0 and box.y1 <= within.y1
    )
