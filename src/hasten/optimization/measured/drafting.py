"""Drafts: what inexact candidates could reach, timed without data to judge them by."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from hasten.core.model import Model
from hasten.core.records import from_record
from hasten.core.workers import Worker
from hasten.errors import CandidateError
from hasten.measure.candidate import Single
from hasten.optimization.job import Job
from hasten.optimization.measured.racing import Racing
from hasten.optimization.measured.screening import SCREEN_NOISE
from hasten.optimization.without_data import drafts_folder, drafts_note
from hasten.passes.base import Pass

_SHOWN = 3


def draft(racing: Racing, job: Job, candidates: Sequence[Single]) -> None:
    """Time drafts of inexact candidates beside the baseline, and note the fastest; none is kept.

    A draft may answer wrongly: it is as fast as the real one, without its calibration. Candidates that
    fail, or for which there is no time left, are passed over.

    Args:
        racing: Candidates of the run, with the baseline open.
        job: The run at work.
        candidates: Inexact candidates, most promising first.
    """
    folder = drafts_folder(job)
    numbers = itertools.count()
    best: dict[tuple[Pass, ...], tuple[str, float]] = {}
    made: dict[tuple[Pass, ...], Model | None] = {}
    for number, candidate in enumerate(candidates):
        if job.late:
            break
        job.tell("draft", candidate.label, number, len(candidates))
        if candidate.passes not in made:
            made[candidate.passes] = _drafted(racing, candidate, folder / str(next(numbers)))
        model = made[candidate.passes]
        if model is None:
            continue
        speedup = _speedup(racing, candidate, model, folder / str(next(numbers)))
        if speedup > max(1 + SCREEN_NOISE, best.get(candidate.passes, ("", 0.0))[1]):
            best[candidate.passes] = candidate.label, speedup
    ranked = sorted(best.values(), key=lambda one: -one[1])
    job.notes.append(drafts_note(ranked[:_SHOWN]))


def _drafted(racing: Racing, candidate: Single, folder: Path) -> Model | None:
    """Return what a candidate's passes make of the original as a draft; None where they can't."""
    bench, model = racing.bench, racing.bench.model
    for number, step in enumerate(candidate.passes):
        workdir = folder / str(number)
        workdir.mkdir(parents=True)
        try:
            with Worker(bench.log, bench.memory_bytes) as worker:
                outcome = worker.ask(
                    "transform",
                    limit_s=bench.limit_s,
                    model=model,
                    original=False,
                    step=step,
                    draft=True,
                    calibration=bench.calibration.folder,
                    workdir=workdir,
                )
        except CandidateError:
            return None
        if "skipped" in outcome:
            return None
        model = from_record(Model, outcome["model"])
    return model


def _speedup(racing: Racing, candidate: Single, model: Model, folder: Path) -> float:
    """Return how many times as fast as the baseline a draft is; 0 where its engine can't run it."""
    try:
        artifact = racing.bench.build(candidate.engine, model, folder)
        opened = racing.bench.open_built(candidate.engine, artifact, fresh=False)
    except CandidateError:
        return 0.0
    try:
        return 1 / racing.trials.ratio(racing.trials.timed(candidate, opened)).estimate
    except CandidateError:
        return 0.0
    finally:
        opened.worker.kill()
