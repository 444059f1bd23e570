"""A page as a reader meets it: its sections' words, its tags, its attributes."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Self

_ALONE = {"meta", "br", "wbr"}
_BLOCKS = {"p", "h1", "h2", "h3", "li", "th", "td", "summary", "figcaption", "pre", "title"}


class Reading(HTMLParser):
    """What is on a page.

    Attributes:
        tags: Every tag with its attributes, in order.
        lines: Section -> its blocks of text, in order; plots' own words are left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.lines: dict[str, list[str]] = {"": []}
        self._section = ""
        self._open: list[str] = []
        self._fresh = True

    @classmethod
    def of(cls, page: bytes) -> Self:
        """Read a page.

        Raises:
            ValueError: a tag isn't closed, or closed twice.
        """
        reading = cls()
        reading.feed(page.decode())
        reading.close()
        if reading._open:
            raise ValueError(f"never closed: {reading._open}")
        return reading

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        if tag == "section":
            self._section = given["id"]
            self.lines[self._section] = []
        if tag not in _ALONE:
            self._open.append(tag)
        if tag in _BLOCKS:
            self._fresh = True

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if self._open.pop() != tag:
            raise ValueError(f"{tag} isn't what was open")
        if tag in _BLOCKS:
            self._fresh = True

    def handle_data(self, data: str) -> None:
        if "svg" in self._open or "style" in self._open:
            return
        if self._fresh:
            self.lines[self._section].append("")
            self._fresh = False
        self.lines[self._section][-1] += data

    def rows(self, section: str) -> list[str]:
        """A section's blocks without empty ones."""
        return [line for line in self.lines[section] if line.strip()]
