"""The sections of a report on a model that was made smaller, from records alone."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from hasten.reporting import sections as usual
from hasten.reporting.drawing import Plot
from hasten.reporting.evidence import Report
from hasten.reporting.marks import legend
from hasten.reporting.markup import NONE, Html, element, name, paragraph, section, table
from hasten.reporting.sizes import STEADY, SizeRow, Sizes, columns, size_in_words
from hasten.reporting.svg import AFTER, EXACT, INK, LOOSE, QUIET
from hasten.reporting.words import points


def sections(report: Report, sizes: Sizes) -> list[Html]:
    """Return the sections of the page, in order, without those that have no records."""
    made = [
        _answers(report, sizes),
        usual.notes(report),
        _figures(sizes),
        _frontier(report, sizes),
        usual.certificate(report),
        usual.comparison(report),
        usual.environment(report),
        usual.again(report),
    ]
    return [one for one in made if one]


def _answers(report: Report, sizes: Sizes) -> Html:
    """Make the cards on how small the result is, and how sure it is that it is as accurate."""
    result = report.result
    packed = sizes.weights_bytes / sizes.times_smaller
    small = (
        f"{size_in_words(packed)}, of {size_in_words(sizes.weights_bytes)} of weights; without loss it "
        f"is {size_in_words(sizes.lossless_bytes)}. {STEADY[0].upper()}{STEADY[1:]}."
    )
    mark, tone = {
        "certified": ("✓ certified", "good"),
        "exact": ("✗ no smaller form certified", "bad"),
        "uncertified": ("✗ not certified", "bad"),
    }[result.status]
    cards = [
        ("How much smaller?", f"{sizes.times_smaller:.3g}x", small, ""),
        ("How sure are we that it is as accurate?", mark, f"{result.why}.", tone),
    ]
    shown = [
        element(
            "li",
            element("h2", asked),
            paragraph(fact, class_=f"figure {tone}".strip()),
            paragraph(said),
        )
        for asked, fact, said, tone in cards
    ]
    return element("section", element("ol", *shown, class_="answers"), id_="answers")


def _figures(sizes: Sizes) -> Html:
    head, *rows = columns(sizes)
    shown = [(role, name(label), *rest) for role, label, *rest in rows]
    return section("figures", "The sizes", table("The forms, largest first", head, shown))


def _frontier(report: Report, sizes: Sizes) -> Html:
    """Show size against accuracy, with the forms that no other beats in both, and the limit."""
    plot = frontier(report, sizes)
    if plot is None:
        return NONE
    caption = (
        "Each dot is a trained form, with the 95% interval of its loss on the search split; "
        "numbers are rungs of the ladder, which was tested on the sealed data. "
        f"{STEADY[0].upper()}{STEADY[1:]}."
    )
    return section("frontier", "Size against accuracy", plot.html(caption))


def frontier(report: Report, sizes: Sizes) -> Plot | None:
    """Plot size against accuracy; None where no form was judged."""
    rows = [row for row in sizes.rows if row.drop is not None]
    asked = report.result.asked
    if not rows or asked is None:
        return None
    limit = 100 * asked.max_drop
    best = [row for row in rows if row.frontier]

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        (axes,) = panels
        axes.axvline(
            limit, color=LOOSE.colour, linestyle="--", linewidth=1.2, label=f"limit {limit:.3g}"
        )
        axes.plot(
            0,
            sizes.lossless_bytes / 1e3,
            "D",
            color=EXACT.colour,
            markersize=6,
            label="without loss",
        )
        for row in rows:
            _form(axes, row)
        line = sorted((_fall(row), row.packed_bytes / 1e3) for row in best)
        axes.plot(
            [x for x, _ in line],
            [y for _, y in line],
            color=INK.colour,
            linewidth=1.0,
            label="frontier",
        )
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("points lost on the search split")
        axes.set_ylabel("packed size, kB")
        legend(axes, 2 if narrow else 4)

    return Plot(
        "size-against-accuracy",
        _found(rows, sizes, asked.max_drop),
        f"{len(rows)} forms by points lost and by packed size; {len(best)} on the frontier, the limit at "
        f"{limit:.3g}.",
        draw,
        ("form", "packed, bytes", "points lost", "95% interval", "frontier", "ladder"),
        [_line(row) for row in rows],
    )


def _found(rows: Sequence[SizeRow], sizes: Sizes, max_drop: float) -> str:
    """Say in a sentence how many forms are smaller and within the limit."""
    fit = [
        row
        for row in rows
        if _fall(row) <= 100 * max_drop and row.packed_bytes < sizes.lossless_bytes
    ]
    if not fit:
        return f"No smaller form lost at most {points(max_drop)} in the search"
    smallest = min(fit, key=lambda row: row.packed_bytes)
    return (
        f"{len(fit)} of {len(rows)} forms are smaller and lost at most {points(max_drop)} in the search; the "
        f"smallest of them has {size_in_words(smallest.packed_bytes)}"
    )


def _fall(row: SizeRow) -> float:
    return 0.0 if row.drop is None else 100 * row.drop.estimate


def _form(axes: Axes, row: SizeRow) -> None:
    assert row.drop is not None
    tone = AFTER if row.frontier else QUIET
    size = row.packed_bytes / 1e3
    axes.plot(
        [100 * row.drop.low, 100 * row.drop.high],
        [size, size],
        color=tone.colour,
        linewidth=1.0,
        alpha=0.6,
    )
    axes.plot(_fall(row), size, "o", color=tone.colour, markersize=6, label="pruned and shared")
    if row.rung is not None:
        axes.annotate(str(row.rung + 1), (_fall(row), size), (8, 6), textcoords="offset points")


def _line(row: SizeRow) -> tuple[str, ...]:
    assert row.drop is not None
    return (
        name(row.label),
        f"{row.packed_bytes:,}",
        f"{_fall(row):+.2f}",
        f"{100 * row.drop.low:+.2f} to {100 * row.drop.high:+.2f}",
        "yes" if row.frontier else "",
        "" if row.rung is None else str(row.rung + 1),
    )
