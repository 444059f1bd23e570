"""Scenarios of a load generator: the requests sent to open sessions, and their results.

They are MLCommons' (Reddi et al., MLPerf Inference Benchmark, ISCA 2020, section IV): SingleStream
sends the next request once the last is answered, Server sends at random times whatever is still
unanswered, and Offline sends everything at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from hasten.core.records import to_record
from hasten.errors import InputError
from hasten.measure.closed_loop import Request
from hasten.measure.intervals import binomial_cdf

Scenario: TypeAlias = Literal["single-stream", "server", "offline"]
Run: TypeAlias = Callable[[Request], Any]
QUANTILE = 0.99
"""Quantile of the latencies that a bound holds for."""
CONFIDENCE = 0.99
"""Confidence that the bound holds, the same as LoadGen's."""
LONGEST_RUN_S = 600.0


@dataclass(frozen=True)
class Offer:
    """The requests to send to the sessions.

    Attributes:
        scenario: Scenario of the requests.
        requests: Fewest requests.
        duration_s: Shortest duration, in seconds.
        rate_per_s: Arrivals per second in the server scenario; else the answers per second to expect.
        bound_ns: Bound on latency in the server scenario, in nanoseconds; 0 for none.
        seed: Seed of the arrivals.
    """

    scenario: Scenario
    requests: int
    duration_s: float
    rate_per_s: float
    bound_ns: int = 0
    seed: int = 0

    @property
    def count(self) -> int:
        """Return the number of requests that the duration and the rate require."""
        return max(self.requests, round(self.duration_s * self.rate_per_s))


@dataclass(frozen=True)
class Load:
    """The result of one run under load.

    Attributes:
        offer: Requests that were to be sent.
        requests: Number of requests answered.
        throughput_per_s: Requests answered per second.
        mean_ns: Mean latency in nanoseconds, in the server scenario from when a request was due.
        p50_ns: Median latency in nanoseconds, measured like the mean.
        p90_ns: 90th percentile of the latency in nanoseconds, measured like the mean.
        p99_ns: 99th percentile of the latency in nanoseconds, measured like the mean.
        over_bound: Number of requests that took longer than the bound.
        holds: Whether at most 1% take longer, with 99% confidence if requests are independent;
            False without a bound.
        latency_ns: Latency of every request, in nanoseconds, in order.
    """

    offer: Offer
    requests: int
    throughput_per_s: float
    mean_ns: float
    p50_ns: float
    p90_ns: float
    p99_ns: float
    over_bound: int
    holds: bool
    latency_ns: tuple[int, ...] = ()


def check_bound(seconds: float | None, name: str = "latency bound") -> None:
    """Check a bound or a duration in seconds; None is allowed.

    Raises:
        InputError: it is out of range.
    """
    if seconds is not None and not 0 < seconds < LONGEST_RUN_S:
        raise InputError(
            f"the {name} is in seconds, above 0 and below {LONGEST_RUN_S:.0f}: got {seconds}"
        )


def load_of(offer: Offer, latency_ns: Sequence[int], elapsed_ns: int) -> Load:
    """Derive a run's result from its latencies, with quantiles defined as LoadGen does."""
    ordered = np.sort(np.asarray(latency_ns, np.float64))
    n = len(ordered)
    p50, p90, p99 = (float(ordered[int(n * q)]) for q in (0.5, 0.9, QUANTILE))
    over = int((ordered > offer.bound_ns).sum()) if offer.bound_ns else 0
    return Load(
        offer=offer,
        requests=n,
        throughput_per_s=1e9 * n / elapsed_ns,
        mean_ns=float(ordered.mean()),
        p50_ns=p50,
        p90_ns=p90,
        p99_ns=p99,
        over_bound=over,
        holds=bool(offer.bound_ns) and rarely_over(over, n),
        latency_ns=tuple(latency_ns),
    )


