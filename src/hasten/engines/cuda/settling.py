"""A warm-up that lasts until a GPU's clocks stand still."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from hasten.engines.cuda.gauge import Gauge

_SLICE_NS = 25_000_000
_SLICES = 5
"""Number of slices, one after another, in which the pace may differ by `_ALIKE`."""
_ALIKE = 0.02
_NEAR = 0.9
"""Least share of the highest clock so far at which a device counts as warm."""
_FIRST_NS = 500_000_000
"""Least length of a first warm-up: an idle GPU's clock waits before it rises, some of them in steps."""
_MOST_NS = 2_000_000_000


class Settling:
    """Warm-up of one device.

    Args:
        gauge: Gauge of the device's clock. Where it tells none, requests in a second are counted.
        clock_ns: Monotonic clock, in nanoseconds.
    """

    def __init__(self, gauge: Gauge, clock_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._gauge, self._clock_ns = gauge, clock_ns
        self._highest_mhz, self._least_ns = 0, _FIRST_NS

    def __call__(self, again: Callable[[], object]) -> bool:
        """Repeat a request until the pace stands still near the highest clock so far, for 2 s at most.

        Args:
            again: Function that has the device answer one request, and waits for it.

        Returns:
            Whether the pace stood still in that time.
        """
        began, least_ns, self._least_ns = self._clock_ns(), self._least_ns, 0
        last = deque[float](maxlen=_SLICES)
        while (spent_ns := self._clock_ns() - began) < _MOST_NS:
            last.append(self._pace_of_slice(again))
            still = len(last) == _SLICES and max(last) - min(last) <= _ALIKE * max(last)
            if still and spent_ns >= least_ns and last[-1] >= _NEAR * self._highest_mhz:
                return True
        return False

    def _pace_of_slice(self, again: Callable[[], object]) -> float:
        """Repeat a request for a while; return the clock after it, or else the requests in a second."""
        begin, count = self._clock_ns(), 0
        while (spent_ns := self._clock_ns() - begin) < _SLICE_NS:
            again()
            count += 1
        reading = self._gauge.reading()
        if reading is not None and reading.clock_mhz:
            self._highest_mhz = max(self._highest_mhz, reading.clock_mhz)
            return float(reading.clock_mhz)
        return count / max(1, spent_ns) * 1e9
