"""Plots of accuracy: every trial of the search, and the verdicts of the sealed data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from hasten.certificate.verdict import Verdict
from hasten.reporting.drawing import AFTER, BAND, EXACT, INK, LOOSE, PAPER, QUIET, Plot
from hasten.reporting.marks import legend
from hasten.reporting.markup import name
from hasten.reporting.result import Asked, Outcome, Result, Rung


def frontier(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes that no other beats in both latency and accuracy, fastest last."""
    able = [o for o in outcomes if o.ratio is not None and _fall(o) is not None]
    best: list[Outcome] = []
    for one in sorted(able, key=lambda o: (_fall(o) or 0.0, _latency(o))):
        if not best or _latency(one) < _latency(best[-1]):
            best.append(one)
    return best


def _fall(outcome: Outcome) -> float | None:
    """Return an outcome's drop in points: 0 for an exact one, None for one that wasn't judged."""
    if outcome.fate == "exact":
        return 0.0
    return None if outcome.drop is None else 100 * outcome.drop.estimate


def _latency(outcome: Outcome) -> float:
    """Return an outcome's latency in percent of the default engine's."""
    assert outcome.ratio is not None
    return 100 * outcome.ratio.estimate


def trials(result: Result, asked: Asked) -> Plot:
    """Plot latency against accuracy: candidates with intervals, the limit, the frontier."""
    run = [o for o in result.outcomes if o.ratio is not None]
    limit = 100 * asked.max_drop
    edge = max(2.2 * limit, *(1.25 * f for o in run if (f := _fall(o)) and f < 5 * limit), 0.01)
    top = min(max(115.0, *(1.08 * _latency(o) for o in run), 0.0), 170.0)

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        (axes,) = panels
        axes.axhspan(
            100 * (1 - result.spread), 100 * (1 + result.spread), color=BAND.stand_in, lw=0
        )
        axes.axhline(100, color=QUIET.stand_in, linewidth=0.8)
        axes.axvline(limit, color=LOOSE.stand_in, linestyle="--", linewidth=1.2)
        axes.annotate(
            f"limit {limit:.3g}",
            (limit, 0),
            (3, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=LOOSE.stand_in,
        )
        for outcome in run:
            _trial(axes, outcome, edge, top)
        best = [o for o in frontier(run) if (_fall(o) or 0.0) <= edge]
        if best:
            axes.step(
                [*(_fall(o) or 0.0 for o in best), edge],
                [*map(_latency, best), _latency(best[-1])],
                where="post",
                color=INK.stand_in,
                linewidth=1.0,
                label="frontier",
            )
        axes.set_xlim(min(-0.06 * edge, *(1.1 * (_fall(o) or 0.0) for o in run), 0.0), edge)
        axes.set_ylim(0, top)
        axes.set_xlabel("points lost on the search split")
        axes.set_ylabel("latency, share of the default engine's")
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        legend(axes, 2 if narrow else 4)

    beyond = sum(1 for o in run if (_fall(o) or 0.0) > edge or _latency(o) > top)
    return Plot(
        "trials",
        "Latency against accuracy, every candidate",
        f"{len(run)} candidates by points lost and by latency in percent of the default engine's, "
        f"with 95% intervals; {len(frontier(run))} on the frontier, the limit at {limit:.3g}"
        f"{f', {beyond} beyond the edge' if beyond else ''}.",
        draw,
        ("no.", "candidate", "outcome", "latency", "over its floor", "points lost", "ladder"),
        [_line(number, o) for number, o in enumerate(result.outcomes, 1)],
        heights_in=(4.6, 4.2),
    )


_FATES = {
    "exact": (EXACT, "D", "exact"),
    "judged": (AFTER, "o", "judged"),
    "left early": (LOOSE, "v", "surely over the limit"),
    "not judged": (QUIET, "x", "slower, not judged"),
}


def _trial(axes: Axes, outcome: Outcome, edge: float, top: float) -> None:
    """Draw one candidate with its intervals; one beyond the plot stands on its edge."""
    assert outcome.ratio is not None
    tone, sign, meaning = _FATES.get(outcome.fate, (QUIET, "x", "other"))
    fall, level = _fall(outcome), _latency(outcome)
    # A candidate of unknown accuracy stands at the right edge, where its latency alone counts.
    x, y = 0.985 * edge if fall is None else min(fall, 0.995 * edge), min(level, 0.99 * top)
    bar: dict[str, Any] = {"color": tone.stand_in, "linewidth": 1.0, "alpha": 0.6}
    if outcome.drop is not None and x == fall:
        axes.plot([100 * outcome.drop.low, 100 * outcome.drop.high], [y, y], **bar)
    if y == level:
        axes.plot([x, x], [100 * outcome.ratio.low, 100 * outcome.ratio.high], **bar)
    axes.plot(x, y, sign, color=tone.stand_in, markersize=6, clip_on=False, label=meaning)
    if outcome.rung is not None:
        ring: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "color": INK.stand_in}
        axes.plot(x, y, "o", label="on the ladder", **ring)
        axes.annotate(str(outcome.rung + 1), (x, y), (8, 6), textcoords="offset points")


