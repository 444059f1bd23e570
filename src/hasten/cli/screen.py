"""What a run shows while it goes on, and the table at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from hasten.cli.tables import aligned
from hasten.core.progress import Progress
from hasten.reporting import estimate_rows
from hasten.reporting.result import Estimates, Limit, Result, Row
from hasten.reporting.rows import columns, latency, method_columns, won

_STAGES = {
    "prepare": "preparing",
    "shortlist": "timing architectures",
    "prune": "pruning",
    "train": "training",
    "int8": "looking at int8",
    "transform": "making models",
    "try": "trying",
    "widths": "trying bit widths",
    "design": "placing and routing",
    "race": "racing",
    "certify": "certifying",
    "figures": "taking fresh figures",
    "limit": "measuring what the machine can do",
    "curve": "taking the batch curve",
}


_OBJECTIVES = {"p50": "at p50", "p99": "at p99", "mean": "in the mean"}


class PlainScreen:
    """A line for each outcome and each new stage; for logs and pipes."""

    def __init__(self) -> None:
        self._stage = ""
        self._best: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, progress: Progress) -> None:
        """Print what is new."""
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
    """A progress bar with what is being tried, the best so far and the time left."""

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
        """Move the bars."""
        stage = _STAGES.get(progress.stage, progress.stage)
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=progress.total, doing="")
        if progress.done < self._done.get(stage, 0):  # the next one: its time counts anew
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
    """Return what fits where standard error goes."""
    return LiveScreen() if sys.stderr.isatty() else PlainScreen()


def table(rows: Sequence[Row]) -> str:
    """The figures' table."""
    return aligned(columns(rows))


def summary(result: Result, began: float) -> str:
    """The end of a run in some twenty lines: how much faster, how sure, where it is, what next."""
    if result.estimates is not None:
        return estimate_summary(result, result.estimates, began)
    lines = [
        "",
        table(result.rows),
        "",
        f"{result.winner.speedup:.2f}x faster than the default engine ({result.rows[0].label}) "
        f"{_OBJECTIVES[result.winner.statistic]}; {result.threads} thread{'s' if result.threads > 1 else ''}, "
        f"batch 1; the same model against itself: within {100 * result.spread:.1f}%",
        f"{result.status}: {result.why}",
        *(
            [f"over the least that this machine could take: {_limits(result.limits)}"]
            if result.limits
            else []
        ),
        *_methods(result),
        *_budget(result),
        *result.loads,
        f"for: {result.population}",
        *(
            f"{row.role}: {row.accuracy}"
            for row in result.rows
            if row.role == "fastest uncertified"
        ),
        *(f"note: {note}" for note in result.notes),
        "",
        f"bundle: {result.bundle} ({time.monotonic() - began:.0f} s); report: {result.bundle / 'report.html'}",
        f"next: hasten bench {result.bundle} --against YOUR_DEPLOYMENT",
    ]
    return "\n".join(lines)


def estimate_summary(result: Result, estimates: Estimates, began: float) -> str:
    """The end of a run for a device that isn't here: how fast by its tools, how sure, where it is."""
    lines = [
        "",
        aligned(estimate_rows.columns(estimates)),
        "",
        f"{estimates.noun}, {estimates.device}: {estimate_rows.headline(result)}",
        *filter(None, [estimate_rows.within(result)]),
        f"{result.status}: {result.why}",
        *filter(None, [estimates.compared]),
        f"for: {result.population}",
        *(f"{row.label}: {row.said}" for row in estimates.rows if row.said.startswith("failed")),
        *(f"note: {note}" for note in result.notes),
        "",
        f"bundle: {result.bundle} ({time.monotonic() - began:.0f} s); report: {result.bundle / 'report.html'}",
    ]
    return "\n".join(lines)


def _methods(result: Result) -> list[str]:
    """The methods to a lighter model side by side, and which won."""
    if not result.methods:
        return []
    noun = result.asked.noun if result.asked else "score"
    return ["", aligned(method_columns(result.methods, score=noun)), "", won(result)]


def _budget(result: Result) -> list[str]:
    """Whether what ships is within the budget, where that isn't said of methods already."""
    if result.budget_ns is None or result.methods:
        return []
    within = "within" if result.within_budget else "OVER"
    return [f"{latency(result.latency_ns)}, {within} the budget of {latency(result.budget_ns)}"]


def _limits(limits: Sequence[Limit]) -> str:
    return ", ".join(f"{one.role} {one.ratio:.1f}x ({one.binds} binds)" for one in limits)
