"""Elements of few different values: a table of them, and which one each is."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.bundle.packing.codecs.base import Codec, Inner, Outer, behind_lengths, first_block
from hasten.core.tensors import Array
from hasten.errors import IntegrityError

_COUNT = struct.Struct("<I")
_NARROW, _MOST = 1 << 8, 1 << 16
"""Largest number of values that indices of one byte can tell apart, and that a table may have."""
_SHARE = 4
"""A table has at most one value for each so many elements."""
_LOOK = 1024
"""Number of elements that show at little cost that most differ."""


@dataclass(frozen=True)
class Codebook(Codec):
    """Each value that occurs, in ascending order of its bits as an unsigned integer, and indices.

    The coded bytes:

        4 bytes  number of values, little-endian, 1 to 65,536
        ...      block of the values, elements as they are
        ...      block of the indices, one for each element: uint8 for up to 256 values, else
                 little-endian uint16

    Blocks stand behind their lengths: see `hasten.bundle.packing.codecs.base.behind_lengths`.
    """

    nested: ClassVar[bool] = True
    widths: ClassVar[frozenset[int]] = frozenset({2, 4, 8})
    cost: ClassVar[float] = 0.3

    def encode(self, data: Array, width: int, inner: Inner) -> bytes | None:
        words = data.view(f"<u{width}")
        if len(words) > 2 * _LOOK:
            step = len(words) // _LOOK
            if len(np.unique(words[::step])) > _LOOK // 2:
                return None
        values, indices = np.unique(words, return_inverse=True)
        if len(values) > min(_MOST, max(1, len(words) // _SHARE)):
            return None
        wide = _wide(len(values))
        if wide >= width:
            return None
        return _COUNT.pack(len(values)) + behind_lengths(
            (
                inner(values.view(np.uint8), width),
                inner(indices.astype(f"<u{wide}").view(np.uint8), wide),
            )
        )

    def decode(self, coded: memoryview, out: Array, width: int, inner: Outer) -> None:
        elements = len(out) // width
        if len(coded) < _COUNT.size or width not in self.widths:
            raise IntegrityError(f"it states no values of {width} bytes")
        (count,) = _COUNT.unpack_from(coded)
        if not 0 < count <= min(_MOST, elements):
            raise IntegrityError(f"it states {count:,} values for {elements:,} elements")
        table, rest = first_block(coded[_COUNT.size :])
        block, rest = first_block(rest)
        if len(rest):
            raise IntegrityError(f"{len(rest):,} bytes follow its indices")
        wide = _wide(count)
        values, indices = np.empty(count * width, np.uint8), np.empty(elements * wide, np.uint8)
        inner(table, values, width)
        inner(block, indices, wide)
        places = indices.view(f"<u{wide}")
        if places.max() >= count:
            raise IntegrityError(f"index {places.max():,} lies outside its {count:,} values")
        np.take(values.view(f"<u{width}"), places, out=out.view(f"<u{width}"), mode="clip")


def _wide(count: int) -> int:
    """Return how many bytes the indices of so many values take."""
    return 1 if count <= _NARROW else 2
