"""Figures for people: latencies with their intervals, in a table's cells."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.core.words import listed, lost_in_words
from hasten.measure.intervals import Quantile
from hasten.reporting.result import ORIGINAL, Method, Result, Row


def latency(value_ns: float, *bounds_ns: float) -> str:
    """Write a latency with three significant digits, in µs or ms, as "1.99 ms (1.97 to 2.02)"."""
    unit, unit_ns = ("µs", 1e3) if value_ns < 1e5 else ("ms", 1e6)
    value, *bounds = (f"{float(f'{ns / unit_ns:.3g}'):g}" for ns in (value_ns, *bounds_ns))
    return f"{value} {unit} ({' to '.join(bounds)})" if bounds else f"{value} {unit}"


def claimed(quantile: Quantile) -> str:
    """Write a quantile with its interval; without an interval it isn't established."""
    if quantile.high_ns is None:
        return "not established"
    return latency(quantile.value_ns, quantile.low_ns, quantile.high_ns)


def cells(row: Row) -> tuple[str, ...]:
    """Return a row's table cells: role, model, speed, p50 and p99 with intervals, mean, size."""
    interval = f"{1 / row.ratio.high:.2f} to {1 / row.ratio.low:.2f}"
    faster = f"{1 / row.ratio.estimate:.2f}x ({interval})"
    if row.role == "default engine":
        faster = f"1x (by itself {interval})"
    return (
        row.role,
        row.label,
        faster,
        claimed(row.p50),
        claimed(row.p99),
        latency(row.mean_ns),
        "-" if row.size_bytes is None else size(row.size_bytes),
    )


def size(count: int) -> str:
    """Write a number of bytes: kB below 100 kB, as tables of small models need it."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


HEAD = ("", "model", "faster", "p50", "p99", "mean", "size")
_P99 = HEAD.index("p99")


def columns(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return a table's head and rows, with p99 only where one is established."""
    table = [HEAD, *map(cells, rows)]
    if any(row.p99.high_ns is not None for row in rows):
        return table
    return [line[:_P99] + line[_P99 + 1 :] for line in table]


METHODS = ("method", "best form", "p50", "faster")


def method_columns(methods: Sequence[Method], *, score: str = "accuracy") -> list[tuple[str, ...]]:
    """Return the head and the rows of the table of methods, fastest first.

    Args:
        methods: Methods of the result.
        score: Name of the score that falls, in words.
    """
    return [(*METHODS, f"{score} lost in the search", "sealed data"), *map(_method, methods)]


def _method(method: Method) -> tuple[str, ...]:
    fall = "none: exact"
    if method.drop is not None:
        points = (100 * end for end in (method.drop.estimate, method.drop.low, method.drop.high))
        fall = "{:+.2f} points ({:+.2f} to {:+.2f})".format(*points)
    faster = f"{1 / method.ratio.estimate:.2f}x ({1 / method.ratio.high:.2f} to {1 / method.ratio.low:.2f})"
    return (method.name, method.label, claimed(method.p50), faster, fall, method.said)


def per_step(result: Result) -> str:
    """Say what a step takes where latencies are of whole sequences; empty elsewhere."""
    if result.steps == 1:
        return ""
    each = (f"{row.role} {latency(row.p50.value_ns / result.steps)}" for row in result.rows)
    return f"latencies are of sequences of {result.steps:.4g} steps; a step: {', '.join(each)}"


def won(result: Result) -> str:
    """Say which method won, at what latency, which are as good, and what kept others from a budget.

    Without methods, the result is empty.
    """
    if not result.methods:
        return ""
    own = next((method for method in result.methods if method.name == result.method), None)
    best = "none, your own model ships" if result.method == ORIGINAL else result.method
    lines = [f"the best method: {best}"]
    if result.budget_ns is not None:
        within = "within" if result.within_budget else "OVER"
        lines.append(
            f"{latency(result.step_ns)}, {within} the budget of {latency(result.budget_ns)}"
        )
    if result.budget_ns is not None and not result.within_budget:
        within_ns = result.budget_ns * result.steps
        others = (method for method in result.methods if method.name != result.method)
        lines += map(_fell_short, (m for m in others if m.p50.value_ns <= within_ns))
    ties = [method.name for method in result.methods if own is not None and _ties(method, own)]
    if ties:
        lines.append(f"{' and '.join(ties)} did as well, as far as the search split can tell")
    return "; ".join(lines)


def _fell_short(method: Method) -> str:
    """Say why a method within the budget doesn't ship."""
    lost = (
        "" if method.drop is None else f"{lost_in_words(100 * method.drop.estimate)} in the search"
    )
    why = listed(lost, method.said, method.trained)
    who = "your own model in another form" if method.name == ORIGINAL else method.name
    return f"{who} is within the budget, but doesn't ship: {why}"


def _ties(other: Method, own: Method) -> bool:
    """Whether another method is no slower and no less accurate, within both intervals."""
    if other.name == own.name or other.drop is None or own.drop is None:
        return False
    as_fast = other.ratio.low <= own.ratio.high and own.ratio.low <= 1.1 * other.ratio.high
    return as_fast and other.drop.low <= own.drop.high and own.drop.low <= other.drop.high
