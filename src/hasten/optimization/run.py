"""The steps of every run after its search: freeze the ladder, and read the sealed data once."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial

from hasten.certificate.batches import Batches, Coverage, batch_key, covered
from hasten.certificate.certification import (
    judge_ladder,
    last_certified,
    prior_of,
    sealed_scores,
)
from hasten.certificate.figures import Answers, Setting, compared
from hasten.certificate.verdict import Judgement
from hasten.core.comparison import Comparison
from hasten.core.records import digest, from_record, to_record
from hasten.core.tensors import Tensors
from hasten.errors import CandidateError, InputError
from hasten.measure.workbench import OpenWorker
from hasten.optimization.batching import with_batches
from hasten.optimization.judge import Judge, Ladder, Sealed, Verdicts


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
        coverage = from_record(dict[str, Coverage], known.get("coverage", {}))
        return Sealed(verdicts, tuple(compared_then), coverage)
    job.journal.append("sealed read", samples=len(judge.ready.parts.sealed))
    answers = Answers() if setting.models else None
    verdicts, coverage = _judged(judge, ladder, answers)
    comparisons = () if answers is None else _compared(judge, ladder, verdicts, setting, answers)
    job.journal.append(
        "judged",
        judged=[[key, to_record(entry)] for key, entry in verdicts],
        compared=to_record(comparisons),
        coverage=to_record(coverage),
    )
    return Sealed(verdicts, comparisons, coverage)


def _judged(
    judge: Judge, ladder: Ladder, answers: Answers | None
) -> tuple[Verdicts, dict[str, Coverage]]:
    """Read the sealed data, keep the answers where they are wanted, and judge the ladder.

    Returns:
        Verdicts, and the batch sizes that each certified rung holds at too.

    Raises:
        InputError: the original can't answer a sample.
    """
    job, ready, trials = judge.job, judge.ready, judge.trials
    sealed, units = ready.parts.sealed, ready.search_units
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
        for key, batches in ladder.batches.items():
            for size in batches.sizes:
                if key in opened:
                    opened[batch_key(key, size)] = replace(opened[key], batch=size)
                else:
                    failed[batch_key(key, size)] = failed[key]
        original, scores = sealed_scores(
            trials.bench,
            exact,
            opened,
            sealed,
            ready.promise.metric,
            lambda done: job.tell("certify", "reading the sealed data, once", done, len(sealed)),
            units=ready.parts.sealed_units,
            **({} if answers is None else {"watch": partial(_lone, answers, {"", *read})}),
        )
    coverage: dict[str, Coverage] = {}
    priors = {key: prior_of(trials.drops(trials.done[key]), units) for key in ladder.rungs}

    def holds(key: str, judgement: Judgement) -> bool:
        """Whether a certified rung holds at all its batch sizes too."""
        wanted = ladder.batches.get(key, Batches())
        coverage[key], _ = covered(
            key,
            wanted,
            judgement,
            original,
            scores,
            ready.sealed_units,
            priors[key],
            ready.promise,
            binary=trials.binary,
        )
        return len(coverage[key].sizes) > len(wanted.sizes)

    verdicts = judge_ladder(
        original,
        ladder.rungs,
        {**scores, **failed},
        ready.sealed_units,
        priors,
        ready.promise,
        binary=trials.binary,
        holds=holds,
    )
    return verdicts, coverage


def _lone(answers: Answers, keys: set[str], key: str, outputs: Tensors) -> None:
    """Keep answers to lone samples for the figures; those in batches have none."""
    if key in keys:
        answers(key, outputs)


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
    if answers.too_large:
        judge.job.notes.append(
            "the answers to the sealed data are too large to keep in memory: no figures before and after"
        )
    passed = last_certified(verdicts)
    keys = [*_exact(judge, ladder), *([passed[0]] if passed else [])]
    labels = {key: judge.trials.done[key].candidate.label for key in keys}
    judge.job.tell("certify", "comparing with the original", 0, len(labels))
    return tuple(compared(setting, answers, labels).values())
