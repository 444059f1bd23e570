"""The scenarios of a load generator: what is asked of open sessions, and what came back.

They are MLCommons' (Reddi et al., MLPerf Inference Benchmark, ISCA 2020, section IV): SingleStream
asks the next request once the last is answered, Server asks at random times whatever is still
unanswered, Offline asks everything at once.
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
"""Of the latencies that a bound holds for."""
CONFIDENCE = 0.99
"""That it does, as LoadGen has it."""
LONGEST_RUN_S = 600.0


@dataclass(frozen=True)
class Offer:
    """What is asked of the sessions.

    Attributes:
        scenario: In which way.
        requests: How many, at least.
        duration_s: How long, at least.
        rate_per_s: Of the arrivals in a server's scenario; else how many are likely answered.
        bound_ns: Of a server's latencies; 0 for none.
        seed: Of the arrivals.
    """

    scenario: Scenario
    requests: int
    duration_s: float
    rate_per_s: float
    bound_ns: int = 0
    seed: int = 0

    @property
    def count(self) -> int:
        """How many requests its duration and its rate come to."""
        return max(self.requests, round(self.duration_s * self.rate_per_s))


@dataclass(frozen=True)
class Load:
    """What one run under load came to.

    Attributes:
        offer: What was asked.
        requests: How many were answered.
        throughput_per_s: Answered in a second.
        mean_ns: Of the latencies; in a server's scenario from when a request was due.
        p50_ns: The same.
        p90_ns: The same.
        p99_ns: The same.
        over_bound: How many took longer than the bound.
        holds: Whether at most 1% do, with 99% confidence were they independent; False without one.
        latency_ns: Every request's latency, in order.
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
    """Check a bound or a duration in seconds; None is none.

    Raises:
        InputError: it is out of range.
    """
    if seconds is not None and not 0 < seconds < LONGEST_RUN_S:
        raise InputError(
            f"the {name} is in seconds, above 0 and below {LONGEST_RUN_S:.0f}: got {seconds}"
        )


def load_of(offer: Offer, latency_ns: Sequence[int], elapsed_ns: int) -> Load:
    """Derive what a run came to from its latencies, each quantile as LoadGen takes it."""
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
    """Whether so few of so many show that at most 1% are over, with 99% confidence.

    It takes 459 requests, none of them over; 662 with one.

    Source: LoadGen's early stopping: P(Binomial(count, 0.01) <= over) <= 0.01.
    """
    return bool(binomial_cdf(count, 1 - QUANTILE)[over] <= 1 - CONFIDENCE)


def shows_p99(load: Load) -> bool:
    """Whether a run has requests enough for a p99: 662, as LoadGen asks of an estimate."""
    return rarely_over(1, load.requests)


def highest_rate(
    capacity_per_s: float, holds: Callable[[float], bool], tries: int, least_per_s: float = 0.0
) -> float | None:
    """Find the highest rate at which a bound holds, by bisection.

    Args:
        capacity_per_s: What the sessions answer where they are never idle: a higher rate has no end.
        holds: Tries a rate.
        tries: How many, each halving what is open.
        least_per_s: Lower rates aren't tried.

    Returns:
        The highest that held; None where none did.
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
    """How a bundle did in a scenario.

    Attributes:
        scenario: Which.
        load: The figures, from a run of its own; None where no rate met the bound.
        tries: In a server's scenario the rates that were tried before, without raw latencies.
        threads: Of each session.
        sessions: How many answered side by side.
        requests: Where the requests are from: the data, the bundle, or made up.
        notes: What the reader should know besides.
    """

    scenario: Scenario
    load: Load | None
    tries: tuple[Load, ...]
    threads: int
    sessions: int
    requests: str
    notes: tuple[str, ...] = ()


def in_words(test: LoadTest) -> list[str]:
    """What a load test came to, in a few lines; no line calls it an MLPerf result."""
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
    lines.append("taken with hasten's own generator; not an MLPerf result")
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
        f"{offer.bound_ns / 1e6:g} ms (99% confident were they independent; {n}: "
        f"{load.over_bound} over); p50 {p50}, p99 {p99}"
    )


def load_record(test: LoadTest) -> dict[str, Any]:
    """Return what a bundle keeps of a load test: its figures, and the same in words."""
    load = test.load
    figures = {} if load is None else to_record(load) | {"latency_ns": []}
    return {"scenario": test.scenario, "said": in_words(test), "figures": figures}
