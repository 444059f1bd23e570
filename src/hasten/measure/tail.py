"""Upper bound of a tail quantile, such as a p99, over moments that may be alike for a while.

A round shows one moment of the host: what slows it slows all of its requests, and often the next
rounds too. So rounds are the units, each with the share of its requests beyond a threshold, and a
share that stays high for several rounds makes them worth fewer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_STAKES = ((1.0, 0.7), (0.6, 0.2), (0.3, 0.1))
"""Stakes, as parts of the largest that is allowed, and the part of the capital behind each."""
_THRESHOLDS = (1.0, 0.5, 0.25)
"""Parts of the share beyond the quantile at which dependence is looked for."""


def worth_in_time(values: Floats) -> float:
    """Return the number of independent values that a series in order of time is worth.

    Args:
        values: Series, at least one value.

    Source: n / (1 + 2 * sum of autocorrelations), summed over Geyer's initial positive pairs
    (Statist. Sci. 1992).
    """
    n = len(values)
    values = values - values.mean()
    if not values.any():
        return n
    spectrum = np.fft.rfft(values, 2 * n)
    correlation = np.fft.irfft(spectrum * np.conj(spectrum))[:n]
    correlation /= correlation[0]
    pairs = correlation[1 : n - 1 : 2] + correlation[2:n:2][: len(correlation[1 : n - 1 : 2])]
    negative = np.flatnonzero(pairs <= 0)
    total = float(pairs[: negative[0] if len(negative) else len(pairs)].sum())
    return n / (1 + 2 * total)


def lasting(values: Floats) -> float:
    """Return how many successive values of a series are alike on average, at least 1."""
    return max(1.0, len(values) / worth_in_time(values))


class Moments:
    """Rounds in order of time, as moments of the host.

    Args:
        blocks: Latencies of each round, in order of time; empty rounds are left out.
        by_time: Whether each round weighs alike, as requests at random times meet it, rather than
            each request: a slow round has fewer of them.
    """

    def __init__(self, blocks: Sequence[Floats], *, by_time: bool = False) -> None:
        blocks = [block for block in blocks if len(block)]
        self._lengths = np.array([len(block) for block in blocks])
        self._starts = np.cumsum([0, *self._lengths[:-1]])
        self._values = np.concatenate(blocks)
        # Weighed by requests, a round with many of them says more of the whole than another.
        self._parts = np.ones(len(blocks)) if by_time else self._lengths / self._lengths.max()
        order = np.argsort(self._values, kind="stable")
        self._sorted = self._values[order]
        weights = np.repeat(self._parts / self._lengths, self._lengths)[order]
        self._above = 1 - np.cumsum(weights) / weights.sum()

    def at(self, share: float) -> float:
        """Return the least latency that at most this share of the weight lies beyond."""
        place = int(np.searchsorted(-self._above, -share - 1e-12))
        return float(self._sorted[min(place, len(self._sorted) - 1)])

    def beyond(self, threshold: float) -> Floats:
        """Return the share of each round's requests that took longer than a threshold."""
        counts = np.add.reduceat(self._values > threshold, self._starts, dtype=np.int64)
        return np.asarray(counts / self._lengths, np.float64)

    def alike(self, q: float) -> float:
        """Return how many successive rounds are alike in their share beyond a quantile, at least 1.

        Less frequent latencies may come together though those at the quantile don't.
        """
        shares = (part * (1 - q) for part in _THRESHOLDS)
        return max(lasting(self._parts * self.beyond(self.at(share))) for share in shares)

    def upper(self, q: float, alpha: float) -> float | None:
        """Return an upper confidence bound of a quantile; None where too few moments establish one.

        Rounds bet against the claim that more than `1 - q` lies beyond a threshold. The bound is the
        least threshold at which the capital shows the claim wrong. Nothing is assumed of the
        latencies within a round. Where `k` rounds are alike, `k` of them count as one.

        Args:
            q: Quantile in (0, 1).
            alpha: Chance that the bound may be wrong where rounds differ independently.

        Source: betting on the mean of bounded values (Waudby-Smith and Ramdas, J. R. Stat. Soc. B
        86:1, 2024), with fixed stakes, so that the mean over time is bounded where it drifts.
        """
        alike, least = self.alike(q), math.log(1 / alpha)

        def shown(threshold: float) -> bool:
            return self._capital(threshold, 1 - q, alike) >= least

        if not shown(float(self._sorted[-1])):
            return None
        low, high = -1, len(self._sorted) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if shown(float(self._sorted[middle])) else (middle, high)
        return float(self._sorted[high])

    def _capital(self, threshold: float, share: float, alike: float) -> float:
        """Return the logarithm of what 1 has become, betting that less than a share is beyond."""
        excess = self._parts * (self.beyond(threshold) - share)
        with np.errstate(divide="ignore"):
            grown = [
                math.log(weight) + float(np.log1p(-stake / (1 - share) * excess).sum()) / alike
                for stake, weight in _STAKES
            ]
        return float(np.logaddexp.reduce(grown))
