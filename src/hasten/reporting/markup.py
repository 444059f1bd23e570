"""HTML in small pieces. Texts from files are escaped here, and only here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from hasten.bundle.manifest import one_line
from hasten.reporting.words import HEADS

_LONG = 26
"""Letters from which on a cell may break into lines."""
_TAGS = re.compile("<[^>]*>")
_BREAKS = re.compile(r"((?<![_(,=/+:.])[_(,=/+:.]+)(?=\w)")
"""Punctuation before a word. It is looked for at its begin alone, since a long run of it would take hours."""


class Html(str):
    """Markup that goes into the page as it is."""


NONE = Html("")
"""Empty markup, where there is nothing to show."""


def text(value: str) -> Html:
    """Escape a text; control characters are replaced, so that none affects the reader's screen."""
    return value if isinstance(value, Html) else Html(escape(one_line(value)))


def name(value: str) -> Html:
    """Escape a long name, so that a narrow column may break it after its punctuation."""
    parts = _BREAKS.split(one_line(value))
    return Html("".join(escape(p) + ("<wbr>" if i % 2 else "") for i, p in enumerate(parts)))


def element(tag: str, *content: str, **attributes: str) -> Html:
    """Return an element; in attributes' names a trailing underscore goes, others become hyphens."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
    )
    return Html(f"<{tag}{written}>{''.join(map(text, content))}</{tag}>")


def paragraph(*content: str, class_: str = "") -> Html:
    """Return a paragraph."""
    return element("p", *content, **({"class_": class_} if class_ else {}))


def table(caption: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> Html:
    """Return a table that scrolls within itself where the page is narrow.

    Args:
        caption: Description for readers who can't see the table.
        head: Column heads.
        rows: Rows of cells; the first cell of a row names it.
    """
    heads = [element("th", HEADS.get(cell, cell), scope="col") for cell in head]
    lines = Html("".join(element("tr", *_cells(row)) for row in rows))
    pairs = {"class_": "pairs"} if len(heads) == 2 else {}
    inside = element(
        "table", element("thead", element("tr", *heads)), element("tbody", lines), **pairs
    )
    return element(
        "div", inside, class_="scroll", tabindex="0", role="region", aria_label=one_line(caption)
    )


def _cells(row: Iterable[str]) -> list[Html]:
    """Return the cells of a row, of which only long ones and names may break into lines."""
    cells = []
    for number, cell in enumerate(row):
        letters = len(_TAGS.sub("", cell))
        given = {"class_": "long"} if letters > _LONG or "<wbr>" in cell else {}
        tag = "td"
        if number == 0:
            tag, given = "th", {**given, "scope": "row"}
        cells.append(element(tag, cell, **given))
    return cells


def code(lines: str) -> Html:
    """Return lines to type, as they stand."""
    kept = Html("\n".join(map(text, lines.split("\n"))))
    return element("pre", element("code", kept), tabindex="0")


def items(lines: Iterable[str]) -> Html:
    """Return a list."""
    return element("ul", *(element("li", line) for line in lines))


def details(summary: str, *content: str) -> Html:
    """Return content that is shown on request, under a summary."""
    return element("details", element("summary", summary), *content)


def section(key: str, title: str, *content: str) -> Html:
    """Return a section that a link can lead to."""
    return element("section", element("h2", title), *content, id_=key)
