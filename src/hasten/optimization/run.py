"""The steps of a run between its preparation and its end: search, freeze, certify."""

from __future__ import annotations

from dataclasses import replace

from hasten.core.records import digest, from_record, to_record
from hasten.errors import InputError, OutOfTime
from hasten.optimization.batching import with_batches
from hasten.optimization.judge import Judge, Ladder, Sealed
from hasten.optimization.sealed import said


def search(judge: Judge) -> None:
    """Try candidates, except those in the journal of a stopped run."""
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
        choice = to_record(with_batches(judge, judge.choose()))
        journal.append("ladder", choice=choice, sha256=digest(choice))
        frozen = {"choice": choice, "sha256": digest(choice)}
    if digest(frozen["choice"]) != frozen["sha256"]:
        raise InputError(f"{journal.path}: the frozen ladder was changed; remove the folder")
    ladder = from_record(Ladder, frozen["choice"])
    judge.stand_by(ladder)
    return ladder


def certify(judge: Judge, ladder: Ladder) -> Sealed:
    """Read the sealed data once, and test the frozen ladder on it, from safest to fastest.

    In the same pass each exact candidate that may ship is compared with the original. Where one of its
    answers changed it is the first, safest rung instead: the ladder that was frozen says which it is, and
    where nothing changed there is nothing to test. What may ship is also compared by figures that decide
    nothing.
    """
    judge.job.deadline.enter("certify")
    if judge.ready.given is not None and not ladder.exact:
        return Sealed(cut=True)
    try:
        sealed = said(judge, ladder)
    except OutOfTime:
        judge.job.notes.append(
            "the time limit came before the sealed data was answered, so there is no verdict, "
            "and the original ships"
        )
        return Sealed(cut=True)
    if judge.original in sealed.fallen:
        judge.job.notes.append(
            "the form of the original that takes pixels as uint8 kept every answer in the search, but "
            f"{sealed.fallen[judge.original]}, so nothing that was made from it is certified"
        )
        return sealed
    for key, change in sealed.fallen.items():
        trial = judge.trials.done[key]
        judge.trials.done[key] = replace(trial, changed=max(1, trial.changed or 0))
        judge.job.notes.append(
            f"{trial.candidate.label} kept every answer in the search, but {change}, so it "
            "doesn't ship without a certificate"
        )
    return sealed


def settled(judge: Judge, ladder: Ladder, sealed: Sealed) -> Ladder:
    """Return the ladder with the original to fall back on, where the exact candidate fell."""
    if sealed.cut or judge.original in sealed.fallen:
        return replace(ladder, exact=judge.original, rungs=(), batches={})
    return replace(ladder, exact=judge.original) if ladder.exact in sealed.fallen else ladder
