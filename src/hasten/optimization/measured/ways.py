"""Where the time goes from a file's bytes to the decision, before and after; and cold starts of what ships."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack

import numpy as np

from hasten import bundle
from hasten.bundle.cold import ColdStart, cold_start
from hasten.core.workers import Worker
from hasten.engines.end_to_end import EndToEnd, asked_by_file
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.files import spread
from hasten.inputs.data.spool import write_spool
from hasten.inputs.pipeline.smaller import decoded_smaller
from hasten.measure.latency import rounds
from hasten.measure.stages import Ways, reported
from hasten.optimization import delivery
from hasten.optimization.judge import Shipment
from hasten.optimization.measured.racing import Racing
from hasten.optimization.shapes import requests_from

_FILES = 64
"""Number of files that are timed, in turns."""
_FOLDER, _STARTED = "ways", "started.hasten"
_BEFORE, _AFTER = "before", "after"
_KINDS = 3
"""Largest number of kinds of start: of what ships, without a cache and with one, and of the exact model."""
_LONGEST_S = 60.0
"""Longest time, as far as it is foreseen, for cold starts."""
_BESIDE_OPEN_S = 1.0
"""Time of a start beside the opening of the model, about: of the interpreter and of its imports."""


def stages_s(racing: Racing) -> float:
    """Return the time that the stages take, in seconds; 0 where none are timed."""
    if not racing.ready.files or racing.ready.pipeline is None or racing.effort.stages_s <= 0:
        return 0.0
    return racing.effort.stages_s + 2 * racing.open_s


def ways(racing: Racing, key: str) -> Ways | None:
    """Time the stages of the original and of the chosen candidate, in turns.

    Args:
        racing: Candidates of the run and their races.
        key: Key of the chosen candidate.

    Returns:
        The stages; None where the run isn't about files, the effort leaves them out, or a note says why.
    """
    job, ready, needed_s = racing.job, racing.ready, stages_s(racing)
    if not needed_s or ready.pipeline is None:
        return None
    if job.deadline.left_s() < needed_s:
        job.notes.append("the time limit left no time for the times of the stages")
        return None
    job.tell("ways", "timing each stage from a file's bytes to the decision", 0, 1)
    place, files = job.folder / _FOLDER, spread(ready.files, _FILES)
    shutil.rmtree(place, ignore_errors=True)
    samples = write_spool(ArrayDataset({"file": np.arange(len(files))}), place)
    baseline, chosen = racing.trials.baseline, racing.candidate(key)
    bench = racing.bench_of_single
    given, pipeline = ready.given, ready.pipeline
    decoded = (chosen.least and decoded_smaller(pipeline, chosen.least)) or pipeline
    entrants: dict[str, Worker] = {}
    try:
        with ExitStack() as stack:
            before = (
                racing.artifact(baseline) if given is None else given.build(bench, baseline.engine)
            )
            own = pipeline if given is None else given.pipeline
            for name, engine, artifact, steps in (
                (_BEFORE, baseline.engine, before, own),
                (_AFTER, chosen.engine, racing.artifact(chosen), decoded),
            ):
                whole = EndToEnd(engine, steps, files, artifact.inputs, artifact.request)
                entrants[name] = bench.open_built(whole, asked_by_file(artifact)).worker
                stack.callback(entrants[name].kill)
            end = time.monotonic() + racing.effort.stages_s
            for turn in rounds(
                entrants,
                samples.folder,
                threads=1,  # whether the host is busy doesn't matter to shares
                pace=racing.effort.pace("p50"),
                seed=job.order.seed,
            ):
                for who, why in turn.failed.items():
                    raise CandidateError(f"{who}: {why}")
                if time.monotonic() > end:
                    break
            limit_s = bench.limit_s
            before_, after = (
                reported(entrants[name].ask("properties", limit_s=limit_s))
                for name in (_BEFORE, _AFTER)
            )
            return Ways(before_, after, len(set(files)), bench.target.threads)
    except CandidateError as why:
        job.notes.append(f"times of the stages: {why}")
        return None


def starts(racing: Racing, shipment: Shipment) -> ColdStart | None:
    """Time the starts of fresh processes up to the first answer, of what ships and of the exact model.

    Args:
        racing: Candidates of the run and their races.
        shipment: Model that ships.

    Returns:
        The starts; None where the effort leaves them out, or a note says why.
    """
    job, ready, count = racing.job, racing.ready, racing.effort.starts
    if count <= 0:
        return None
    needed_s = (count + 1) * _KINDS * (racing.open_s + _BESIDE_OPEN_S)
    left_s = job.deadline.left_s()
    if needed_s > left_s:
        job.notes.append("the time limit left no time for cold starts")
        return None
    if needed_s > _LONGEST_S:
        job.notes.append(
            f"cold starts: left out, because they would take {needed_s:.0f} s; to measure them, run hasten bench "
            "--cold"
        )
        return None
    job.tell("ways", "starting fresh processes", 0, 1)
    place, request = job.folder / _STARTED, shipment.winner.artifact.request
    shutil.rmtree(place, ignore_errors=True)
    kept = requests_from(ready.kept or ready.single, min(1, bundle.room_for(request)), request)
    requests = bundle.fitting(kept)
    manifest = delivery.manifest_of(job, ready, shipment, len(requests), None)
    try:
        bundle.write(place, manifest, {}, requests=requests)
        return cold_start(
            place,
            starts=count,
            seed=job.order.seed,
            brief=True,
            within_s=min(left_s, _LONGEST_S),
        )
    except (CandidateError, InputError) as why:
        job.notes.append(f"cold starts: {why}")
        return None
    finally:
        shutil.rmtree(place, ignore_errors=True)
