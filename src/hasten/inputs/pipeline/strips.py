"""Convert and resize pictures strip by strip, with the pixels that Pillow gives for the whole."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, Step, unfit
from hasten.inputs.pipeline.memory import make_room
from hasten.inputs.pipeline.opencv import linear, pairs
from hasten.inputs.pipeline.resample import (
    OPENCV,
    ResizedRegion,
    down_first,
    linear_ready_for,
    pixels_between,
    ready_for,
    without_gaps,
)

if TYPE_CHECKING:
    from PIL import Image

Interpolation: TypeAlias = Literal[
    "nearest", "bilinear", "bicubic", "lanczos", "box", "hamming", "opencv_linear"
]
Picture: TypeAlias = Union[Array, "Image.Image"]
"""Array `(height, width, 3)` uint8 in RGB or `(height, width, 1)` in gray, or a loaded image of Pillow in a mode
of its own, which stands for its RGB."""
Colors: TypeAlias = Literal["RGB", "BGR", "gray"]
"""Colors of the pixels that a model takes: three channels in this order, or one."""
STRIP_PIXELS = 2**19
"""Pixels that are converted at a time, and up to which a picture is handled as a whole."""


class Scaling(Step):
    """Step that first resizes a picture, which it also takes as a loaded image of Pillow.

    Attributes:
        interpolation: Filter that it resizes by.
    """

    interpolation: Interpolation

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


def check_picture(step: str, value: Any) -> None:
    """Check that a value is a picture that can be resized.

    Args:
        step: Name of the step that resizes it.
        value: Value that the step got.

    Raises:
        InputError: it is something else, as where the step comes before `decode`, or after `normalize`.
    """
    if isinstance(value, np.ndarray):
        flat, deep = value.ndim == 2, value.ndim == 3 and 1 <= value.shape[2] <= 4
        fits = value.dtype == np.uint8 or (flat and value.dtype in (np.uint16, np.bool_))
        if value.size and fits and (flat or deep):
            return
    else:
        from PIL import Image

        if isinstance(value, Image.Image):
            return
    needed = "a picture, (height, width, 3 or 1) of uint8, after decode and before normalize and to_layout"
    raise unfit(step, value, needed)


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
        array[top:bottom] = np.asarray(_cut(image, (0, top, width, bottom)))
    return array


def gray(picture: Picture) -> Array:
    """Return a picture in gray as `(height, width, 1)` uint8: what Pillow's `convert("L")` makes of its RGB.

    A picture that is such an array already is returned itself.

    Raises:
        ValueError: the mode is 32-bit gray, which has no stated range.
    """
    if isinstance(picture, np.ndarray):
        if is_gray(picture):
            return picture
        make_room(_source_bytes(picture) + picture.shape[0] * picture.shape[1])
    elif picture.mode == "L":
        return np.asarray(picture)[..., np.newaxis]
    height, width = sides(picture)
    array = np.empty((height, width, 1), np.uint8)
    for top, bottom in _strips(height, width):
        strip = _cut(picture, (0, top, width, bottom))
        array[top:bottom, :, 0] = np.asarray(strip.convert("L"))
    return array


def is_gray(picture: Picture) -> bool:
    """Whether a picture is an array with one channel."""
    return isinstance(picture, np.ndarray) and picture.shape[2:] == (1,)


def _source_bytes(picture: Array) -> int:
    """Return the bytes of the array that a picture is a part of, which stays in memory with it."""
    return picture.base.nbytes if isinstance(picture.base, np.ndarray) else picture.nbytes


def resized(
    picture: Picture,
    new: tuple[int, int],
    interpolation: Interpolation,
    kept: tuple[int, int, int, int] | None = None,
) -> Array:
    """Resize a picture, equal bit for bit to what Pillow makes of its RGB, or of its gray if it is such an array.

    Pillow resizes across first, each row for itself, and then down, or the other way around: a strip of rows is
    resized across alone, and a strip of columns down.

    Args:
        picture: The picture.
        new: (height, width) to resize it to.
        interpolation: Filter of Pillow, or that of OpenCV.
        kept: Part of the result to return: its first row and the one behind its last, then columns; None
            for the whole.
    """
    old = sides(picture)
    top, bottom, left, right = kept or (0, new[0], 0, new[1])
    if old == new:
        whole = picture if isinstance(picture, np.ndarray) else pixels(picture)
        return whole if kept is None else whole[top:bottom, left:right]
    if isinstance(picture, np.ndarray):  # else whoever opened it has counted this
        each = 1 if is_gray(picture) else 4
        make_room(_source_bytes(picture) + each * pixels_between(old, new, interpolation))
    if interpolation == OPENCV:
        return _by_opencv(picture, new, (top, bottom, left, right))
    part = ResizedRegion(old, new, top, bottom, left, right, interpolation)
    first_down = down_first(old, new, interpolation)
    if _taken(picture, first_down) and (made := ready_for(part)) is not None:
        if first_down and isinstance(picture, np.ndarray):
            return made.down_first(part, picture)
        return made.across_first(part, partial(_in_rgb, picture))
    return _by_pillow(picture, new, interpolation, first_down)[top:bottom, left:right]


def _taken(picture: Picture, first_down: bool) -> bool:
    """Whether compiled code takes a picture: in RGB, and down first only where its rows are in memory already."""
    if not isinstance(picture, np.ndarray):
        return not first_down
    rgb = picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    return rgb and (without_gaps(picture) or not first_down)


def _in_rgb(picture: Picture, begin: int, end: int) -> Iterator[Array]:
    """Yield rows of a picture in RGB, some at a time."""
    if isinstance(picture, np.ndarray) and without_gaps(picture):
        yield picture[begin:end]
        return
    width = sides(picture)[1]
    for top, bottom in _strips(end - begin, width):
        if isinstance(picture, np.ndarray):
            yield picture[begin + top : begin + bottom]
        else:
            yield np.asarray(_cut(picture, (0, begin + top, width, begin + bottom)))


def _by_opencv(picture: Picture, new: tuple[int, int], kept: tuple[int, int, int, int]) -> Array:
    """Return a part of a picture that is resized as by OpenCV, some of its rows at a time.

    Raises:
        InputError: the picture isn't one of bytes in RGB or gray.
    """
    if isinstance(picture, np.ndarray) and (
        picture.dtype != np.uint8 or picture.shape[2:] not in ((3,), (1,))
    ):
        raise InputError(
            f"{OPENCV} resizes (height, width, 3 or 1) of uint8: got {list(picture.shape)} of {picture.dtype}"
        )
    top, bottom, left, right = kept
    (height, width), channels = sides(picture), 1 if is_gray(picture) else 3
    rows = pairs(height, new[0], columns=False).part(top, bottom)
    columns = pairs(width, new[1], columns=True).part(left, right)
    made = linear_ready_for(height * width)
    out = np.empty((bottom - top, right - left, channels), np.uint8)
    if made is not None and isinstance(picture, np.ndarray):
        made.linear(picture[rows.begin : rows.end], rows, columns, out)
        return out
    # Python holds rows as integers of 32 bits, several times over.
    longest = max(width, right - left) * -(-height // new[0]) * (16 if made is None else 1)
    for begin, end in _strips(bottom - top, longest):
        part = rows.part(begin, end)
        if isinstance(picture, np.ndarray):
            source = picture[part.begin : part.end]
        else:
            source = np.asarray(_cut(picture, (0, part.begin, width, part.end)))
        if made is None:
            out[begin:end] = linear(source, part, columns)
        else:
            made.linear(source, part, columns, out[begin:end])
    return out


def _by_pillow(
    picture: Picture, new: tuple[int, int], interpolation: Interpolation, first_down: bool
) -> Array:
    from PIL import Image

    height, width = sides(picture)
    high, wide = new
    resample = Image.Resampling[interpolation.upper()]
    mode, array = ("L", gray) if is_gray(picture) else ("RGB", pixels)
    if height * width <= STRIP_PIXELS:
        return array(_cut(picture, (0, 0, width, height)).resize((wide, high), resample))
    if first_down:
        between = Image.new(mode, (width, high))
        for left, right in _strips(width, height):
            strip = _cut(picture, (left, 0, right, height))
            between.paste(strip.resize((right - left, high), resample), (left, 0))
    else:
        between = Image.new(mode, (wide, height))
        for top, bottom in _strips(height, width):
            strip = _cut(picture, (0, top, width, bottom))
            between.paste(strip.resize((wide, bottom - top), resample), (0, top))
    return array(between.resize((wide, high), resample))


def _strips(length: int, other: int) -> Iterator[tuple[int, int]]:
    """Yield the ends of strips along an axis of some length, where the other has `other` pixels."""
    step = max(1, STRIP_PIXELS // other)
    for begin in range(0, length, step):
        yield begin, min(begin + step, length)


def _cut(picture: Picture, box: tuple[int, int, int, int]) -> Image.Image:
    """Return a part of a picture, from left and top to right and bottom, as an image in RGB, or in gray if it
    is an array in gray.
    """
    from PIL import Image

    left, top, right, bottom = box
    if isinstance(picture, np.ndarray):
        part = picture[top:bottom, left:right]
        return Image.fromarray(part[..., 0] if is_gray(part) else part)
    return rgb(picture if box == (0, 0, *picture.size) else picture.crop(box))
