"""The bytes of floating-point numbers apart: exponents repeat, the ends of mantissas never do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.bundle.packing.codecs import native
from hasten.bundle.packing.codecs.base import Codec, Inner, Outer, behind_lengths, first_block
from hasten.core.tensors import Array
from hasten.errors import IntegrityError


@dataclass(frozen=True)
class Planes(Codec):
    """Each element turned left by one bit, so that its sign is its last one; then all first bytes, ...

    A number's exponent then fills its highest byte (but for two bits of float16's), and the rest of it is
    left with its sign. The coded bytes are a block for each plane, lowest byte first: see
    `hasten.bundle.packing.codecs.base.behind_lengths`.
    """

    nested: ClassVar[bool] = True
    widths: ClassVar[frozenset[int]] = frozenset({2, 4, 8})
    cost: ClassVar[float] = 0.3

    def encode(self, data: Array, width: int, inner: Inner) -> bytes | None:
        words = data.view(f"<u{width}")
        turned = (words << 1) | (words >> (8 * width - 1))
        planes = turned.view(np.uint8).reshape(-1, width)
        return behind_lengths(inner(np.ascontiguousarray(planes[:, at]), 1) for at in range(width))

    def decode(self, coded: memoryview, out: Array, width: int, inner: Outer) -> None:
        if width not in self.widths:
            raise IntegrityError(f"elements of {width} bytes have no planes")
        planes = np.empty((width, len(out) // width), np.uint8)
        for plane in planes:
            block, coded = first_block(coded)
            inner(block, plane, 1)
        if len(coded):
            raise IntegrityError(f"{len(coded):,} bytes follow its last plane")
        if (coders := native.for_decoding(len(out))) is not None:
            coders.join(planes, out)
        else:
            join(planes, out)


def join(planes: Array, out: Array) -> None:
    """Make elements of their planes without the coder in C.

    Args:
        planes: uint8 of shape (bytes of an element, elements).
        out: Where the elements go: uint8 of shape (n,).
    """
    words = out.view(f"<u{len(planes)}")
    out.reshape(-1, len(planes))[...] = planes.T
    np.bitwise_or(words >> 1, words << (8 * len(planes) - 1), out=words)
