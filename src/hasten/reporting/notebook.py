"""A card as HTML for a notebook: no scripts, and colours that dark and light themes show alike."""

from __future__ import annotations

from hasten.reporting.card import Bar, Card
from hasten.reporting.markup import NONE, Html, element

_BOX = (
    "border:1px solid rgba(128,128,128,.45);border-radius:10px;padding:12px 16px;max-width:46em;"
    "font:14px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;color:inherit"
)
_TITLE = "margin:0 0 8px;font-size:1.15em;font-weight:600"
_BADGE = "border-radius:6px;padding:2px 8px;color:#fff;background:"
_GOOD, _PLAIN = "#1b6e3c", "#59636f"
"""Backgrounds on which white text is read easily, on a page of any colour."""
_QUIET = "opacity:.75"
_LIST = "display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:0"
_BARS = (
    "display:grid;grid-template-columns:minmax(0,16em) 1fr max-content;gap:4px 12px;margin:0 0 10px"
)


def as_html(card: Card) -> str:
    """Return a card as HTML; whatever stands on it is escaped."""
    background = _GOOD if card.good else _PLAIN
    title = element("span", card.title, style=f"{_BADGE}{background}")
    rows = (
        part
        for name, text in card.rows
        for part in (
            element("dt", name, style=f"margin:0;font-weight:400;{_QUIET}"),
            element("dd", text, style="margin:0;overflow-wrap:anywhere"),
        )
    )
    notes = NONE
    if card.notes:
        lines = (element("li", note) for note in card.notes)
        notes = element("ul", *lines, style=f"margin:8px 0 0;padding-left:1.2em;{_QUIET}")
    return element(
        "div",
        element("p", title, style=_TITLE),
        _drawn(card.bars, background),
        element("dl", *rows, style=_LIST),
        notes,
        style=_BOX,
        class_="hasten-card",
    )


def _drawn(bars: tuple[Bar, ...], background: str) -> Html:
    """Draw latencies as bars, the last one in colour; they repeat what the lines say."""
    if not bars:
        return NONE
    parts = []
    for number, bar in enumerate(bars):
        colour = background if number == len(bars) - 1 else "rgba(128,128,128,.6)"
        filled = f"width:{100 * bar.share:.1f}%;height:100%;border-radius:3px;background:{colour}"
        room = element("div", element("div", style=filled), style="height:1.1em;align-self:center")
        name = "overflow:hidden;text-overflow:ellipsis;white-space:nowrap"
        parts += [element("div", bar.name, style=name), room, element("div", bar.text)]
    return element("div", *parts, style=_BARS, aria_hidden="true")
