"""Convert and resize pictures strip by strip, with the pixels that Pillow gives for the whole."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias, Union

import numpy as np

from hasten.core.tensors import Array
from hasten.inputs.pipeline.base import Origin, Step
from hasten.inputs.pipeline.memory import make_room

if TYPE_CHECKING:
    from PIL import Image

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Picture: TypeAlias = Union[Array, "Image.Image"]
"""Array `(height, width, 3)` uint8 in RGB, or a loaded image of Pillow in a mode of its own."""
STRIP_PIXELS = 2**19
"""Pixels that are converted at a time, and up to which a picture is handled as a whole."""


class Scaling(Step):
    """Step that first resizes a picture, which it also takes as a loaded image of Pillow."""

    @abstractmethod
    def size_after(self, old: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) that a picture of another (height, width) is resized to.

        Raises:
            InputError: the resized picture would be too large.
        """

    @abstractmethod
    def traced(self, value: Picture, origin: Origin) -> tuple[Array, Origin]:
        """Return what a call returns, and the picture's origin after it."""

    @property
    @abstractmethod
    def customary_pixels(self) -> int:
        """Pixels that a resized picture of ordinary proportions has at most."""


def sides(picture: Picture) -> tuple[int, int]:
    """Return the (height, width) of a picture."""
    if isinstance(picture, np.ndarray):
        return picture.shape[0], picture.shape[1]
    return picture.height, picture.width


def rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB.

    Raises:
        ValueError: the mode is 32-bit gray, which has no stated range.
    """
    from PIL import Image

    if image.mode == "RGB":
        return image  # Pillow's conversion would copy it
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit gray (mode {image.mode}) has no defined range")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def pixels(image: Image.Image) -> Array:
    """Return the pixels of an image of any mode as `(height, width, 3)` uint8 in RGB.

    Raises:
        ValueError: the mode is 32-bit gray, which has no stated range.
    """
    height, width = sides(image)
    if height * width <= STRIP_PIXELS:
        return np.asarray(rgb(image))
    array = np.empty((height, width, 3), np.uint8)
    for top, bottom in _strips(height, width):
        array[top:bottom] = np.asarray(_rows(image, top, bottom))
    return array


def resized(picture: Picture, new: tuple[int, int], interpolation: Interpolation) -> Array:
    """Resize a picture to (height, width), equal bit for bit to what Pillow makes of its RGB.

    Pillow resizes across first, each row for itself, and then down: a strip of rows is resized across alone.
    """
    from PIL import Image

    height, width = sides(picture)
    if (height, width) == new:
        return picture if isinstance(picture, np.ndarray) else pixels(picture)
    if isinstance(picture, np.ndarray):  # else whoever opened it has counted this
        whole = picture.base if isinstance(picture.base, np.ndarray) else picture
        make_room(whole.nbytes + 4 * new[1] * height)
    resample = Image.Resampling[interpolation.upper()]
    if height * width <= STRIP_PIXELS:
        return pixels(_rows(picture, 0, height).resize(new[::-1], resample))
    narrow = Image.new("RGB", (new[1], height))
    for top, bottom in _strips(height, width):
        strip = _rows(picture, top, bottom)
        narrow.paste(strip.resize((new[1], bottom - top), resample), (0, top))
    return pixels(narrow if height == new[0] else narrow.resize(new[::-1], resample))


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _rows(picture: Picture, top: int, bottom: int) -> Image.Image:
    """Return some rows of a picture as an image in RGB."""
    from PIL import Image

    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture[top:bottom])
    whole = (top, bottom) == (0, picture.height)
    return rgb(picture if whole else picture.crop((0, top, picture.width, bottom)))
