"""Whether a server held out: each request's fate beside the faults of its time, and what all came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from faults import LOSING, Event
from load import GRACE_S

from hasten.evaluation.loadtest.traffic import Fate, Traffic

REFUSALS = ("503", "504", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
"""Statuses that refuse clearly: retry, or too late."""
AFTER_NS = 3_000_000_000
"""Time after a fault in which connections may still break, and clients connect anew."""
CALM = "no fault"


@dataclass
class Verdict:
    """What the load came to beside faults.

    Attributes:
        counts: Fault -> kind of answer -> number of requests; one beside several faults counts for each.
        latency_ns: Latency of each right answer of all ways.
        answered_per_s: Right answers per second.
        wrongs: Sentences that say what the server did wrong, each with how often.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    latency_ns: list[int] = field(default_factory=list)
    answered_per_s: float = 0.0
    wrongs: Counter[str] = field(default_factory=Counter)

    def quantile_ms(self, q: float) -> float:
        """Return a quantile of the latencies in milliseconds; NaN without any."""
        return float(np.quantile(self.latency_ns, q)) / 1e6 if self.latency_ns else float("nan")


def kind(fate: Fate | None) -> str:
    """Return the kind of an answer, for people."""
    if fate is None or fate.kind in ("unanswered", "unsent"):
        return "none"
    if fate.status == "CANCELLED":  # gRPC's library ends so the calls that it hadn't handed on
        return "closed"
    return {"ok": "right", "broken": "wrong", "connection": "closed"}.get(fate.kind, fate.status)


def judge(traffics: Mapping[str, Traffic], events: Sequence[Event], seconds: float) -> Verdict:
    """Hold the fate of each request against the faults of its time.

    Args:
        traffics: Way to ask -> its requests, of which none is under way any more.
        events: Faults that were done.
        seconds: Time in which the requests were due.
    """
    verdict = Verdict()
    for event in events:
        if event.failed:
            verdict.wrongs[f"{event.name}: {event.failed}"] += 1
    for way, traffic in traffics.items():
        for due_ns, ended_ns, fate in zip(
            traffic.due_ns, traffic.ended_ns, traffic.fates, strict=True
        ):
            beside = _beside(due_ns, ended_ns, events)
            found = kind(fate) if ended_ns - due_ns <= 1e9 * GRACE_S else "none"
            for name in beside or {CALM}:
                verdict.counts.setdefault(name, Counter())[found] += 1
            if found == "right":
                verdict.latency_ns.append(ended_ns - due_ns)
            if wrong := _wrong(fate, ended_ns - due_ns, beside):
                said = traffic.messages.get(fate, "") if fate else ""
                verdict.wrongs[f"{way}: {wrong}{said and f' ({said})'}"] += 1
    verdict.answered_per_s = len(verdict.latency_ns) / seconds
    return verdict


def _beside(due_ns: int, ended_ns: int, events: Sequence[Event]) -> set[str]:
    """Return the names of the faults in a request's time."""
    until_ns = ended_ns or due_ns + round(1e9 * GRACE_S)
    return {
        event.name
        for event in events
        if event.begin_ns <= until_ns and due_ns <= event.end_ns + AFTER_NS
    }


def _wrong(fate: Fate | None, latency_ns: int, beside: set[str]) -> str:
    """Say what is wrong with a request's fate; "" where it is a right answer or a clear refusal."""
    found = kind(fate)
    if found == "none" or latency_ns > 1e9 * GRACE_S:
        return f"no answer within {GRACE_S:g} s"
    if found == "wrong":
        return "a wrong answer"
    if found == "closed":
        return "" if beside & set(LOSING) else "a connection was closed though nothing was killed"
    return "" if found == "right" or found in REFUSALS else f"status {found}, which is no refusal"
