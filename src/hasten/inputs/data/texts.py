"""Texts, as token ids, that are largely the same: by hashes that agree as often as texts overlap."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.core.tensors import Array

Hashes = npt.NDArray[np.uint32]
Indices = npt.NDArray[np.int64]

OVERLAP = 0.6
"""Share of the runs of three tokens in either of two texts that both have, from which they are alike."""
_RUN, _LEAST_RUNS = 3, 8
"""Tokens of a run, and the fewest different runs of a text that is compared."""
_BANDS, _EACH = 16, 4
"""Groups of hashes, and hashes of a group. Texts that overlap by 0.6 share a group in 9 of 10 cases."""
_AT_ONCE = 512
"""Texts hashed at a time."""
_HALF = np.uint64(32)
_COMPARED = 64
"""Largest number of texts with a group of hashes in common that a text is compared with."""


def alike(texts: Iterable[Array], others: Iterable[Array]) -> tuple[Indices, Indices]:
    """Find the texts that largely repeat one of some others.

    Of each text the least of 64 hashes of its runs of three tokens are kept, which agree as often as
    the runs of two texts overlap (Broder 1997). Texts with four hashes in a row in common are compared.

    Args:
        texts: Token ids of some texts at a time, `(k, length)`; the same token over and over at the end is
            padding.
        others: Token ids of the texts that may be repeated, in the same form.

    Returns:
        Positions of the texts that repeat another, those that overlap most first, and of the others.
    """
    mine, own = _sketched(texts)
    theirs, places = _sketched(others)
    best = np.zeros(len(mine))
    partner = np.zeros(len(mine), np.int64)
    for start in range(0, _BANDS * _EACH, _EACH):
        band = slice(start, start + _EACH)
        for text, other in _sharing(_key(mine[:, band]), _key(theirs[:, band])):
            overlap = (mine[text] == theirs[other]).mean(axis=1)
            better = overlap > best[text]
            best[text[better]], partner[text[better]] = overlap[better], other[better]
    found = np.flatnonzero(best >= OVERLAP)
    found = found[np.argsort(-best[found], kind="stable")]
    return own[found], places[partner[found]]


def _sketched(texts: Iterable[Array]) -> tuple[Hashes, Indices]:
    """Return the least hashes of each text, `(k, 64)`, and the positions of texts long enough, `(k,)`."""
    rng = np.random.default_rng(0)
    odd, added = rng.integers(0, 2**31, (2, _BANDS * _EACH), np.uint32)
    odd = odd * np.uint32(2) + np.uint32(1)
    sketches, places, read = [np.zeros((0, len(odd)), np.uint32)], [np.zeros(0, np.int64)], 0
    for chunk in texts:
        for start in range(0, len(chunk), _AT_ONCE):
            part = chunk[start : start + _AT_ONCE]
            runs = _runs(part)
            many = (np.diff(np.sort(runs, axis=1), axis=1) != 0).sum(axis=1) + 1 >= _LEAST_RUNS
            least = np.empty((len(part), len(odd)), np.uint32)
            for one, (factor, term) in enumerate(zip(odd, added, strict=True)):
                mixed = runs * factor
                mixed += term
                mixed ^= mixed >> np.uint32(15)
                mixed *= factor
                least[:, one] = mixed.min(axis=1)
            sketches.append(least[many])
            places.append(np.flatnonzero(many) + read)
            read += len(part)
    return np.concatenate(sketches), np.concatenate(places)


def _runs(texts: Array) -> Hashes:
    """Return the runs of three tokens in each text, hashed, `(n, length)`.

    In the place of padding at the end of a text stands its first run once more.
    """
    count, length = texts.shape
    if length < _RUN:
        return np.zeros((count, 1), np.uint32)
    ids = texts.astype(np.uint64)
    padding = np.cumprod((texts == texts[:, -1:])[:, ::-1], axis=1).sum(axis=1)
    ends = np.maximum(length - padding + 1, _RUN)  # one token of the padding ends the text
    windows = np.stack([ids[:, :-2], ids[:, 1:-1], ids[:, 2:]], axis=2)
    runs = (_key(windows.reshape(-1, _RUN)) >> _HALF).astype(np.uint32).reshape(count, -1)
    inside = np.arange(length - 2) < (ends - 2)[:, np.newaxis]
    return np.where(inside, runs, runs[:, :1])


def _key(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Return one number for each row of numbers."""
    key = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        key = (key ^ column) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> _HALF
    return key


def _sharing(
    mine: npt.NDArray[np.uint64], theirs: npt.NDArray[np.uint64]
) -> list[tuple[Indices, Indices]]:
    """Return pairs of positions with equal keys: the first partner of each, then the second, ..."""
    order = np.argsort(theirs, kind="stable")
    low = np.searchsorted(theirs[order], mine, "left")
    count = np.searchsorted(theirs[order], mine, "right") - low
    found = []
    for turn in range(min(_COMPARED, int(count.max(initial=0)))):
        text = np.flatnonzero(count > turn)
        found.append((text, order[low[text] + turn]))
    return found
