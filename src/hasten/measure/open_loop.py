"""The load generator: requests are sent when they are due, whatever is still unanswered.

Latency counts from when a request was due, not from when a session was free to take it. Counted
from then, a session that stalls would get fewer requests in that time and look fast.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np

from hasten.measure.closed_loop import Block, Request, all_of, drive
from hasten.measure.scenario import Load, Offer, Run, load_of

_WARMUP_NS = 100_000_000
_LEAD_NS = 5_000_000
"""Lead before the first request is due, so that every session's thread is ready."""


def take(offer: Offer, runs: Sequence[Run], requests: Sequence[Request]) -> Load:
    """Put sessions under a load, after a warm-up.

    Args:
        offer: Load to offer.
        runs: Function of each session, which answers a request and blocks meanwhile.
        requests: Requests to rotate through.
    """
    drive(runs, requests, warmup_ns=_WARMUP_NS, block_ns=0, at_least=1, at_most=1)
    if offer.scenario == "single-stream":
        block = drive(
            runs[:1],
            requests,
            warmup_ns=0,
            block_ns=round(1e9 * offer.duration_s),
            at_least=offer.requests,
            at_most=2**63,
        )
    else:
        block = serve(runs, requests, arrivals(offer))
    return load_of(offer, block.latency_ns, block.elapsed_ns)


def arrivals(offer: Offer) -> list[int]:
    """Return when requests are due, in nanoseconds from the start: Poisson process, or all at 0."""
    if offer.scenario == "offline":
        return [0] * offer.count
    rng = np.random.default_rng(offer.seed)
    gaps_ns = rng.exponential(1e9 / offer.rate_per_s, offer.count)
    return [round(due) for due in np.cumsum(gaps_ns).tolist()]


def serve(
    runs: Sequence[Run],
    requests: Sequence[Request],
    due_ns: Sequence[int],
    *,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    sleep_s: Callable[[float], None] = time.sleep,
) -> Block:
    """Answer requests in the order in which they are due; the next free session takes the next one.

    Args:
        runs: Function of each session; each has a thread of its own.
        requests: Requests to rotate through.
        due_ns: Times at which requests are due, from the start, ascending.
        clock_ns: Monotonic clock, in nanoseconds.
        sleep_s: Function that waits for a number of seconds.

    Returns:
        Latency of each request since it was due, in the order of `due_ns`; and the time from the
        start to the last answer.
    """
    turns = itertools.count()
    begin = clock_ns() + _LEAD_NS

    def lane(number: int) -> list[tuple[int, int]]:
        answered = []
        for turn in turns:
            if turn >= len(due_ns):
                break
            due = begin + due_ns[turn]
            while (early_ns := due - clock_ns()) > 0:
                sleep_s(early_ns / 1e9)
            runs[number](requests[turn % len(requests)])
            answered.append((turn, clock_ns() - due))
        return answered

    found = dict(pair for answered in all_of(lane, len(runs)) for pair in answered)
    latency_ns = tuple(found[turn] for turn in range(len(due_ns)))
    ends = (due + latency for due, latency in zip(due_ns, latency_ns, strict=True))
    return Block(latency_ns, max(ends))
