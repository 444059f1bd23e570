"""The bundle at the end of a run, with its manifest, its evidence and its report."""

from __future__ import annotations

import datetime
import importlib.util
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hasten import bundle
from hasten.bundle import Manifest, Part
from hasten.bundle.manifest import UNCERTIFIED_YET, unfinished
from hasten.certificate.batches import Coverage
from hasten.certificate.changed import ChangedShare
from hasten.certificate.looks import Look
from hasten.core.comparison import Comparison
from hasten.core.lookups import Lookup
from hasten.core.ranges import ValueRange
from hasten.core.records import digest, from_record, to_record, type_name
from hasten.core.varying import not_covered
from hasten.core.words import numbers_in_words
from hasten.engines.base import Artifact, Engine
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.class_folders import NUMBERED
from hasten.measure.candidate import Candidate
from hasten.measure.environment import environment, versions
from hasten.optimization.data_needed import calibrating, shortfall
from hasten.optimization.job import Job
from hasten.optimization.judge import Judge, Ladder, Sealed, Shipment
from hasten.optimization.labelling.notes import label_notes
from hasten.optimization.ready import Ready
from hasten.optimization.shapes import requests_from
from hasten.passes.small_model import SmallModel
from hasten.reporting.apart import rendered_within
from hasten.reporting.evidence import assembled
from hasten.reporting.result import Asked, Result
from hasten.reporting.summary import allowed, exact_why

UNDRAWN = (
    "there is no report, because matplotlib isn't installed: pip install 'hasten[optimize]', "
    "then hasten report makes it from the bundle"
)
"""Note on a bundle without a page where nothing draws pages."""

UNREPORTED = "the time limit left no time for the report: hasten report makes it from the bundle"
"""Note on a bundle without a page where there was no time for it."""

_AS_GIVEN = "the bundle holds the model as it was given, and times are those of the form that takes pixels as uint8"
_FELL = "with pixels normalized inside, the original itself changed an answer to the sealed data"
"""Reason why no inexact form ships where the original as it was given does, after the sealed data."""
_LONE = Coverage()
_WRITE_S = 0.5
"""Seconds that writing a bundle takes, until it was seen."""


def deliver(judge: Judge, ladder: Ladder, sealed: Sealed) -> Result:
    """Decide what ships, with fresh figures, and write the bundle.

    Args:
        judge: Judge of the run.
        ladder: Ladder as it was frozen; what fell on the sealed data is no fallback.
        sealed: Result on the sealed data.
    """
    job, ready, verdicts = judge.job, judge.ready, sealed.verdicts
    job.notes += shortfall(
        verdicts,
        ready,
        calibrating(job.order, ready),
        remembered=job.ledger.file is not None,
    )
    if sealed.look is not None and not sealed.look.plain:
        job.notes.append(sealed.look.in_words())
    job.notes += job.ledger.notes
    job.notes += label_notes(ready, verdicts, sealed.unlabelled)

    def keep(shipment: Shipment) -> None:
        """Write what is certified, and later what ships, since further figures take longer."""
        needed_s = 4 * job.deadline.seen("write", _WRITE_S)
        if _unfinished(job) and job.deadline.most_s() > needed_s:
            certified = sealed.covered if shipment.judgement is not None else Coverage()
            beside, evidence = sealed.comparison_of(shipment.winner.label), _evidence(judge, sealed)
            ships, shipment = _original_as_given(judge, sealed, shipment)
            look, changed = sealed.look, sealed.changed
            write(job, ships, shipment, evidence, beside, certified, look, changed)

    ending = judge.conclude(ladder, verdicts, keep)
    job.deadline.enter("deliver")
    ships, shipment = _original_as_given(judge, sealed, ending.shipment)
    comparison = sealed.comparison_of(ending.shipment.winner.label)
    covered = sealed.covered if ending.shipment.judgement is not None else None
    said = "" if covered is None else covered.in_words()
    result = replace(ending.result, comparison=comparison, look=sealed.look, batches=said)
    if judge.original in sealed.fallen:
        result = replace(result, why=shipment.why)
        if shipment.status == "exact":
            result = replace(result, inexact=_FELL)
    if ships is not ready:
        result = replace(result, notes=(*result.notes, _AS_GIVEN))
    result = replace(result, notes=(*result.notes, *_of_constants(shipment.winner)))
    records = {"result.json": to_record(result), **_evidence(judge, sealed), **ending.records}
    coverage = covered or Coverage()
    look, changed = sealed.look, sealed.changed
    missing = write(job, ships, shipment, records, comparison, coverage, look, changed)
    return replace(result, notes=(*result.notes, *missing))


