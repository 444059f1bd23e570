"""Resize pictures by compiled C, equal bit for bit to Pillow, and only the part that is kept.

Pillow's method, which every result must equal: a pixel is a weighted sum over a window of the source. First
rows become narrower or wider, each rounded to bytes, then columns shorter or longer; newer versions do some
pictures the other way around. Weights are computed in float64, made to add up to 1, and rounded to 22 bits
behind the point; sums are of integers of 32 bits. Since each output has weights of its own, a part of the
outputs equals that part of the whole. Source: Pillow's Resample.c.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from hasten.core.native import Native, UnfitError, address
from hasten.core.tensors import Array
from hasten.inputs.pipeline.opencv import Pairs, linear, pairs

LONGEST = 2**14
"""Longest side in pixels of a picture, before and after, that is resized here."""
_BITS = 22
"""Bits of a weight behind the point."""
_LITTLE_PIXELS = 2**25
"""Pixels that a process resizes by Pillow before it starts a compiler: 36 pictures of 1280 x 720."""
_LEAST_WIDTH = 6
"""Least width in pixels of a picture and of what is kept of it: 16 bytes of a row are computed at a time."""
_KEPT_BYTES = 2**16
"""Size of an axis' weights up to which they are kept, fourfold, for the next picture of that size."""


@dataclass(frozen=True)
class Axis:
    """Sums that make the outputs along one axis.

    Attributes:
        first: Index of the first source pixel of each output, `(outputs,)` int32.
        counts: Number of source pixels of each output, `(outputs,)` int32.
        weights: Their weights with 22 bits behind the point, `(outputs, taps)` int32, zero behind the
            last; `taps` is a multiple of 4.
    """

    first: Array
    counts: Array
    weights: Array

    @cached_property
    def offsets(self) -> Array:
        """Distances of the first source pixels from `begin`, `(outputs,)` int32."""
        return self.first - np.int32(self.begin)

    @cached_property
    def fourfold(self) -> Array:
        """Weights four times over, one for each byte of a pixel of four."""
        return np.repeat(self.weights, 4)

    @cached_property
    def begin(self) -> int:
        """Index of the first source pixel that any output takes."""
        return int(self.first.min())

    @cached_property
    def end(self) -> int:
        """Index behind the last source pixel that any output takes."""
        return int((self.first + self.counts).max())


def _triangle(x: Array) -> Array:
    return np.where(np.abs(x) < 1.0, 1.0 - np.abs(x), 0.0)


def _cubic(x: Array) -> Array:
    x, a = np.abs(x), -0.5
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _box(x: Array) -> Array:
    return np.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


