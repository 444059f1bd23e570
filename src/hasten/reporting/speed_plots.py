"""Plots of the final figures: speed-ups, and the distribution of latencies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from hasten.measure.intervals import Rounds
from hasten.reporting.drawing import BAND, QUIET, Plot
from hasten.reporting.evidence import Figures
from hasten.reporting.marks import MARKS, legend
from hasten.reporting.markup import name
from hasten.reporting.result import Row
from hasten.reporting.rows import cells, latency

_LONG_TAIL = 8
"""Largest p99, in multiples of the shortest latency, for which the scale starts at 0."""
_STEPS = 160
"""Number of points of a drawn distribution: finer than its line."""


def speeds(rows: Sequence[Row], spread: float) -> Plot | None:
    """Plot how many times faster each row is, with its interval, beside the noise."""
    shown = [row for row in rows if row.role in MARKS]
    if not shown:
        return None

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        (axes,) = panels
        axes.axvspan(1 - spread, 1 + spread, color=BAND.stand_in, linewidth=0)
        axes.axvline(1, color=QUIET.stand_in, linewidth=0.8)
        for place, row in enumerate(shown):
            mark, low, high = MARKS[row.role], 1 / row.ratio.high, 1 / row.ratio.low
            axes.plot([low, high], [place, place], color=mark.tone.stand_in, linewidth=2.5)
            axes.plot(row.speedup, place, mark.sign, color=mark.tone.stand_in, markersize=7)
            axes.annotate(
                f"{row.speedup:.2f}x",
                (row.speedup, place),
                (0, 8),
                textcoords="offset points",
                ha="center",
            )
        axes.set_yticks(range(len(shown)), [row.role for row in shown])
        axes.set_ylim(len(shown) - 0.4, -0.7)
        axes.set_xlim(0, 1.12 * max(1 / row.ratio.low for row in shown))
        axes.set_xlabel("times as fast as the default engine")
        axes.grid(visible=False, axis="y")

    best = max(shown, key=lambda row: row.speedup)
    return Plot(
        "speeds",
        "How many times faster, with 95% intervals",
        f"{len(shown)} models against the default engine; the fastest, {best.role}, is "
        f"{best.speedup:.2f} times as fast. The shaded band is the noise.",
        draw,
        ("", "model", "faster"),
        [(row.role, name(row.label), cells(row)[2]) for row in shown],
        heights_in=(0.9 + 0.42 * len(shown), 1.0 + 0.45 * len(shown)),
    )


def distributions(figures: Figures) -> Plot | None:
    """Plot the distribution of the final rounds' latencies, and their medians round by round."""
    known = {role: rounds for role, rounds in figures.latencies().items() if role in MARKS}
    if not known:
        return None
    sorted_ms = {
        role: np.sort(np.concatenate([np.asarray(b) for b in rounds.values()])) / 1e6
        for role, rounds in known.items()
    }
    shares = np.linspace(0, 1, _STEPS)

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        spread_axes, time_axes = panels
        for role, values in sorted_ms.items():
            look: dict[str, Any] = {
                "color": MARKS[role].tone.stand_in,
                "linestyle": MARKS[role].line,
                "linewidth": 1.3,
            }
            spread_axes.plot(np.quantile(values, shares), 100 * shares, label=role, **look)
            numbers, middles = _middles(known[role])
            time_axes.plot(numbers, middles, **look)
        _scale(spread_axes, list(sorted_ms.values()))
        spread_axes.set_ylim(0, 100)
        spread_axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        spread_axes.set_ylabel("requests answered within")
        time_axes.set_ylim(bottom=0)
        time_axes.set_xlabel("round")
        time_axes.set_ylabel("median latency, ms")
        legend(spread_axes, 2 if narrow else 4)

    return Plot(
        "distributions",
        "Latencies of the final rounds",
        "Left, the share of requests answered within a time; right, each round's median. "
        + "; ".join(f"{role}: median {np.median(v):.3g} ms" for role, v in sorted_ms.items()),
        draw,
        ("", "requests", "p5", "p50", "p90", "p99", "slowest"),
        [_quantiles(role, values) for role, values in sorted_ms.items()],
        heights_in=(3.6, 5.8),
        panels=2,
    )


def _scale(axes: Axes, values_ms: Sequence[npt.NDArray[np.float64]]) -> None:
    """Set the scale of latencies: linear from 0, or logarithmic where there is a long tail."""
    longest = max(float(np.quantile(values, 0.99)) for values in values_ms)
    least = min(float(values[0]) for values in values_ms)
    if longest <= _LONG_TAIL * least:
        axes.set_xlim(0, 1.25 * longest)
        axes.set_xlabel("latency, ms")
    else:
        axes.set_xscale("log")
        axes.set_xlim(0.8 * least, 1.25 * longest)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("latency, ms (log scale)")


def _middles(rounds: Rounds) -> tuple[list[int], list[float]]:
    """Return the numbers of the rounds, and their medians in milliseconds."""
    order = [number for number in sorted(rounds) if rounds[number]]
    return order, [float(np.median(rounds[number])) / 1e6 for number in order]


def _quantiles(role: str, values_ms: npt.NDArray[np.float64]) -> list[str]:
    found = np.quantile(values_ms, [0.05, 0.5, 0.9, 0.99, 1.0])
    return [role, f"{len(values_ms):,}", *(latency(1e6 * float(q)) for q in found)]