def _of_constants(winner: Part) -> Iterator[str]:
    """Yield a note for each input that the model that ships takes with only some numbers."""
    engine = from_record(Engine, winner.engine, trusted=True)
    for name, numbers in engine.constant_inputs(winner.artifact).items():
        yield (
            f"the model that ships takes the input {name} as a constant, {numbers_in_words(numbers)} as in all of "
            "the data: it refuses other values"
        )


def _original_as_given(judge: Judge, sealed: Sealed, shipment: Shipment) -> tuple[Ready, Shipment]:
    """Return what goes into the bundle, with the original as it was given wherever that counts.

    A form of it that normalizes pixels itself counts as the original only where the sealed data, too,
    showed no changed answer.

    Raises:
        InputError: the original can't be built.
    """
    ready, given = judge.ready, judge.ready.given
    if given is None or not (sealed.cut or judge.original in sealed.fallen):
        return ready, shipment
    if shipment.status != "exact":  # it ships without a certificate, as was allowed
        why = shipment.why if sealed.cut else allowed(_FELL)
        return ready, replace(shipment, exact=None, why=why)
    try:
        part = judge.part_as_given(given)
    except CandidateError as error:
        raise InputError(f"the model as it was given can't be built: {error}") from error
    why = shipment.why if sealed.cut else exact_why(_FELL, 0, default=True)
    return ready.as_given(given), replace(shipment, why=why, winner=part, exact=part)


def _evidence(judge: Judge, sealed: Sealed) -> dict[str, Any]:
    """Return the records of the trials, as they are now, and of the sealed data."""
    parts = judge.ready.parts
    return {
        "trials.json": [to_record(trial) for trial in judge.trials.done.values()],
        "sealed.json": {
            "judged": [[key, to_record(entry)] for key, entry in sealed.verdicts],
            "hashes": parts.sealed_hashes,
            "seen": parts.seen_hashes,
            "groups": parts.group_hashes,
            "look": to_record(sealed.look),
            "held": sealed.held,
        },
    }


def _unfinished(job: Job) -> bool:
    """Whether no finished bundle of an earlier run lies in the place of this run's.

    Raises:
        InputError: the place holds something that no bundle may replace.
    """
    older = bundle.replaceable(job.order.out)
    return older is None or unfinished(older.get("why"))


def write_interim(job: Job, ready: Ready, shipment: Shipment) -> None:
    """Write the best candidate so far, marked unfinished, in the place of none or of another such one.

    A bundle that is certified stays, though its run hasn't finished, until this run has one, too.

    Raises:
        InputError: the place holds something that no bundle may replace, or the disk is full.
    """
    older = bundle.replaceable(job.order.out)
    if older is None or older.get("why") == UNCERTIFIED_YET:
        write(job, ready, shipment, {})


def write(
    job: Job,
    ready: Ready,
    shipment: Shipment,
    records: Mapping[str, Any],
    comparison: Comparison | None = None,
    covered: Coverage = _LONE,
    look: Look | None = None,
    changed: ChangedShare | None = None,
) -> tuple[str, ...]:
    """Write a bundle, with a report where there is a result, what draws it, and time to do so.

    Returns:
        Why it lacks its report, as a note; empty where it has one, or needs none.

    Raises:
        InputError: the place holds something that no bundle may replace, or the disk is full.
    """
    began = time.monotonic()
    out, request = job.order.out, shipment.winner.artifact.request
    count = bundle.room_for(request) if job.order.keep_requests else 0
    requests = bundle.fitting(requests_from(ready.kept or ready.single, count, request))
    manifest = manifest_of(job, ready, shipment, len(requests), comparison, covered, look, changed)
    extra, records, deadline = {}, dict(records), job.deadline
    missing: tuple[str, ...] = ()
    if "result.json" in records:

        def kept(name: str, most_bytes: int) -> bytes | None:
            """Return a record as `hasten report` will read it, so that the pages are the same."""
            return json.dumps(to_record(records[name])).encode() if name in records else None

        report = assembled(out, manifest, kept)
        page = None
        if importlib.util.find_spec("matplotlib") is None:
            missing = (UNDRAWN,)
        elif deadline.limited:
            within_s = deadline.left_s() - deadline.seen("write", 0.5)
            page = rendered_within(report, within_s)
        else:
            # Imported here: it brings a plotting library, for which no run should wait.
            from hasten.reporting.page import render

            page = render(report)
        if page is None:
            missing = missing or (UNREPORTED,)
            told = records["result.json"]
            records["result.json"] = {**told, "notes": [*told["notes"], *missing]}
        else:
            extra["report.html"] = page
        began = time.monotonic()
    bundle.write(out, manifest, records, extra, requests)
    deadline.saw("write", time.monotonic() - began)
    return missing


