"""How long a batch will take: the measured curve, and what the batches of late came to."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

_RECENT = 64
_TOLD = 0.95
"""The quantile of recent batches that a promise goes by."""
_WEIGHT = 1 / 16
_LEAST, _MOST = 0.2, 50.0
"""How far from the curve a machine may drift before it is another one."""


class Latencies:
    """Expected time of a batch by its rows, from a curve that batches keep up to date.

    The curve says how sizes compare; a factor, the same for all sizes, says how fast the machine
    is now.

    Args:
        p50_ns: Rows -> median time of a batch of so many, in nanoseconds; with a 1 in it.
        sizes: The batches that may be made; all up to the largest without.

    Attributes:
        most: The largest batch.
        sizes: The batches that may be made.
        best: The one of most throughput.
        first: Rows waiting -> how many of them go first.
    """

    def __init__(self, p50_ns: Mapping[int, float], sizes: Sequence[int] = ()) -> None:
        known = sorted(p50_ns)
        self.most = max(known[-1], *sizes, 1)
        self.sizes: tuple[int, ...] = tuple(sizes) or tuple(range(1, self.most + 1))
        rows = np.arange(self.most + 1)
        times = np.interp(rows, known, [p50_ns[size] for size in known])
        last, per_row_ns = known[-1], p50_ns[known[-1]] / known[-1]
        times[last:] += per_row_ns * (rows[last:] - last)
        # A larger batch isn't faster: where it looks so, that is noise.
        self._base: list[float] = np.maximum.accumulate(times).tolist()
        self._base[0] = 0.0
        self._factor: float = 1.0
        self._tail: float = 1.0
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._seen = 0
        self.best = min(self.sizes, key=lambda size: self._base[size] / size)
        self._per_row: float = self._base[self.best] / self.best
        self.first = _partition(self._base, self.sizes)

    def expected_ns(self, rows: int) -> float:
        """The time that a batch of so many rows will take, half of the time at least."""
        return self._base[rows] * self._factor

    def measured_ns(self, rows: int) -> float:
        """The time by the curve, whatever batches of late came to."""
        return self._base[rows]

    def promised_ns(self, rows: int) -> float:
        """The time that it will hardly exceed: what a deadline is held against."""
        return self._base[rows] * self._tail

    def largest(self, span_ns: float) -> int:
        """The batch of most throughput that hardly takes longer than a span; 1 where none does."""
        able = [
            size for size in self.sizes if size <= self.best and self.promised_ns(size) <= span_ns
        ]
        return able[-1] if able else 1

    @property
    def capacity_per_s(self) -> float:
        """Rows a second at most."""
        return float(1e9 / (self._per_row * self._factor))

    def observe(self, rows: int, took_ns: float) -> None:
        """Learn from a batch that was run."""
        ratio = min(max(took_ns / self._base[rows], _LEAST), _MOST)
        self._seen += 1
        weight = max(_WEIGHT, 1 / self._seen)
        # One stall says little of the next batch; the quantile below keeps it in mind.
        self._factor += weight * (min(ratio, 2 * self._factor) - self._factor)
        self._recent.append(ratio)
        if self._seen & 7 == 0 or self._seen < 8:
            ordered = sorted(self._recent)
            self._tail = max(self._factor, ordered[int(_TOLD * (len(ordered) - 1))])


def _partition(base: list[float], sizes: Sequence[int]) -> list[int]:
    """For so many rows waiting: how many go first, so that all are done soonest in the mean.

    Source: dynamic programming over the total completion time. A batch of b out of n rows keeps
    all n waiting for its time: f(n) = min over b of n T(b) + f(n - b).
    """
    total, first = [0.0], [0]
    for count in range(1, len(base)):
        costs = [
            (count * base[rows] + total[count - rows], rows) for rows in sizes if rows <= count
        ]
        least = min(costs)[0]
        total.append(least)
        # Of equals the larger: fewer calls.
        first.append(max(rows for cost, rows in costs if cost <= least * (1 + 1e-9)))
    return first
