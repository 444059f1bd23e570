"""Schedules of when requests are due."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hasten.errors import InputError
from hasten.measure.open_loop import arrivals as poisson_arrivals
from hasten.measure.scenario import Offer

Arrivals: TypeAlias = Literal["poisson", "constant"]
LONGEST_S = 86_400.0
MOST_REQUESTS = 5_000_000
"""Largest number of requests in one test; each takes about 100 bytes of memory until the end."""


@dataclass(frozen=True)
class Schedule:
    """Times at which requests are due, from the start of the warm-up.

    Attributes:
        due_ns: Due times, ascending, all below `warmup_ns + duration_ns`.
        warmup_ns: Length of the warm-up; requests due in it are sent, but not counted.
        duration_ns: Length of the window after the warm-up, in which requests count.
    """

    due_ns: tuple[int, ...]
    warmup_ns: int
    duration_ns: int

    @property
    def first_counted(self) -> int:
        """Return the index of the first request that counts."""
        return bisect_left(self.due_ns, self.warmup_ns)


def schedule(
    rate_per_s: float,
    duration_s: float,
    *,
    warmup_s: float = 0.0,
    arrivals: Arrivals = "poisson",
    seed: int = 0,
) -> Schedule:
    """Return a schedule of requests at a rate.

    Args:
        rate_per_s: Requests per second, on average.
        duration_s: Time during which requests count, in seconds.
        warmup_s: Time during which requests are sent before, in seconds.
        arrivals: "poisson", as from many independent clients, or "constant".
        seed: Seed of the Poisson process.

    Raises:
        InputError: a figure is out of range, or there would be too many requests or none.
    """
    if not (math.isfinite(rate_per_s) and rate_per_s > 0):
        raise InputError(f"the rate is in requests a second, above 0: got {rate_per_s:g}")
    if not 0 < duration_s <= LONGEST_S:
        raise InputError(
            f"the duration is in seconds, above 0 and at most {LONGEST_S:.0f}: got {duration_s:g}"
        )
    if not 0 <= warmup_s <= LONGEST_S:
        raise InputError(f"the warm-up is in seconds, from 0 to {LONGEST_S:.0f}: got {warmup_s:g}")
    if arrivals not in ("poisson", "constant"):
        raise InputError(f"arrivals are poisson or constant: got {arrivals!r}")
    if seed < 0:
        raise InputError(f"the seed is at least 0: got {seed}")
    warmup_ns, duration_ns = round(1e9 * warmup_s), round(1e9 * duration_s)
    expected = rate_per_s * (warmup_s + duration_s)
    if expected > MOST_REQUESTS:
        raise InputError(
            f"{rate_per_s:g} requests a second for {warmup_s + duration_s:g} s are "
            f"{expected:,.0f} requests, and one test sends at most {MOST_REQUESTS:,}: lower the "
            "rate or the duration"
        )
    due_ns = (
        _constant(rate_per_s, expected)
        if arrivals == "constant"
        else _poisson(rate_per_s, expected, warmup_s + duration_s, seed)
    )
    whole_ns = warmup_ns + duration_ns
    found = Schedule(tuple(due for due in due_ns if due < whole_ns), warmup_ns, duration_ns)
    if found.first_counted == len(found.due_ns):
        raise InputError(
            f"no request is due within {duration_s:g} s at {rate_per_s:g} a second: "
            "raise the rate or the duration"
        )
    return found


def _constant(rate_per_s: float, expected: float) -> list[int]:
    return [round(1e9 * number / rate_per_s) for number in range(math.ceil(expected))]


def _poisson(rate_per_s: float, expected: float, whole_s: float, seed: int) -> list[int]:
    """Return arrivals that reach past the end: ten standard deviations more than expected."""
    count = math.ceil(expected + 10 * math.sqrt(expected) + 30)
    return poisson_arrivals(Offer("server", count, whole_s, rate_per_s, seed=seed))