def manifest_of(
    job: Job,
    ready: Ready,
    shipment: Shipment,
    requests: int,
    comparison: Comparison | None,
    covered: Coverage = _LONE,
    look: Look | None = None,
    changed: ChangedShare | None = None,
) -> Manifest:
    """Return a bundle's manifest, which states the number of requests to warm up with."""
    parts, judgement = ready.parts, shipment.judgement
    return Manifest(
        status=shipment.status,
        why=shipment.why,
        winner=shipment.winner,
        exact=shipment.exact if job.order.keep_exact else None,
        metric=to_record(ready.promise.metric),
        certificate=None
        if judgement is None
        else {
            "judgement": to_record(judgement),
            "words": "; ".join(
                filter(None, (judgement.in_words(), parts.reservation, not_covered(job.varying)))
            ),
            "population": job.order.population,
            "batch_sizes": list(covered.sizes),
            "rows_apart": covered.rows_apart,
            "batches": covered.in_words(),
            "changed": to_record(changed),
            "threads": shipment.threads,
            "look": None if look is None else {**to_record(look), "words": look.in_words()},
        },
        source_sha256=ready.given_sha256,
        sealed={
            "samples": len(parts.sealed),
            "sha256": digest(parts.sealed_hashes),
            **({} if look is None else {"look": look.in_words()}),
            **({NUMBERED: list(ready.numbered)} if ready.numbered else {}),
        },
        target=shipment.target,
        environment=environment(shipment.target) | versions(bundle.step_packages(ready.pipeline)),
        pipeline=ready.pipeline,
        requests=requests,
        shapes=ready.extents,
        sequences=None if ready.unrolled is None else ready.unrolled.sequences,
        comparison=comparison,
        least=shipment.least,
        varying=job.varying,
        growth=ready.growth,
        ranges=_ranges(ready, shipment.winner) if job.order.keep_requests else (),
        lookups=tuple(_lookups(ready, shipment)),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _ranges(ready: Ready, winner: Part) -> tuple[ValueRange, ...]:
    """Return the ranges of the winner's inputs."""
    names = {spec.name for spec in winner.artifact.inputs}
    return tuple(one for one in ready.ranges if one.input in names)


def _lookups(ready: Ready, shipment: Shipment) -> Iterator[Lookup]:
    """Yield the tables that the bundle's models look their inputs' numbers up in, each once."""
    smaller = {record.get("sha256") for record in shipment.winner.passes}
    found = list(ready.lookups)
    for small in ready.small_models:
        if small.sha256 in smaller:
            found += small.lookups(ready.model)
    parts = filter(None, (shipment.winner, shipment.exact))
    models = [{spec.name: spec for spec in part.artifact.inputs} for part in parts]
    for one in dict.fromkeys(found):
        if all(one.input in specs and one.fits(specs[one.input]) for specs in models):
            yield one


def part_of(candidate: Candidate, artifact: Artifact) -> bundle.Part:
    """Return a bundle's record of a candidate, without the paths its small model came from."""
    passes = [
        replace(step, path=Path(step.path.name), files=()) if isinstance(step, SmallModel) else step
        for step in candidate.passes
    ]
    return bundle.part(candidate.label, passes, candidate.engine, artifact)


def asked(job: Job, ready: Ready) -> Asked:
    """Return the record of what was asked, for the result."""
    promise, parts = ready.promise, ready.parts
    return Asked(
        invocation=job.invocation,
        metric=type_name(promise.metric),
        noun=promise.metric.noun,
        guard=promise.guard,
        mean_over=promise.mean_over,
        max_drop=promise.max_drop,
        confidence=promise.confidence,
        seed=job.order.seed,
        searched=len(parts.search),
        sealed=len(parts.sealed),
    )
