"""Table cells on candidates for an absent device. Only a candidate that was placed and routed, or
measured, has a latency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hasten.engines.estimates import TIMED
from hasten.reporting.result import EstimateRow, Estimates, Result

_SHOWN = 5
"""Largest number of figures to show beside latency and rank."""
HEAD = ("", "candidate", "latency", "by")


def latency_of(row: EstimateRow) -> str:
    """Write a design's latency in nanoseconds or microseconds, or "none" where there is none."""
    if row.latency_ns is None or row.source not in TIMED:
        return "none"
    if row.latency_ns < 1e4:
        return f"{row.latency_ns:.4g} ns"
    return f"{row.latency_ns / 1e3:.4g} µs"


def ranked_by(row: EstimateRow) -> str:
    """Write the figure that candidates are compared by; empty where that is the latency."""
    if row.rank is None or row.unit == "ns":
        return ""
    return f"{row.rank:,.0f} {row.unit}"


def figure(name: str, value: float, limits: Mapping[str, float]) -> str:
    """Write a figure, with its share of what the device has."""
    shown = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
    most = limits.get(name)
    return f"{shown} of {most:,.0f} ({100 * value / most:.0f}%)" if most else shown


def gone(result: Result) -> Iterator[tuple[str, str, str]]:
    """Yield the candidates that have no model for the device: name, "failed" or "skipped", and why.

    Those that were skipped, as where a transformation has nothing to do, matter only if nothing ships.
    """
    assert result.estimates is not None
    fates = ("failed",) if result.shipped is not None else ("failed", "skipped")
    for row in result.estimates.rows:
        fate, _, reason = row.said.partition(": ")
        if fate in fates:
            yield row.label, fate, reason


def columns(result: Estimates) -> list[tuple[str, ...]]:
    """Return the head and the rows of the candidates that the device's tools estimated."""
    told = [row for row in result.rows if row.figures or row.rank is not None]
    names = list(dict.fromkeys(name for row in told for name in row.figures))
    names = [result.area, *(n for n in names if n != result.area)] if result.area else names
    names = names[:_SHOWN]
    ranked = any(ranked_by(row) for row in told)
    head = (*HEAD, *(["compared by"] if ranked else []), *names, "accuracy in the search")
    return [head, *(_cells(result, row, names, ranked=ranked) for row in told)]


def _cells(
    result: Estimates, row: EstimateRow, names: Sequence[str], *, ranked: bool
) -> tuple[str, ...]:
    role = "ships" if row.label == result.winner else ("frontier" if row.frontier else "")
    figures = (
        figure(name, row.figures[name], row.limits) if name in row.figures else "-"
        for name in names
    )
    own = [ranked_by(row)] if ranked else []
    return (role, row.label, latency_of(row), row.source, *own, *figures, row.said)


def headline(result: Result) -> str:
    """Write the result in a few words."""
    assert result.estimates is not None
    shipped = result.shipped
    if shipped is None:
        return "Nothing for the device ships"
    sure = {"certified": "certified", "exact": "exact", "uncertified": "not certified"}
    if latency_of(shipped) == "none":
        return f"Made for {result.estimates.device}, {sure[result.status]}"
    return f"{latency_of(shipped)} by {shipped.source}, {sure[result.status]}"


def within(result: Result) -> str:
    """Say whether what ships is within the budget; empty where no budget was given."""
    if result.budget_ns is None:
        return ""
    budget = (
        f"{result.budget_ns:.4g} ns"
        if result.budget_ns < 1e4
        else f"{result.budget_ns / 1e3:.4g} µs"
    )
    if result.within_budget is None:
        return f"whether it is within the budget of {budget} can't be known before it runs there"
    return f"{'within' if result.within_budget else 'OVER'} the budget of {budget}"
