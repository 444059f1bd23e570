"""Plots of the final figures: speed-ups, and the distribution of latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from hasten.measure.intervals import Rounds
from hasten.reporting.drawing import Plot
from hasten.reporting.evidence import Figures
from hasten.reporting.marks import MARKS, legend
from hasten.reporting.markup import name
from hasten.reporting.result import Row
from hasten.reporting.rows import cells, latency
from hasten.reporting.svg import BAND, PAPER, QUIET
from hasten.reporting.words import folded, plain, role, times

_LONG_TAIL = 8
"""Largest p99, in multiples of the shortest latency, for which the scale starts at 0."""
_STEPS = 160
"""Number of points of a drawn distribution: finer than its line."""
_OWN, _OTHER = "winner", "default engine"
_LETTERS = {False: 44, True: 22}
"""Largest number of letters of a line of a model's label beside a wide and a narrow plot."""


def speeds(rows: Sequence[Row], spread: float) -> Plot | None:
    """Plot how many times as fast each row is, with its interval, beside the noise."""
    shown = [row for row in rows if row.role in MARKS]
    if not shown:
        return None

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        (axes,) = panels
        axes.axvspan(1 - spread, 1 + spread, color=BAND.colour, linewidth=0)
        axes.axvline(1, color=QUIET.colour, linewidth=0.8)
        for place, row in enumerate(shown):
            mark, low, high = MARKS[row.role], 1 / row.ratio.high, 1 / row.ratio.low
            axes.plot([low, high], [place, place], color=mark.tone.colour, linewidth=2.5)
            axes.plot(row.speedup, place, mark.sign, color=mark.tone.colour, markersize=7)
            axes.annotate(
                f"{times(row.speedup)}x",
                (row.speedup, place),
                (0, 8),
                textcoords="offset points",
                ha="center",
                bbox={"facecolor": PAPER.colour, "edgecolor": "none", "pad": 1.0},
            )
        labels = [f"{role(row.role)}\n{folded(row.label, _LETTERS[narrow])}" for row in shown]
        axes.set_yticks(range(len(shown)), labels)
        axes.set_ylim(len(shown) - 0.4, -0.7)
        axes.set_xlim(0, 1.12 * max(1 / row.ratio.low for row in shown))
        axes.set_xlabel("times as fast as today's model")
        axes.grid(visible=False, axis="y")

    return Plot(
        "speeds",
        _speed_found(shown, spread),
        "; ".join(f"{role(row.role)}: {times(row.speedup)} times as fast" for row in shown)
        + ". Bars are 95% intervals, and the shaded band is the noise.",
        draw,
        ("role", "model", "times as fast as today's model"),
        [(role(row.role), name(row.label), cells(row)[2]) for row in shown],
        heights_in=(0.9 + 0.5 * len(shown), 1.0 + 0.65 * len(shown)),
    )


def _speed_found(shown: Sequence[Row], spread: float) -> str:
    own = next((row for row in reversed(shown) if row.role != "fastest uncertified"), shown[-1])
    if own.role == _OTHER:
        return "Today's model ships as it is: nothing faster may ship"
    what = plain(own.label)
    if own.ratio.low <= 1 + spread and own.ratio.high >= 1 - spread:
        return f"{what} is as fast as today's model, within the noise"
    return f"{what} is {times(own.speedup)} times as fast as today's model"


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
        for key, values in sorted_ms.items():
            look: dict[str, Any] = {
                "color": MARKS[key].tone.colour,
                "linestyle": MARKS[key].line,
                "linewidth": 1.3,
            }
            spread_axes.plot(np.quantile(values, shares), 100 * shares, label=role(key), **look)
            numbers, middles = _middles(known[key])
            time_axes.plot(numbers, middles, **look)
        _scale(spread_axes, list(sorted_ms.values()))
        spread_axes.set_title("Requests answered within a time")
        spread_axes.set_ylim(0, 100)
        spread_axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        spread_axes.set_ylabel("share of requests")
        time_axes.set_title("Median of each round")
        time_axes.set_ylim(bottom=0)
        time_axes.set_xlabel("round, in the order of time")
        time_axes.set_ylabel("median latency, ms")
        legend(spread_axes, 2 if narrow else 4)

    return Plot(
        "latencies-of-rounds",
        _latency_found(known, sorted_ms),
        "One panel shows the share of requests answered within a time, the other each round's median. "
        + "; ".join(f"{role(key)}: median {np.median(v):.3g} ms" for key, v in sorted_ms.items())
        + ".",
        draw,
        ("role", "requests", "p5", "p50", "p90", "p99", "slowest"),
        [_quantiles(role(key), values) for key, values in sorted_ms.items()],
        heights_in=(3.8, 6.2),
        panels=2,
    )


def _latency_found(
    known: Mapping[str, Rounds], sorted_ms: Mapping[str, npt.NDArray[np.float64]]
) -> str:
    """Say how the medians compare, and in how many rounds what ships was faster."""
    own, other = (key if key in known else None for key in (_OWN, _OTHER))
    if own is None or other is None:
        key = next(iter(known))
        return f"Half of the requests to {role(key)} took at most {_middle(sorted_ms[key])}"
    half = (
        f"Half of the requests took at most {_middle(sorted_ms[own])}, instead of "
        f"{_middle(sorted_ms[other])} with today's model"
    )
    own_of, other_of = (dict(zip(*_middles(known[key]), strict=True)) for key in (own, other))
    both = own_of.keys() & other_of.keys()
    faster = sum(own_of[number] < other_of[number] for number in both)
    return f"{half}; what ships was faster in {faster} of {len(both)} rounds" if both else half


def _middle(values_ms: npt.NDArray[np.float64]) -> str:
    return latency(1e6 * float(np.median(values_ms)))


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
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
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
