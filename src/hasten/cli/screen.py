"""Show a run's progress while it goes on, and its results at its end."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from hasten.cli.tables import aligned
from hasten.core.progress import Progress
from hasten.evaluation.benchmark import Stage
from hasten.reporting import estimate_rows, sizes
from hasten.reporting.result import Result, Row
from hasten.reporting.rows import columns, latency, method_columns
from hasten.reporting.summary import summary as in_words

_STAGES = {
    "prepare": "preparing",
    "shortlist": "timing architectures",
    "prune": "pruning",
    "train": "training",
    "int8": "checking int8",
    "transform": "transforming models",
    "try": "trying candidates",
    "draft": "timing drafts",
    "widths": "trying bit widths",
    "design": "placing and routing",
    "race": "racing the fastest",
    "certify": "certifying",
    "label": "waiting for labels",
    "figures": "measuring final figures",
    "limit": "measuring what the machine can do",
    "curve": "measuring the batch curve",
}


class PlainScreen:
    """Print a line for each outcome and each new stage, for logs and pipes."""

    def __init__(self) -> None:
        self._stage = ""
        self._best: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, progress: Progress) -> None:
        """Print what changed: the stage, an outcome or the best candidate so far."""
        lines = []
        if progress.stage != self._stage:
            self._stage = progress.stage
            lines.append(f"{_STAGES.get(progress.stage, progress.stage)} ...")
        if progress.outcome:
            lines.append(f"  [{progress.done}/{progress.total}] {progress.outcome}")
        if progress.best and progress.best != self._best:
            self._best = progress.best
            lines.append(f"  best so far: {progress.best}")
        if lines:
            print("\n".join(lines), file=sys.stderr, flush=True)


class LiveScreen:
    """Show progress bars with the candidate being tried, the best so far and the time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[doing]}", style="dim", markup=False),
            console=self._console,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._done: dict[str, int] = {}
        self._best: str | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Update the bars, and print an outcome or a new best candidate above them."""
        stage = _STAGES.get(progress.stage, progress.stage)
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=progress.total, doing="")
        if progress.done < self._done.get(stage, 0):  # the stage runs again: its timing restarts
            self._bar.reset(self._tasks[stage])
        self._done[stage] = progress.done
        self._bar.update(
            self._tasks[stage],
            completed=progress.done,
            total=progress.total,
            doing=progress.doing[:60],
        )
        if progress.outcome:
            self._console.print(progress.outcome, style="dim", markup=False, highlight=False)
        if progress.best and progress.best != self._best:
            self._best = progress.best
            self._console.print(f"best so far: {progress.best}", markup=False, highlight=False)


def screen() -> PlainScreen | LiveScreen:
    """Return a live screen if standard error is a terminal, a plain one otherwise."""
    return LiveScreen() if sys.stderr.isatty() else PlainScreen()


def table(rows: Sequence[Row]) -> str:
    """Write a run's rows as an aligned table."""
    return aligned(columns(rows))


def stages(against: Sequence[Stage], bundle: Sequence[Stage]) -> str:
    """Write where the time goes from a file's bytes to the decision, before and after, as a table."""
    sides = [side for side in (("against", against), ("bundle", bundle)) if side[1]]
    names = dict.fromkeys(stage.name for _, ways in sides for stage in ways)
    lines = [("stage", *(f"{who} {what}" for who, _ in sides for what in ("p50", "p99", "share")))]
    known = [{stage.name: stage for stage in ways} for _, ways in sides]
    for name in names:
        lines.append((name, *(cell for ways in known for cell in _stage_cells(ways.get(name)))))
    return aligned(lines)


def _stage_cells(stage: Stage | None) -> tuple[str, str, str]:
    if stage is None:
        return "-", "-", "-"
    return latency(stage.p50_ns), latency(stage.p99_ns), f"{100 * stage.share:.0f}%"


def summary(result: Result, began: float) -> str:
    """Write a run's tables, then its result in words.

    Args:
        result: End of the run.
        began: Start of the command on the monotonic clock, from which its duration is told.
    """
    timed = dataclasses.replace(result, seconds=time.monotonic() - began)
    told = in_words(timed, report=(result.bundle / "report.html").exists())
    return "\n".join(("", *_tables(result), *told))


def _tables(result: Result) -> list[str]:
    """Return the tables of a result, each with an empty line after it."""
    if result.estimates is not None:
        head, *rows = estimate_rows.columns(result.estimates)
        return [aligned([head, *rows]), ""] if rows else []
    if result.sizes is not None:
        return [aligned(sizes.columns(result.sizes)), ""]
    shown = [table(result.rows), ""]
    if result.methods:
        noun = result.asked.noun if result.asked else "score"
        shown += [aligned(method_columns(result.methods, score=noun)), ""]
    return shown
