"""Dense convolutions of bytes with AVX2 alone: products of bytes whose sums provably fit in 16 bits.

`vpmaddubsw` multiplies 32 bytes by 32 weights and adds two products each; its sums are cut to 16 bits. Where the
weights above 0 that such a sum has come to at most 128, and those below 0 too, nothing is cut whatever the bytes
are, since 255 * 128 < 32768. Four neighbouring bytes of the picture, a quad, meet two such sums of each channel.
The sums of up to three quads, a group, are added in 16 bits where that provably fits for all channels of a block, and
go to those of 32 bits by one `vpmaddwd` together. Which quads are a group is looked for, block by block, so a block's
table has the places of its quads. Of weights that are too large for a quad alone, two quads have half each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.int8.tiles import Tile

if TYPE_CHECKING:
    from hasten.engines.compiled.operators.int8.layouts import Layout

PIXELS = {1: 8, 2: 5, 3: 3, 4: 2}
"""Largest number of pixels of a tile for each number of vectors: a group of quads needs registers besides the sums."""
_SIZES = (3, 2, 1)
"""Numbers of quads of a group, in the order in which they follow each other."""
_MOST = 128
"""Largest sum of magnitudes of weights of one sign, times 255 of which fits in 16 bits."""
_OPEN = 64
"""Largest number of groups among which room for a quad is looked for."""
_MOST_COST = 1.1
"""Multiplications for each one of 16 bits up to which the form is faster: it needs fewer additions."""
_MOST_WEIGHTS = 8 << 20
"""Largest number of weights of a layer: groups are found in about a second for as many."""
_HEAD = 8
"""Whole numbers before a block's places."""
_LINE = 32
"""Bytes to which weights are aligned."""


@dataclass(frozen=True)
class Quads:
    """Quads of a block's weights, in groups.

    Attributes:
        places: Number of each quad in the picture, of int64, those of a group one after the other.
        weights: int8 of shape (quads, vectors, lanes, 4).
        groups: Number of groups of each of `_SIZES`, which follow each other.
    """

    places: Array
    weights: Array
    groups: tuple[int, ...]

    @property
    def multiplications(self) -> int:
        """Multiplications for a vector of sums."""
        return len(self.places) + sum(self.groups)

    def packed(self, places: Array) -> Array:
        """Return the block as tiles read it: numbers of groups, where weights begin, places in bytes, weights.

        Args:
            places: Byte of each quad of the picture from the first one on.
        """
        size = -(-(_HEAD + len(self.places)) * 4 // _LINE) * _LINE
        head = np.zeros(size // 4, np.int32)
        head[: len(_SIZES) + 1] = *self.groups, size
        head[_HEAD : _HEAD + len(self.places)] = places[self.places]
        return np.concatenate([head.view(np.uint8), self.weights.ravel().view(np.uint8)])


def grouped(weights: Array) -> Quads:
    """Return the groups of a block's quads: each quad goes to the first group with room, the largest ones first.

    Args:
        weights: int8 of shape (quads, vectors, lanes, 4).
    """
    places, held = _halved(weights)
    loads = _loads(held).reshape(len(held), -1).astype(np.uint8)
    room, full = np.full_like(loads, _MOST), np.zeros(len(held), bool)
    groups: list[list[int]] = []
    for quad in np.argsort(-loads.sum(1, dtype=np.int64), kind="stable").tolist():
        first = max(0, len(groups) - _OPEN)
        fits = (loads[quad] <= room[first : len(groups)]).all(1) & ~full[first : len(groups)]
        at = first + int(fits.argmax()) if fits.any() else len(groups)
        if at == len(groups):
            groups.append([])
        groups[at].append(quad)
        room[at] -= loads[quad]
        full[at] = len(groups[at]) == _SIZES[0]
    groups.sort(key=len, reverse=True)
    order = np.array([quad for group in groups for quad in group])
    sizes = [len(group) for group in groups]
    return Quads(places[order], held[order], tuple(map(sizes.count, _SIZES)))


def _loads(weights: Array) -> Array:
    """Return sums of magnitudes of weights of one sign: int16 of shape (quads, vectors, lanes, 2 sums, 2 signs)."""
    pairs = weights.astype(np.int16).reshape(*weights.shape[:-1], 2, 2)
    above: Array = np.maximum(pairs, 0).sum(-1, dtype=np.int16)
    return np.stack([above, above - pairs.sum(-1, dtype=np.int16)], -1)


def _halved(weights: Array) -> tuple[Array, Array]:
    """Return which quads there are, and weights that each holds alone; two hold what one can't."""
    large = (_loads(weights) > _MOST).any(-1)
    wide = large.reshape(len(weights), -1).any(1)
    half = np.where(np.repeat(large, 2, -1), weights >> 1, 0)[wide]
    held = weights.copy()
    held[wide] -= half
    places = np.arange(len(weights))
    return np.concatenate([places, places[wide]]), np.concatenate([held, half])


def possible(layout: Layout) -> bool:
    """Whether the processor has AVX2 without dot products, and the layout multiplies numbers of 16 bits for bytes."""
    of_words = not (layout.direct or layout.points)
    return layout.wide == 32 and of_words and layout.weights <= _MOST_WEIGHTS


def faster(quads: tuple[Quads, ...], layout: Layout) -> bool:
    """Whether blocks' quads take fewer multiplications than products of 16 bits do, about.

    Args:
        quads: Quads of each block of the convolution.
        layout: Layout without them.
    """
    vectors = layout.groups * sum(block.vectors for block in layout.blocks)
    needed = sum(one.multiplications * one.weights.shape[1] for one in quads)
    return bool(needed <= _MOST_COST * layout.steps.dots * vectors)


class ShortTile(Tile):
    """Tile whose `w` points to what `Quads.packed` returns."""

    def _sums(self) -> list[str]:
        wide = self.vectors * self.wide
        lines = [
            "const i32 *q = (const i32 *)w, *const groups = q;",
            "const vh each = (vh){} + 1;",
            f"w += q[{len(_SIZES)}], q += {_HEAD};",
        ]
        for number, size in enumerate(_SIZES):
            lines += [
                f"for (long k = 0; k < groups[{number}]; k++, q += {size}, w += {size * wide}) {{",
                *(f"const u8 *const q{i} = x + q[{i}];" for i in range(size)),
                *self._group(size),
                "}",
            ]
        return lines

    def _group(self, size: int) -> list[str]:
        """Return C of the products of a group of quads."""
        lines = []
        for p in range(self.pixels):
            lines.append("{")
            lines += [f"const vi z{i} = splat(*(const i32_u *)(q{i} + x{p}));" for i in range(size)]
            given = ", ".join(f"z{i}" for i in range(size))
            for v in range(self.vectors):
                at = f"w + {v * self.wide}, {self.vectors * self.wide}"
                lines.append(f"a{p}_{v} = short_dot{size}(a{p}_{v}, {given}, {at}, each);")
            lines.append("}")
        return lines
