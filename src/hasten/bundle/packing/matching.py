"""Find stretches of new bytes that stand in older bytes, too, wherever they stand there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hasten.core.tensors import Array

_BLOCK_DOUBLINGS = 5
BLOCK = 1 << _BLOCK_DOUBLINGS
"""Number of bytes that have to agree before a stretch is looked at."""
_STEP = 8
_LEAST = 40
"""Least length of a stretch: to state a shorter one takes as much room as its bytes."""
_COMPARED = 1 << 16
_FACTOR = 0x9E3779B97F4A7C15
MOST_BYTES = 64 << 20
"""Largest number of bytes to look through: hashing takes 16 bytes of memory for each."""


@dataclass(frozen=True)
class Match:
    """A stretch of new bytes that stands in the older ones.

    Attributes:
        new: Place of its first byte in the new ones.
        old: Place of its first byte in the older ones.
        length: Number of bytes.
    """

    new: int
    old: int
    length: int


def matches(new: Array, old: Array) -> Iterator[Match]:
    """Yield stretches of the new bytes that stand in the older ones, in order and apart.

    A hash of every block of the new bytes is looked up among those of some blocks of the older ones, as
    rsync does; a match then grows as far as the bytes agree.

    Args:
        new: New bytes: uint8 of shape (n,).
        old: Older bytes: uint8 of shape (m,).

    Source: Tridgell, "Efficient Algorithms for Sorting and Synchronization", 1999.
    """
    if min(len(new), len(old)) < BLOCK or max(len(new), len(old)) > MOST_BYTES:
        return
    found = _Found(new, old)
    place = last_old = last_new = 0
    while (candidate := found.next_from(place)) is not None:
        at, places = candidate
        beside = last_old + (at - last_new)  # where the stretch would go on after a change in place
        best = Match(at, 0, 0)
        for start in {beside, *places}:
            if 0 <= start <= len(old) - BLOCK:
                best = max(best, found.grown(at, start, last_new), key=lambda match: match.length)
        if best.length < _LEAST:
            place = at + 1
            continue
        yield best
        place = last_new = best.new + best.length
        last_old = best.old + best.length


class _Found:
    """Blocks of the new bytes whose hash is among those of the older ones.

    Args:
        new: New bytes.
        old: Older bytes.
    """

    def __init__(self, new: Array, old: Array) -> None:
        self._new, self._old = new, old
        hashes = _hashes(old)[::_STEP]
        order = np.argsort(hashes, kind="stable")
        self._sorted, self._places = hashes[order], order * _STEP
        wanted = _hashes(new)
        self._first = np.searchsorted(self._sorted, wanted)
        capped = np.minimum(self._first, len(self._sorted) - 1)
        self._at = np.flatnonzero(self._sorted[capped] == wanted)

    def next_from(self, place: int) -> tuple[int, list[int]] | None:
        """Return the next new block that was found, and one or two places of it in the older bytes."""
        number = int(np.searchsorted(self._at, place))
        if number == len(self._at):
            return None
        at = int(self._at[number])
        first = int(self._first[at])
        last = int(np.searchsorted(self._sorted, self._sorted[first], side="right")) - 1
        return at, [int(self._places[first]), int(self._places[last])]

    def grown(self, new: int, old: int, least: int) -> Match:
        """Return the stretch around a place in the new bytes and one in the older, so far as both agree.

        Args:
            new: Place in the new bytes.
            old: Place in the older bytes.
            least: Place in the new bytes before which it may not begin.
        """
        after = _agreeing(self._new[new:], self._old[old:])
        if not after:
            return Match(new, old, 0)
        back = min(new - least, old)
        before = _agreeing(self._new[new - back : new][::-1], self._old[old - back : old][::-1])
        return Match(new - before, old - before, before + after)


def _hashes(data: Array) -> Array:
    """Return the hash of the block that begins at each byte: uint64 of shape (n - BLOCK + 1,)."""
    found, factor = data.astype(np.uint64) + np.uint64(1), _FACTOR
    for doubling in range(_BLOCK_DOUBLINGS):
        size = 1 << doubling
        found = found[:-size] * np.uint64(factor) + found[size:]
        factor = factor * factor % (1 << 64)
    return found


def _agreeing(one: Array, other: Array) -> int:
    """Return the number of bytes from the beginning that agree."""
    most = min(len(one), len(other))
    size, begin = 64, 0
    while begin < most:
        end = min(most, begin + size)
        unlike = np.flatnonzero(one[begin:end] != other[begin:end])
        if len(unlike):
            return begin + int(unlike[0])
        begin, size = end, min(4 * size, _COMPARED)
    return most
