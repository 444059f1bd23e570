"""Plots of accuracy: the speed and the accuracy of every candidate of the search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from hasten.reporting.drawing import Plot
from hasten.reporting.marks import legend
from hasten.reporting.markup import name
from hasten.reporting.placing import Label, place
from hasten.reporting.result import Asked, Outcome, Result, Row
from hasten.reporting.svg import AFTER, BAND, BEFORE, EXACT, INK, LOOSE, QUIET, Tone
from hasten.reporting.words import folded, plain, points, times

_LETTERS = {False: 34, True: 20}
"""Largest number of letters of a line of a label in a wide and a narrow plot."""
_MOST_LABELS = 60
"""Largest number of labels to find room for, each of which is compared with all others."""
_FATES = {
    "exact": (EXACT, "D", "exact"),
    "judged": (AFTER, "o", "inexact"),
    "left early": (LOOSE, "v", "over the limit"),
}


def frontier(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes that no other beats in both latency and accuracy, fastest last."""
    able = [o for o in outcomes if o.ratio is not None and _fall(o) is not None]
    best: list[Outcome] = []
    for one in sorted(able, key=lambda o: (_fall(o) or 0.0, -_speed(o))):
        if not best or _speed(one) > _speed(best[-1]):
            best.append(one)
    return best


def _fall(outcome: Outcome) -> float | None:
    """Return an outcome's drop in points: 0 for an exact one, None for one that wasn't judged."""
    if outcome.fate == "exact":
        return 0.0
    return None if outcome.drop is None else 100 * outcome.drop.estimate


def _speed(outcome: Outcome) -> float:
    """Return how many times as fast as the default engine an outcome is."""
    assert outcome.ratio is not None
    return 1 / outcome.ratio.estimate


def trials(result: Result, asked: Asked) -> Plot:
    """Plot speed against accuracy: candidates with intervals, the limit, the frontier."""
    outcomes = [_placed(one, result.winner) for one in result.outcomes]
    run = [o for o in outcomes if o.ratio is not None]
    judged = [o for o in run if _fall(o) is not None]
    limit = 100 * asked.max_drop
    edge = max([1.45 * limit, 0.01, *(1.2 * f for o in judged if (f := _fall(o) or 0) < 4 * limit)])
    left = min([0.0, *(_fall(o) or 0.0 for o in judged)]) - 0.06 * edge
    top = 1.18 * max([1.3, *map(_speed, judged)])
    ships = next((o for o in judged if o.label == result.winner.label), None)
    best = [o for o in frontier(run) if (_fall(o) or 0.0) <= edge]

    def at(outcome: Outcome) -> tuple[float, float]:
        """Return where an outcome stands; one beyond the plot stands on its edge."""
        return min(_fall(outcome) or 0.0, 0.985 * edge), _speed(outcome)

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        (axes,) = panels
        axes.axvspan(limit, edge, color=BAND.colour, linewidth=0)
        axes.axvline(limit, color=LOOSE.colour, linestyle="--", linewidth=1.2)
        axes.axhspan(1 - result.spread, 1 + result.spread, color=BAND.colour, linewidth=0)
        axes.axhline(1, color=QUIET.colour, linewidth=0.8)
        for tone, sign, meaning in dict.fromkeys(map(_sign, judged)):
            axes.plot([], [], sign, color=tone.colour, markersize=6, label=meaning)
        for outcome in judged:
            _trial(axes, outcome, at(outcome), known=outcome in best or outcome.rung is not None)
        if best:
            x, y = zip(*map(at, best), strict=True)
            axes.step([*x, edge], [*y, y[-1]], where="post", color=INK.colour, lw=1, zorder=1.5)
        axes.plot(0, 1, "s", color=BEFORE.colour, markersize=7, label="today's model")
        if ships is not None:
            ring: dict[str, Any] = {"markersize": 13, "markerfacecolor": "none"}
            axes.plot(*at(ships), "o", color=INK.colour, label="what ships", **ring)
        axes.set_xlim(left, edge)
        axes.set_ylim(0, top)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(f"points of {plain(asked.noun, 40)} lost in the search")
        axes.set_ylabel("times as fast as today's model")
        legend(axes, 2 if narrow else 5)

    def label(panels: Sequence[Axes], narrow: bool) -> None:
        words = [
            Label(limit, 0.06 * top, f"limit: {points(limit / 100)}", LOOSE, clear=False),
            Label(0, 1, "today's model", BEFORE),
        ]
        letters = _LETTERS[narrow]
        for outcome in islice(_labelled(ships, best, judged), _MOST_LABELS):
            own = outcome is ships
            said = folded(outcome.label, letters)
            words.append(Label(*at(outcome), f"ships: {said}" if own else said, INK, bold=own))
        place(panels[0], words, [(0.0, 1.0), *map(at, judged)])

    beyond = sum(1 for o in judged if (_fall(o) or 0.0) > edge)
    return Plot(
        "speed-against-accuracy",
        _found(judged, limit, result.spread),
        f"{len(judged)} candidates by points lost and by speed, with the 95% intervals of the best ones; "
        f"{len(frontier(run))} on the frontier, the limit at {limit:.3g}"
        f"{f', {beyond} beyond the right edge' if beyond else ''}.",
        draw,
        ("no.", "candidate", "outcome", "times as fast", "over its floor", "points lost", "ladder"),
        [_line(number, o) for number, o in enumerate(outcomes, 1)],
        heights_in=(4.8, 4.6),
        label=label,
    )


