"""The steps of every run after its search: freeze the ladder, and read the sealed data once."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hasten.certificate.certification import (
    judge_ladder,
    last_certified,
    prior_of,
    sealed_scores,
)
from hasten.certificate.figures import Answers, Setting, compared
from hasten.certificate.verdict import Judgement, Verdict
from hasten.core.comparison import Comparison
from hasten.core.records import digest, from_record, to_record
from hasten.core.tensors import Array, Tensors
from hasten.errors import CandidateError, InputError
from hasten.inputs.metrics.unlabelled import missing_labels
from hasten.measure.workbench import OpenWorker
from hasten.optimization.judge import Judge, Ladder, Sealed, Verdicts
from hasten.optimization.labelling.asking import collected
from hasten.optimization.labelling.reading import Differences, Reading


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


def certify(judge: Judge, ladder: Ladder) -> Sealed:
    """Read the sealed data once, and test the frozen ladder on it, from safest to fastest.

    In the same pass what may ship is compared with the original, by figures that decide nothing.
    """
    job, setting = judge.job, _setting(judge, ladder)
    if not ladder.rungs and not setting.models:
        return Sealed()
    known = job.journal.last("judged")
    if known is not None:
        verdicts: Verdicts = [
            (key, entry if isinstance(entry, str) else from_record(Judgement, entry))
            for key, entry in known["judged"]
        ]
        compared_then = (from_record(Comparison, one) for one in known.get("compared", ()))
        job.notes += known.get("notes", ())
        return Sealed(verdicts, tuple(compared_then), known.get("unlabelled", {}))
    if judge.ready.asking:
        reading = Reading.kept(job) or _read_once(judge, ladder, setting)
        reading, notes = collected(
            job, judge.ready, reading, lambda told: _surely_holds(judge, ladder, told)
        )
        verdicts = _judgements(judge, ladder, reading.original, reading.scores)
        comparisons = reading.comparisons
        told = reading
    else:
        job.journal.append("sealed read", samples=len(judge.ready.parts.sealed))
        answers = Answers() if setting.models else None
        original, scores = _read(judge, ladder, answers)
        verdicts = _judgements(judge, ladder, original, scores)
        comparisons = (
            () if answers is None else _compared(judge, ladder, verdicts, setting, answers)
        )
        told, notes = Reading(original, scores, np.arange(0), {}), []
    unlabelled = told.worst(judge.ready)
    job.journal.append(
        "judged",
        judged=[[key, to_record(entry)] for key, entry in verdicts],
        compared=to_record(comparisons),
        notes=notes,
        unlabelled=unlabelled,
    )
    job.notes += notes
    return Sealed(verdicts, comparisons, unlabelled)


def _surely_holds(judge: Judge, ladder: Ladder, reading: Reading) -> bool:
    """Whether every rung is certified, with each label that is missing taken as the worst.

    That is so in exact tests alone, where one fewer lost never turns a certificate into none: so
    looking at labels while they come certifies nothing that all labels together wouldn't.
    """
    units = judge.ready.sealed_units
    if not judge.trials.binary or len(np.unique(units)) < len(units):
        return False
    verdicts = _judgements(judge, ladder, reading.original, reading.scores)
    return all(
        isinstance(entry, str) or entry.verdict is Verdict.CERTIFIED for _, entry in verdicts
    )


def _read_once(judge: Judge, ladder: Ladder, setting: Setting) -> Reading:
    """Read the sealed data before its labels are known, and keep what labels will score."""
    job, metric, sealed = judge.job, judge.ready.promise.metric, judge.ready.parts.sealed
    missing = missing_labels(metric, sealed.labels)
    if missing is None:
        missing = np.zeros(len(sealed), bool)
    differences = Differences(metric, missing, ladder.rungs)
    answers = Answers() if setting.models else None
    job.journal.append("sealed read", samples=len(sealed))
    original, scores = _read(judge, ladder, answers, differences)
    comparisons: tuple[Comparison, ...] = ()
    if answers is not None:
        comparisons = _comparisons(judge, [*_exact(judge, ladder), *ladder.rungs], setting, answers)
    told = differences.answers()
    reading = Reading(original, scores, np.array(differences.rows, np.int64), told, comparisons)
    reading.keep(job)
    return reading


def _read(
    judge: Judge,
    ladder: Ladder,
    answers: Answers | None,
    differences: Differences | None = None,
) -> tuple[Array, dict[str, Array | str]]:
    """Read the sealed data, keep the answers where they are wanted, and score them.

    Raises:
        InputError: the original can't answer a sample.
    """
    job, ready, trials = judge.job, judge.ready, judge.trials
    sealed = ready.parts.sealed
    watchers = [one for one in (answers, differences) if one is not None]

    def watch(key: str, outputs: Tensors) -> None:
        for watcher in watchers:
            watcher(key, outputs)

    read = ladder.rungs if answers is None else (*ladder.rungs, *_exact(judge, ladder))
    failed: dict[str, str] = {}
    opened: dict[str, OpenWorker] = {}
    with contextlib.ExitStack() as stack:
        exact = judge.open_exact()
        stack.callback(exact.worker.kill)
        for key in read:
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
            units=ready.parts.sealed_units,
            **({"watch": watch} if watchers else {}),
        )
    return original, {**scores, **failed}


def _judgements(
    judge: Judge, ladder: Ladder, original: Array, scores: Mapping[str, Array | str]
) -> Verdicts:
    """Judge the ladder by the scores of the sealed data."""
    ready, trials, units = judge.ready, judge.trials, judge.ready.search_units
    return judge_ladder(
        original,
        ladder.rungs,
        scores,
        ready.sealed_units,
        {key: prior_of(trials.drops(trials.done[key]), units) for key in ladder.rungs},
        ready.promise,
        binary=trials.binary,
    )


def _exact(judge: Judge, ladder: Ladder) -> tuple[str, ...]:
    """Return the key of the exact candidate that may ship, where it isn't the original itself."""
    return () if ladder.exact in ("", judge.original) else (ladder.exact,)


def _setting(judge: Judge, ladder: Ladder) -> Setting:
    """Return what models are compared by: no models where there is nothing to compare by."""
    ready = judge.ready
    setting = Setting(
        metrics=ready.figures,
        pipeline=ready.pipeline,
        labels=ready.parts.sealed.labels,
        units=ready.parts.sealed_units,
        confidence=ready.promise.confidence,
        models=len(ladder.rungs) + len(_exact(judge, ladder)),
    )
    return setting if setting.wanted else replace(setting, models=0)


def _compared(
    judge: Judge, ladder: Ladder, verdicts: Verdicts, setting: Setting, answers: Answers
) -> tuple[Comparison, ...]:
    """Compare what may ship with the original: the exact candidate and the fastest certified one."""
    passed = last_certified(verdicts)
    keys = [*_exact(judge, ladder), *([passed[0]] if passed else [])]
    return _comparisons(judge, keys, setting, answers)


def _comparisons(
    judge: Judge, keys: Sequence[str], setting: Setting, answers: Answers
) -> tuple[Comparison, ...]:
    """Compare some models with the original."""
    if answers.too_large:
        judge.job.notes.append(
            "the answers to the sealed data are too large to keep in memory: no figures before and after"
        )
    labels = {key: judge.trials.done[key].candidate.label for key in keys}
    judge.job.tell("certify", "comparing with the original", 0, len(labels))
    return tuple(compared(setting, answers, labels).values())
