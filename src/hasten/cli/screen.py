"""Show a run's progress while it goes on, and its results at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from hasten.cli.tables import aligned
from hasten.core.progress import Progress
from hasten.evaluation.benchmark import Stage
from hasten.reporting import estimate_rows
from hasten.reporting.result import Estimates, Limit, Result, Row
from hasten.reporting.rows import beside, columns, latency, method_columns, per_step, won

_STAGES = {
    "prepare": "preparing",
    "shortlist": "timing architectures",
    "prune": "pruning",
    "train": "training",
    "int8": "checking int8",
    "transform": "transforming models",
    "try": "trying candidates",
    "widths": "trying bit widths",
    "design": "placing and routing",
    "race": "racing the fastest",
    "certify": "certifying",
    "label": "waiting for labels",
    "figures": "measuring final figures",
    "limit": "measuring what the machine can do",
    "curve": "measuring the batch curve",
}


_OBJECTIVES = {"p50": "at p50", "p99": "at p99", "mean": "on average"}


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
    """Summarize a run in some twenty lines: the speedup, the certificate, the bundle, what to do next."""
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
            [f"time relative to the shortest possible on this machine: {_limits(result.limits)}"]
            if result.limits
            else []
        ),
        *filter(None, [beside(result), per_step(result)]),
        *_methods(result),
        *_budget(result),
        *result.loads,
        *_compared(result),
        f"for: {result.population}",
        *([f"certified for: {result.batches}"] if result.batches else []),
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
    """Summarize a run for an absent device: its tools' estimates, the certificate, the bundle."""
    lines = [
        "",
        aligned(estimate_rows.columns(estimates)),
        "",
        f"{estimates.noun}, {estimates.device}: {estimate_rows.headline(result)}",
        *filter(None, [estimate_rows.within(result)]),
        f"{result.status}: {result.why}",
        *filter(None, [estimates.compared]),
        *_compared(result),
        f"for: {result.population}",
        *(f"{row.label}: {row.said}" for row in estimates.rows if row.said.startswith("failed")),
        *(f"note: {note}" for note in result.notes),
        "",
        f"bundle: {result.bundle} ({time.monotonic() - began:.0f} s); report: {result.bundle / 'report.html'}",
    ]
    return "\n".join(lines)


def _compared(result: Result) -> list[str]:
    """State the figures, scores and decisions before and after, in a line each."""
    if result.comparison is None:
        return []
    return [
        f"on {result.comparison.rows:,} sealed rows: {line}"
        for line in result.comparison.in_words()
    ]


def _methods(result: Result) -> list[str]:
    """List the methods to a lighter model side by side, and name the one that won."""
    if not result.methods:
        return []
    noun = result.asked.noun if result.asked else "score"
    return ["", aligned(method_columns(result.methods, score=noun)), "", won(result)]


def _budget(result: Result) -> list[str]:
    """Say whether the shipped model is within the budget, unless `_methods` says so already."""
    if result.budget_ns is None or result.methods:
        return []
    within = "within" if result.within_budget else "OVER"
    return [f"{latency(result.step_ns)}, {within} the budget of {latency(result.budget_ns)}"]


def _limits(limits: Sequence[Limit]) -> str:
    return ", ".join(f"{one.role} {one.ratio:.1f}x ({one.binds} binds)" for one in limits)
