"""Predict how long a batch will take, from the measured curve and from recent batches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

_RECENT = 64
_TOLD = 0.95
"""Quantile of recent batches' times that is used as the promised time."""
_WEIGHT = 1 / 16
_GUESSES = 8
"""Batches whose times a guessed curve is scaled by."""
_LEAST_RATIO, MOST_RATIO = 0.2, 50.0
"""Bounds of a batch's time relative to the curve; ratios beyond them are clipped."""


class Latencies:
    """Expected time of a batch by its rows, from a curve that recent batches keep up to date.

    The curve states how batch sizes compare; one factor for all sizes states how fast the machine
    is now.

    Args:
        p50_ns: Rows -> median time of a batch of that many rows, in nanoseconds; has the key 1.
        sizes: Allowed batch sizes, ascending; by default all up to the largest key of `p50_ns`.
        guessed: Whether the curve is a guess, whose scale follows from the quickest of the first batches.

    Attributes:
        most: Largest batch size.
        sizes: Allowed batch sizes, ascending.
        best: Batch size of the highest throughput.
        first: Rows waiting -> number of them that run in the first batch.
    """

    def __init__(
        self, p50_ns: Mapping[int, float], sizes: Sequence[int] = (), *, guessed: bool = False
    ) -> None:
        known = sorted(p50_ns)
        self.most = max(known[-1], *sizes, 1)
        self.sizes: tuple[int, ...] = tuple(sizes) or tuple(range(1, self.most + 1))
        rows = np.arange(self.most + 1)
        times = np.interp(rows, known, [p50_ns[size] for size in known])
        last, per_row_ns = known[-1], p50_ns[known[-1]] / known[-1]
        times[last:] += per_row_ns * (rows[last:] - last)
        # A larger batch is never faster: if the curve says so, that is noise.
        self._base: list[float] = np.maximum.accumulate(times).tolist()
        self._base[0] = 0.0
        self._factor: float = 1.0
        self._tail: float = 1.0
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._seen = 0
        self._to_guess = _GUESSES if guessed else 0
        self._quickest = math.inf
        self.best = min(self.sizes, key=lambda size: self._base[size] / size)
        self._per_row: float = self._base[self.best] / self.best
        self.first = _partition(self._base, self.sizes)

    def expected_ns(self, rows: int) -> float:
        """Return the expected time of a batch of `rows` rows at the machine's present speed."""
        return self._base[rows] * self._factor

    def measured_ns(self, rows: int) -> float:
        """Return the time of a batch by the measured curve alone, regardless of recent batches."""
        return self._base[rows]

    def promised_ns(self, rows: int) -> float:
        """Return the time that a batch will hardly exceed, for comparison with deadlines."""
        return self._base[rows] * self._tail

    def one_by_one(self) -> Latencies:
        """Return the same times where only rows of one request run together."""
        return Latencies({rows: self._base[rows] for rows in range(1, self.most + 1)}, (1,))

    def largest(self, span_ns: float) -> int:
        """Return the batch size of the highest throughput that is promised within a span, or 1."""
        able = [
            size for size in self.sizes if size <= self.best and self.promised_ns(size) <= span_ns
        ]
        return able[-1] if able else 1

    @property
    def capacity_per_s(self) -> float:
        """Highest throughput at the machine's present speed, in rows per second."""
        return float(1e9 / (self._per_row * self._factor))

    def observe(self, rows: int, took_ns: float) -> None:
        """Update the machine's speed with the time of a batch that was run."""
        if self._to_guess:
            self._guess(max(1.0, took_ns) / self._base[rows])
        ratio = min(max(took_ns / self._base[rows], _LEAST_RATIO), MOST_RATIO)
        self._seen += 1
        weight = max(_WEIGHT, 1 / self._seen)
        # One stall says little about the next batch, so it is clipped; the quantile below counts it.
        self._factor += weight * (min(ratio, 2 * self._factor) - self._factor)
        self._recent.append(ratio)
        if self._seen & 7 == 0 or self._seen < 8:
            ordered = sorted(self._recent)
            self._tail = max(self._factor, ordered[int(_TOLD * (len(ordered) - 1))])

    def _guess(self, ratio: float) -> None:
        """Scale a guessed curve to the quickest batch so far: the first one may include a compilation."""
        self._to_guess -= 1
        if ratio < self._quickest:
            self._quickest = 1.0
            self._base = [ratio * time_ns for time_ns in self._base]
            self._per_row *= ratio
            self._factor = self._tail = 1.0
            self._seen = 0
            self._recent.clear()


def _partition(base: list[float], sizes: Sequence[int]) -> list[int]:
    """Return, by the number of rows waiting, the size of the first batch with the least mean wait.

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
        # The larger of two equal choices needs fewer calls of the engine.
        first.append(max(rows for cost, rows in costs if cost <= least * (1 + 1e-9)))
    return first