def rarely_over(over: int, count: int) -> bool:
    """Whether `over` of `count` show that at most 1% are over, with 99% confidence.

    That takes 459 requests if none is over, and 662 if one is.

    Source: LoadGen's early stopping: P(Binomial(count, 0.01) <= over) <= 0.01.
    """
    return bool(binomial_cdf(count, 1 - QUANTILE)[over] <= 1 - CONFIDENCE)


def shows_p99(load: Load) -> bool:
    """Whether a run has enough requests for a p99: 662, as LoadGen requires for an estimate."""
    return rarely_over(1, load.requests)


def highest_rate(
    capacity_per_s: float, holds: Callable[[float], bool], tries: int, least_per_s: float = 0.0
) -> float | None:
    """Find the highest rate at which a bound holds, by bisection.

    Args:
        capacity_per_s: Rate of answers of sessions that are never idle; a higher rate has no end.
        holds: Function that tries a rate.
        tries: Number of tries, each of which halves the open interval.
        least_per_s: Lowest rate to try.

    Returns:
        The highest rate that held; None where none did.
    """
    low, high = 0.0, capacity_per_s
    for _ in range(tries):
        rate = (low + high) / 2
        if rate < least_per_s:
            break
        low, high = (rate, high) if holds(rate) else (low, rate)
    return low or None


@dataclass(frozen=True)
class LoadTest:
    """The result of a bundle in one scenario.

    Attributes:
        scenario: Name of the scenario.
        load: Figures from a run of their own; None where no rate met the bound.
        tries: Rates tried before in the server scenario, without raw latencies.
        threads: Number of threads of each session.
        sessions: Number of parallel sessions.
        requests: Origin of the requests: the data, the bundle, or made up.
        notes: Further notes for the reader.
    """

    scenario: Scenario
    load: Load | None
    tries: tuple[Load, ...]
    threads: int
    sessions: int
    requests: str
    notes: tuple[str, ...] = ()


def in_words(test: LoadTest) -> list[str]:
    """Describe a load test in a few lines, none of which calls it an MLPerf result."""
    load = test.load
    if load is None:
        lowest = min(test.tries, key=lambda one: one.offer.rate_per_s)
        lines = [
            f"server: no rate down to {lowest.offer.rate_per_s:.3g}/s keeps 99% within "
            f"{lowest.offer.bound_ns / 1e6:g} ms"
        ]
    else:
        lines = [_figures(load)]
    each = f"{test.threads} thread{'s' if test.threads > 1 else ''}"
    sessions = f"{test.sessions} session{'s' if test.sessions > 1 else ''} of {each}"
    lines.append(f"{sessions}, batch 1, requests: {test.requests}")
    lines.append("measured with hasten's own load generator; not an MLPerf result")
    return lines + [f"note: {note}" for note in test.notes]


def _figures(load: Load) -> str:
    p50, p90, p99 = (f"{ns / 1e6:.3g} ms" for ns in (load.p50_ns, load.p90_ns, load.p99_ns))
    offer, n = load.offer, f"n={load.requests:,}"
    if offer.scenario == "offline":
        return f"offline: {load.throughput_per_s:,.4g} samples a second ({n})"
    if offer.scenario == "single-stream":
        shown = p99 if shows_p99(load) else "not established"
        return f"single-stream: p90 {p90}, p50 {p50}, p99 {shown} ({n})"
    return (
        f"server: {offer.rate_per_s:,.4g} requests a second, at random times, with 99% within "
        f"{offer.bound_ns / 1e6:g} ms (99% confident if they are independent; {n}: "
        f"{load.over_bound} over); p50 {p50}, p99 {p99}"
    )


def load_record(test: LoadTest) -> dict[str, Any]:
    """Return a bundle's record of a load test: its figures, as numbers and in words."""
    load = test.load
    figures = {} if load is None else to_record(load) | {"latency_ns": []}
    return {"scenario": test.scenario, "said": in_words(test), "figures": figures}
