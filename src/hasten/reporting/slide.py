"""The summary: a headline, three numbers, the certificate in a sentence and one small chart."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hasten.reporting import svg
from hasten.reporting.drawing import Plot, styled
from hasten.reporting.markup import Html, element, paragraph
from hasten.reporting.svg import CARD, INK, PAPER, QUIET, Tone
from hasten.reporting.words import cut

_SIZE_IN = (12.8, 7.2)
"""Size of the slide as a file: 1,280 by 720 CSS pixels."""
_LEFT, _RIGHT = 0.05, 0.95
_ALL_LETTERS = 100
_CLAIM = re.compile(r"([0-9.]+%) confident that (.+)")


@dataclass(frozen=True)
class Number:
    """A number, and in a few words what it is."""

    figure: str
    said: str


@dataclass(frozen=True)
class Bar:
    """A bar of the small chart.

    Attributes:
        label: Noun for what the bar is about.
        value: Its length.
        said: The value in words.
        tone: Its colour.
    """

    label: str
    value: float
    said: str
    tone: Tone


@dataclass(frozen=True)
class Slide:
    """Content of one slide.

    Attributes:
        bundle: Name of the bundle.
        headline: The result in a few words.
        about: Device and settings that it holds for.
        numbers: Three numbers.
        certificate: The certificate, or why there is none, in one sentence.
        chart: A small chart; None where there is nothing to draw.
        key: Name of its file, and of its part of a page.
    """

    bundle: str
    headline: str
    about: str
    numbers: tuple[Number, ...]
    certificate: str
    chart: Plot | None = None
    key: ClassVar = "summary"

    def html(self) -> Html:
        """Return the slide as the first part of a page."""
        numbers = (
            element("li", paragraph(one.figure, class_="figure"), paragraph(one.said))
            for one in self.numbers
        )
        chart: tuple[Html, ...] = ()
        if self.chart is not None:
            title = element("figcaption", element("h2", self.chart.title))
            chart = (element("figure", title, self.chart.drawing()),)
        return element(
            "section",
            element(
                "div",
                paragraph(self.bundle, class_="kicker"),
                element("h1", self.headline),
                paragraph(self.about, class_="quiet"),
            ),
            element("ul", *numbers, class_="numbers"),
            paragraph(self.certificate, class_="certificate"),
            *chart,
            class_="slide",
            id_=self.key,
        )

    def alone(self, palette: dict[str, str]) -> tuple[str, bytes]:
        """Return the slide as SVG and as PNG, 16 by 9, in the colours of `palette`."""
        with svg.painted(palette), styled(14, self.key):
            figure = Figure(_SIZE_IN, facecolor=PAPER.colour)
            self._words(figure)
            if self.chart is not None:
                axes = figure.add_axes((0.18, 0.1, _RIGHT - 0.18, 0.19))
                axes.patch.set_visible(False)
                figure.text(_LEFT, 0.32, cut(self.chart.title, 90), size=15, weight="bold")
                self.chart.draw([axes], False)
            numbers = "; ".join(f"{one.figure}: {one.said}" for one in self.numbers)
            described = f"{self.about}. {numbers}. {self.certificate}"
            title = f"{self.bundle}: {self.headline}"
            return svg.as_svg(figure, self.key, title, described), svg.as_png(figure)

    def _words(self, figure: Figure) -> None:
        """Write all but the chart."""
        figure.text(_LEFT, 0.905, cut(self.bundle, 70), size=16, weight="bold", color=QUIET.colour)
        figure.text(_LEFT, 0.825, cut(self.headline, 40), size=38, weight="bold")
        figure.text(_LEFT, 0.775, cut(self.about, _ALL_LETTERS), size=16, color=QUIET.colour)
        wide = (_RIGHT - _LEFT) / max(1, len(self.numbers))
        for place, number in enumerate(self.numbers):
            left = _LEFT + place * wide
            figure.text(left, 0.665, cut(number.figure, 17), size=32, weight="bold")
            said = _lines(number.said, 36, 3)
            figure.text(left, 0.645, said, size=14, va="top", color=QUIET.colour, linespacing=1.35)
        figure.add_artist(
            Rectangle((_LEFT, 0.39), _RIGHT - _LEFT, 0.115, facecolor=CARD.colour, edgecolor="none")
        )
        lines = _lines(self.certificate, 96, 2)
        figure.text(_LEFT + 0.02, 0.4475, lines, size=16, va="center", linespacing=1.4)


def _lines(words: str, letters: int, most: int) -> str:
    """Break a text into lines, and end it by an ellipsis where it is longer than they hold."""
    kept = textwrap.wrap(
        cut(words, letters * most), letters, max_lines=most, placeholder="…", break_on_hyphens=False
    )
    return "\n".join(kept)


def bars(title: str, measured: Sequence[Bar], axis: str) -> Plot:
    """Return a small chart of a few bars, each with its value at its end."""

    def draw(panels: Sequence[Axes], narrow: bool) -> None:
        (axes,) = panels
        for place, bar in enumerate(measured):
            axes.barh(place, bar.value, 0.62, color=bar.tone.colour)
            axes.annotate(
                bar.said, (bar.value, place), (5, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(range(len(measured)), [bar.label for bar in measured])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(measured) - 0.5, -0.5)
        axes.set_xlim(0, (1.32 if narrow else 1.16) * max(bar.value for bar in measured))
        axes.set_xlabel(axis, color=INK.colour)
        axes.grid(visible=False, axis="y")

    return Plot(
        "summary-chart",
        title,
        "; ".join(f"{bar.label}: {bar.said}" for bar in measured) + ".",
        draw,
        ("", axis),
        [(bar.label, bar.said) for bar in measured],
        heights_in=(0.7 + 0.32 * len(measured), 0.8 + 0.4 * len(measured)),
    )


def claim(words: str) -> str:
    """Write a judgement as a plain sentence: "With 95% confidence, accuracy falls by at most 1 point"."""
    said = words.rpartition(" (")[0] or words
    found = _CLAIM.fullmatch(said)
    return f"With {found[1]} confidence, {found[2]}" if found else said
