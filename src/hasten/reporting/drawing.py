"""Plots as inline SVG that takes its colours and its font from the page around it.

A plot shows only numbers and words of hasten's own, never a text that came from a file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from hasten.reporting.markup import Html, details, element, table

_LINK = "{http://www.w3.org/1999/xlink}href"
_WIDTHS_IN = {"wide": 9.4, "narrow": 4.4}
_FONTS_PT = {"wide": 9.0, "narrow": 11.0}
"""Font sizes at which letters come out at 12 and 11 CSS pixels, on pages of some 900 and 330."""


@dataclass(frozen=True)
class Tone:
    """A colour of the page, by the name of its CSS variable.

    Attributes:
        stand_in: Colour to draw with, which the variable then replaces.
        variable: Name of the CSS variable, such as "--ink".
    """

    stand_in: str
    variable: str


INK, PAPER, QUIET, LINE, BAND, BEFORE, EXACT, AFTER, LOOSE = (
    Tone(f"#0000{number:02x}", f"--{name}")
    for number, name in enumerate(
        ("ink", "paper", "quiet", "line", "band", "before", "exact", "after", "loose"), 1
    )
)
_TONES = (INK, PAPER, QUIET, LINE, BAND, BEFORE, EXACT, AFTER, LOOSE)
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters: selectable, and read aloud
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET.stand_in,
    "axes.labelcolor": INK.stand_in,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE.stand_in,
    "grid.linewidth": 0.6,
    "text.color": INK.stand_in,
    "xtick.color": QUIET.stand_in,
    "ytick.color": QUIET.stand_in,
    "xtick.labelcolor": INK.stand_in,
    "ytick.labelcolor": INK.stand_in,
    "hatch.color": PAPER.stand_in,
    "hatch.linewidth": 1.0,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
_FONT = re.compile(r"font: ([0-9.]+px)[^;]*|font-family: [^;]*;?")
_SHORT = re.compile(r"(\d+\.\d{2})\d+")


@dataclass(frozen=True)
class Plot:
    """One plot and the numbers in it.

    Attributes:
        key: Identifier of the plot, unique on the page.
        title: Title of the plot.
        description: Description for readers who can't see the plot: what is to be learned from it.
        draw: Function that draws on empty axes; its second argument says whether they are narrow.
        head: Column heads of the table with the numbers.
        rows: Rows of the table with the numbers.
        heights_in: Heights of the wide and the narrow plot, in inches.
        panels: Number of axes, side by side where there is room.
    """

    key: str
    title: str
    description: str
    draw: Callable[[Sequence[Axes], bool], None]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    heights_in: tuple[float, float] = (3.6, 3.4)
    panels: int = 1

    def html(self, caption: str) -> Html:
        """Return the plot at two widths (a page shows one), its caption, and its numbers."""
        shapes = [
            element("div", Html(self._svg(shape, height_in)), class_=shape)
            for shape, height_in in zip(_WIDTHS_IN, self.heights_in, strict=True)
        ]
        numbers = details("The numbers", table(self.title, self.head, self.rows))
        return element("figure", *shapes, element("figcaption", caption), numbers)

    def _svg(self, shape: str, height_in: float) -> str:
        narrow = shape == "narrow"
        key = f"{self.key}-{shape}"
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # a user's own style must not change the page
            matplotlib.rcParams.update(
                {**_STYLE, "font.size": _FONTS_PT[shape], "svg.hashsalt": key}
            )
            figure = Figure((_WIDTHS_IN[shape], height_in), layout="constrained")
            down, across = (self.panels, 1) if narrow else (1, self.panels)
            axes = figure.subplots(down, across, squeeze=False)
            self.draw([one for row in axes for one in row], narrow)
            for one in figure.axes:
                one.patch.set_visible(False)
            figure.patch.set_visible(False)
            file = io.BytesIO()
            # savefig would draw everything once more, for a layout that drawing makes anyway.
            canvas: Any = FigureCanvasSVG(figure)
            canvas.print_svg(
                file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
            )
        return _themed(file.getvalue(), key, self.title, self.description)


def _themed(svg: bytes, key: str, title: str, description: str) -> str:
    """Make an SVG part of a page: titled, without its own styles and ids, in the page's colours."""
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in [c for c in parent if c.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    wanted = {target[1:] for target in map(_target, root.iter()) if target}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", svg.decode()))
    for node in root.iter():
        _adapt(node, key, wanted)
    label = {"title": title, "desc": description}
    view = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update(
        viewBox=view, role="img", **{"aria-labelledby": " ".join(f"{key}-{n}" for n in label)}
    )
    for place, (tag, words) in enumerate(label.items()):
        named = ElementTree.Element(tag, id=f"{key}-{tag}")
        named.text = words
        root.insert(place, named)
    return ElementTree.tostring(root, encoding="unicode")


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
            node.set(name, _recoloured(value).replace("url(#", f"url(#{key}-"))
    if points := node.get("d"):
        node.set("d", _SHORT.sub(r"\1", " ".join(points.split())))


def _recoloured(style: str) -> str:
    for tone in _TONES:
        style = style.replace(tone.stand_in, f"var({tone.variable})")
    return _FONT.sub(lambda found: f"font-size: {found[1]}" if found[1] else "", style)
