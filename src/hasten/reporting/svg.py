"""SVG of a drawn figure: part of a page, or a file that stands alone."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from hasten.bundle.manifest import one_line

_LINK = "{http://www.w3.org/1999/xlink}href"
_SVG = "http://www.w3.org/2000/svg"
_FONTS = 'system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif'
_FONT = re.compile(r"font: (?:(bold|\d{3}) )?([0-9.]+px)[^;]*|font-family: [^;]*;?")
_SHORT = re.compile(r"(\d+\.\d{2})\d+")
_PIXELS_PER_INCH = 150
"""Resolution of PNG files."""

_palette: ContextVar[dict[str, str] | None] = ContextVar("_palette", default=None)
"""Colours to draw with; None for those of the page around the plot."""


@dataclass(frozen=True)
class Tone:
    """A colour by its name in `hasten.reporting.style`, such as "ink".

    Attributes:
        name: Name of the colour.
        stand_in: Colour to draw with in a page, where the page's variable then replaces it.
    """

    name: str
    stand_in: str

    @property
    def colour(self) -> str:
        """Return the colour to draw with now."""
        palette = _palette.get()
        return self.stand_in if palette is None else palette[self.name]


INK, PAPER, QUIET, LINE, BAND, BEFORE, EXACT, AFTER, LOOSE, GOOD, BAD, CARD = TONES = tuple(
    Tone(name, f"#0000{number:02x}")
    for number, name in enumerate(
        (
            *("ink", "paper", "quiet", "line", "band", "before"),
            *("exact", "after", "loose", "good", "bad", "card"),
        ),
        1,
    )
)


@contextmanager
def painted(palette: dict[str, str]) -> Iterator[None]:
    """Draw in these colours rather than in those of a page."""
    token = _palette.set(palette)
    try:
        yield
    finally:
        _palette.reset(token)


def as_svg(figure: Figure, key: str, title: str, description: str) -> str:
    """Write a figure as SVG: for a page, or to stand alone where colours are `painted`.

    Args:
        figure: Figure, drawn in the same colours.
        key: Beginning of every id in it.
        title: Title for readers who can't see it.
        description: Description for readers who can't see it.
    """
    file = io.BytesIO()
    # savefig would draw everything once more, for a layout that drawing makes anyway.
    canvas: Any = FigureCanvasSVG(figure)
    canvas.print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = file.getvalue()
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in [c for c in parent if c.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    wanted = {target[1:] for target in map(_target, root.iter()) if target}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", svg.decode()))
    for node in root.iter():
        _adapt(node, key, wanted)
    _head(root, key, {"title": title, "desc": description}, figure)
    return ElementTree.tostring(root, encoding="unicode")


def as_png(figure: Figure) -> bytes:
    """Write a figure as PNG."""
    file = io.BytesIO()
    figure.set_dpi(_PIXELS_PER_INCH)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(file, metadata={"Software": None})
    return file.getvalue()


def _head(root: ElementTree.Element, key: str, label: dict[str, str], figure: Figure) -> None:
    """Give the root its title, its description and, where it stands alone, its size and font."""
    view = root.get("viewBox", "")
    root.attrib.clear()
    names = " ".join(f"{key}-{tag}" for tag in label)
    root.attrib.update(viewBox=view, role="img", **{"aria-labelledby": names})
    if _palette.get() is not None:
        width, height = (f"{100 * inches:.0f}" for inches in figure.get_size_inches())
        root.attrib.update(xmlns=_SVG, width=width, height=height)
        root.attrib.update({"font-family": _FONTS, "stroke-linejoin": "round"})
    for place, (tag, words) in enumerate(label.items()):
        named = ElementTree.Element(tag, id=f"{key}-{tag}")
        named.text = one_line(words)
        root.insert(place, named)


def _target(node: ElementTree.Element) -> str:
    return node.get(_LINK, "")


def _adapt(node: ElementTree.Element, key: str, wanted: set[str]) -> None:
    """Prefix ids that are referred to, drop the others, and replace colours and fonts."""
    node.tag = node.tag.rpartition("}")[2]  # a page knows what svg is
    node.text, node.tail = (node.text or "").strip() or None, None
    own = node.attrib.pop("id", None)
    if own in wanted:
        node.set("id", f"{key}-{own}")
    if target := node.attrib.pop(_LINK, ""):
        node.set("href", f"#{key}-{target[1:]}")
    for name in ("style", "clip-path", "fill", "stroke"):
        if value := node.get(name):
            node.set(name, _restyled(value).replace("url(#", f"url(#{key}-"))
    if points := node.get("d"):
        node.set("d", _SHORT.sub(r"\1", " ".join(points.split())))


def _restyled(style: str) -> str:
    if _palette.get() is None:
        for tone in TONES:
            style = style.replace(tone.stand_in, f"var(--{tone.name})")
    return _FONT.sub(_sized, style)


def _sized(font: re.Match[str]) -> str:
    """Keep a font's size and weight, and leave the family to what is around it."""
    weight, size = font.groups()
    if not size:
        return ""
    return f"font-weight: {weight}; font-size: {size}" if weight else f"font-size: {size}"
