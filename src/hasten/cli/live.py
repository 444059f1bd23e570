"""The live view of a run on a terminal: its phases, and the latency of each candidate as a bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from hasten.bundle.manifest import one_line
from hasten.cli.phases import Phases, clock_in_words
from hasten.core.progress import Outline, Progress, Tried

_REFRESHES_PER_S = 2
"""Redraws in a second: few, since candidates are timed beside it."""
_AROUND = 5
"""Lines of the view around the phases and the candidates, with one that stays free."""
_AFTER_BAR = 30
"""Columns that a speed and a few words after it take."""
_BASELINE_AT = 0.7
"""Share of a bar's width that the baseline's latency takes."""
_ABLE = ("baseline", "exact", "accurate")
_RANKS = {"baseline": 0, "exact": 0, "accurate": 0, "slower": 1, "wrong": 2, "failed": 3}
_WORDS = {"baseline": "default engine", "exact": "exact", "slower": "not faster"}


class LiveScreen:
    """Draws the run in place, and leaves above it what is worth keeping.

    Args:
        console: Terminal to draw on; by default the one of standard error.
        clock: Function that returns the time in seconds.
        began_s: Beginning of the run by that clock; now by default.
    """

    def __init__(
        self,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        began_s: float | None = None,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._phases = Phases(clock, began_s)
        self._tried: dict[str, Tried] = {}
        self._last = Progress("prepare", "reading the model and the data", 0, 1)
        self._live = Live(
            get_renderable=self.view,
            console=self._console,
            transient=True,
            refresh_per_second=_REFRESHES_PER_S,
        )

    def __enter__(self) -> Self:
        self._live.start()
        # Live hides the cursor, which a process that is killed or crashes couldn't show again.
        self._console.show_cursor()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Take note of a report; print above the view what is worth keeping."""
        self._phases.see(progress)
        self._last = progress
        if progress.outline is not None:
            self._console.print(facts(progress.outline))
        if progress.tried is not None:
            self._tried[progress.tried.label] = progress.tried
        elif progress.outcome:
            self._console.print(Text(one_line(progress.outcome), style="dim"))
        if progress.news:
            news = one_line(progress.news)
            self._console.print(Text(f"{news[0].upper()}{news[1:]}", "bold"))

    def view(self) -> RenderableType:
        """Return what the terminal shows now, no higher than it is."""
        width, height = self._console.width, self._console.height
        phases, last = self._phases, self._last
        when = " · ".join(filter(None, (clock_in_words(phases.elapsed_s), phases.left_in_words())))
        steps = self._steps(width)
        parts: list[RenderableType] = [Rule(Text(when), align="right", style="dim"), steps]
        if self._tried:
            room = max(3, height - _AROUND - len(steps.wrap(self._console, width)))
            parts += ["", *bars(list(self._tried.values()), width, room)]
        count = f" {last.done} of {last.total}" if last.done <= last.total > 1 else ""
        now = Text(f"now{count}: {one_line(last.doing)}", "dim", no_wrap=True, overflow="ellipsis")
        return Group(*parts, "", now)

    def _steps(self, width: int) -> Text:
        """Return the phases in lines: finished, left out, at work, and to come."""
        steps = []
        for name in self._phases.names:
            if self._phases.finished(name):
                mark, style = "✓", "green"
            elif name == self._phases.current:
                mark, style = "●", "bold"
            elif self._phases.left_out(name):
                mark, style = "-", "dim"
            else:
                mark, style = "○", "dim"
            steps.append(Text(f"{mark} {name}", style))
        lines = [steps[:1]]
        for step in steps[1:]:
            if Text("  ").join([*lines[-1], step]).cell_len > width:
                lines.append([])
            lines[-1].append(step)
        return Text("\n").join(Text("  ").join(line) for line in lines)


def facts(outline: Outline) -> Table:
    """Return what a run will do as a table without lines."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, text in outline.facts:
        grid.add_row(name, Text(one_line(text)))
    return grid


def bars(tried: Sequence[Tried], width: int, most: int) -> list[Text]:
    """Return a line for each candidate, fastest first, with its latency as a bar beside the baseline's.

    Those that may not ship are dimmed, with the reason; skipped ones are counted.

    Args:
        tried: Candidates that were tried.
        width: Columns of the terminal.
        most: Largest number of lines.
    """
    shown = [one for one in tried if one.verdict != "skipped"]
    shown.sort(key=lambda one: (_RANKS[one.verdict], _ratio(one)))
    best = next((one for one in shown if one.verdict in _ABLE and _ratio(one) < 1), None)
    skipped = len(tried) - len(shown)
    room = most - bool(skipped)
    if len(shown) > room:
        left_out = shown[room - 1 :]
        shown = shown[: room - 1]
        if base := [one for one in left_out if one.verdict == "baseline"]:
            shown[-1:] = base
    more = len(tried) - skipped - len(shown)
    bar_width = max(8, int(0.18 * width))
    longest = 3 + max((len(one_line(one.label)) for one in shown), default=0)
    # What stands after the bar is whole where a label of 14 columns leaves it room.
    label_width = max(14, min(longest, width - bar_width - _AFTER_BAR))
    lines = [_line(one, width, label_width, bar_width, is_best=one is best) for one in shown]
    tail = [f"and {more} slower or unfit"] * bool(more)
    tail += [f"{skipped} skipped"] * bool(skipped)
    return lines + ([Text(f"  {', '.join(tail)}", style="dim")] if tail else [])


def _ratio(one: Tried) -> float:
    if one.verdict == "baseline":
        return 1.0
    return float("inf") if one.ratio is None else one.ratio


def _line(one: Tried, width: int, label_width: int, bar_width: int, *, is_best: bool) -> Text:
    style = "bold green" if is_best else "" if one.verdict in _ABLE else "dim"
    line = Text(no_wrap=True, overflow="ellipsis", style=style)
    label = _shortened(one_line(one.label), label_width - 2)
    line.append(f"{'▸' if is_best else ' '} {label:{label_width - 2}} ")
    ratio = _ratio(one)
    if ratio == float("inf"):
        line.append(one_line(one.said))
    else:
        line.append(_bar(ratio, bar_width)).append(f" {1 / ratio:>6.2f}x  ")
        line.append(_WORDS.get(one.verdict) or _after_speed(one_line(one.said)))
    line.truncate(width - 1, overflow="ellipsis")
    return line


def _after_speed(said: str) -> str:
    """Return what an outcome says after its speed, which has a place of its own, without its samples."""
    speed, _, rest = said.partition("x, ")
    return rest.partition(" on ")[0] if speed.replace(".", "").isdigit() else said


def _shortened(label: str, width: int) -> str:
    """Cut a label in its middle: it begins with what was done, and ends with the engine."""
    if len(label) <= width:
        return label
    head = (width - 1) // 2
    return f"{label[:head]}…{label[head + 1 - width :]}"


def _bar(ratio: float, width: int) -> str:
    """Return a bar as long as a latency, with a mark where the baseline's ends."""
    mark = int(_BASELINE_AT * width)
    halves = min(2 * width, max(1, round(2 * mark * ratio)))
    bar = ("━" * (halves // 2) + "╸" * (halves % 2)).ljust(width)
    return bar if bar[mark] != " " else f"{bar[:mark]}╎{bar[mark + 1 :]}"
