"""Nearest neighbours among rows of numbers, and how surprisingly near the nearest one is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

COUNT = 10
"""Neighbours of each row; so up to nine copies of it leave one that shows how far others lie."""
_ROWS, _OTHERS = 512, 8192
"""Rows compared at a time, so that distances take 16 MiB."""
_FIRST = 2048
"""Others compared first, to find a row's first bound; the least of many are slow to find."""
_LEAST_GROWTH = 1e-9
"""Least logarithm of a ratio of two distances that is more than rounding; equal ones tell nothing of the dimension."""
_AROUND = 10
"""Values of a column on either side of one that say how densely values lie there."""
_FEW = 256
"""Largest count of numbers below a row's bound that are looked at one by one."""


def nearest(
    rows: npt.NDArray[np.float32], others: npt.NDArray[np.float32]
) -> tuple[Floats, Indices]:
    """Return the nearest of other rows to each row, nearest first.

    Args:
        rows: Rows to find neighbours of, `(n, width)`.
        others: Rows to find them among, `(m, width)`.

    Returns:
        Distances and positions of the neighbours, `(n, k)` each, where k is 10, or m if that is less.
    """
    count = min(COUNT, len(others))
    best = np.full((len(rows), count), np.inf, np.float32)
    places = np.zeros((len(rows), count), np.int64)
    first = min(_FIRST, len(others))
    rest = [(first + start, first + stop) for start, stop in _blocks(len(others) - first, _OTHERS)]
    for start, stop in [(0, first), *rest]:
        # One product gives each distance squared, but for the row's own length, which changes no order.
        some = others[start:stop]
        some = np.concatenate([some, np.square(some).sum(axis=1, keepdims=True)], axis=1)
        for low, high in _blocks(len(rows), _ROWS):
            ones = np.ones((high - low, 1), np.float32)
            apart = np.concatenate([-2 * rows[low:high], ones], axis=1) @ some.T
            values, near = _below(apart, best[low:high].max(axis=1))
            merged = np.hstack([best[low:high], values])
            kept = np.argpartition(merged, count - 1, axis=1)[:, :count]
            both = np.hstack([places[low:high], near + start])
            places[low:high] = np.take_along_axis(both, kept, 1)
            best[low:high] = np.take_along_axis(merged, kept, 1)
    return _ordered(rows, others, places)


def _below(
    apart: npt.NDArray[np.float32], bound: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], Indices]:
    """Return each row's numbers below its bound, 10 of the least at least, and their positions.

    Rows with fewer than others are filled up with infinity. To compare with a bound takes a fifth of the
    time that it takes to find the least, and after some blocks hardly any number is below.
    """
    count, width = apart.shape
    known = bool(np.isfinite(bound).all())
    if known or width <= COUNT:
        row, column = np.divmod(np.flatnonzero(apart < bound[:, np.newaxis]), width)
        counts = np.bincount(row, minlength=count)
    if width > COUNT and (not known or counts.max() > _FEW):
        near = np.argpartition(apart, COUNT - 1, axis=1)[:, :COUNT]
        return np.take_along_axis(apart, near, 1), np.asarray(near)
    width = int(counts.max())
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    values = np.full((len(apart), width), np.inf, np.float32)
    near = np.zeros((len(apart), width), np.int64)
    values[row, place], near[row, place] = apart[row, column], column
    return values, near


def _blocks(count: int, step: int) -> list[tuple[int, int]]:
    return list(pairwise([*range(0, count, step), count]))


def _ordered(
    rows: npt.NDArray[np.float32], others: npt.NDArray[np.float32], places: Indices
) -> tuple[Floats, Indices]:
    """Return neighbours in order; differences are taken again, since small ones were lost in float32."""
    distances = np.empty(places.shape)
    for low, high in _blocks(len(rows), _ROWS):
        apart = rows[low:high, np.newaxis].astype(np.float64) - others[places[low:high]]
        distances[low:high] = np.sqrt(np.square(apart).sum(axis=2))
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, 1), np.take_along_axis(places, order, 1)


def chance(distances: Floats) -> Floats:
    """Return the chance that a row that is no copy lies as near to its nearest neighbour as it does.

    Around a row that is no copy the others lie evenly, so the share of the ball around the farthest
    neighbour that the ball around the nearest takes is the least of k - 1 uniform numbers. The data's
    dimension, which says how balls grow, comes from the middle neighbours, as few copies reach them
    (after Levina and Bickel, NIPS 2004).

    Args:
        distances: Distances of each row's k neighbours, nearest first, `(n, k)`.

    Returns:
        Chances `(n,)`, in [0, 1].
    """
    count = distances.shape[1]
    middle = count // 2
    far = np.maximum(distances[:, -1], np.finfo(np.float64).tiny)
    with np.errstate(divide="ignore"):
        growth = np.log(far / distances[:, middle - 1])
    growth = growth[np.isfinite(growth) & (growth > _LEAST_GROWTH)]
    if not len(growth):
        return np.ones(len(distances))
    dimension = sum(1 / i for i in range(middle, count)) / float(np.median(growth))
    share = np.minimum(distances[:, 0] / far, 1.0) ** dimension
    share[distances[:, -1] <= 0] = 1.0
    with np.errstate(divide="ignore"):
        return np.asarray(-np.expm1((count - 1) * np.log1p(-share)))


def coincidences(
    rows: npt.NDArray[np.float32],
    partners: npt.NDArray[np.float32],
    others: npt.NDArray[np.float32],
) -> Floats:
    """Return how many of the other rows lie as near to a row as its partner by chance, in each column.

    It is their number times each column's share of values that are as near, as if columns were independent. So rows
    of a few columns with few values, of which many are equal, aren't taken for copies of each other: `chance` alone
    would, since it takes columns for continuous. The partner itself doesn't count. Where no other value is as near,
    the share follows from how densely values lie there, but it is at least that of a value that occurs once among
    values of which so many occur again.

    Args:
        rows: Rows, `(k, width)`.
        partners: Another row for each, `(k, width)`.
        others: All other rows, `(m, width)`.

    Returns:
        Expected numbers, `(k,)`.
    """
    count = len(others)
    expected = np.full(len(rows), float(count))
    for own, partner, column in zip(rows.T, partners.T, others.T, strict=True):
        values = np.sort(column.astype(np.float64))
        again = 1 - len(np.unique(values)) / count
        middle = own.astype(np.float64)
        apart = np.abs(middle - partner)
        within = apart * (1 + 1e-9)
        low = np.searchsorted(values, middle - within, "left")
        high = np.searchsorted(values, middle + within, "right")
        left, right = np.maximum(low - _AROUND, 0), np.minimum(high + _AROUND, count) - 1
        width = np.maximum(values[right] - values[left], np.finfo(np.float64).tiny)
        dense = np.minimum(2 * apart / width, 1.0) * (right - left) / count
        expected *= np.maximum(np.maximum(high - low - 1, again) / count, dense)
    return expected
