"""Evidence, for all time, that a served model breaks its limit: a test martingale of audited answers.

Each audited answer is a number: 1 where the exact model answers otherwise, 0 where it doesn't; or a
loss of score in [-1, 1]. The null hypothesis is "whatever came before, the next number is at most the
limit in expectation". A bettor who stakes the share b of a capital of 1 against it holds
prod (1 + b (x_t - limit)), a supermartingale, so the chance that it ever reaches 1 / alpha is at most
alpha (Ville). Here the capital is shared out, before any number is seen, to several stakes and to
all moments at which betting may begin, so the sum is one such capital: it finds small and large
breaches, early and late. The chance is for all time, not per day.

All that it remembers is one number for each stake, since capitals of one stake that begin at
different moments grow by the same factors: their sum follows s -> (s + fresh) (1 + b (x - limit)).
Sources: Ville 1939; Waudby-Smith and Ramdas, JRSS B 86:1, 2024; Shin, Ramdas and Rinaldo, NEJSDS 2:2,
2024 (e-detectors), whose weights for moments don't sum to 1: they bound how often false alarms come.
design/monitor.md has the argument, and why processes on several machines may be added up.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hasten.errors import InputError

Floats: TypeAlias = NDArray[np.float64]
Refuted: TypeAlias = Callable[[float], bool]

ALPHA = 0.05
"""Largest chance that an alarm is ever raised though the limit is kept."""
BOUND_ALPHA = ALPHA / 4
"""Part of it for a limit that is itself a bound from the sealed data: the chance that it is too low."""
_FIRST = 0.5
"""Share of the capital that begins to bet at the first answer; the rest begins later."""
_PATIENCE = 500
"""Number of answers around which later beginnings are most dense, on a logarithmic scale."""
_MULTIPLES = ((1.5, 1.0), (2.0, 2.0), (3.0, 3.0), (5.0, 3.0), (10.0, 1.0), (30.0, 0.5))
"""Shares to look for, as multiples of the limit, and how much of the capital bets on each."""
_LARGEST = 0.95
"""Largest share to look for; also the largest stake on losses, of the one that may lose all."""
_STAKES = ((0.05, 1.0), (0.1, 2.0), (0.2, 3.0), (0.4, 3.0), (0.7, 1.0), (1.0, 0.5))
"""Stakes on a net loss, as shares of the largest, and how much of the capital bets each."""
_WIDTH = 1e-6


@dataclass(frozen=True)
class Batch:
    """Audited answers that were added up; the order of those in a batch is of no account.

    Attributes:
        n: Number of answers.
        losses: Sum of all numbers above 0: of changed answers, or of lost score.
        gains: Sum of all numbers below 0, as a positive number.
        growth: Logarithm of each stake's factor.
    """

    n: int
    losses: float
    gains: float
    growth: tuple[float, ...]

    def __add__(self, other: Batch) -> Batch:
        return Batch(
            self.n + other.n,
            self.losses + other.losses,
            self.gains + other.gains,
            tuple(a + b for a, b in zip(self.growth, other.growth, strict=True)),
        )

    def __sub__(self, other: Batch) -> Batch:
        return Batch(
            self.n - other.n,
            max(0.0, self.losses - other.losses),
            max(0.0, self.gains - other.gains),
            tuple(a - b for a, b in zip(self.growth, other.growth, strict=True)),
        )


@dataclass(frozen=True)
class Null:
    """Hypothesis that is tested: that an audited number is at most the limit in expectation.

    Attributes:
        limit: Largest mean that is allowed, in (0, 1).
        net: Whether numbers may be below 0, down to -1, as where gains make up for losses.

    Raises:
        InputError: the limit is outside (0, 1).
    """

    limit: float
    net: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.limit < 1:
            raise InputError(f"limit is a share between 0 and 1: got {self.limit}; 1% is 0.01")

    @property
    def bets(self) -> tuple[Floats, Floats]:
        """Stakes, and the share of the capital that bets each, both of shape (stakes,)."""
        return _bets(self.limit, self.net)

    def batch(self, values: Sequence[float] | Floats) -> Batch:
        """Add audited answers up.

        Args:
            values: Numbers of shape (n,), in [0, 1], or in [-1, 1] where they are net.

        Raises:
            InputError: a number is outside.
        """
        found = np.asarray(values, np.float64).reshape(-1)
        least = -1 if self.net else 0
        if not np.all((found >= least) & (found <= 1)):
            raise InputError(f"audited numbers must be between {least} and 1: got some outside")
        stakes, _ = self.bets
        growth = np.log1p(stakes[:, None] * (found - self.limit)).sum(axis=1)
        losses, gains = np.maximum(found, 0).sum(), np.maximum(-found, 0).sum()
        return Batch(found.size, float(losses), float(gains), tuple(growth.tolist()))

    def begun(self) -> Evidence:
        """Return the evidence before the first answer."""
        count, first = len(self.bets[0]), _begun_by(0)
        return Evidence(self.limit, self.net, 0, 0.0, 0.0, first, (math.log(first),) * count)


@dataclass(frozen=True)
class Evidence:
    """Evidence against a limit so far; of one size, however many answers it is from.

    Attributes:
        limit: Largest mean that is allowed.
        net: Whether numbers may be below 0.
        n: Number of audited answers.
        losses: Sum of all numbers above 0.
        gains: Sum of all numbers below 0, as a positive number.
        staked: Share of the capital that has begun to bet.
        capital: Logarithm of what each stake holds, per unit of capital.
    """

    limit: float
    net: bool
    n: int
    losses: float
    gains: float
    staked: float
    capital: tuple[float, ...]

    @property
    def null(self) -> Null:
        """Hypothesis that is tested."""
        return Null(self.limit, self.net)

    def after(self, batch: Batch) -> Evidence:
        """Return the evidence after some more answers.

        Capital that begins to bet does so before them, by the number of answers until then, so it
        can't depend on what they are, nor on how many they are.
        """
        if batch.n == 0:
            return self
        due = _begun_by(self.n)
        fresh = due - self.staked
        before = np.array(self.capital)
        if fresh > 0:
            before = np.logaddexp(before, math.log(fresh))
        return Evidence(
            self.limit,
            self.net,
            self.n + batch.n,
            self.losses + batch.losses,
            self.gains + batch.gains,
            max(due, self.staked),
            tuple((before + np.array(batch.growth)).tolist()),
        )

    @property
    def log_value(self) -> float:
        """Natural logarithm of the capital, which began as 1."""
        _, shares = self.null.bets
        bet = float(_log_mean(np.array(self.capital), shares))
        idle = 1 - self.staked
        return float(np.logaddexp(bet, math.log(idle))) if idle > 0 else bet

    def breaks(self, alpha: float = ALPHA) -> bool:
        """Whether the capital has reached 1 / alpha, so that the limit is held to be broken."""
        return self.log_value >= -math.log(alpha)

    @property
    def estimate(self) -> float | None:
        """Mean of the audited numbers; None before the first."""
        return (self.losses - self.gains) / self.n if self.n else None

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Return an interval that holds the mean so far, at all times together.

        The mean is that of the expectations of all numbers until now, which may differ.

        Args:
            alpha: Largest chance that it ever doesn't.
        """
        if not self.net:
            return _interval(self.n, self.losses, alpha)
        low, high = _interval(self.n, self.losses, alpha / 2)
        least, most = _interval(self.n, self.gains, alpha / 2)
        return low - most, high - least


