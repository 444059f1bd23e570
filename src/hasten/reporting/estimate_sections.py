"""The sections of a report on an absent device, from records alone."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from hasten.bundle.requests import in_words
from hasten.reporting.drawing import Plot
from hasten.reporting.estimate_rows import columns, figure, latency_of, ranked_by, within
from hasten.reporting.evidence import Report
from hasten.reporting.markup import (
    NONE,
    Html,
    element,
    items,
    name,
    paragraph,
    section,
    table,
)
from hasten.reporting.result import EstimateRow, Estimates, Result
from hasten.reporting.sections import comparison
from hasten.reporting.svg import AFTER, EXACT, QUIET
from hasten.reporting.words import FACTS, moment


def sections(report: Report, estimates: Estimates) -> list[Html]:
    """Return the sections of the page, in order, without those that have no records."""
    result = report.result
    made = [
        _answers(result, estimates),
        section("notes", "What else to know", items(result.notes)) if result.notes else NONE,
        _figures(estimates),
        _frontier(estimates, result.budget_ns),
        _shipped(estimates),
        comparison(report),
        _tried(estimates),
        _where(report),
    ]
    return [one for one in made if one]


def _answers(result: Result, estimates: Estimates) -> Html:
    """Make the cards on how fast the result is, how sure that is, and how it was compared."""
    shipped = result.shipped
    cards = []
    if shipped is None:
        cards.append(_card("How fast is it?", "-", "Nothing for the device ships.", "bad"))
    else:
        cards.append(_card("How fast is it?", *_how_fast(shipped, within(result)), ""))
    mark, tone = {
        "certified": ("✓ certified", "good"),
        "exact": ("✓ exact", "good"),
        "uncertified": ("✗ not certified", "bad"),
    }[result.status]
    cards.append(_card("How sure are we that it is as accurate?", mark, f"{result.why}.", tone))
    if estimates.compared:
        cards.append(
            _card(
                "Does the device give the same answers?",
                "✓ compared",
                f"{estimates.compared}.",
                "good",
            )
        )
    return element("section", element("ol", *cards, class_="answers"), id_="answers")


def _how_fast(shipped: EstimateRow, budget: str) -> tuple[str, str]:
    """Write the latency of what ships, where it has one, and how it is known."""
    budget = f"{budget[0].upper()}{budget[1:]}." if budget else ""
    if (latency := latency_of(shipped)) != "none":
        return latency, f"From {shipped.source}, not from a measurement. {budget}".strip()
    said = "No latency is known before it runs on the device."
    if ranked := ranked_by(shipped):
        by = (
            "a compiler's estimate"
            if shipped.source == "compiler estimate"
            else "no estimate of speed"
        )
        said += f" Candidates were compared by {shipped.unit}: {ranked}, {by}."
    return "not known", f"{said} {budget}".strip()


def _card(question: str, fact: str, said: str, tone: str) -> Html:
    shown = paragraph(fact, class_=f"figure {tone}".strip())
    return element("li", element("h2", question), shown, paragraph(said))


def _figures(estimates: Estimates) -> Html:
    head, *rows = columns(estimates)
    if not rows:
        return NONE
    shown = [(role, name(label), *rest) for role, label, *rest in rows]
    return section(
        "figures",
        "What the device's tools say",
        paragraph(
            "Only a candidate that was measured, or placed and routed, has a latency; a "
            "compiler's estimate serves only to compare candidates for one device.",
            class_="quiet",
        ),
        table("Candidates, the fastest first", head, shown),
    )


def _frontier(estimates: Estimates, budget_ns: float | None) -> Html:
    """Show rank against area, with the candidates that no other beats in both."""
    plot = frontier(estimates, budget_ns)
    if plot is None:
        return NONE
    title = "Latency against area" if _timed(estimates) else "Estimates against memory"
    caption = (
        "Each dot is a candidate that the device's tools accepted; the line joins the frontier."
    )
    return section("frontier", title, plot.html(caption))


def _points(estimates: Estimates) -> list[EstimateRow]:
    area = estimates.area
    return [row for row in estimates.rows if row.rank is not None and area in row.figures]


def _timed(estimates: Estimates) -> bool:
    """Whether candidates are compared by their latency."""
    return _points(estimates)[0].unit == "ns"


def frontier(estimates: Estimates, budget_ns: float | None) -> Plot | None:
    """Plot rank against area; None where there are too few points."""
    area, points = estimates.area, _points(estimates)
    if not area or len(points) < 2:
        return None
    best = [row for row in points if row.frontier]
    unit = points[0].unit

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        (axes,) = panels
        for row in points:
            tone = AFTER if row.frontier else QUIET
            axes.plot(row.figures[area], row.rank or 0.0, "o", color=tone.colour, markersize=6)
        line = sorted((row.figures[area], row.rank or 0.0) for row in best)
        axes.plot([x for x, _ in line], [y for _, y in line], color=AFTER.colour, linewidth=1.2)
        if budget_ns is not None and unit == "ns":
            axes.axhline(budget_ns, color=EXACT.colour, linestyle="--", linewidth=1)
        budget = [budget_ns] if budget_ns is not None and unit == "ns" else []
        axes.set_xlim(0, 1.1 * max(row.figures[area] for row in points))
        axes.set_ylim(0, 1.15 * max([row.rank or 0.0 for row in points] + budget))
        axes.set_xlabel("area, cells" if unit == "ns" else "memory, bytes")
        axes.set_ylabel(f"latency, {unit}" if unit == "ns" else unit)

    quickest = min(points, key=lambda row: row.rank or 0.0)
    return Plot(
        "speed-against-area",
        f"{len(best)} of {len(points)} candidates are beaten by no other in both speed and area; "
        "the fastest needs "
        f"{quickest.rank:,.0f} {unit} and {quickest.figures[area]:,.0f} {'cells' if unit == 'ns' else 'bytes'}",
        f"{len(points)} candidates; {len(best)} of them are on the frontier: no other under the limit is "
        "both faster and smaller.",
        draw,
        ("candidate", unit, area, "frontier"),
        [
            (
                name(row.label),
                f"{row.rank:,.1f}",
                f"{row.figures[area]:,.0f}",
                "yes" if row.frontier else "",
            )
            for row in points
        ],
    )


def _shipped(estimates: Estimates) -> Html:
    """Show all figures of what ships."""
    shipped = estimates.shipped
    if shipped is None or not shipped.figures:
        return NONE
    facts = [(key, figure(key, value, shipped.limits)) for key, value in shipped.figures.items()]
    return section(
        "shipped",
        "What ships",
        paragraph(name(shipped.label)),
        table("Its figures", ("figure", "value"), facts),
    )


def _tried(estimates: Estimates) -> Html:
    rest = [
        (name(row.label), row.said)
        for row in estimates.rows
        if not row.figures and row.rank is None
    ]
    if not rest:
        return NONE
    return section(
        "tried",
        "What else was tried",
        table("Tried only on this host, or failed", ("candidate", "outcome"), rest),
    )


def _where(report: Report) -> Html:
    facts = [
        ("target", report.target.device),
        *((FACTS.get(key, key), value) for key, value in report.environment.items()),
        ("made", moment(report.created)),
        ("samples in the bundle", in_words(report.requests)),
    ]
    return section("environment", "Where", table("Where it was made", ("fact", "value"), facts))
