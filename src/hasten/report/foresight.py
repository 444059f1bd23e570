"""The report of a run for a device that isn't here, from its record alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from matplotlib.axes import Axes

from hasten import bundle
from hasten.bundle import Manifest
from hasten.core.records import to_record
from hasten.errors import IntegrityError
from hasten.report.drawing import AFTER, EXACT, QUIET, Plot
from hasten.report.evidence import as_path, numbers
from hasten.report.foreseen import Foreseen, Foresight
from hasten.report.foresight_rows import columns, figure, headline, latency_of, ranked_by, within
from hasten.report.markup import (
    NONE,
    Html,
    element,
    items,
    name,
    paragraph,
    section,
    table,
)
from hasten.report.page import whole_page

FORESIGHT = "foresight.json"
_MOST_BYTES = 16 << 20
_LARGEST = 2**63


def kept_foresight(folder: Path, manifest: Manifest) -> Foresight | None:
    """Read a bundle's foresight; None where it has none.

    Raises:
        IntegrityError: it is damaged.
    """
    path = f"evidence/{FORESIGHT}"
    if path not in manifest.files:
        return None
    if manifest.files[path][1] > _MOST_BYTES:
        raise IntegrityError(f"{folder}: {path} is larger than {_MOST_BYTES >> 20} MiB")
    try:
        data = (folder / path).read_bytes()
        result = msgspec.json.decode(data, type=Foresight, dec_hook=as_path)
    except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{folder}: {path} is damaged: {error}") from error
    if result.status != manifest.status:
        raise IntegrityError(
            f"{folder}: {path} says {result.status}, the manifest {manifest.status}"
        )
    if not all(abs(number) < _LARGEST for number in numbers(to_record(result))):
        raise IntegrityError(f"{folder}: {path} has a number that is infinite, or larger than any")
    return result


def render(result: Foresight, manifest: Manifest) -> bytes:
    """Write the report as HTML."""
    sections = [
        _answers(result),
        section("notes", "What else to know", items(result.notes)) if result.notes else NONE,
        _figures(result),
        _frontier(result),
        _shipped(result),
        _tried(result),
        _where(manifest),
    ]
    return whole_page(
        bundle_name=result.bundle.name,
        headline=headline(result),
        about=f"for {result.noun}, {result.device}; nothing here ran on it",
        sections=[made for made in sections if made],
        version=manifest.environment.get("hasten", ""),
    )


def gathered_foresight(folder: Path) -> tuple[Foresight, Manifest] | None:
    """Read a bundle's foresight with its manifest; None where it has none."""
    manifest = bundle.read(folder)
    result = kept_foresight(folder, manifest)
    return None if result is None else (result, manifest)


def _answers(result: Foresight) -> Html:
    """How fast, how sure, and what the figures are."""
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
    if result.compared:
        cards.append(
            _card("Does the device answer so?", "✓ compared", f"{result.compared}.", "good")
        )
    return element("section", element("ol", *cards, class_="answers"), id_="answers")


def _how_fast(shipped: Foreseen, budget: str) -> tuple[str, str]:
    """Its latency, where it has one, and how that is known."""
    budget = f"{budget[0].upper()}{budget[1:]}." if budget else ""
    if (latency := latency_of(shipped)) != "none":
        return latency, f"By {shipped.source}, not by measurement. {budget}".strip()
    said = "No latency is known before it runs there."
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


def _figures(result: Foresight) -> Html:
    head, *rows = columns(result)
    if not rows:
        return NONE
    shown = [(role, name(label), *rest) for role, label, *rest in rows]
    return section(
        "figures",
        "What the device's tools say",
        paragraph(
            "Only what was measured or placed and routed has a latency; a compiler's estimate is for "
            "comparing candidates of one device, and for nothing else.",
            class_="quiet",
        ),
        table("Candidates, the fastest first", head, shown),
    )


def _frontier(result: Foresight) -> Html:
    """Rank against area: what no other is both faster and smaller than."""
    area = result.area
    points = [row for row in result.rows if row.rank is not None and area in row.figures]
    if not area or len(points) < 2:
        return NONE
    best = [row for row in points if row.frontier]
    unit = points[0].unit

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        (axes,) = panels
        for row in points:
            tone = AFTER if row.frontier else QUIET
            axes.plot(row.figures[area], row.rank or 0.0, "o", color=tone.stand_in, markersize=6)
        line = sorted((row.figures[area], row.rank or 0.0) for row in best)
        axes.plot([x for x, _ in line], [y for _, y in line], color=AFTER.stand_in, linewidth=1.2)
        if result.budget_ns is not None and unit == "ns":
            axes.axhline(result.budget_ns, color=EXACT.stand_in, linestyle="--", linewidth=1)
        budget = [result.budget_ns] if result.budget_ns is not None and unit == "ns" else []
        axes.set_xlim(0, 1.1 * max(row.figures[area] for row in points))
        axes.set_ylim(0, 1.15 * max([row.rank or 0.0 for row in points] + budget))
        axes.set_xlabel("area, cells" if unit == "ns" else "memory, bytes")
        axes.set_ylabel(f"latency, {unit}" if unit == "ns" else unit)

    title = "Latency against area" if unit == "ns" else f"{unit.capitalize()} against memory"
    plot = Plot(
        "frontier",
        title,
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
    return section(
        "frontier",
        title,
        plot.html(
            "Each dot is a candidate that the device's tools took; those joined by the line are the frontier."
        ),
    )


def _shipped(result: Foresight) -> Html:
    """All figures of what ships."""
    shipped = result.shipped
    if shipped is None or not shipped.figures:
        return NONE
    facts = [(key, figure(key, value, shipped.limits)) for key, value in shipped.figures.items()]
    return section(
        "shipped",
        "What ships",
        paragraph(name(shipped.label)),
        table("Its figures", ("figure", "value"), facts),
    )


def _tried(result: Foresight) -> Html:
    rest = [
        (name(row.label), row.said) for row in result.rows if not row.figures and row.rank is None
    ]
    if not rest:
        return NONE
    return section(
        "tried",
        "What else was tried",
        table("On this host alone, or in vain", ("candidate", "outcome"), rest),
    )


def _where(manifest: Manifest) -> Html:
    facts = [
        ("target", manifest.target.device),
        *manifest.environment.items(),
        ("made", manifest.created),
    ]
    return section("environment", "Where", table("Where it was made", ("fact", "value"), facts))