@functools.lru_cache
def _bets(limit: float, net: bool) -> tuple[Floats, Floats]:
    """Return the stakes against a limit, and the share of the capital that bets each."""
    if net:
        stakes = np.array([stake * _LARGEST / (1 + limit) for stake, _ in _STAKES])
        shares = np.array([share for _, share in _STAKES])
    else:
        looked = np.array([multiple for multiple, _ in _MULTIPLES]) * limit
        # Between the limit and 1 even where the multiples are past it.
        looked = np.minimum(looked, limit + _LARGEST * (1 - limit))
        stakes = (looked - limit) / (limit * (1 - limit))
        shares = np.array([share for _, share in _MULTIPLES])
    return stakes, shares / shares.sum()


def _begun_by(n: int) -> float:
    """Return the share of the capital that begins to bet at the n-th answer, from 0, or earlier."""
    return 1 - (1 - _FIRST) * math.log(_PATIENCE) / math.log(_PATIENCE + n)


def _interval(n: int, total: float, alpha: float) -> tuple[float, float]:
    """Return the means that a beta mixture of bets doesn't refute, numbers in [0, 1] given.

    Robbins' mixture: against the mean p, bets on every other mean q at once have the capital
    B(total + 1/2, n - total + 1/2) / B(1/2, 1/2) / (p^total (1 - p)^(n - total)), which is no more
    than what they have on numbers between 0 and 1. It is least at the observed mean.
    """
    if n == 0:
        return 0.0, 1.0
    total = min(total, float(n))
    rest = n - total
    reached = _log_beta(total + 0.5, rest + 0.5) - _log_beta(0.5, 0.5) + math.log(alpha)

    def refuted(mean: float) -> bool:
        return bool(reached - _times_log(total, mean) - _times_log(rest, 1 - mean) >= 0)

    seen = total / n
    low, high = 0.0, 1.0
    if refuted(0.0):
        low = _border(0.0, seen, refuted)
    if refuted(1.0):
        high = _border(1.0, seen, refuted)
    return low, high


def _border(outside: float, inside: float, refuted: Refuted) -> float:
    """Return the refuted mean that is next to those that aren't, by bisection."""
    while abs(outside - inside) > _WIDTH * max(outside, inside):
        middle = (outside + inside) / 2
        if refuted(middle):
            outside = middle
        else:
            inside = middle
    return outside


def _log_mean(logs: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    """Return the logarithm of a weighted sum, without an overflow; a server has no scipy for it."""
    most = float(logs.max())
    return (
        most + math.log(float(np.sum(shares * np.exp(logs - most)))) if most > -math.inf else most
    )


def _log_beta(one: float, other: float) -> float:
    return math.lgamma(one) + math.lgamma(other) - math.lgamma(one + other)


def _times_log(factor: float, value: float) -> float:
    """Return factor * log(value); 0 where the factor is 0."""
    if factor == 0:
        return 0.0
    return factor * math.log(value) if value > 0 else -math.inf * factor
