"""Quads of weights, in groups whose products with any bytes provably have sums of 16 bits; see `short_sums`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hasten.core.tensors import Array

SIZES = (3, 2, 1)
"""Numbers of quads of a group, in the order in which they follow each other."""
HEAD = 8
"""Whole numbers before a block's places."""
_MOST = 128
"""Largest sum of magnitudes of weights of one sign, times 255 of which fits in 16 bits."""
_OPEN = 64
"""Largest number of groups among which room for a quad is looked for."""
_LINE = 32
"""Bytes to which weights are aligned."""


@dataclass(frozen=True)
class Quads:
    """Quads of a block's weights, in groups.

    Attributes:
        places: Number of each quad in the picture, of int64, those of a group one after the other.
        weights: int8 of shape (quads, vectors, lanes, 4).
        groups: Number of groups of each of `SIZES`, which follow each other.
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
        size = -(-(HEAD + len(self.places)) * 4 // _LINE) * _LINE
        head = np.zeros(size // 4, np.int32)
        head[: len(SIZES) + 1] = *self.groups, size
        head[HEAD : HEAD + len(self.places)] = places[self.places]
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
        full[at] = len(groups[at]) == SIZES[0]
    groups.sort(key=len, reverse=True)
    order = np.array([quad for group in groups for quad in group])
    sizes = [len(group) for group in groups]
    return Quads(places[order], held[order], tuple(map(sizes.count, SIZES)))


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
