"""Customary steps from an image file to a model's input."""

from __future__ import annotations

import contextlib
import io
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, Pipeline, Step, unfit
from hasten.inputs.pipeline.decoded_bytes import check_bytes, check_texts, check_webp, text_bytes
from hasten.inputs.pipeline.decoding_work import check_decoder, check_segments
from hasten.inputs.pipeline.jpeg import jpeg_pixels
from hasten.inputs.pipeline.strips import (
    Colors,
    Interpolation,
    Picture,
    Scaling,
    check_picture,
    gray,
    pixels,
    resized,
    rgb,
    sides,
)
from hasten.inputs.pipeline.turning import turn_of, turned

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 2**26
"""Largest number of pixels, 67 million: twice a large camera's picture, 192 MiB of RGB."""
_GROWN_PIXELS = 2**22
"""Pixels that an image may grow to, however long and thin it is."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted formats; others may start a program (EPS) or exceed the size in their header."""
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, EOFError),
    *(AttributeError, NotImplementedError, struct.error, zlib.error, UserWarning, MemoryError),
)
"""Exceptions that Pillow raises on images that are cut short, damaged, or too wide for it; where warnings are
errors, its warnings too."""


def check_size(name: str, size: int | tuple[int, int]) -> None:
    """Check that an image of this size fits into memory.

    Args:
        name: Name of the setting in messages.
        size: Length of one side of a square, or (height, width).

    Raises:
        InputError: a side is below 1, or the image has more than `MAX_PIXELS` pixels.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise InputError(
            f"{name}={size!r}: give sides of at least 1 pixel, and at most {MAX_PIXELS} pixels in all"
        )


def _open(value: bytes | Path, max_pixels: int) -> Image.Image:
    """Read an image's header, and refuse an image that is too large before decoding it."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise InputError("images need the extra: pip install 'hasten[images]'") from error
    try:
        file = io.BytesIO(value) if isinstance(value, bytes) else value
        image = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{_name(value)} has more than {max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        known = f"it is no whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
        raise InputError(
            f"{_name(value)} can't be read as an image: {known}; {_beginning(value)}"
        ) from error
    except _UNREADABLE as error:
        raise _unreadable(value, error) from error
    if image.width * image.height > max_pixels:
        image.close()
        raise InputError(
            f"{_name(value)} has {image.width} x {image.height} pixels, more than {max_pixels}"
        )
    return image


def _unreadable(value: bytes | Path, error: BaseException) -> InputError:
    said = str(error) or type(error).__name__
    return InputError(f"{_name(value)} can't be read as an image: {said}")


def _beginning(value: bytes | Path) -> str:
    """Return in words how a file begins, which tells what it is whatever its name says."""
    try:
        first = value[:12] if isinstance(value, bytes) else _first_bytes(value)
    except OSError:
        return "it can't be opened any more"
    return f"it begins with {first!r}" if first else "it is empty"


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(12)


def _name(value: bytes | Path) -> str:
    return "the image" if isinstance(value, bytes) else str(value)


def check_header(path: Path) -> None:
    """Check that a file begins like an image.

    Raises:
        InputError: the file is no image, or the image is too large.
    """
    _open(path, MAX_PIXELS).close()


@dataclass(frozen=True)
class Decode(Step):
    """Decode a file or its bytes to `(height, width, 3)` uint8, or to `(height, width, 1)` in gray.

    Gray and palette images become RGB, 16-bit gray keeps its upper 8 bits, transparency is
    dropped, and of an animated image the first frame counts. A picture that is decoded already, as a
    video's frame is, must be in RGB, and only its colors change. The pixels are those of Pillow; simplejpeg, where it
    is installed, gives the same pixels of a JPEG file in less time.

    Attributes:
        orient: Whether to turn the image upright as its EXIF data says.
        max_pixels: Largest number of pixels that is accepted, at most `MAX_PIXELS`.
        least: Pixels of the shorter side that are enough: a JPEG file is decoded at 1/2, 1/4 or 1/8
            of its size, whichever is the smallest that keeps them; 0 to decode it as it is.
        memory_per_byte: Bytes of memory that a picture that comes as bytes may take while it is decoded
            and resized, for each of its bytes beyond 64 KiB, besides 40 MiB; 0 for any.
        colors: Colors that the model takes: "RGB"; "BGR", as OpenCV gives them; or "gray", which is what
            Pillow's `convert("L")` makes of RGB.
    """

    orient: bool = True
    max_pixels: int = MAX_PIXELS
    least: int = 0
    memory_per_byte: int = 2048
    colors: Colors = "RGB"
    packages: ClassVar[tuple[str, ...]] = ("pillow", "simplejpeg")
    extra: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        """Check the limits."""
        if not 0 < self.max_pixels <= MAX_PIXELS:
            raise InputError(
                f"decode.max_pixels={self.max_pixels!r}: give a number from 1 to {MAX_PIXELS}"
            )
        if self.least < 0:
            raise InputError(f"decode.least={self.least!r}: give a number of pixels, or 0")
        if self.memory_per_byte < 0:
            raise InputError(
                f"decode.memory_per_byte={self.memory_per_byte!r}: give a number of bytes, or 0"
            )

    def __call__(self, value: bytes | Path | Array) -> Array:
        """Decode an image.

        Raises:
            InputError: the file can't be read; the message names it. Or an array isn't an image.
        """
        return self.traced(value, Origin())[0]

    def traced(self, value: bytes | Path | Array, origin: Origin) -> tuple[Array, Origin]:
        """Return the decoded image, and its place in the upright source of full size."""
        recolor = Recolor(self.colors)
        if isinstance(value, np.ndarray):
            return recolor(self.checked(value)), Origin(*value.shape[:2])
        with self.opened(value, None) as (picture, origin):
            assert isinstance(picture, np.ndarray)
            return recolor(picture), origin

    def joined(self, following: Step) -> Step | None:
        """Return one step for this one and a resize, which then never needs all pixels in RGB."""
        return _DecodeAndScale(self, following) if isinstance(following, Scaling) else None

    @contextlib.contextmanager
    def opened(
        self, value: bytes | Path, scale: Scaling | None
    ) -> Iterator[tuple[Picture, Origin]]:
        """Decode an image in RGB, or in gray if that is wanted, and keep it in its file's mode if a step resizes it.

        Args:
            value: The file's bytes, or its path.
            scale: Step that resizes the picture; None for its pixels as an array.

        Raises:
            InputError: the file can't be read, or takes more memory or work than it may; or a text was given.
        """
        if isinstance(value, str):  # may come from a stranger, and must not open files here
            raise InputError(
                "decode takes a picture's bytes or its path, but a text isn't a path: give "
                f"Path({value!r:.80})"
            )
        texts, most = 0, self.memory_per_byte
        if isinstance(value, bytes):
            texts = text_bytes(value)
            check_texts(texts, len(value), most)
            check_webp(value, most)
            check_segments(value)
        with _open(value, self.max_pixels) as image:
            if isinstance(value, bytes):
                check_decoder(image, value)
            height, width = image.size[::-1]
            factor = self._factor(image)
            in_gray = self.colors == "gray"

            def check(turned: bool) -> None:
                if isinstance(value, bytes):
                    full, sent = (height, width), len(value)
                    check_bytes(image, full, sent, texts, most, factor, scale, turned, in_gray)

            try:
                check(turned=False)
                if factor > 1:
                    image.draft(None, (width // factor, height // factor))
                found: Picture | None = jpeg_pixels(image, value, (height, width), gray=in_gray)
                if found is None:
                    image.load()
                    if factor == 1:
                        height, width = image.size[::-1]  # Pillow turns TIFF files itself.
                    rgb(image.crop((0, 0, 1, 1)))  # refuses a mode
                turn = turn_of(image) if self.orient else None
                if turn is not None:
                    check(turned=True)
                if in_gray:
                    found = gray(image if found is None else found)
                elif found is None:
                    found = pixels(image) if turn is not None or scale is None else image
            except _UNREADABLE as error:
                raise _unreadable(value, error) from error
            origin = Origin(height, width, (float(factor), float(factor)))
            yield (found, origin) if turn is None else turned(found, origin, turn)

    def factor_of(self, file: Path) -> int:
        """Return the factor by which a file is decoded smaller: 1, 2, 4 or 8.

        Raises:
            InputError: the file is no image, or the image is too large.
        """
        with _open(file, self.max_pixels) as image:
            return self._factor(image)

    def _factor(self, image: Image.Image) -> int:
        """Return the factor by which an image is decoded smaller: 1, 2, 4 or 8."""
        shorter = min(image.size)
        if not self.least or image.format not in ("JPEG", "MPO"):
            return 1
        return next(f for f in (8, 4, 2, 1) if f == 1 or -(-shorter // f) >= self.least)

    def checked(self, image: Array) -> Array:
        """Check a picture that is decoded already, and return it.

        Raises:
            InputError: it isn't in RGB, or too large.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                "a decoded picture is (height, width, 3) of uint8, in RGB: got "
                f"{list(image.shape)} of {image.dtype}"
            )
        height, width = image.shape[:2]
        if height * width > self.max_pixels:
            raise InputError(
                f"the image has {width} x {height} pixels, more than {self.max_pixels}"
            )
        return image


@dataclass(frozen=True)
class Recolor(Step):
    """Turn `(height, width, 3)` uint8 in RGB into other colors; a picture in gray already stays as it is.

    Attributes:
        colors: Colors that the model takes.
    """

    colors: Colors

    def __call__(self, value: Array) -> Array:
        if self.colors == "gray":
            return gray(value)
        return np.ascontiguousarray(value[..., ::-1]) if self.colors == "BGR" else value

    def joined(self, following: Step) -> Step | None:
        """Return one step for this one and a resize, which reorders the channels of the fewer pixels."""
        return RecolorAndScale(self, following) if isinstance(following, Scaling) else None


@dataclass(frozen=True)
class RecolorAndScale(Step):
    """Change colors and resize, equal bit for bit to one after the other.

    Attributes:
        recolor: Step that changes colors.
        scale: Step that resizes.
    """

    recolor: Recolor
    scale: Scaling

    @property
    def name(self) -> str:
        """Names of the two steps."""
        return f"{self.recolor.name}, {self.scale.name}"

    def __call__(self, value: Array) -> Array:
        return self.traced(value, Origin())[0]

    def joined(self, following: Step) -> Step | None:
        """Return one step for these and a crop."""
        both = self.scale.joined(following)
        return replace(self, scale=both) if isinstance(both, Scaling) else None

    def traced(self, value: Picture, origin: Origin) -> tuple[Array, Origin]:
        """Return the resized image and its origin."""
        if self.recolor.colors == "gray":
            return self.scale.traced(gray(value), origin)
        image, origin = self.scale.traced(value, origin)
        return self.recolor(image), origin


@dataclass(frozen=True)
class _DecodeAndScale(Step):
    """Decode and resize, equal bit for bit to one after the other, in less memory.

    Attributes:
        decode: Step that decodes.
        scale: Step that resizes.
    """

    decode: Decode
    scale: Scaling

    @property
    def name(self) -> str:
        """Names of the two steps."""
        return f"{self.decode.name}, {self.scale.name}"

    def __call__(self, value: bytes | Path | Array) -> Array:
        return self.traced(value, Origin())[0]

    def joined(self, following: Step) -> Step | None:
        """Return one step for these and a crop, where the second step can leave out what it cuts off."""
        both = self.scale.joined(following)
        return replace(self, scale=both) if isinstance(both, Scaling) else None

    def traced(self, value: bytes | Path | Array, origin: Origin) -> tuple[Array, Origin]:
        """Return the resized image and its origin."""
        recolored = RecolorAndScale(Recolor(self.decode.colors), self.scale)
        if isinstance(value, np.ndarray):
            return recolored.traced(self.decode.checked(value), Origin(*value.shape[:2]))
        with self.decode.opened(value, self.scale) as (picture, place):
            return recolored.traced(picture, place)


@dataclass(frozen=True)
class Resize(Scaling):
    """Resize a picture as Pillow does, with its antialiasing, or as OpenCV does, without.

    Attributes:
        size: Length of the shorter side, with the longer one in proportion (rounded down); or
            (height, width).
        interpolation: Filter of Pillow, or "opencv_linear".
    """

    size: int | tuple[int, int]
    interpolation: Interpolation = "bicubic"
    packages: ClassVar[tuple[str, ...]] = ("pillow",)
    extra: ClassVar[str] = "images"

    def __post_init__(self) -> None:
        """Check the size."""
        check_size("resize.size", self.size)

    def __call__(self, value: Picture) -> Array:
        """Resize an image.

        Raises:
            InputError: the value is no picture, or the resized image would be too large, as a long thin one may
                be.
        """
        check_picture("resize", value)
        return resized(value, self.size_after(sides(value)), self.interpolation)

    def size_after(self, old: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) that an image of another (height, width) is resized to.

        Raises:
            InputError: the resized image would be too large, as a long thin one may be.
        """
        height, width = old
        if isinstance(self.size, int):
            shorter = min(height, width)
            new = (height * self.size // shorter, width * self.size // shorter)
        else:
            new = self.size
        most = min(MAX_PIXELS, max(_GROWN_PIXELS, 4 * self.customary_pixels, height * width))
        # Pillow resizes most pictures across first, so that a high image is as wide as the new one in between.
        if max(new[0], height) * new[1] > most:
            raise InputError(
                f"an image of {width} x {height} pixels becomes {new[1]} x {max(new[0], height)}, more than "
                f"{most} pixels"
            )
        return new

    @property
    def customary_pixels(self) -> int:
        """Pixels of an image that is four times as long as it is wide."""
        return 4 * self.size**2 if isinstance(self.size, int) else self.size[0] * self.size[1]

    def traced(self, value: Picture, origin: Origin) -> tuple[Array, Origin]:
        """Return the resized image and its origin."""
        image = self(value)
        return image, origin.resized(sides(value), image.shape)

    def joined(self, following: Step) -> Step | None:
        """Return one step for this one and a crop, which leaves out what the crop cuts off."""
        return _ResizeAndCrop(self, following) if isinstance(following, CenterCrop) else None


@dataclass(frozen=True)
class CenterCrop(Step):
    """Cut `(height, width)` out of the center; an image that is too small gets black borders.

    Attributes:
        size: Length of one side of a square, or (height, width).
        rounding: Direction in which half of an odd margin is rounded: "even" to the even number, as torchvision
            does, or "down", as the processors of Hugging Face's transformers do.
    """

    size: int | tuple[int, int]
    rounding: Literal["even", "down"] = "even"

    def __post_init__(self) -> None:
        """Check the size."""
        check_size("center_crop.size", self.size)

    def __call__(self, value: Array) -> Array:
        """Cut the center out.

        Raises:
            InputError: the value is no picture.
        """
        if not _is_picture(value):
            needed = "a picture, (height, width, channels), after decode and before to_layout"
            raise unfit("center_crop", value, needed)
        # Crop before padding, or a tall thin image in a wide flat crop would become large both
        # ways.
        top, bottom, left, right = self.window(value.shape[:2])
        return self.padded(value[top:bottom, left:right])

    @property
    def _wanted(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def window(self, sides: Sequence[int]) -> tuple[int, int, int, int]:
        """Return what is kept of an image of some (height, width): its rows' ends, then its columns'."""
        (top, bottom), (left, right) = (
            (begin := self._half(max(0, have - wanted)), min(have, begin + wanted))
            for have, wanted in zip(sides, self._wanted, strict=True)
        )
        return top, bottom, left, right

    def padded(self, value: Array) -> Array:
        """Return an image that was cut already, with black borders where it is too small."""
        borders = [
            wanted - have for have, wanted in zip(value.shape[:2], self._wanted, strict=True)
        ]
        if any(borders):
            sides = [(border // 2, (border + 1) // 2) for border in borders]
            value = np.pad(value, (*sides, (0, 0)))
        return value

    def traced(self, value: Array, origin: Origin) -> tuple[Array, Origin]:
        """Return the cut image and its origin."""
        return self(value), self.cut(origin, value.shape[:2])

    def cut(self, origin: Origin, sides: Sequence[int]) -> Origin:
        """Return the origin of what is cut out of an image of some (height, width)."""
        spare = [have - w for have, w in zip(sides, self._wanted, strict=True)]
        top, left = (self._half(pixels) if pixels > 0 else -(-pixels // 2) for pixels in spare)
        return origin.cut(top, left)

    def _half(self, pixels: int) -> int:
        return pixels // 2 if self.rounding == "down" else round(pixels / 2)


@dataclass(frozen=True)
class _ResizeAndCrop(Scaling):
    """Resize and crop, equal bit for bit to one after the other, without the pixels that are cut off.

    Attributes:
        resize: Step that resizes.
        crop: Step that cuts out the center.
    """

    resize: Resize
    crop: CenterCrop

    @property
    def name(self) -> str:
        """Names of the two steps."""
        return f"{self.resize.name}, {self.crop.name}"

    @property
    def interpolation(self) -> Interpolation:  # type: ignore[override]
        """Filter of the resize."""
        return self.resize.interpolation

    def __call__(self, value: Picture) -> Array:
        return self.traced(value, Origin())[0]

    def size_after(self, old: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) before the crop."""
        return self.resize.size_after(old)

    @property
    def customary_pixels(self) -> int:
        """Pixels of an ordinary picture before the crop."""
        return self.resize.customary_pixels

    def traced(self, value: Picture, origin: Origin) -> tuple[Array, Origin]:
        """Return the image that is left and its origin."""
        check_picture("resize", value)
        old = sides(value)
        new = self.size_after(old)
        left = resized(value, new, self.resize.interpolation, self.crop.window(new))
        return self.crop.padded(left), self.crop.cut(origin.resized(old, new), new)


@dataclass(frozen=True)
class Normalize(Step):
    """Compute (value * scale - mean) / std per channel, from `(height, width, channels)` uint8 to float32.

    Attributes:
        mean: Mean of the scaled values: one number per channel, or one for all. A picture in gray becomes three
            channels where there are three.
        std: Standard deviation of the scaled values, as many numbers.
        scale: Factor of the pixel values: 1/255 for a mean and std in [0, 1], 1 for those in [0,
            255].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        """Check that there are as many means as deviations, all finite, and that none divides by 0."""
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise InputError(
                f"normalize.mean={self.mean!r}, std={self.std!r}: give one number for each of 3 channels, or "
                "one for all"
            )
        numbers = (*self.mean, *self.std, self.scale)
        if not all(math.isfinite(number) for number in numbers) or min(self.std) <= 0:
            raise InputError(
                f"normalize.mean={self.mean!r}, std={self.std!r}, scale={self.scale!r}: give finite "
                "numbers, and deviations above 0"
            )

    def __call__(self, value: Array) -> Array:
        """Scale and shift each channel.

        Raises:
            InputError: the value isn't an array of numbers, or has another number of channels.
        """
        self.check_channels(value)
        factor, shift = self.factors
        if value.dtype != np.uint8 or value.shape[2:] != factor.shape:
            return value * factor - shift
        height, width, channels = value.shape
        rows = value.astype(np.float32, order="C").reshape(height, width * channels)
        rows *= np.tile(factor, width)  # numpy is ten times slower where the last axis has 3
        rows -= np.tile(shift, width)
        return rows.reshape(value.shape)

    def check_channels(self, value: Any) -> None:
        """Check that a value has channels for the means.

        Raises:
            InputError: it isn't an array of numbers, or has another number of channels.
        """
        counts = {1, len(self.mean)}
        fits = isinstance(value, np.ndarray) and value.dtype.kind in "buif" and value.ndim > 0
        if not fits or (len(self.mean) > 1 and value.shape[-1] not in counts):
            of = " or ".join(map(str, sorted(counts, reverse=True)))
            needed = f"a picture, (height, width, {of}), after decode and before to_layout"
            raise unfit("normalize", value, needed)

    @cached_property
    def factors(self) -> tuple[Array, Array]:
        """Factor of a pixel's value and what is subtracted then, float32, one per channel."""
        mean, std = np.array(self.mean, np.float64), np.array(self.std, np.float64)
        return (self.scale / std).astype(np.float32), (mean / std).astype(np.float32)

    def joined(self, following: Step) -> Step | None:
        """Return one step for this one and the order of the axes, where that makes planes."""
        return _NormalizedPlanes(self) if following == ToLayout("CHW", "float32") else None


@dataclass(frozen=True)
class _NormalizedPlanes(Step):
    """Normalize pixels straight into planes, equal bit for bit to `Normalize`, then `ToLayout`.

    Attributes:
        normalize: Step that says how each pixel is scaled and shifted.
    """

    normalize: Normalize

    @property
    def name(self) -> str:
        """Names of the two steps that it does in one pass."""
        return "normalize, to_layout"

    def __call__(self, value: Array) -> Array:
        self.normalize.check_channels(value)
        channels = len(self.normalize.mean)
        if value.dtype != np.uint8 or value.shape[2:] not in ((channels,), (1,)):
            return ToLayout()(self.normalize(value))
        planes = np.empty((channels, *value.shape[:2]), np.float32)
        for channel, (factor, shift) in enumerate(zip(*self.normalize.factors, strict=True)):
            plane = planes[channel]
            plane[...] = value[:, :, channel % value.shape[2]]
            plane *= factor
            plane -= shift
        return planes


@dataclass(frozen=True)
class ToLayout(Step):
    """Order the axes and choose the element type.

    Attributes:
        layout: Order of the axes: "CHW", channels first, or "HWC".
        dtype: Element type, by numpy's name; "uint8" only for pixel values that weren't normalized.
    """

    layout: Literal["CHW", "HWC"] = "CHW"
    dtype: Literal["float32", "float16", "uint8"] = "float32"

    def __call__(self, value: Any) -> Array:
        """Order the axes and convert the elements.

        Raises:
            InputError: the value isn't an array of numbers, or has too few axes; or uint8 is asked for, but the
                values aren't uint8.
        """
        array = np.asarray(value) if isinstance(value, (np.ndarray, np.generic, list)) else None
        if (
            array is None
            or array.dtype.kind not in "buif"
            or (self.layout == "CHW" and array.ndim != 3)
        ):
            raise unfit("to_layout", value, "a picture, (height, width, channels), after decode")
        if self.dtype == "uint8" and array.dtype != np.uint8:
            raise InputError(
                f"the pipeline ends in uint8, but its steps give {array.dtype}: leave out mean "
                "and std, or end in float32"
            )
        if self.layout == "CHW":
            array = array.transpose(2, 0, 1)
        return np.ascontiguousarray(array, dtype=self.dtype)


def _is_picture(value: Any) -> bool:
    """Whether a value is (height, width, channels), of any number of channels, and no planes as `to_layout` makes them."""
    if not isinstance(value, np.ndarray) or value.ndim != 3:
        return False
    height, _, channels = value.shape
    return bool(channels > 0 and (channels <= 4 or height > 4))


def in_pixels(pipeline: Pipeline, folded: Sequence[Step]) -> Pipeline:
    """Return a pipeline that ends in contiguous uint8 pixels, for a model that does its last steps.

    Args:
        pipeline: Pipeline for the model as it was given, or for this one.
        folded: Steps that the model's own graph does; none where it does none.

    Returns:
        Pipeline whose samples are uint8 of shape (height, width, channels) if there are such steps.

    Raises:
        InputError: the pipeline ends in other steps.
    """
    if pipeline.folded == tuple(folded):
        return pipeline
    count = len(folded)
    if pipeline.folded or pipeline.steps[-count:] != tuple(folded):
        raise InputError(
            "the bundle's model normalizes pixels itself, and the given pipeline normalizes them "
            "differently: give the pipeline that the bundle was made with, or none"
        )
    steps = (*pipeline.steps[:-count], ToLayout("HWC", "uint8"))
    return replace(pipeline, steps=steps, folded=tuple(folded))
