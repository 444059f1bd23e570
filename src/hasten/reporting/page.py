"""A report as one self-contained HTML page: no script, no request, fit for phones and the dark."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.reporting import estimate_rows, estimate_sections, size_sections, sizes
from hasten.reporting.evidence import Report
from hasten.reporting.markup import Html, element, paragraph, text
from hasten.reporting.sections import SECTIONS
from hasten.reporting.style import STYLE
from hasten.reporting.summary import headline

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Policy under which nothing is loaded, run or sent, whatever a text in the page says."""
BEGINNING = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="generator" content="hasten">'
)
"""First bytes of a report, which tell it from any other page."""


def render(report: Report) -> bytes:
    """Write a report as HTML."""
    result = report.result
    if (estimates := result.estimates) is not None:
        return whole_page(
            bundle_name=result.bundle.name,
            headline=estimate_rows.headline(result),
            about=f"for {estimates.noun}, {estimates.device}; nothing in this report ran on it",
            sections=estimate_sections.sections(report, estimates),
            version=report.environment.get("hasten", ""),
        )
    if result.sizes is not None:
        return whole_page(
            bundle_name=result.bundle.name,
            headline=sizes.headline(result),
            about="size against accuracy; nothing in this report was timed",
            sections=size_sections.sections(report, result.sizes),
            version=report.environment.get("hasten", ""),
        )
    count = result.shipped_threads or result.threads
    threads = f"{count} thread{'' if count == 1 else 's'}"
    return whole_page(
        bundle_name=result.bundle.name,
        headline=headline(result),
        about=f"{report.target.processor}, {threads}, batch 1",
        sections=[made for make in SECTIONS if (made := make(report))],
        version=report.environment.get("hasten", ""),
    )


def whole_page(
    *, bundle_name: str, headline: str, about: str, sections: Sequence[Html], version: str
) -> bytes:
    """Put a page together.

    Args:
        bundle_name: Name of the bundle.
        headline: The result in a few words.
        about: Device and settings that the headline holds for.
        sections: Sections, in order.
        version: Version of hasten.
    """
    head = (
        f"{BEGINNING}"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{text(f'{bundle_name}: {headline}')}</title><style>{STYLE}</style></head>"
    )
    header = element(
        "header",
        paragraph(bundle_name, class_="kicker"),
        element("h1", headline),
        paragraph(about, class_="quiet"),
    )
    footer = element("footer", paragraph(f"Made by hasten {version}".strip()))
    body = element("body", header, element("main", *sections), footer)
    return Html(f"{head}{body}</html>\n").encode()
