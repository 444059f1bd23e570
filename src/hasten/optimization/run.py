"""The steps of every run after its search: freeze the ladder, and read the sealed data once."""

from __future__ import annotations

import contextlib

from hasten.certificate.certification import judge_ladder, prior_of, sealed_scores
from hasten.certificate.verdict import Judgement
from hasten.core.records import digest, from_record, to_record
from hasten.errors import CandidateError, InputError
from hasten.measure.workbench import OpenWorker
from hasten.optimization.judge import Judge, Ladder, Verdicts


def search(judge: Judge) -> None:
    """Try candidates, except those in the journal of a stopped run."""
    judge.job.tell("prepare", "opening the original model", 0, 1)
    judge.search()


def freeze(judge: Judge) -> Ladder:
    """Choose the candidates to certify, and journal them with a hash, so that the choice stands.

    A resumed run takes the ladder that it froze before.

    Raises:
        InputError: the frozen ladder was changed.
    """
    journal = judge.job.journal
    frozen = journal.last("ladder")
    if frozen is None:
        choice = to_record(judge.choose())
        journal.append("ladder", choice=choice, sha256=digest(choice))
        frozen = {"choice": choice, "sha256": digest(choice)}
    if digest(frozen["choice"]) != frozen["sha256"]:
        raise InputError(f"{journal.path}: the frozen ladder was changed; remove the folder")
    ladder = from_record(Ladder, frozen["choice"])
    judge.stand_by(ladder)
    return ladder


def certify(judge: Judge, ladder: Ladder) -> Verdicts:
    """Read the sealed data once, and test the frozen ladder on it, from safest to fastest."""
    job, ready, trials = judge.job, judge.ready, judge.trials
    if not ladder.rungs:
        return []
    known = job.journal.last("judged")
    if known is not None:
        return [
            (key, entry if isinstance(entry, str) else from_record(Judgement, entry))
            for key, entry in known["judged"]
        ]
    sealed = ready.parts.sealed
    job.journal.append("sealed read", samples=len(sealed))
    failed: dict[str, str] = {}
    opened: dict[str, OpenWorker] = {}
    with contextlib.ExitStack() as stack:
        exact = judge.open_exact()
        stack.callback(exact.worker.kill)
        for key in ladder.rungs:
            try:
                opened[key] = stack.enter_context(judge.opened(key))
            except CandidateError as error:
                failed[key] = str(error)
        original, scores = sealed_scores(
            trials.bench,
            exact,
            opened,
            sealed,
            ready.promise.metric,
            lambda done: job.tell("certify", "reading the sealed data, once", done, len(sealed)),
        )
    units = ready.parts.search_units
    verdicts = judge_ladder(
        original,
        ladder.rungs,
        {**scores, **failed},
        ready.parts.sealed_units,
        {key: prior_of(trials.drops(trials.done[key]), units) for key in ladder.rungs},
        ready.promise,
        binary=trials.binary,
    )
    job.journal.append("judged", judged=[[key, to_record(entry)] for key, entry in verdicts])
    return verdicts