def _placed(outcome: Outcome, winner: Row) -> Outcome:
    """Return an outcome with the speed of its fresh rounds if it ships and the search gave it none.

    A model that ships with smaller pictures was timed in the search without them, as another candidate.
    """
    untimed = outcome.ratio is None and outcome.label == winner.label
    return replace(outcome, ratio=winner.ratio) if untimed else outcome


def _labelled(
    ships: Outcome | None, best: Sequence[Outcome], judged: Sequence[Outcome]
) -> Iterator[Outcome]:
    """Yield the candidates to label, the most important first, each once."""
    ladder = [one for one in judged if one.rung is not None]
    rest = sorted(judged, key=_speed, reverse=True) if len(judged) <= 8 else []
    seen: list[Outcome] = []
    for one in (*([ships] if ships else []), *reversed(best), *ladder, *rest):
        if not any(one is other for other in seen):
            seen.append(one)
            yield one


def _found(judged: Sequence[Outcome], limit: float, spread: float) -> str:
    """Say in a sentence how many candidates are faster and within the limit."""
    fit = [o for o in judged if _speed(o) > 1 + spread and (_fall(o) or 0.0) <= limit]
    allowed = points(limit / 100)
    if not fit:
        return (
            f"No candidate was faster than today's model and lost at most {allowed} in the search"
        )
    fastest = max(fit, key=_speed)
    return (
        f"{len(fit)} of {len(judged)} candidates were faster than today's model and lost at most {allowed} in "
        f"the search; the fastest of them was {times(_speed(fastest))} times as fast"
    )


def _sign(outcome: Outcome) -> tuple[Tone, str, str]:
    """Return the colour and the sign of a candidate, and their meaning."""
    return _FATES.get(outcome.fate, _FATES["judged"])


def _trial(axes: Axes, outcome: Outcome, spot: tuple[float, float], *, known: bool) -> None:
    """Draw one candidate, with its intervals where it is one of the best."""
    assert outcome.ratio is not None
    tone, sign, _ = _sign(outcome)
    x, y = spot
    bar: dict[str, Any] = {"color": tone.colour, "linewidth": 1.0, "alpha": 0.45, "zorder": 1.8}
    if known and outcome.drop is not None and x == _fall(outcome):
        axes.plot([100 * outcome.drop.low, 100 * outcome.drop.high], [y, y], **bar)
    if known:
        axes.plot([x, x], [1 / outcome.ratio.high, 1 / outcome.ratio.low], **bar)
    face = tone.colour if known else "none"
    axes.plot(x, y, sign, color=tone.colour, markerfacecolor=face, markersize=6)


def _line(number: int, outcome: Outcome) -> tuple[str, ...]:
    ratio, drop = outcome.ratio, outcome.drop
    return (
        str(number),
        name(outcome.label),
        outcome.fate,
        "-"
        if ratio is None
        else f"{1 / ratio.estimate:.2f} ({1 / ratio.high:.2f} to {1 / ratio.low:.2f})",
        "-" if outcome.limit is None else f"{outcome.limit.ratio:.1f}x ({outcome.limit.binds})",
        "-"
        if drop is None
        else f"{100 * drop.estimate:.2f} ({100 * drop.low:.2f} to {100 * drop.high:.2f}), n={drop.draws:,}",
        "-" if outcome.rung is None else str(outcome.rung + 1),
    )
