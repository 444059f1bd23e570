"""What a load test came to: raw latencies and what became of each request; the rest is derived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hasten.evaluation.loadtest.schedule import Arrivals, Schedule
from hasten.evaluation.loadtest.traffic import Fate, Kind, Traffic
from hasten.measure.intervals import Quantile, quantile

_SLICES = 30
_LEAST_SLICE_NS, _MOST_SLICE_NS = 100_000_000, 1_000_000_000
_ORDER: tuple[Kind, ...] = (
    "ok",
    "late",
    "refused",
    "error",
    "broken",
    "connection",
    "unanswered",
    "unsent",
)


@dataclass(frozen=True)
class Offered:
    """What was asked of the server.

    Attributes:
        url: Of the server.
        model: Name.
        version: Empty where the server chose.
        rate_per_s: Requests in a second, on average.
        duration_s: How long they counted.
        warmup_s: How long they came before.
        arrivals: "poisson" or "constant".
        deadline_ns: Sent with each request, and for the goodput; None without one.
        batch: Rows of each request.
        encoding: Of the tensors: "binary", "JSON" or "gRPC".
        payload: Where the requests are from: the data, or made up.
        connections: How many there might be at most, each with one request under way.
        grace_s: How long answers were waited for after the last request.
        seed: Of the arrivals and of random numbers.
    """

    url: str
    model: str
    version: str
    rate_per_s: float
    duration_s: float
    warmup_s: float
    arrivals: Arrivals
    deadline_ns: int | None
    batch: int
    encoding: str
    payload: str
    connections: int
    grace_s: float
    seed: int


@dataclass(frozen=True)
class RequestOutcome:
    """What became of some of the requests.

    Attributes:
        kind: "ok": answered rightly and in time; "late": answered rightly after the deadline, or
            the server gave up at it; "refused": it had too much to do; "error": any other status;
            "broken": a wrong answer with the status of success; "connection"; "unanswered";
            "unsent": too many others were unanswered.
        status: The server's; empty where there was none.
        count: Of how many.
        message: What the first of them was told; empty where nothing was.
    """

    kind: Kind
    status: str
    count: int
    message: str = ""


@dataclass(frozen=True)
class LoadTestResult:
    """What a load test came to. All of it is of the counted window, behind the warm-up.

    Attributes:
        offered: What was asked.
        requests: How many were due.
        answered_per_s: Right answers that came within the window, a second.
        goodput_per_s: Requests that were answered rightly within the deadline, a second of the
            window in which they were due; None without a deadline.
        outcomes: What became of the requests; their counts add up to `requests`.
        p50: Of the latencies; None where no answer was right.
        p90: The same.
        p99: The same.
        mean_ns: The same.
        lag_p99_ns: Of `lag_ns`.
        opened: How many connections were opened, all in all.
        waited: How many requests found every connection busy; the wait is in their latency.
        elapsed_ns: From the window's beginning to the last answer, or to when waiting ended.
        latency_ns: Of every right answer, in the order in which they were due, from when they were.
        due_ns: When each of those was due, from the window's beginning.
        lag_ns: By request: how late the generator itself was.
    """

    offered: Offered
    requests: int
    answered_per_s: float
    goodput_per_s: float | None
    outcomes: tuple[RequestOutcome, ...]
    p50: Quantile | None
    p90: Quantile | None
    p99: Quantile | None
    mean_ns: float | None
    lag_p99_ns: float
    opened: int
    waited: int
    elapsed_ns: int
    latency_ns: tuple[int, ...]
    due_ns: tuple[int, ...]
    lag_ns: tuple[int, ...]

    def count(self, kind: Kind) -> int:
        """How many requests ended that way."""
        return sum(outcome.count for outcome in self.outcomes if outcome.kind == kind)


def result_of(
    offered: Offered, plan: Schedule, traffic: Traffic, stopped_ns: int
) -> LoadTestResult:
    """Derive what a load test came to.

    Args:
        offered: What was asked.
        plan: When requests were due.
        traffic: What became of them; stopped.
        stopped_ns: When it was, on the traffic's clock.
    """
    first = plan.first_counted
    counted = range(first, len(plan.due_ns))
    # The traffic's clock, from the schedule's beginning to the window's.
    window_ns = traffic.due_ns[first] - plan.due_ns[first] + plan.warmup_ns
    right = [turn for turn in counted if _kind(traffic, turn) == "ok"]
    latency_ns = [traffic.ended_ns[turn] - traffic.due_ns[turn] for turn in right]
    due_ns = [plan.due_ns[turn] - plan.warmup_ns for turn in right]
    outcomes = _outcomes(traffic, counted, offered.deadline_ns)
    in_time = sum(outcome.count for outcome in outcomes if outcome.kind == "ok")
    within = sum(
        window_ns <= traffic.ended_ns[turn] < window_ns + plan.duration_ns
        for turn in range(len(plan.due_ns))
        if _kind(traffic, turn) == "ok"
    )
    rounds = slices(due_ns, latency_ns, plan.duration_ns)
    p50, p90, p99 = (quantile(rounds, q) if right else None for q in (0.5, 0.9, 0.99))
    lag_ns = tuple(traffic.lag_ns[first:])
    open_still = any(traffic.ended_ns[turn] == 0 for turn in counted)
    end_ns = stopped_ns if open_still else max(traffic.ended_ns[first:])
    window_s = plan.duration_ns / 1e9
    return LoadTestResult(
        offered=offered,
        requests=len(counted),
        answered_per_s=within / window_s,
        goodput_per_s=None if offered.deadline_ns is None else in_time / window_s,
        outcomes=outcomes,
        p50=p50,
        p90=p90,
        p99=p99,
        mean_ns=float(np.mean(latency_ns)) if right else None,
        lag_p99_ns=float(np.quantile(np.asarray(lag_ns, np.float64), 0.99)),
        opened=traffic.opened,
        waited=sum(traffic.waited[first:]),
        elapsed_ns=end_ns - window_ns,
        latency_ns=tuple(latency_ns),
        due_ns=tuple(due_ns),
        lag_ns=lag_ns,
    )


def _kind(traffic: Traffic, turn: int) -> Kind:
    fate = traffic.fates[turn]
    return "unanswered" if fate is None else fate.kind


def _outcomes(
    traffic: Traffic, counted: range, deadline_ns: int | None
) -> tuple[RequestOutcome, ...]:
    """Count the requests by what became of them; a right answer after the deadline is late."""
    found: Counter[Fate] = Counter()
    for turn in counted:
        fate = traffic.fates[turn] or Fate("unanswered")
        latency_ns = traffic.ended_ns[turn] - traffic.due_ns[turn]
        if fate.kind == "ok" and deadline_ns is not None and latency_ns > deadline_ns:
            fate = Fate("late", fate.status)
        found[fate] += 1
    ordered = sorted(found, key=lambda fate: (_ORDER.index(fate.kind), fate.status))
    return tuple(
        RequestOutcome(fate.kind, fate.status, found[fate], traffic.messages.get(fate, ""))
        for fate in ordered
    )


def slices(
    due_ns: Sequence[int], latency_ns: Sequence[int], duration_ns: int
) -> dict[int, list[int]]:
    """Cut a window into slices of time, as the rounds that a quantile's interval rests on.

    Args:
        due_ns: From the window's beginning, ascending.
        latency_ns: One each.
        duration_ns: Of the window: 30 slices, though none below 0.1 s or above 1 s.

    Returns:
        Slice -> its latencies; none is empty.
    """
    slice_ns = min(_MOST_SLICE_NS, max(_LEAST_SLICE_NS, -(-duration_ns // _SLICES)))
    rounds: dict[int, list[int]] = {}
    for due, latency in zip(due_ns, latency_ns, strict=True):
        rounds.setdefault(due // slice_ns, []).append(latency)
    return rounds
