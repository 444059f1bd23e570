"""Memory of a model's tensors by the size of its input, and the rows that it lets run together."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.errors import InputError

MOST_STEPS = 64
"""Largest number of sizes that a bundle may state."""
_FARTHEST = 1 << 31
_MOST_BYTES = 1 << 62
_BEYOND_BYTES = 64 << 20
"""Memory that a request may take beyond the largest batch of the data's longest samples."""
_SHAPE_BYTES = 32 << 20
"""Memory that an engine may take once for shapes unlike those that it has seen, as a batch of several rows is."""
_BY_COUNT = 4
"""Factor by which memory may exceed the count of tensors, at most: see design/serving.md."""
_OF_THE_BATCH = 0.5
"""Part of the batch's count that engines surely take: they compute some tensors in place, or in smaller types."""
_DEGREE = 3
"""Power of the size by which memory is taken to grow beyond the largest size that was counted."""
_HALVINGS = 50
_ROUNDED = 1 + 1e-9
"""Factor that makes up for what logarithms round off a whole number of rows."""


@dataclass(frozen=True)
class Growth:
    """Memory of the tensors that exist at once while a model answers one sample of a size.

    Attributes:
        times: Size, as a multiple of the largest one in the data: the product of the ratios of its open dimensions. Below
            1 it is the largest of these ratios.
        memory_bytes: Largest number of bytes of any sample of that size, by a count of the exact model's tensors.
    """

    times: float
    memory_bytes: int


def check_growth(growth: Sequence[Growth]) -> None:
    """Check that sizes and their memory are possible.

    Raises:
        InputError: they aren't; the message says which.
    """
    if len(growth) > MOST_STEPS:
        raise InputError(f"it states memory for {len(growth):,} sizes, more than {MOST_STEPS}")
    last = Growth(0, 1)
    for one in growth:
        # Written so that NaN fails, too.
        if not last.times < one.times <= _FARTHEST or last.times < 1 < one.times:
            raise InputError(
                f"it states memory for a sample of {one.times} times the size after one of {last.times}"
            )
        if not last.memory_bytes <= one.memory_bytes <= _MOST_BYTES:
            raise InputError(
                f"it states {one.memory_bytes:,} bytes for a sample of {one.times} times the size"
            )
        last = one
    if growth and last.times < 1:
        raise InputError("it states memory for smaller samples only than the largest of the data")


class RowsTogether:
    """Number of rows of a size that take little more memory than the largest batch of the data's longest samples.

    Rows of q times the size take no more than a batch of B if there are at most B / q² of them, as long as memory
    grows with the size's square at most. Others may exceed a part of that batch by a number of bytes, by the count.

    Args:
        growth: Memory by size, among them that of the data; see `check_growth`.
        batch: Rows of the largest batch.
    """

    def __init__(self, growth: Sequence[Growth], batch: int) -> None:
        self._batch = batch
        (self._own,) = (one.memory_bytes for one in growth if one.times == 1)
        self._shares = [one.times for one in growth]
        self._times = [math.log(one.times) for one in growth]
        self._bytes = [math.log(one.memory_bytes) for one in growth]
        beyond = _BEYOND_BYTES if batch > 1 else _BEYOND_BYTES - _SHAPE_BYTES
        self._allowed = beyond / _BY_COUNT + _OF_THE_BATCH * batch * self._own

    def rows(self, times: float) -> float:
        """Return how many rows of some times the size in the data may run together; below 1 for none.

        Args:
            times: Size as a multiple of the largest in the data; see `Growth`.
        """
        grown = self._memory_bytes(times)
        alike = self._batch / max(1, times**2, grown / self._own)
        return _ROUNDED * max(alike, self._allowed / grown)

    def most_times(self, limit: float) -> float:
        """Return the largest size of which one row may run, from 1 to a limit."""
        low, high = 1.0, max(1.0, limit)
        if self.rows(high) >= 1:
            return high
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.rows(middle) >= 1 else (low, middle)
        return low

    def _memory_bytes(self, times: float) -> float:
        """Return the memory of a sample: between two sizes that of the power of the size that gives both.

        A sum of powers of the size is never more than that. Below the data's size it is that of the next larger size.
        """
        if times < 1:
            return math.exp(self._bytes[bisect_left(self._shares, times)])
        wanted = math.log(times)
        at = bisect_right(self._times, wanted) - 1
        if at == len(self._times) - 1:
            return math.exp(self._bytes[at] + _DEGREE * (wanted - self._times[at]))
        span, rise = (all_[at + 1] - all_[at] for all_ in (self._times, self._bytes))
        return math.exp(self._bytes[at] + rise * (wanted - self._times[at]) / span)
