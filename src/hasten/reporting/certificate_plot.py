"""Plot of the certificate: the verdict of the sealed data on each candidate of the ladder."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from hasten.certificate.verdict import Judgement, Verdict
from hasten.reporting.drawing import Plot
from hasten.reporting.markup import name
from hasten.reporting.result import Rung
from hasten.reporting.svg import AFTER, BAND, LOOSE, PAPER, QUIET
from hasten.reporting.words import folded, plain, points

_LETTERS = {False: 40, True: 18}
"""Largest number of letters of a line of a model's label beside a wide and a narrow plot."""


def certificate(ladder: Sequence[Rung]) -> Plot | None:
    """Plot the sealed data's verdicts: each rung's observed drop, its upper bound, the limit."""
    judged = [(n, r.label, r.judgement) for n, r in enumerate(ladder, 1) if r.judgement]
    if not judged:
        return None
    limit = 100 * judged[0][2].max_drop

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        (axes,) = panels
        right = 1.4 * max(limit, 0.01, *(100 * found.bound for *_, found in judged))
        axes.axvspan(limit, right, color=BAND.colour, linewidth=0)
        axes.axvline(limit, color=LOOSE.colour, linestyle="--", linewidth=1.2)
        axes.annotate(
            f"limit: {limit:.3g}",
            (limit, 1),
            (4, -10),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=LOOSE.colour,
        )
        for place, (_, _, found) in enumerate(judged):
            _verdict(axes, place, found)
        labels = [f"{number}. {folded(label, _LETTERS[narrow])}" for number, label, _ in judged]
        axes.set_yticks(range(len(judged)), labels)
        axes.set_ylim(len(judged) - 0.4, -0.9)
        least = min(0.0, *(100 * found.estimate for *_, found in judged), 0.0)
        axes.set_xlim(least - 0.03 * right, right)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("points lost" if narrow else "points lost (dot), and at most (end of bar)")
        axes.grid(visible=False, axis="y")

    return Plot(
        "certificate-of-candidates",
        _found(ladder),
        "; ".join(
            f"{number}. {plain(label)}: {100 * found.estimate:.2g} observed, {100 * found.bound:.2g} the bound "
            f"of this candidate alone, {found.verdict.value}"
            for number, label, found in judged
        )
        + f". The limit is {limit:.3g}.",
        draw,
        ("rung", "model", "observed", "bound, alone", "limit", "draws", "lost", "gained"),
        [
            (
                str(number),
                name(label),
                f"{100 * found.estimate:.3g}",
                f"{100 * found.bound:.3g}",
                f"{limit:.3g}",
                f"{found.n:,}",
                _count(found.lost),
                _count(found.gained),
            )
            for number, label, found in judged
        ],
        heights_in=(1.1 + 0.5 * len(judged), 1.2 + 0.55 * len(judged)),
    )


def _verdict(axes: Axes, place: int, found: Judgement) -> None:
    """Draw the verdict on one candidate."""
    tone = AFTER if found.verdict is Verdict.CERTIFIED else QUIET
    low, high = 100 * found.estimate, 100 * found.bound
    axes.plot([low, high], [place, place], color=tone.colour, linewidth=2.5)
    axes.plot(low, place, "o", color=tone.colour, markersize=7)
    axes.plot(high, place, "|", color=tone.colour, markersize=14, markeredgewidth=2.5)
    axes.annotate(
        found.verdict.value,
        (low, place),
        (0, 8),
        textcoords="offset points",
        ha="left",
        bbox={"facecolor": PAPER.colour, "edgecolor": "none", "pad": 1.0},
    )


def _found(ladder: Sequence[Rung]) -> str:
    """Say in a sentence which candidates the sealed data passed."""
    judged = [one for rung in ladder if (one := rung.judgement)]
    passed = [one for one in judged if one.verdict is Verdict.CERTIFIED]
    allowed = points(judged[0].max_drop)
    draws = f"{judged[0].n:,} {'samples' if judged[0].groups is None else 'groups'}"
    if not passed:
        return f"None of {len(judged)} candidates was certified to lose at most {allowed}, on {draws} kept aside"
    last = passed[-1]
    return (
        f"{len(passed)} of {len(ladder)} candidates passed on {draws} that the search never saw; the last of them "
        f"{'gained' if last.estimate < 0 else 'lost'} {points(abs(last.estimate))}, where {allowed} may be lost"
    )


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
