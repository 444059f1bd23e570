"""The steps of every run after its search: freeze the ladder, and read the sealed data once."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from hasten.certificate.batches import Batches, Coverage, batch_key, covered
from hasten.certificate.certification import (
    judge_with_fallen,
    last_certified,
    prior_of,
    sealed_scores,
)
from hasten.certificate.figures import Answers, Setting, compared
from hasten.certificate.looks import Judged, Look, answers_digest, judged_at
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement
from hasten.core.comparison import Comparison
from hasten.core.records import digest, from_record, to_record
from hasten.core.tensors import Array, Tensors
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.near_copies import Remembered
from hasten.measure.exactness import Comparing, changed_in_words
from hasten.measure.steps import over_steps
from hasten.measure.workbench import OpenWorker
from hasten.optimization.batching import with_batches
from hasten.optimization.judge import Judge, Ladder, Sealed, Verdicts
from hasten.optimization.memory import take_look


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

    In the same pass each exact candidate that may ship is compared with the original. Where one of its
    answers changed it is the first, safest rung instead: the ladder that was frozen says which it is, and
    where nothing changed there is nothing to test. What may ship is also compared by figures that decide
    nothing.
    """
    sealed = _read(judge, ladder)
    for key, said in sealed.fallen.items():
        trial = judge.trials.done[key]
        judge.trials.done[key] = replace(trial, changed=max(1, trial.changed or 0))
        judge.job.notes.append(
            f"{trial.candidate.label} kept every answer in the search, but {said}: without a certificate "
            "it doesn't ship"
        )
    return sealed


def settled(judge: Judge, ladder: Ladder, sealed: Sealed) -> Ladder:
    """Return the ladder with the original to fall back on, where the exact candidate fell."""
    return replace(ladder, exact=judge.original) if ladder.exact in sealed.fallen else ladder


def _read(judge: Judge, ladder: Ladder) -> Sealed:
    """Read the sealed data unless nothing asks for it, or a stopped run read it."""
    job, setting = judge.job, _setting(judge, ladder)
    if not ladder.rungs and not _exact(judge, ladder):
        return Sealed()
    known = job.journal.last("judged")
    if known is not None:
        verdicts: Verdicts = [
            (key, entry if isinstance(entry, str) else from_record(Judgement, entry))
            for key, entry in known["judged"]
        ]
        compared_then = (from_record(Comparison, one) for one in known.get("compared", ()))
        look = known.get("look")
        return Sealed(
            verdicts,
            tuple(compared_then),
            known.get("fallen", {}),
            None if look is None else from_record(Look, look),
            from_record(dict[str, Coverage], known.get("coverage", {})),
        )
    job.journal.append("sealed read", samples=len(judge.ready.parts.sealed))
    answers = Answers() if setting.models else None
    sealed = _judged(judge, ladder, answers)
    verdicts = sealed.verdicts
    comparisons = () if answers is None else _compared(judge, ladder, verdicts, setting, answers)
    job.journal.append(
        "judged",
        judged=[[key, to_record(entry)] for key, entry in verdicts],
        compared=to_record(comparisons),
        fallen=sealed.fallen,
        look=sealed.look,
        coverage=to_record(sealed.coverage),
    )
    return replace(sealed, comparisons=comparisons)


def _judged(judge: Judge, ladder: Ladder, answers: Answers | None) -> Sealed:
    """Read the sealed data, keep the answers where they are wanted, and judge the ladder by its look.

    Returns:
        Verdicts; how the answers of exact candidates differ, where some do; the look at the sealed data; and
        the batch sizes that each certified rung holds at too.

    Raises:
        InputError: the original can't answer a sample.
    """
    job, ready, trials = judge.job, judge.ready, judge.trials
    sealed = ready.parts.sealed
    read = dict.fromkeys((*_exact(judge, ladder), *ladder.rungs))
    sealed_data = Remembered(sealed, ready.parts.search)
    metric = over_steps(ready.promise.metric, trials.bench.sequences)
    comparing = Comparing(metric, (key for key in read if trials.done[key].exact), answers)
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
            sealed_data,
            ready.promise.metric,
            lambda done: job.tell("certify", "reading the sealed data, once", done, len(sealed)),
            units=ready.parts.sealed_units,
            watch=partial(_lone, comparing, {"", *read}),
        )
    job.notes += _across(sealed_data)
    everyone = {**scores, **failed}
    fallen = _fallen(comparing, original, everyone)
    first = [key for key in _exact(judge, ladder) if key in fallen and key not in ladder.rungs]
    tested = (*first, *ladder.rungs)
    if not tested:
        return Sealed(fallen=fallen)
    units, over, sizes = ready.sealed_units, ready.promise.mean_over, ready.parts.unit_sizes
    hashes = [bytes.fromhex(one) for one in ready.parts.sealed_hashes]
    in_batches = sorted(key for key in everyone if key not in read)
    test = answers_digest(hashes, original, (*tested, *in_batches), everyone, units, ready.promise)
    look = take_look(job, hashes, test)
    priors = {
        key: prior_of(trials.drops(trials.done[key]), ready.search_units, over) for key in tested
    }
    coverage: dict[str, Coverage] = {}

    def judged(promise: Promise) -> Judged:
        def holds(key: str, judgement: Judgement) -> bool:
            """Whether a certified rung holds at all its batch sizes too."""
            wanted = ladder.batches.get(key, Batches())
            coverage[key], _ = covered(
                key,
                wanted,
                judgement,
                original,
                everyone,
                units,
                priors[key],
                promise,
                binary=trials.binary,
                sizes=sizes,
            )
            return len(coverage[key].sizes) > len(wanted.sizes)

        return judge_with_fallen(
            original,
            first,
            ladder.rungs,
            everyone,
            units,
            priors,
            promise,
            binary=trials.binary,
            sizes=sizes,
            holds=holds,
        )

    verdicts = judged_at(look, ready.promise, judged)
    job.ledger.end(look, verdicts)
    return Sealed(verdicts, (), fallen, look, coverage)


def _lone(watch: Comparing, keys: set[str], key: str, outputs: Tensors) -> None:
    """Pass on answers to lone samples; those in batches are compared with none."""
    if key in keys:
        watch(key, outputs)


def _across(sealed: Remembered) -> list[str]:
    """Return a note on sealed samples that are near copies of search samples, where nobody grouped them."""
    found = sealed.near_known()
    if sealed.groups is not None or not len(found.judged):
        return []
    return [
        f"{len(found.judged):,} of {found.samples:,} sealed samples look like near copies of samples of the "
        f"search, such as {found.examples[0]}: if they belong together (frames of a video, crops of a photo), "
        "give groups, so that no group is divided"
    ]


def _fallen(
    comparing: Comparing, original: Array, scores: Mapping[str, Array | str]
) -> dict[str, str]:
    """Return how the answers of candidates that were exact in the search differ, where some do."""
    fallen = {}
    for key, changes in comparing.changes.items():
        score = scores[key]
        if isinstance(score, str):
            fallen[key] = f"failed on the sealed data: {score}"
        elif count := changes.count(score, original):
            fallen[key] = f"{changed_in_words(count)} of {len(original):,} sealed ones"
    return fallen


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
        models=len({*ladder.rungs, *_exact(judge, ladder)}),
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
    keys = dict.fromkeys([*_exact(judge, ladder), *([passed[0]] if passed else [])])
    labels = {key: judge.trials.done[key].candidate.label for key in keys}
    judge.job.tell("certify", "comparing with the original", 0, len(labels))
    return tuple(compared(setting, answers, labels).values())
