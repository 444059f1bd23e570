"""The look of the page; its colours are variables, which plots use too."""

from __future__ import annotations

from importlib.resources import files

LIGHT = {
    "paper": "#ffffff",
    "card": "#f5f7f9",
    "ink": "#1a1f26",
    "quiet": "#59636f",
    "line": "#d5dbe1",
    "band": "#e6eaee",
    "before": "#6b7480",
    "exact": "#0a68b0",
    "after": "#b84a00",
    "loose": "#8a3d9c",
    "good": "#1b6e3c",
    "bad": "#b3261e",
}
DARK = {
    "paper": "#0d1117",
    "card": "#171d26",
    "ink": "#e7ebf0",
    "quiet": "#a0aab6",
    "line": "#353e4a",
    "band": "#28303b",
    "before": "#98a2ae",
    "exact": "#6db6f2",
    "after": "#f29b53",
    "loose": "#d396e3",
    "good": "#6fcf93",
    "bad": "#ff8a80",
}
"""Blue, orange and purple differ for the colour-blind too; grey is what was there before."""


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


STYLE = (
    f":root{{color-scheme:light dark;{_variables(LIGHT)}}}\n"
    f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}\n"
    + (files("hasten.reporting") / "page.css").read_text()
)
"""Paper is light whatever the screen is, so that print takes the light colours."""
