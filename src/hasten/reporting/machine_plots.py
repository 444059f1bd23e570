"""Plots of the machine's work: time by kind of step, distance to the floor, batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from hasten.reporting.drawing import Plot
from hasten.reporting.evidence import Floor, Point, Profile, Step
from hasten.reporting.marks import MARKS, Mark, legend
from hasten.reporting.markup import Html, element, name, table
from hasten.reporting.result import Row
from hasten.reporting.rows import latency
from hasten.reporting.svg import AFTER, BEFORE, EXACT, INK, LOOSE
from hasten.reporting.words import KINDS as SAID
from hasten.reporting.words import PRECISIONS, role, sentence, times

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
        for shift, label, taken, tone, hatch in (
            (-0.2, "exact model", before, BEFORE, ""),
            (0.2, "what ships", after, AFTER, "///"),
        ):
            values = [taken.get(kind, 0.0) / 1e6 for kind in shown]
            places = [number + shift for number in range(len(shown))]
            axes.barh(places, values, 0.36, color=tone.colour, hatch=hatch, label=label)
            for place, value in zip(places, values, strict=True):
                axes.annotate(
                    f"{value:.3g}", (value, place), (3, 0), textcoords="offset points", va="center"
                )
        axes.set_yticks(range(len(shown)), [SAID[kind] for kind in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.margins(x=0.12)
        axes.set_xlabel("time per request, ms")
        axes.grid(visible=False, axis="y")
        legend(axes, 2)

    whole = [sum(times.values()) for times in (before, after)]
    return Plot(
        "kinds",
        _saved(before, after),
        f"The steps of the exact model take {latency(whole[0])} together, those of what ships "
        f"{latency(whole[1])}.",
        draw,
        ("kind of step", "exact model", "what ships"),
        [
            (SAID[kind], latency(before.get(kind, 0.0)), latency(after.get(kind, 0.0)))
            for kind in shown
        ],
        heights_in=(3.0, 3.4),
    )


def _saved(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """Say in a sentence at which kind of step most time was saved."""
    saved = {kind: time_ns - after.get(kind, 0.0) for kind, time_ns in before.items()}
    kind = max(saved, key=lambda one: saved[one])
    if saved[kind] <= 0:
        return "No kind of step takes less time than in the exact model"
    return (
        f"Most of the time is saved on {SAID[kind]}: {latency(after.get(kind, 0.0))} for a request, instead of "
        f"{latency(before[kind])}"
    )


def top_steps(caption: str, steps: Sequence[Step]) -> Html:
    """Return a table of the longest steps, with their shares of the whole."""
    whole = sum(map(_median_ns, steps)) or 1.0
    longest = sorted(steps, key=_median_ns, reverse=True)[:_TOP]
    rows = [
        (
            name(step.name),
            name(step.operator),
            SAID.get(step.kind, step.kind),
            PRECISIONS.get(step.precision, step.precision or "-"),
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

    own = next((floor for floor in shown if floor.name == "winner"), shown[-1])

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        (axes,) = panels
        for place, floor in enumerate(shown):
            mark, end = MARKS[floor.name], p50_ns[floor.name] / 1e6
            axes.barh(place, end, 0.5, color=mark.tone.colour)
            axes.plot(
                floor.floor_ns / 1e6,
                place,
                "|",
                markersize=24,
                markeredgewidth=3,
                color=INK.colour,
                label="floor" if place == 0 else "",
            )
            axes.annotate(
                f"{times(floor.ratio)}{'x' if narrow else ' times the least'}",
                (end, place),
                (4, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(range(len(shown)), [role(floor.name) for floor in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.margins(x=0.3 if narrow else 0.16)
        least = "" if narrow else "; the stroke marks the shortest time possible"
        axes.set_xlabel(f"median latency, ms{least}")
        axes.grid(visible=False, axis="y")

    return Plot(
        "floors",
        f"{sentence(role(own.name))[:-1]} takes {times(own.ratio)} times the shortest time that "
        "this machine could take",
        "; ".join(f"{role(floor.name)}: {times(floor.ratio)} times its floor" for floor in shown)
        + ".",
        draw,
        ("role", "median (p50)", "floor", "times the floor", "what binds"),
        [
            (
                role(floor.name),
                latency(p50_ns[floor.name]),
                latency(floor.floor_ns),
                f"{times(floor.ratio)}x",
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
                "color": mark.tone.colour,
                "linestyle": mark.line,
                "marker": mark.sign,
            }
            sizes = [point.batch for point in group]
            panels[0].plot(
                sizes,
                [point.throughput_per_s for point in group],
                label=_setting(threads, sessions),
                **look,
            )
            panels[1].plot(sizes, [point.p50_ns / 1e6 for point in group], **look)
        shown = (("Throughput", "samples per second"), ("Latency", "median latency, ms"))
        for axes, (title, label) in zip(panels, shown, strict=True):
            axes.set_title(title)
            sizes = sorted({point.batch for point in points})
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.set_xticks([], minor=True)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("samples in a request")
            axes.set_ylabel(label)
        legend(panels[0], 1 if narrow else 2)

    best = max(points, key=lambda point: point.throughput_per_s)
    return Plot(
        "batches",
        f"Throughput is highest with {best.batch} sample{'' if best.batch == 1 else 's'} in a request: "
        f"{best.throughput_per_s:,.0f} samples a second, {_setting(best.threads, best.sessions)}",
        f"The highest throughput is {best.throughput_per_s:,.0f} samples per second, with {best.batch} "
        f"in a request, {_setting(best.threads, best.sessions)}.",
        draw,
        ("samples in a request", "threads", "sessions", "median (p50)", "samples per second"),
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


def _setting(threads: int, sessions: int) -> str:
    """Say in how many sessions requests are answered, and on how many threads each."""
    each = f"{threads} thread{'' if threads == 1 else 's'}"
    if sessions == 1:
        return f"one request at a time on {each}"
    return f"{sessions} requests at a time on {each} each"
