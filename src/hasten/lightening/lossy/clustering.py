"""Few values that stand for many: k-means along one axis."""

from __future__ import annotations

import numpy as np

from hasten.core.tensors import Array

_ROUNDS = 100


def clustered(values: Array, most: int) -> tuple[Array, Array]:
    """Return values that stand for others, and which of them stands for each.

    The first ones are spread evenly from the lowest to the highest value, so that large weights, which
    are few and matter most, keep values of their own. Values that stand for none are left out.

    Args:
        values: Numbers of shape (n,), n at least 1.
        most: Largest number of values to stand for them, at least 1.

    Returns:
        Values of shape (k,), rising, k at most `most`; and the place of each number's among them, (n,).

    Source: Lloyd's algorithm; linear initialization, Han et al., "Deep Compression",
    arXiv:1510.00149, section 3.2.
    """
    numbers = np.asarray(values, np.float64)
    known = np.unique(numbers)
    centers = known if len(known) <= most else np.linspace(known[0], known[-1], most)
    for _ in range(_ROUNDS):
        nearest = _nearest(numbers, centers)
        counts = np.bincount(nearest, minlength=len(centers))
        sums = np.bincount(nearest, numbers, minlength=len(centers))
        moved = (sums[counts > 0] / counts[counts > 0]).astype(np.float64)
        if len(moved) == len(centers) and np.array_equal(moved, centers):
            break
        centers = moved
    nearest = _nearest(numbers, centers)
    used, places = np.unique(nearest, return_inverse=True)
    return centers[used].astype(values.dtype), places.reshape(-1)


def _nearest(numbers: Array, centers: Array) -> Array:
    """Return the place of the nearest of some rising centers, (n,)."""
    return np.searchsorted((centers[1:] + centers[:-1]) / 2, numbers)
