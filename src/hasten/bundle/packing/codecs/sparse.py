"""Elements most of which are zero: where the others are, and what they are."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.bundle.packing.codecs import native
from hasten.bundle.packing.codecs.base import Codec, Inner, Outer, behind_lengths, first_block
from hasten.core.tensors import Array
from hasten.errors import IntegrityError

_MOST = 0.5
"""Share of elements that aren't zero up to which it is tried."""
_HEAD = struct.Struct("<II")
_FURTHER = 255


@dataclass(frozen=True)
class Sparse(Codec):
    """Number of zeros before each value, and the values. An element is zero if all of its bits are.

    The coded bytes:

        4 bytes  number of values, little-endian
        4 bytes  number of gaps, little-endian
        ...      block of the gaps, one byte each: that many zeros lie before a value; 255 is followed by
                 another gap, which counts on
        ...      block of the values, elements as they are; left out where there are none, and so are gaps

    Blocks stand behind their lengths: see `hasten.bundle.packing.codecs.base.behind_lengths`.
    """

    nested: ClassVar[bool] = True
    widths: ClassVar[frozenset[int]] = frozenset({1, 2, 4, 8})
    cost: ClassVar[float] = 0.25

    def encode(self, data: Array, width: int, inner: Inner) -> bytes | None:
        words = data.view(f"<u{width}")
        places = np.flatnonzero(words)
        if len(places) > _MOST * len(words):
            return None
        gaps = gaps_of(places)
        parts = [(gaps, 1), (words[places].view(np.uint8), width)] if len(places) else []
        return _HEAD.pack(len(places), len(gaps)) + behind_lengths(
            inner(part, size) for part, size in parts
        )

    def decode(self, coded: memoryview, out: Array, width: int, inner: Outer) -> None:
        elements = len(out) // width
        if len(coded) < _HEAD.size or width not in self.widths:
            raise IntegrityError(f"it states no positions of elements of {width} bytes")
        count, size = _HEAD.unpack_from(coded)
        rest = coded[_HEAD.size :]
        if not count <= size <= count + elements // _FURTHER or count > elements:
            raise IntegrityError(f"it states {count:,} of {elements:,} elements by {size:,} gaps")
        gaps, values = np.empty(size, np.uint8), np.empty(count * width, np.uint8)
        for part, each in ((gaps, 1), (values, width)):
            if count:
                block, rest = first_block(rest)
                inner(block, part, each)
        if len(rest):
            raise IntegrityError(f"{len(rest):,} bytes follow its values")
        if (coders := native.for_decoding(len(out))) is not None:
            out[:] = 0
            coders.spread(gaps, values, width, out)
        else:
            spread(gaps, values, width, out)


def gaps_of(places: Array) -> Array:
    """Return how many elements lie before each place: uint8, 255 wherever another one counts on."""
    before = np.diff(places, prepend=-1) - 1
    further = before // _FURTHER
    gaps = np.full(len(before) + int(further.sum()), _FURTHER, np.uint8)
    gaps[np.arange(len(before)) + np.cumsum(further)] = before % _FURTHER
    return gaps


def spread(gaps: Array, values: Array, width: int, out: Array) -> None:
    """Put values where they belong without the coder in C, and zeros elsewhere.

    Raises:
        IntegrityError: the gaps don't lead to as many places within `out`.
    """
    ends = gaps != _FURTHER
    places = np.cumsum(gaps + ends.astype(np.int64))
    words, found = out.view(f"<u{width}"), values.view(f"<u{width}")
    if np.count_nonzero(ends) != len(found) or (len(places) and places[-1] > len(words)):
        native.check(native.RANGE)
    words[:] = 0
    words[places[ends] - 1] = found
