"""Result of a load test: raw latencies and the fate of each request; the rest is derived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hasten.evaluation.loadtest.schedule import Arrivals, Schedule
from hasten.evaluation.loadtest.traffic import Fate, Kind, Traffic
from hasten.measure.intervals import Quantile, quantile

_SLICES = 500
"""Fewest groups of many requests: a p99 takes about 350 moments."""
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
    """The load that was offered to the server.

    Attributes:
        url: URL of the server.
        model: Name of the model.
        version: Version of the model; empty where the server chose.
        rate_per_s: Requests per second, on average.
        duration_s: Time during which requests counted, in seconds.
        warmup_s: Time during which requests were sent before, in seconds.
        arrivals: "poisson" or "constant".
        deadline_ns: Deadline in nanoseconds, sent with each request and used for the goodput; None
            without one.
        batch: Rows, or files, in each request.
        encoding: Form of the requests: tensors as "binary" or "JSON", a raw sample as "plain body",
            raw samples as "BYTES", or "gRPC".
        payload: Origin of the requests: the data, or made up.
        connections: Largest number of connections, each with one request in progress.
        grace_s: Time to wait for answers after the last request, in seconds.
        seed: Seed of the arrivals and of random numbers.
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
    """The number of requests that ended in one way.

    Attributes:
        kind: "ok": answered correctly and in time; "late": answered correctly after the deadline,
            or the server gave up at it; "refused": the server was overloaded; "error": any other
            status; "broken": a wrong answer with a success status; "connection": it broke, or there
            was none; "unanswered"; "unsent": too many others were unanswered.
        status: Status from the server; empty where there was none.
        count: Number of requests.
        message: Message to the first of them; empty where there was none.
    """

    kind: Kind
    status: str
    count: int
    message: str = ""


@dataclass(frozen=True)
class LoadTestResult:
    """Result of a load test, over the counted window after the warm-up.

    Attributes:
        offered: Load that was offered.
        requests: Number of requests that were due.
        answered_per_s: Correct answers per second that came within the window.
        goodput_per_s: Requests answered correctly within the deadline, per second of the window in
            which they were due; None if there is no deadline.
        outcomes: Requests by outcome; their counts add up to `requests`.
        p50: Median of the latencies; None where no answer was correct.
        p90: 90th percentile of the latencies; None where no answer was correct.
        p99: 99th percentile of the latencies; None where no answer was correct.
        mean_ns: Mean of the latencies, in nanoseconds; None where no answer was correct.
        lag_p99_ns: 99th percentile of `lag_ns`, in nanoseconds.
        opened: Number of connections that were opened in all.
        waited: Number of requests that found every connection busy; their latency has the wait.
        elapsed_ns: Time from the window's start to the last answer, or to the end of waiting.
        latency_ns: Latency of every correct answer since it was due, in the order of due times.
        due_ns: Due time of each of those requests, from the window's start.
        lag_ns: Delay of the generator itself, for each request.
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
        """Return the number of requests that ended in one way."""
        return sum(outcome.count for outcome in self.outcomes if outcome.kind == kind)


def result_of(
    offered: Offered, plan: Schedule, traffic: Traffic, stopped_ns: int
) -> LoadTestResult:
    """Derive the result of a load test.

    Args:
        offered: Load that was offered.
        plan: Schedule of the requests.
        traffic: Traffic of the test, stopped.
        stopped_ns: Time when the traffic was stopped, on its clock.
    """
    first = plan.first_counted
    counted = range(first, len(plan.due_ns))
    # On the traffic's clock: the schedule's start plus the warm-up.
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
    rounds = slices(latency_ns)
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
    """Count the requests by outcome; a correct answer after the deadline is late."""
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


def slices(latency_ns: Sequence[int]) -> dict[int, list[int]]:
    """Divide requests into groups of the same size, which serve as rounds for quantiles.

    Args:
        latency_ns: Latency of each request, in the order of due times.

    Returns:
        Group -> its latencies; there are 500 to 999 groups, or one for each of fewer requests.
    """
    size = max(1, len(latency_ns) // _SLICES)
    starts = range(0, len(latency_ns), size)
    return {number: list(latency_ns[at : at + size]) for number, at in enumerate(starts)}
