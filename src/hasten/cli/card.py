"""Print a result as a card: in a box on a terminal, in plain lines elsewhere."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import TYPE_CHECKING

import click

from hasten.bundle.manifest import one_line
from hasten.cli.tables import aligned
from hasten.reporting import estimate_rows, sizes
from hasten.reporting.card import Card, card
from hasten.reporting.result import Result
from hasten.reporting.rows import columns, method_columns
from hasten.reporting.summary import summary

if TYPE_CHECKING:
    from rich.console import Console

_WIDEST = 100
"""Largest number of columns of the box: longer lines are hard to read."""


def show(result: Result, began: float, *, with_details: bool = False) -> None:
    """Print a run's result to standard output.

    Args:
        result: End of the run.
        began: Start of the command on the monotonic clock, from which its duration is told.
        with_details: Whether to print every row and every note as well.
    """
    timed = dataclasses.replace(result, seconds=time.monotonic() - began)
    found = card(timed)
    if sys.stdout.isatty() and (sys.stdout.encoding or "").lower().startswith("utf"):
        from rich.console import Console

        boxed(found, Console(file=sys.stdout))
    else:
        click.echo("\n".join(lines(found)))
    if with_details:
        click.echo(f"\n{details(timed)}")


def details(result: Result) -> str:
    """Return every row and every note of a result, as tables and lines."""
    report = (result.bundle / "report.html").exists()
    return "\n".join((*_tables(result), *summary(result, report=report)))


def lines(found: Card) -> list[str]:
    """Return a card in plain lines."""
    width = 2 + max(len(name) for name, _ in found.rows)
    rows = (f"{name + ':':{width}}{text}" for name, text in found.rows)
    return [*map(one_line, (found.title, *rows, *(f"- {note}" for note in found.notes)))]


def boxed(found: Card, console: Console) -> None:
    """Print a card in a box with round corners, and its notes under it."""
    from rich.box import ROUNDED
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    width = min(console.width, _WIDEST)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for name, text in found.rows:
        grid.add_row(name, Text(one_line(text)))
    style = "green" if found.good else ""
    title = Text(found.title, style=f"bold {style}")
    console.print(
        Panel(grid, title=title, title_align="left", box=ROUNDED, border_style=style, width=width)
    )
    notes = Table.grid(padding=(0, 1))
    for note in found.notes:
        notes.add_row("•", Text(one_line(note)))
    if found.notes:
        console.print(notes, width=width)


def _tables(result: Result) -> list[str]:
    """Return the tables of a result, each with an empty line after it."""
    if result.estimates is not None:
        head, *rows = estimate_rows.columns(result.estimates)
        return [aligned([head, *rows]), ""] if rows else []
    if result.sizes is not None:
        return [aligned(sizes.columns(result.sizes)), ""]
    shown = [aligned(columns(result.rows)), ""]
    if result.methods:
        noun = result.asked.noun if result.asked else "score"
        shown += [aligned(method_columns(result.methods, score=noun)), ""]
    return shown
