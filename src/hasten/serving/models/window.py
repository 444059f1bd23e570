"""Count the requests of the last minute and their latencies, second by second."""

from __future__ import annotations

import numpy as np

from hasten.core.tensors import Array

SECONDS = 60
_SLOTS = 64
_SECOND_NS = 1_000_000_000
_LEAST_LOG2, _OCTAVES, _PER_OCTAVE = 10, 24, 16
"""Layout of the histogram's bins: from a microsecond to 17 seconds, each 4% wide."""
_BINS = _OCTAVES * _PER_OCTAVE


class Window:
    """Histograms of latencies, one per second, in a fixed 100 kB of memory."""

    def __init__(self) -> None:
        self._counts = np.zeros((_SLOTS, _BINS), np.int32)
        self._seconds = np.full(_SLOTS, -1, np.int64)
        """Slot -> second that its histogram counts."""

    def add_all(self, at_ns: Array, spans_ns: Array) -> None:
        """Count requests.

        Args:
            at_ns: Time when each request was answered, on the monotonic clock.
            spans_ns: Latency of each request, in nanoseconds.
        """
        seconds = at_ns // _SECOND_NS
        octaves = np.log2(np.maximum(spans_ns, 1)) - _LEAST_LOG2
        bins = np.clip(_PER_OCTAVE * octaves, 0, _BINS - 1).astype(np.int64)
        for second in np.unique(seconds)[-_SLOTS:].tolist():
            slot = second % _SLOTS
            if self._seconds[slot] > second:
                continue
            if self._seconds[slot] != second:
                self._seconds[slot] = second
                self._counts[slot] = 0
            self._counts[slot] += np.bincount(bins[seconds == second], minlength=_BINS)

    def counts(self, now_ns: int) -> Array:
        """Return the histograms of the last whole seconds, oldest first: int64[60, bins]."""
        now = now_ns // _SECOND_NS
        wanted = np.arange(now - SECONDS, now)
        slots = wanted % _SLOTS
        counts = self._counts[slots].astype(np.int64)
        counts[self._seconds[slots] != wanted] = 0
        return counts


def quantiles_ns(counts: Array, share: float) -> list[int | None]:
    """Return a quantile of each histogram in nanoseconds, to within 2%; None for an empty one.

    Args:
        counts: int64[histograms, bins], as `Window.counts` returns them.
        share: Quantile by nearest rank, such as 0.5 for the median.
    """
    below = counts.cumsum(axis=1)
    total = below[:, -1]
    rank = np.maximum(1, np.ceil(share * total)).astype(np.int64)
    bins = (below >= rank[:, None]).argmax(axis=1)
    spans = 2.0 ** (_LEAST_LOG2 + (bins + 0.5) / _PER_OCTAVE)
    return [round(span) if n else None for span, n in zip(spans.tolist(), total, strict=True)]
