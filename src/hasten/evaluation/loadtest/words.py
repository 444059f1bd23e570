"""A load test's result for people, in a few lines."""

from __future__ import annotations

from hasten.core.words import amount
from hasten.evaluation.loadtest.result import LoadTestResult, Offered, RequestOutcome
from hasten.measure.intervals import Quantile

LATE_GENERATOR_NS = 1_000_000
"""Lag of the generator, as the p99 in nanoseconds, above which the reader is told of it."""

BEHIND_NS = 100_000_000
"""Lag of the generator, as the p99 in nanoseconds, above which it is to blame for what wasn't answered."""


def in_words(result: LoadTestResult) -> list[str]:
    """Describe the result of a load test in a few lines."""
    offered = result.offered
    version = f" version {offered.version}" if offered.version else ""
    times = "at random times" if offered.arrivals == "poisson" else "evenly spaced"
    rows = f", {offered.batch} rows each" if offered.batch > 1 else ""
    lines = [
        f"{offered.url}, model {offered.model}{version}: {offered.rate_per_s:,g} requests a second "
        f"{times} for {offered.duration_s:g} s, {offered.payload}, {offered.encoding}{rows}",
        _rates(result),
        _latencies(result),
        f"{result.requests:,} requests: "
        + "; ".join(_outcome(outcome, offered) for outcome in result.outcomes),
    ]
    return lines + [f"note: {note}" for note in _notes(result)]


def _rates(result: LoadTestResult) -> str:
    said = f"answered {result.answered_per_s:,.4g} a second"
    deadline_ns = result.offered.deadline_ns
    if deadline_ns is None or result.goodput_per_s is None:
        return said
    share = result.count("ok") / result.requests
    return (
        f"{said}; goodput {result.goodput_per_s:,.4g} a second within {deadline_ns / 1e6:g} ms "
        f"({100 * share:.4g}% of the requests)"
    )


def _latencies(result: LoadTestResult) -> str:
    if result.p50 is None or result.p90 is None or result.p99 is None or result.mean_ns is None:
        return "latency: no request got a right answer"
    p99 = "not established" if result.p99.high_ns is None else _quantile(result.p99)
    return (
        f"latency from when a request was due: p50 {_quantile(result.p50)}, "
        f"p90 {_quantile(result.p90)}, p99 {p99}, mean {_ms(result.mean_ns)} ms"
    )


def _quantile(found: Quantile) -> str:
    bounds = "" if found.high_ns is None else f" ({_ms(found.low_ns)} to {_ms(found.high_ns)})"
    return f"{_ms(found.value_ns)} ms{bounds}"


def _ms(value_ns: float) -> str:
    return f"{float(f'{value_ns / 1e6:.3g}'):g}"


def _outcome(outcome: RequestOutcome, offered: Offered) -> str:
    count, status = f"{outcome.count:,}", outcome.status
    after = "" if offered.deadline_ns is None else f" {offered.deadline_ns / 1e6:g} ms"
    told = f": {outcome.message}" if outcome.message else ""
    said = {
        "ok": f"{count} ok",
        "late": f"{count} late (answered after{after})",
        "refused": f"{count} refused ({status}{told})",
        "error": f"{count} of status {status}{told and f' ({outcome.message})'}",
        "broken": f"{count} answered wrongly ({outcome.message})",
        "connection": f"{count} lost ({outcome.message})",
        "unanswered": f"{count} unanswered {offered.grace_s:g} s after the last was due",
        "unsent": f"{count} not sent, because too many others were unanswered",
    }
    if outcome.kind == "late" and outcome.message:
        return f"{count} late ({status}{told})"
    return said[outcome.kind]


def _why_unanswered(result: LoadTestResult) -> str:
    """Say whose fault it is that no request was answered; empty where some were, or the server refused."""
    without = result.count("unanswered") + result.count("unsent")
    if result.p50 is not None or without < result.requests / 2:
        return ""
    if result.lag_p99_ns > BEHIND_NS:
        return (
            f"this client couldn't keep up with {result.offered.rate_per_s:,g} requests a second: it sent them "
            f"{_ms(result.lag_p99_ns)} ms late (p99), so nothing is known of the server. Lower --rate, or run "
            "the load test on a machine with free cores"
        )
    return (
        f"the server answered nothing within {result.offered.grace_s:g} s, although requests were sent in "
        "time. See whether it answers at all with --rate 1, then raise the rate, or wait longer with --grace"
    )


def _notes(result: LoadTestResult) -> list[str]:
    notes = []
    if why := _why_unanswered(result):
        notes.append(why)
    elif result.lag_p99_ns > LATE_GENERATOR_NS:
        notes.append(
            f"the generator itself was late (p99 {_ms(result.lag_p99_ns)} ms), so the server looks "
            "slower than it is: lower the rate, or give the generator a core of its own"
        )
    if refused := result.count("refused"):
        notes.append(
            f"the server refused {amount(refused, 'request')}, since it was overloaded: lower --rate, or "
            "give the server more cores"
        )
    if result.waited:
        notes.append(
            f"{result.waited:,} requests found all {result.offered.connections} connections busy "
            "and waited; their latency includes the wait"
        )
    if result.offered.encoding == "binary" and result.p50 is None and result.count("error"):
        notes.append(
            "tensors were sent as raw bytes, which some servers don't accept: try --json-tensors"
        )
    if result.p99 is not None and len(result.latency_ns) < result.requests:
        notes.append(f"the latencies cover only the {len(result.latency_ns):,} answered requests")
    return notes
