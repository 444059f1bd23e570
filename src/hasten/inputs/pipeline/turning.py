"""Turn pictures upright, as their EXIF data says."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.inputs.pipeline.base import Origin
from hasten.inputs.pipeline.strips import Picture

if TYPE_CHECKING:
    from PIL import Image

ORIENTATION = 0x0112
_TURNS: dict[int, Callable[[Array], Array]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: pixels[::-1].transpose(1, 0, 2),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: pixels[:, ::-1].transpose(1, 0, 2),
}
"""Turns that undo each EXIF orientation. Source: CIPA DC-008 (Exif 2.32), 4.6.4."""
_FIRST_ON_ITS_SIDE = 5
_ENDS = {
    2: (False, True),
    3: (True, True),
    4: (True, False),
    5: (False, False),
    6: (False, True),
    7: (True, True),
    8: (True, False),
}
"""Whether the upright image begins, down and across, where the stored one ends."""


def turn_of(image: Image.Image) -> int | None:
    """Return the orientation by which an image must be turned to be upright, or None.

    Pillow's own function fails on damaged other entries.
    """
    orientation = image.getexif().get(ORIENTATION, 1)
    return orientation if orientation in _TURNS else None


def turned(picture: Picture, origin: Origin, turn: int) -> tuple[Array, Origin]:
    """Return the pixels of a picture that was turned upright, and its origin."""
    assert isinstance(picture, np.ndarray)
    upright, ends = _TURNS[turn](picture), _ENDS[turn]
    height, width, factor = origin.height, origin.width, origin.scale[0]
    if turn >= _FIRST_ON_ITS_SIDE:
        height, width = width, height
    # At a part of its size the last pixel may reach beyond the source's end, which a turn may
    # bring to the front.
    beyond = [
        float(side - factor * length) if end else 0.0
        for side, length, end in zip((height, width), upright.shape[:2], ends, strict=True)
    ]
    offset = (beyond[0], beyond[1])
    return np.ascontiguousarray(upright), Origin(height, width, origin.scale, offset)
