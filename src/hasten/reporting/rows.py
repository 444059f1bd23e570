"""Figures as a person reads them: latencies with their intervals, in a table's cells."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.measure.intervals import Quantile
from hasten.result import Row


def latency(value_ns: float, *bounds_ns: float) -> str:
    """Write a latency for people: three significant digits, in µs or ms, as "1.99 ms (1.97 to 2.02)"."""
    unit, unit_ns = ("µs", 1e3) if value_ns < 1e5 else ("ms", 1e6)
    value, *bounds = (f"{float(f'{ns / unit_ns:.3g}'):g}" for ns in (value_ns, *bounds_ns))
    return f"{value} {unit} ({' to '.join(bounds)})" if bounds else f"{value} {unit}"


def claimed(quantile: Quantile) -> str:
    """Write a quantile with its interval; without one it isn't claimed."""
    if quantile.high_ns is None:
        return "not established"
    return latency(quantile.value_ns, quantile.low_ns, quantile.high_ns)


def cells(row: Row) -> tuple[str, ...]:
    """A row's cells for a table: role, model, speed, p50 and p99 with intervals, mean, size."""
    faster = f"{1 / row.ratio.estimate:.2f}x ({1 / row.ratio.high:.2f} to {1 / row.ratio.low:.2f})"
    return (
        row.role,
        row.label,
        faster,
        claimed(row.p50),
        claimed(row.p99),
        latency(row.mean_ns),
        "-" if row.size_bytes is None else f"{row.size_bytes / 1e6:.1f} MB",
    )


HEAD = ("", "model", "faster", "p50", "p99", "mean", "size")
_P99 = HEAD.index("p99")


def columns(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return a table's head and rows; p99 only where one is established."""
    table = [HEAD, *map(cells, rows)]
    if any(row.p99.high_ns is not None for row in rows):
        return table
    return [line[:_P99] + line[_P99 + 1 :] for line in table]
