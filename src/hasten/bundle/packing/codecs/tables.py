"""Counts of bytes, and the part of the alphabet that a table states."""

from __future__ import annotations

import numpy as np

from hasten.bundle.packing.codecs import native
from hasten.core.tensors import Array


def counts_of(data: Array) -> Array:
    """Return how often each byte occurs: int64 of shape (256,)."""
    if (coders := native.for_coding()) is not None:
        return coders.counts(data).astype(np.int64)
    return np.bincount(data, minlength=256)


def entropy_bytes(counts: Array) -> float:
    """Return the least size in bytes of any code that codes each byte by itself, without its table."""
    held = counts[counts > 0]
    return float(held @ np.log2(held.sum() / held)) / 8


def stated(held: Array) -> tuple[int, int]:
    """Return the shortest run of bytes that has all that occur; byte 0 follows byte 255.

    Small signed numbers lie around 0, so their run is short.

    Args:
        held: Whether each byte occurs: bool of shape (256,), not all False.

    Returns:
        First byte of the run, and its length.
    """
    places = np.flatnonzero(held)
    gaps = np.diff(places, append=places[0] + 256)
    widest = int(np.argmax(gaps))
    return int(places[(widest + 1) % len(places)]), 257 - int(gaps[widest])