def _line(number: int, outcome: Outcome) -> tuple[str, ...]:
    ratio, drop = outcome.ratio, outcome.drop
    return (
        str(number),
        name(outcome.label),
        outcome.fate,
        "-"
        if ratio is None
        else f"{100 * ratio.estimate:.0f}% ({100 * ratio.low:.0f} to {100 * ratio.high:.0f})",
        "-" if outcome.limit is None else f"{outcome.limit.ratio:.1f}x ({outcome.limit.binds})",
        "-"
        if drop is None
        else f"{100 * drop.estimate:.2f} ({100 * drop.low:.2f} to {100 * drop.high:.2f}), n={drop.draws:,}",
        "-" if outcome.rung is None else str(outcome.rung + 1),
    )


def certificate(ladder: Sequence[Rung]) -> Plot | None:
    """Plot the sealed data's verdicts: each rung's observed drop, its upper bound, the limit."""
    judged = [(number, r.judgement) for number, r in enumerate(ladder, 1) if r.judgement]
    if not judged:
        return None
    limit = 100 * judged[0][1].max_drop

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        (axes,) = panels
        axes.axvline(limit, color=LOOSE.stand_in, linestyle="--", linewidth=1.2)
        axes.annotate(
            f"limit {limit:.3g}",
            (limit, 1),
            (4, -10),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=LOOSE.stand_in,
        )
        for place, (_, found) in enumerate(judged):
            passed = found.verdict is Verdict.CERTIFIED
            tone = AFTER if passed else QUIET
            low, high = 100 * found.estimate, 100 * found.bound
            axes.plot([low, high], [place, place], color=tone.stand_in, linewidth=2.5)
            axes.plot(low, place, "o", color=tone.stand_in, markersize=7)
            axes.plot(high, place, "|", color=tone.stand_in, markersize=14, markeredgewidth=2.5)
            axes.annotate(
                found.verdict.value,
                (low, place),
                (0, 8),
                textcoords="offset points",
                ha="left",
                bbox={"facecolor": PAPER.stand_in, "edgecolor": "none", "pad": 1.0},
            )
        axes.set_yticks(range(len(judged)), [f"rung {number}" for number, _ in judged])
        axes.set_ylim(len(judged) - 0.4, -0.8)
        right = 1.15 * max(limit, 0.01, *(100 * found.bound for _, found in judged))
        axes.set_xlim(min(0.0, *(110 * found.estimate for _, found in judged)), right)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("points lost, and the rung's own bound")
        axes.grid(visible=False, axis="y")

    return Plot(
        "certificate",
        "The drop on the sealed data: observed (dot), and the upper bound of each rung alone (bar). The limit is what the test protects",
        "; ".join(
            f"rung {number}: {100 * found.estimate:.2g} observed, {100 * found.bound:.2g} the bound of the rung alone, "
            f"{found.verdict.value}"
            for number, found in judged
        )
        + f". The limit is {limit:.3g}.",
        draw,
        ("rung", "observed", "bound, alone", "limit", "draws", "lost", "gained"),
        [
            (
                str(number),
                f"{100 * found.estimate:.3g}",
                f"{100 * found.bound:.3g}",
                f"{limit:.3g}",
                f"{found.n:,}",
                _count(found.lost),
                _count(found.gained),
            )
            for number, found in judged
        ],
        heights_in=(1.0 + 0.5 * len(judged), 1.1 + 0.55 * len(judged)),
    )


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
