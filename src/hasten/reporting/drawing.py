"""Plots: on a page, where they take its colours and font, or as files that stand alone.

Words that came from a file, such as a candidate's label, are drawn only as `words.plain` and
`words.cut` return them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hasten.reporting import svg
from hasten.reporting.markup import Html, details, element, paragraph, table
from hasten.reporting.svg import INK, LINE, PAPER, QUIET

_WIDTHS_IN = {"wide": 9.4, "narrow": 4.4}
_FONTS_PT = {"wide": 9.0, "narrow": 11.0}
"""Font sizes at which letters come out at 12 and 11 CSS pixels, on pages of about 900 and 330."""
ALONE_IN = {"wide": 8.3, "narrow": 4.2}
"""Widths of a plot that stands alone: 830 CSS pixels, and 420 for a phone."""
_TITLE_PT = 12.5
_TITLE_LETTERS = {"wide": 74, "narrow": 37}
"""Letters of a title that fit into a line."""


def _style() -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",  # letters stay letters: selectable, and read aloud
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": QUIET.colour,
        "axes.labelcolor": INK.colour,
        "axes.titlesize": "medium",
        "axes.titlelocation": "left",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE.colour,
        "grid.linewidth": 0.6,
        "text.color": INK.colour,
        "xtick.color": QUIET.colour,
        "ytick.color": QUIET.colour,
        "xtick.labelcolor": INK.colour,
        "ytick.labelcolor": INK.colour,
        "hatch.color": PAPER.colour,
        "hatch.linewidth": 1.0,
        "legend.frameon": False,
        "lines.linewidth": 1.6,
    }


@contextmanager
def styled(font_pt: float, salt: str) -> Iterator[None]:
    """Draw in hasten's style, whatever the user's own is.

    Args:
        font_pt: Size of letters, in points.
        salt: Text that ids in an SVG follow from.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_style(), "font.size": font_pt, "svg.hashsalt": salt})
        yield


def nothing(panels: Sequence[Axes], narrow: bool) -> None:
    """Draw no labels."""


@dataclass(frozen=True)
class Plot:
    """One plot and the numbers in it.

    Attributes:
        key: Identifier of the plot, unique on the page; with -light.svg and so on, its file's name.
        title: Sentence on what the plot shows, with its numbers.
        description: Description for readers who can't see the plot.
        draw: Function that draws on empty axes; its second argument says whether they are narrow.
        head: Column heads of the table with the numbers.
        rows: Rows of the table with the numbers.
        heights_in: Heights of the wide and the narrow plot, in inches.
        panels: Number of axes, side by side where there is room.
        label: Function that adds labels once it is known where everything stands.
    """

    key: str
    title: str
    description: str
    draw: Callable[[Sequence[Axes], bool], None]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    heights_in: tuple[float, float] = (3.6, 3.4)
    panels: int = 1
    label: Callable[[Sequence[Axes], bool], None] = nothing

    def html(self, caption: str) -> Html:
        """Return the plot under its title at two widths (a page shows one), with its numbers."""
        numbers = details("The numbers", table(self.title, self.head, self.rows))
        return element(
            "figure",
            element("figcaption", element("h3", self.title)),
            self.drawing(),
            paragraph(caption, class_="quiet"),
            numbers,
        )

    def drawing(self) -> Html:
        """Return the plot alone at two widths, of which a page shows one."""
        return Html(
            "".join(
                element("div", Html(self._svg(shape, height_in)), class_=shape)
                for shape, height_in in zip(_WIDTHS_IN, self.heights_in, strict=True)
            )
        )

    def alone(self, palette: dict[str, str], *, narrow: bool = False) -> tuple[str, bytes]:
        """Return the plot under its title as SVG and as PNG, in the colours of `palette`."""
        shape = "narrow" if narrow else "wide"
        width_in, letters = ALONE_IN[shape], _TITLE_LETTERS[shape]
        with svg.painted(palette), styled(_FONTS_PT[shape], f"{self.key}{'-narrow' * narrow}"):
            lines = textwrap.wrap(self.title, letters)
            height_in = self.heights_in[narrow] + 0.2 * (len(lines) + 1)
            figure = Figure((width_in, height_in), facecolor=PAPER.colour)
            figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
            figure.suptitle(
                "\n".join(lines), x=0.012, ha="left", size=_TITLE_PT, weight="bold", linespacing=1.3
            )
            self._fill(figure, narrow=narrow)
            drawn = svg.as_svg(figure, self.key, self.title, self.description)
            return drawn, svg.as_png(figure)

    def _svg(self, shape: str, height_in: float) -> str:
        key = f"{self.key}-{shape}"
        with styled(_FONTS_PT[shape], key):
            figure = Figure((_WIDTHS_IN[shape], height_in), layout="constrained")
            figure.patch.set_visible(False)
            self._fill(figure, narrow=shape == "narrow")
            return svg.as_svg(figure, key, self.title, self.description)

    def _fill(self, figure: Figure, *, narrow: bool) -> None:
        """Draw on axes of the figure, and place labels where there is room for them."""
        down, across = (self.panels, 1) if narrow else (1, self.panels)
        panels = [one for row in figure.subplots(down, across, squeeze=False) for one in row]
        self.draw(panels, narrow)
        for one in figure.axes:
            one.patch.set_visible(False)
        if self.label is not nothing:
            layout = figure.get_layout_engine()
            assert layout is not None
            layout.execute(figure)
            figure.set_layout_engine("none")
            self.label(panels, narrow)