FILTERS: dict[str, tuple[Callable[[Array], Array], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
    "box": (_box, 0.5),
}
"""Function of each filter, and how far it reaches, in pixels of the smaller picture. Pillow does the others: their
weights take a sine of the C library each, which takes as long in Python as Pillow takes for a picture."""


def axis(old: int, new: int, interpolation: str, start: int, stop: int) -> Axis:
    """Return how outputs `start` to `stop` are made where `old` pixels become `new`."""
    filtered, reach = FILTERS[interpolation]
    scale = old / new
    wide = max(scale, 1.0)
    support = reach * wide
    center = (np.arange(start, stop) + 0.5) * scale
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    counts = np.minimum((center + support + 0.5).astype(np.int64), old) - first
    taps = -(-int(counts.max()) // 4) * 4
    places = np.arange(taps)
    exact = filtered((places + first[:, None] - center[:, None] + 0.5) * (1.0 / wide))
    exact[places >= counts[:, None]] = 0.0
    total = np.add.accumulate(exact, axis=1)[:, -1:]  # one after the other, as they are added there
    exact = np.divide(exact, total, out=exact, where=total != 0.0) * (1 << _BITS)
    weights = np.trunc(exact + np.copysign(0.5, exact)).astype(np.int32)
    return Axis(first.astype(np.int32), counts.astype(np.int32), weights)


def _axis_of(old: int, new: int, interpolation: str, start: int, stop: int) -> Axis:
    """Return an axis; those with few weights are kept for the next picture of that size."""
    taps = 2 * FILTERS[interpolation][1] * max(old / new, 1.0) + 4
    few = 4 * taps * (stop - start) <= _KEPT_BYTES
    return (_kept_axis if few else axis)(old, new, interpolation, start, stop)


_kept_axis = lru_cache(maxsize=32)(axis)


@dataclass(frozen=True)
class ResizedRegion:
    """Part of a resized picture.

    Attributes:
        old: (height, width) of the source.
        new: (height, width) of the whole result.
        top: Index of the result's first row in the part.
        bottom: Index behind the last.
        left: Index of the result's first column in the part.
        right: Index behind the last.
        interpolation: Filter of Pillow.
    """

    old: tuple[int, int]
    new: tuple[int, int]
    top: int
    bottom: int
    left: int
    right: int
    interpolation: str

    @property
    def supported(self) -> bool:
        """Whether the compiled code makes it."""
        return (
            self.interpolation in FILTERS
            and max(*self.old, *self.new) <= LONGEST
            and min(self.right - self.left, self.old[1]) >= _LEAST_WIDTH
            and self.top < self.bottom
        )

    @property
    def rows(self) -> Axis | None:
        """Sums that make the part's rows; None where the height stays."""
        old, new = self.old[0], self.new[0]
        return None if old == new else self._axis(old, new, self.top, self.bottom)

    @property
    def columns(self) -> Axis | None:
        """Sums that make the part's columns; None where the width stays."""
        old, new = self.old[1], self.new[1]
        return None if old == new else self._axis(old, new, self.left, self.right)

    def _axis(self, old: int, new: int, start: int, stop: int) -> Axis:
        return _axis_of(old, new, self.interpolation, start, stop)


OPENCV: Final = "opencv_linear"
"""Filter of OpenCV among those of Pillow."""


def down_first(old: tuple[int, int], new: tuple[int, int], interpolation: str) -> bool:
    """Whether the Pillow that is installed resizes from one (height, width) to another down before across.

    Both orders round in between, so that a pixel may differ by 1.
    """
    if interpolation in ("nearest", OPENCV):
        return False
    (height, width), (high, wide) = old, new
    if _pillow() >= (13,):
        return height - high > max(0, 2 * (width - wide))
    return _pillow() >= (12, 2) and height > 100 * width and high < height


def pixels_between(old: tuple[int, int], new: tuple[int, int], interpolation: str) -> int:
    """Return the pixels of a picture that was resized across alone, or down alone, whichever comes first."""
    return new[0] * old[1] if down_first(old, new, interpolation) else old[0] * new[1]


@cache
def _pillow() -> tuple[int, ...]:
    """Return the first two numbers of Pillow's version."""
    import PIL

    return tuple(int(number) for number in PIL.__version__.split(".")[:2])


class Resampler:
    """The functions in C. Calls don't hold the interpreter's lock.

    Args:
        shared: The shared object.

    Raises:
        AttributeError: it is another one.
        UnfitError: its pixels aren't those of the Pillow that is installed.
    """

    def __init__(self, shared: ctypes.CDLL) -> None:
        at, size = ctypes.c_void_p, ctypes.c_long
        self._across, self._down = shared.hasten_across, shared.hasten_down
        self._across.argtypes = [at, size, size, size, at, at, size, size, at, at]
        self._down.argtypes = [at, size, size, at, at, at, size, size, at]
        self._linear = shared.hasten_linear
        self._linear.argtypes = [at, size, at, size, at, size, size, at, at]
        self._across.restype = self._down.restype = self._linear.restype = None
        self._check()

    def across_first(
        self, part: ResizedRegion, strips: Callable[[int, int], Iterator[Array]]
    ) -> Array:
        """Return a part of a picture that is resized across, then down.

        Args:
            part: The part.
            strips: Function that yields the source's rows from one to another, some at a time, each strip
                `(rows, width, 3)` uint8.

        Returns:
            Pixels, `(bottom - top, right - left, 3)` uint8.
        """
        rows, columns = part.rows, part.columns
        begin, end = (part.top, part.bottom) if rows is None else (rows.begin, rows.end)
        narrow = np.empty((end - begin, part.right - part.left, 3), np.uint8)
        done = 0
        for strip in strips(begin, end):
            into = narrow[done : done + len(strip)]
            if columns is None:
                into[:] = strip[:, part.left : part.right]
            else:
                self._narrowed(columns, strip, into)
            done += len(strip)
        return narrow if rows is None else self._flattened(rows, narrow, begin)

    def down_first(self, part: ResizedRegion, picture: Array) -> Array:
        """Return a part of a picture that is resized down, then across: its height changes.

        Args:
            part: The part.
            picture: Source, `(height, width, 3)` uint8, each row without gaps.

        Returns:
            Pixels, `(bottom - top, right - left, 3)` uint8.
        """
        rows, columns = part.rows, part.columns
        assert rows is not None
        flat = self._flattened(rows, picture, 0)
        if columns is None:
            return flat[:, part.left : part.right]
        return self._narrowed(columns, flat, np.empty((len(flat), len(columns.first), 3), np.uint8))

    def linear(self, source: Array, rows: Pairs, columns: Pairs, out: Array) -> None:
        """Compute what `opencv.linear` returns into `out`, whose rows follow each other without gaps."""
        channels = source.shape[2]
        if source.strides[1:] != (channels, 1):
            source = np.ascontiguousarray(source)
        places, down = columns.table(0, channels), rows.table(rows.begin, 1)
        room = np.empty(2 * len(places) * channels, np.int32)
        self._linear(
            *(address(source), source.strides[0], address(down), len(down)),
            *(address(places), len(places), channels, address(out), address(room)),
        )

    def _flattened(self, rows: Axis, source: Array, begin: int) -> Array:
        """Return outputs along the height, of a source whose first row is the picture's row `begin`."""
        first, width = rows.first - np.int32(begin), source.shape[1]
        out = np.empty((len(first), width, 3), np.uint8)
        self._down(
            *(address(source), source.strides[0], width * 3),
            *(address(first), address(rows.counts)),
            *(address(rows.weights), rows.weights.shape[1], len(first), address(out)),
        )
        return out

    def _narrowed(self, columns: Axis, strip: Array, out: Array) -> Array:
        """Compute outputs along the width of a strip of rows into `out`, and return it."""
        strip = strip[:, columns.begin : columns.end]
        if not without_gaps(strip):
            strip = np.ascontiguousarray(strip)
        width, taps = strip.shape[1], columns.weights.shape[1]
        room = np.empty(4 * (width + taps), np.uint8)
        self._across(
            *(address(strip), strip.strides[0], len(strip), width),
            *(address(columns.offsets), address(columns.fourfold), taps, len(columns.first)),
            *(address(out), address(room)),
        )
        return out

    def _check(self) -> None:
        """Compare the pixels with Pillow's on small pictures, and with those of `opencv.linear`."""
        from PIL import Image

        picture = np.random.default_rng(0).integers(0, 256, (61, 37, 3), np.uint8)
        picture[:9, :9] = 255
        for interpolation in FILTERS:
            for high, wide in ((29, 18), (50, 31), (61, 17), (7, 37), (15, 50), (83, 90), (11, 9)):
                part = ResizedRegion((61, 37), (high, wide), 0, high, 0, wide, interpolation)
                if down_first(part.old, part.new, interpolation):
                    found = self.down_first(part, picture)
                else:
                    found = self.across_first(part, lambda a, z: iter([picture[a:z]]))
                filtered = Image.Resampling[interpolation.upper()]
                wanted = Image.fromarray(picture).resize((wide, high), filtered)
                if not np.array_equal(found, np.asarray(wanted)):
                    raise UnfitError(
                        f"{interpolation} gives other pixels than the installed Pillow"
                    )
        for channels, (high, wide) in ((3, (29, 18)), (1, (83, 90)), (3, (61, 90))):
            source = picture[..., :channels]
            down, across = pairs(61, high, columns=False), pairs(37, wide, columns=True)
            same = np.empty((high, wide, channels), np.uint8)
            self.linear(source, down, across, same)
            if not np.array_equal(same, linear(source, down, across)):
                raise UnfitError(f"{OPENCV} gives other pixels than Python")


def without_gaps(picture: Array) -> bool:
    """Whether each row of a picture lies in memory without gaps."""
    return picture.strides[1:] == (3, 1)


def unmade() -> Native[Resampler]:
    """Return the functions of a process, which nothing has compiled yet."""
    return Native(
        Path(__file__).with_name("resample.c"),
        Resampler,
        little=_LITTLE_PIXELS,
        much=None,
        log="hasten.pictures",
        otherwise="pictures are resized by Pillow, which takes several times as long as compiled C",
        depends=lambda: str(_pillow()),
    )


resampler = unmade()
"""The functions of this process."""
_ELSEWHERE = platform.machine() not in ("x86_64", "AMD64")
"""Whether Pillow's own weights may be rounded otherwise, as where a compiler joins products and sums."""


def compile_now() -> None:
    """Wait until this process has the functions, if it can have them."""
    if not _ELSEWHERE:
        resampler.get(None)


def ready_for(part: ResizedRegion) -> Resampler | None:
    """Return what makes a part of a resized picture; None where Pillow has to."""
    if _ELSEWHERE or not part.supported:
        return None
    return resampler.get(part.old[0] * part.old[1])


def linear_ready_for(pixels: int) -> Resampler | None:
    """Return what resizes a picture of so many pixels as OpenCV does; None where Python has to."""
    return None if _ELSEWHERE else resampler.get(pixels)
