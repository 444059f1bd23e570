"""Draw a decision into a picture: boxes with labels, or the most likely classes as text."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from hasten.core.tensors import Array

if TYPE_CHECKING:
    from PIL import ImageDraw

Point: TypeAlias = tuple[float, float]
MOST_DRAWN = 100
"""Largest number of boxes or classes that are drawn into one picture."""
MOST_LETTERS = 60
_COLORS = (
    *((230, 60, 60), (60, 160, 230), (70, 190, 80), (240, 180, 40)),
    *((180, 90, 220), (40, 200, 200), (240, 120, 40), (230, 110, 170)),
)


def drawn(image: Array, decision: Any, corner: str) -> Array:
    """Return a copy of a picture with a decision drawn in.

    Args:
        image: Pixels, `(height, width, 3)` uint8 in RGB.
        decision: A list of dicts. Those with a "box" of [x1, y1, x2, y2] in the picture's pixels
            become boxes; others with a "class" and a "score" become lines of text. Of a dict, its
            "classes" are such a list, as a step that may abstain gives them. Nothing is drawn of any
            other value.
        corner: Text for the lower left corner.
    """
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.fromarray(image).copy()
    draw = ImageDraw.Draw(canvas)
    size = max(10, min(canvas.width, canvas.height) // 28)
    draw.font = ImageFont.load_default(size)
    told = []
    if isinstance(decision, dict):
        decision = decision.get("classes")
    found = decision[:MOST_DRAWN] if isinstance(decision, list) else []
    for one in found:
        if not isinstance(one, dict):
            continue
        if (box := _box(one.get("box"), canvas.width, canvas.height)) is not None:
            color = _COLORS[zlib.crc32(str(one.get("class")).encode()) % len(_COLORS)]
            draw.rectangle(box, outline=color, width=max(2, size // 6))
            _text(draw, (box[0], max(0.0, box[1] - size * 1.3)), _words(one), color)
        elif "box" not in one and "class" in one and "score" in one:
            told.append(_words(one))
    for line, text in enumerate(told[: int(canvas.height / (1.4 * size))]):
        _text(draw, (4, 4 + 1.4 * size * line), text, (0, 0, 0))
    _text(draw, (4, canvas.height - 1.3 * size - 4), corner, (0, 0, 0))
    return np.asarray(canvas)


def _box(value: Any, width: int, height: int) -> tuple[float, float, float, float] | None:
    """Return a box's corners within the picture; None where it is no box, or lies outside."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        return None
    if not all(isinstance(side, (int, float)) and math.isfinite(side) for side in value):
        return None
    left, right = (min(max(float(side), 0.0), width - 1.0) for side in value[::2])
    top, bottom = (min(max(float(side), 0.0), height - 1.0) for side in value[1::2])
    return (left, top, right, bottom) if left < right and top < bottom else None


def _words(one: dict[str, Any]) -> str:
    name = str(one.get("label", one.get("class", "")))[:MOST_LETTERS]
    score = one.get("score")
    return f"{name} {score:.0%}" if isinstance(score, (int, float)) else name


def _text(draw: ImageDraw.ImageDraw, place: Point, text: str, back: tuple[int, int, int]) -> None:
    """Write white text on a plain ground."""
    if text:
        draw.rectangle(draw.textbbox(place, text), fill=back)
        draw.text(place, text, fill=(255, 255, 255))
