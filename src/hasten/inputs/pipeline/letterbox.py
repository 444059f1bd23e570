"""Letterbox: a picture as a whole in a frame of fixed size, with borders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin
from hasten.inputs.pipeline.image import check_size
from hasten.inputs.pipeline.strips import (
    Interpolation,
    Picture,
    Scaling,
    check_picture,
    resized,
    sides,
)


@dataclass(frozen=True)
class Letterbox(Scaling):
    """Fit a picture into a frame in proportion, and fill the borders.

    The lengths and the borders are rounded as in Ultralytics' `LetterBox`, and with the filter "opencv_linear" so are
    its pixels.

    Attributes:
        size: Length of one side of a square frame, or (height, width).
        fill: Value of the borders, from 0 to 255, in each channel.
        interpolation: Filter of Pillow, which smooths what it makes smaller, or "opencv_linear", which doesn't.
        enlarge: Whether a picture smaller than the frame grows; otherwise it gets wider borders.
        center: Whether the picture is in the frame's center; otherwise in its upper left corner.
    """

    size: int | tuple[int, int]
    fill: int = 114
    interpolation: Interpolation = "bilinear"
    enlarge: bool = True
    center: bool = True
    packages: ClassVar[tuple[str, ...]] = ("pillow",)
    extra: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        """Check the size and the borders' value."""
        check_size("letterbox.size", self.size)
        if not 0 <= self.fill <= 255:
            raise InputError(f"letterbox.fill={self.fill!r}: give a number from 0 to 255")

    def __call__(self, value: Picture) -> Array:
        return self.traced(value, Origin())[0]

    def size_after(self, old: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) of the picture in the frame."""
        height, width = self._frame
        scale = min(height / old[0], width / old[1])
        if not self.enlarge:
            scale = min(scale, 1.0)
        return max(1, round(old[0] * scale)), max(1, round(old[1] * scale))

    @property
    def _frame(self) -> tuple[int, int]:
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def customary_pixels(self) -> int:
        """Pixels of the frame."""
        return self._frame[0] * self._frame[1]

    def traced(self, value: Picture, origin: Origin) -> tuple[Array, Origin]:
        """Return the framed picture and its origin."""
        check_picture("letterbox", value)
        height, width = self._frame
        old = sides(value)
        new = self.size_after(old)
        # Half a pixel of border goes below and to the right, as Ultralytics rounds.
        top, left = (
            (round((height - new[0]) / 2 - 0.1), round((width - new[1]) / 2 - 0.1))
            if self.center
            else (0, 0)
        )
        inside = resized(value, new, self.interpolation)
        frame = np.full((height, width, inside.shape[2]), self.fill, np.uint8)
        frame[top : top + new[0], left : left + new[1]] = inside
        return frame, origin.resized(old, new).cut(-top, -left)
