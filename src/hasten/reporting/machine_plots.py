"""Plots of the machine's work: time by kind of step, distance to the floor, batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from hasten.reporting.drawing import AFTER, BEFORE, EXACT, INK, LOOSE, Plot
from hasten.reporting.evidence import Floor, Point, Profile, Step
from hasten.reporting.marks import MARKS, Mark, legend
from hasten.reporting.markup import Html, element, name, table
from hasten.reporting.result import Row
from hasten.reporting.rows import latency

KINDS = ("arithmetic", "elementwise", "conversion", "movement")
"""Kinds of work that steps do: see `hasten.engines.layers`; any other kind is "other"."""
_TOP = 12
_SERIES = [
    Mark(tone, line, sign)
    for tone, line, sign in zip(
        (AFTER, EXACT, BEFORE, LOOSE, INK), ("-", "--", "-.", ":", "-"), "osD^v", strict=True
    )
]


def _median_ns(step: Step) -> float:
    return float(np.median(step.latency_ns)) if step.latency_ns else 0.0


def by_kind(steps: Sequence[Step]) -> dict[str, float]:
    """Return the total time of the steps of each kind, in nanoseconds, by medians over requests."""
    totals = dict.fromkeys((*KINDS, "other"), 0.0)
    for step in steps:
        totals[step.kind if step.kind in KINDS else "other"] += _median_ns(step)
    if not totals["other"]:
        del totals["other"]
    return totals


def kinds(profile: Profile) -> Plot:
    """Plot the time by kind of step, before and after."""
    before, after = by_kind(profile.exact), by_kind(profile.winner)
    shown = list(dict.fromkeys((*before, *after)))

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        (axes,) = panels
        for shift, label, times, tone, hatch in (
            (-0.2, "exact model", before, BEFORE, ""),
            (0.2, "winner", after, AFTER, "///"),
        ):
            values = [times.get(kind, 0.0) / 1e6 for kind in shown]
            places = [number + shift for number in range(len(shown))]
            axes.barh(places, values, 0.36, color=tone.stand_in, hatch=hatch, label=label)
            for place, value in zip(places, values, strict=True):
                axes.annotate(
                    f"{value:.3g}", (value, place), (3, 0), textcoords="offset points", va="center"
                )
        axes.set_yticks(range(len(shown)), shown)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.margins(x=0.12)
        axes.set_xlabel("time per request, ms")
        axes.grid(visible=False, axis="y")
        legend(axes, 2)

    whole = [sum(times.values()) for times in (before, after)]
    return Plot(
        "kinds",
        "Time per request by kind of step, before and after",
        f"The steps of the exact model take {latency(whole[0])} together, those of the winner "
        f"{latency(whole[1])}.",
        draw,
        ("kind", "exact model", "winner"),
        [(kind, latency(before.get(kind, 0.0)), latency(after.get(kind, 0.0))) for kind in shown],
        heights_in=(3.0, 3.4),
    )


def top_steps(caption: str, steps: Sequence[Step]) -> Html:
    """Return a table of the longest steps, with their shares of the whole."""
    whole = sum(map(_median_ns, steps)) or 1.0
    longest = sorted(steps, key=_median_ns, reverse=True)[:_TOP]
    rows = [
        (
            name(step.name),
            name(step.operator),
            step.kind,
            step.precision or "-",
            latency(_median_ns(step)),
            _share(_median_ns(step) / whole),
        )
        for step in longest
    ]
    return table(caption, ("step", "operator", "kind", "precision", "time", "share"), rows)


def _share(share: float) -> Html:
    """Return a share as a number with a bar behind it."""
    bar = element("span", class_="bar", style=f"width:{100 * min(share, 1.0):.1f}%")
    return element("span", bar, f"{100 * share:.1f}%", class_="share")


def floors(limit: Sequence[Floor], rows: Sequence[Row]) -> Plot | None:
    """Plot each row's p50 beside its floor; None where no row has a floor."""
    p50_ns = {row.role: row.p50.value_ns for row in rows}
    shown = [floor for floor in limit if floor.name in MARKS and floor.name in p50_ns]
    if not shown:
        return None

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        (axes,) = panels
        for place, floor in enumerate(shown):
            mark, end = MARKS[floor.name], p50_ns[floor.name] / 1e6
            axes.barh(place, end, 0.5, color=mark.tone.stand_in)
            axes.plot(
                floor.floor_ns / 1e6,
                place,
                "|",
                markersize=24,
                markeredgewidth=3,
                color=INK.stand_in,
                label="floor" if place == 0 else "",
            )
            axes.annotate(
                f"{floor.ratio:.3g}x", (end, place), (4, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(shown)), [floor.name for floor in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.margins(x=0.12)
        axes.set_xlabel("p50, ms; the stroke is the floor")
        axes.grid(visible=False, axis="y")

    return Plot(
        "floors",
        "Latency beside the floor",
        "; ".join(f"{floor.name}: {floor.ratio:.3g} times its floor" for floor in shown),
        draw,
        ("", "p50", "floor", "times the floor", "what binds"),
        [
            (
                floor.name,
                latency(p50_ns[floor.name]),
                latency(floor.floor_ns),
                f"{floor.ratio:.3g}x",
                floor.binds or "-",
            )
            for floor in shown
        ],
        heights_in=(1.0 + 0.45 * len(shown), 1.1 + 0.5 * len(shown)),
    )


def batches(curve: Sequence[Point]) -> Plot:
    """Plot throughput and latency by batch, for each number of threads and sessions."""

    def setting(point: Point) -> tuple[int, int]:
        return point.threads, point.sessions

    points = sorted(curve, key=lambda p: (*setting(p), p.batch))
    series = [(key, list(group)) for key, group in groupby(points, setting)]

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        for number, ((threads, sessions), group) in enumerate(series):
            mark = _SERIES[number % len(_SERIES)]
            look: dict[str, Any] = {
                "color": mark.tone.stand_in,
                "linestyle": mark.line,
                "marker": mark.sign,
            }
            sizes = [point.batch for point in group]
            panels[0].plot(
                sizes,
                [point.throughput_per_s for point in group],
                label=f"threads {threads}, sessions {sessions}",
                **look,
            )
            panels[1].plot(sizes, [point.p50_ns / 1e6 for point in group], **look)
        for axes, label in zip(panels, ("samples per second", "p50, ms"), strict=True):
            sizes = sorted({point.batch for point in points})
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.set_xticks([], minor=True)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("samples in a request")
            axes.set_ylabel(label)
        legend(panels[0], 1 if narrow else 3)

    best = max(points, key=lambda point: point.throughput_per_s)
    return Plot(
        "batches",
        "Throughput and latency by batch",
        f"The highest throughput is {best.throughput_per_s:,.0f} samples per second, with {best.batch} "
        f"in a request, {best.threads} threads and {best.sessions} sessions.",
        draw,
        ("samples in a request", "threads", "sessions", "p50", "samples per second"),
        [
            (
                str(point.batch),
                str(point.threads),
                str(point.sessions),
                latency(point.p50_ns),
                f"{point.throughput_per_s:,.0f}",
            )
            for point in points
        ],
        heights_in=(3.6, 5.8),
        panels=2,
    )
