"""3x3 convolutions of bytes by Winograd's algorithm: 4 x 4 results of each channel need 36 products in place of 144.

The picture's 6 x 6 bytes, and the weights, become numbers of 16 bits at 36 points: values of polynomials at 0, 1, -1,
2, -2 and infinity, in both directions. At each point, channels are summed as in a pointwise layer. A linear map of
the 36 sums gives multiples of the 16 results. All factors are whole, and everything is exact modulo 2^32: sums may
wrap in between. A result times 576 is known modulo 2^32, so a result that provably has 26 bits is known exactly.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016, F(4x4, 3x3); the factors that make it
whole are this file's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.definition import Convolution
from hasten.engines.compiled.tensors import product
from hasten.engines.compiled.writer import spelled_dots

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

SIDE = 4
"""Rows and columns of results of a tile."""
POINTS = 36
_LEAST_FULL, _LEAST_FULL_OF_WORDS = 0.85, 0.75
"""Share of tiles' results that must be the picture's, with dot products of bytes and without: these take half the time
that products at points take, or as long."""
_LEAST_TILES = 16
"""Tiles below which loading weights at points takes too long."""
_MOST_ACROSS = 64
"""Largest number of tiles in a row, whose sums at all points a core's second cache about holds."""
_MOST_WEIGHTS = 4 << 20
"""Largest number of weights at points, of 2 bytes each, which stay in the last cache."""
_LEAST_OUTS = 32
"""Output channels below which what is around the products takes too long."""
_MOST_SUM = (1 << 25) - 1
"""Largest magnitude of a sum of products that is known by its lower 32 - 6 bits."""
APART = 64
"""Bytes between points, so that they don't compete for the same lines of a cache."""
_POINTS = np.array([[6, 0, 0], [1, 1, 1], [1, -1, 1], [1, 2, 4], [1, -2, 4], [0, 0, 6]], np.int16)
"""Weights' polynomial at each point; those at 0 and infinity six times, since others' results come times six."""


def suits(conv: Convolution, wide: int, writer: Writer) -> bool:
    """Whether a convolution can be calculated so, and is faster.

    Args:
        conv: The convolution.
        wide: Bytes of a vector.
        writer: Writer, which knows the weights.
    """
    if (conv.kernel, conv.strides, conv.dilations, conv.groups) != ((3, 3), (1, 1), (1, 1), 1):
        return False
    ins, outs = conv.channels
    if conv.given_type != "uint8" or ins % (wide // 2) or outs < _LEAST_OUTS or wide < 32:
        return False
    whole = product([tiles(one) for one in conv.output_size])
    least = _LEAST_FULL if spelled_dots(writer.isa) else _LEAST_FULL_OF_WORDS
    if whole < _LEAST_TILES or product(conv.output_size) < least * whole * SIDE * SIDE:
        return False
    if POINTS * ins * outs > _MOST_WEIGHTS or tiles(conv.output_size[1]) > _MOST_ACROSS:
        return False
    weight = writer.constant(conv.weight).reshape(outs, -1)
    above = np.maximum(weight, 0).sum(1, np.int64)
    below = above - weight.sum(1, np.int64)
    return bool(255 * max(above.max(), below.max()) <= _MOST_SUM)


def tiles(size: int) -> int:
    """Return how many tiles cover a height or a width."""
    return -(-size // SIDE)


def weights(given: Array) -> Array:
    """Return weights of shape (outs, 3, 3, ins) at the points: int16 of shape (outs, 36, ins).

    A number there is at most 7 * 7 times a byte, so 16 bits hold it.
    """
    made: Array = np.einsum("pi,qj,oijc->opqc", _POINTS, _POINTS, given.astype(np.int16))
    return made.reshape(len(given), POINTS, -1)


def sizes(count: int, ins: int, wide: int) -> tuple[int, int]:
    """Return the bytes from one point of a chunk's picture to the next, and from one of a vector's sums.

    Args:
        count: Tiles of the chunk.
        ins: Channels that are read.
        wide: Bytes of a vector.
    """
    return count * ins * 2 + APART, count * wide


def scratch(count: int, ins: int, vectors: int, wide: int) -> tuple[int, int]:
    """Return the bytes of a chunk's picture at the points, and of a block's sums with those of one tile.

    Args:
        count: Tiles of the chunk.
        ins: Channels that are read.
        vectors: Vectors of channels of the largest block.
        wide: Bytes of a vector.
    """
    plane, sums = sizes(count, ins, wide)
    return POINTS * plane, POINTS * (sums * vectors + APART) + SIDE * SIDE * vectors * wide
