"""A report as one self-contained HTML page: no script, no request, fit for phones and the dark."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hasten.reporting import estimate_sections, size_sections
from hasten.reporting.evidence import Report
from hasten.reporting.markup import NONE, Html, element, items, paragraph, text
from hasten.reporting.sections import SECTIONS
from hasten.reporting.slide import Slide
from hasten.reporting.slides import slide
from hasten.reporting.style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Policy under which nothing is loaded, run or sent, whatever a text in the page says."""
BEGINNING = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="generator" content="hasten">'
)
"""First bytes of a report, which tell it from any other page."""
_SECTION = re.compile('<section id="([^"]+)"><h2>(.*?)</h2>')


def render(report: Report) -> bytes:
    """Write a report as HTML."""
    result = report.result
    if result.estimates is not None:
        sections = estimate_sections.sections(report, result.estimates)
    elif result.sizes is not None:
        sections = size_sections.sections(report, result.sizes)
    else:
        sections = [made for make in SECTIONS if (made := make(report))]
    return whole_page(
        slide=slide(report), sections=sections, version=report.environment.get("hasten", "")
    )


def whole_page(*, slide: Slide, sections: Sequence[Html], version: str) -> bytes:
    """Put a page together.

    Args:
        slide: Summary, which comes first.
        sections: Sections, in order.
        version: Version of hasten.
    """
    title = text(f"{slide.bundle}: {slide.headline}")
    head = (
        f"{BEGINNING}"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{STYLE}</style></head>"
    )
    skip = element("a", "Skip to the details", class_="skip", href="#details")
    main = element(
        "main", slide.html(), _contents(sections), element("div", *sections, id_="details")
    )
    footer = element("footer", paragraph(f"Made by hasten {version}".strip()))
    body = element("body", skip, main, footer)
    return Html(f"{head}{body}</html>\n").encode()


def _contents(sections: Sequence[Html]) -> Html:
    """List the sections that have a heading of their own, with links to them."""
    found = (_SECTION.match(section) for section in sections)
    links = [element("a", Html(one[2]), href=f"#{one[1]}") for one in found if one]
    return element("nav", items(links), aria_label="On this page") if links else NONE
