"""Show a run's progress while it goes on, and its results at its end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from hasten.bundle.manifest import one_line
from hasten.cli.phases import Phases
from hasten.cli.tables import aligned
from hasten.core.invocation import began_s
from hasten.core.progress import Progress, StageName
from hasten.evaluation.benchmark import Comparison
from hasten.measure.stages import Stage
from hasten.reporting.result import Row
from hasten.reporting.rows import columns, latency

if TYPE_CHECKING:
    from hasten.cli.live import LiveScreen

STAGES: dict[StageName, str] = {
    "prepare": "preparing",
    "prospects": "timing networks",
    "shortlist": "timing architectures",
    "prune": "pruning",
    "train": "training",
    "int8": "checking int8",
    "exact": "trying exact forms",
    "try": "trying other forms",
    "draft": "timing drafts",
    "widths": "trying bit widths",
    "design": "placing and routing",
    "ceilings": "measuring what the machine can do",
    "race": "racing the fastest",
    "certify": "certifying",
    "label": "waiting for labels",
    "figures": "measuring final figures",
    "limit": "profiling, and comparing with what the machine can do",
    "curve": "measuring the batch curve",
    "load": "measuring under load",
    "ways": "timing stages and starts",
}
"""Words for the stages of a run, for people."""
_LONGEST_SILENCE_S = 20.0
"""Time without a line after which the next report is one."""


class PlainScreen:
    """Print a line for each outcome and each new stage, for logs and pipes.

    The first report after 20 s without a line says how far the stage is.

    Args:
        clock: Function that returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._phases = Phases(clock)
        self._clock, self._said_s = clock, clock()
        self._stage = ""
        self._best: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def __call__(self, progress: Progress) -> None:
        """Print what changed: the stage, an outcome, news or the best candidate so far."""
        self._phases.see(progress)
        lines = []
        if progress.outline is not None:
            lines += [f"{name + ':':10}{text}" for name, text in progress.outline.facts]
        # Candidates' models are made in between, which is no stage of its own to a reader.
        elif progress.stage not in (self._stage, "transform"):
            self._stage = progress.stage
            left = self._phases.left_in_words()
            lines.append(f"{STAGES[progress.stage]} ...{left and f' ({left})'}")
        if progress.outcome:
            of = f"/{progress.total}" if progress.total else ""
            lines.append(f"  [{progress.done}{of}] {progress.outcome}")
        making = progress.stage == "transform"  # its outcome, which makes it the best, comes next
        if progress.best and progress.best != self._best and not making:
            self._best = progress.best
            lines.append(f"  best so far: {progress.best}")
        if progress.news:
            lines.append(progress.news)
        if not lines and self._clock() - self._said_s >= _LONGEST_SILENCE_S:
            lines.append(self._how_far(progress))
        if lines:
            self._said_s = self._clock()
            print("\n".join(map(one_line, lines)), file=sys.stderr, flush=True)

    def _how_far(self, progress: Progress) -> str:
        """Say what is being done, and how much of its stage is done and left."""
        known = progress.done <= progress.total > 1
        count = f"{progress.done} of {progress.total}" if known else ""
        more = ", ".join(filter(None, (count, self._phases.left_in_words())))
        return f"  {progress.doing}{more and f' ({more})'}"


def screen() -> PlainScreen | LiveScreen:
    """Return a live screen if standard error is a terminal that can draw one, a plain one otherwise."""
    if not sys.stderr.isatty() or os.environ.get("TERM") in (None, "dumb", "unknown"):
        return PlainScreen()
    if not (sys.stderr.encoding or "").lower().startswith("utf"):
        return PlainScreen()
    from hasten.cli.live import LiveScreen

    return LiveScreen(began_s=began_s())


def table(rows: Sequence[Row]) -> str:
    """Write a run's rows as an aligned table."""
    return aligned(columns(rows))


def stages(found: Comparison) -> str:
    """Write where the time goes from a file's bytes to the decision, before and after, as a table."""
    both = ((found.against.role, found.stages_against), (found.bundle.role, found.stages))
    sides = [side for side in both if side[1]]
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
