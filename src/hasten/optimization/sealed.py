"""The sealed data: read once, kept where labels are still to come, and judged by its look at the ledger."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from hasten.certificate.batches import Batches, Coverage, batch_key, covered
from hasten.certificate.betting import BettingPrior
from hasten.certificate.certification import (
    judge_with_fallen,
    last_certified,
    prior_of,
)
from hasten.certificate.changed import ChangedAnswers, ChangedShare, changed_share
from hasten.certificate.figures import Answers, Setting, compared
from hasten.certificate.looks import Judged, Look, answers_digest, judged_at
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, Verdict
from hasten.core.comparison import Comparison
from hasten.core.records import digest, from_record, to_record
from hasten.core.tensors import Array, Tensors
from hasten.engines.artifacts import artifact_digest
from hasten.errors import CandidateError, OutOfTime
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.near_copies import Remembered
from hasten.inputs.metrics.unlabelled import missing_labels
from hasten.measure.accuracy import sealed_scores
from hasten.measure.exactness import Comparing, changed_in_words
from hasten.measure.steps import over_steps
from hasten.measure.workbench import OpenWorker
from hasten.optimization.judge import Judge, Ladder, Sealed, Verdicts
from hasten.optimization.labelling.asking import collected
from hasten.optimization.labelling.reading import Differences, Reading
from hasten.optimization.memory import begin_look, take_look


def said(judge: Judge, ladder: Ladder) -> Sealed:
    """Return what the sealed data says of a frozen ladder; nothing where nothing asks for it.

    A stopped run that was told already isn't told again.

    Raises:
        InputError: the original can't answer a sample, or labels can't be used.
        LabelsWanted: samples are still to be labelled.
    """
    job = judge.job
    if not _to_answer(judge, ladder):
        return Sealed()
    kept = _kept(judge)
    if kept is not None:
        return kept
    notes: list[str] = []
    answers: Answers | None = None
    if judge.ready.asking:
        unlabelled_yet = Reading.kept(job) or _read_without_labels(judge, ladder)
        if judge.original in unlabelled_yet.fallen:
            return _fallen_original(judge, ladder, unlabelled_yet)
        if _tested(judge, ladder, unlabelled_yet):
            begin_look(job, judge.ready.parts.earlier.with_former(_sealed_hashes(judge)))
        with job.deadline.paused():
            reading, notes = collected(
                job,
                judge.ready,
                unlabelled_yet,
                lambda told: surely_holds(judge, ladder, told),
            )
    else:
        reading, answers = _read(judge, ladder)
        if judge.original in reading.fallen:
            return _fallen_original(judge, ladder, reading)
    sealed = _judged(judge, ladder, reading)
    unlabelled = {
        key: count
        for key, count in reading.worst(judge.ready).items()
        if key in ladder.rungs or key in reading.fallen
    }
    passed = last_certified(sealed.verdicts)
    ships = dict.fromkeys([*exact_of(judge, ladder), *([passed[0]] if passed else [])])
    shown = reading.comparisons or _comparisons(judge, ladder, ships, answers)
    names = {judge.trials.done[key].candidate.label for key in ships}
    shown = tuple(one for one in shown if one.label in names)
    sealed = replace(sealed, comparisons=shown, unlabelled=unlabelled)
    job.journal.append(
        "judged",
        judged=[[key, to_record(entry)] for key, entry in sealed.verdicts],
        compared=to_record(sealed.comparisons),
        fallen=sealed.fallen,
        look=sealed.look,
        coverage=to_record(sealed.coverage),
        unlabelled=unlabelled,
        held=sealed.held,
        changed=to_record(sealed.changed),
        notes=notes,
    )
    job.notes += notes
    return sealed


def exact_of(judge: Judge, ladder: Ladder) -> tuple[str, ...]:
    """Return the key of the exact candidate that may ship, where it isn't the original itself."""
    return () if ladder.exact in ("", judge.original) else (ladder.exact,)


def _to_answer(judge: Judge, ladder: Ladder) -> tuple[str, ...]:
    """Return the keys of all that answer the sealed data beside the original as it was given.

    The original itself is among them where something was folded into it: then it is compared with the
    given one like every other exact candidate.
    """
    folded = () if judge.ready.given is None else (judge.original,)
    return tuple(dict.fromkeys((*exact_of(judge, ladder), *ladder.rungs, *folded)))


def _fallen_original(judge: Judge, ladder: Ladder, reading: Reading) -> Sealed:
    """Return that the folded original changed an answer: nothing that was made from it is tested.

    Yet this was a look at the sealed data, so that another run, without the folding, has a later one.
    """
    job = judge.job
    if _tested(judge, ladder, reading):
        begin_look(job, judge.ready.parts.earlier.with_former(_sealed_hashes(judge)))
    fallen = {judge.original: reading.fallen[judge.original]}
    job.journal.append("judged", judged=[], fallen=fallen)
    return Sealed(fallen=fallen)


def _kept(judge: Judge) -> Sealed | None:
    """Return what a stopped run was told; None where it wasn't."""
    known = judge.job.journal.last("judged")
    if known is None:
        return None
    verdicts: Verdicts = [
        (key, entry if isinstance(entry, str) else from_record(Judgement, entry))
        for key, entry in known["judged"]
    ]
    look, changed = known.get("look"), known.get("changed")
    judge.job.notes += known.get("notes", ())
    return Sealed(
        verdicts=verdicts,
        comparisons=tuple(from_record(Comparison, one) for one in known.get("compared", ())),
        fallen=known.get("fallen", {}),
        look=None if look is None else from_record(Look, look),
        coverage=from_record(dict[str, Coverage], known.get("coverage", {})),
        unlabelled=known.get("unlabelled", {}),
        held=known.get("held", True),
        changed=None if changed is None else from_record(ChangedShare, changed),
    )


def _read_without_labels(judge: Judge, ladder: Ladder) -> Reading:
    """Read the sealed data before its labels are known, and keep what labels will score."""
    reading, answers = _read(judge, ladder)
    everyone = dict.fromkeys((*exact_of(judge, ladder), *ladder.rungs))
    reading = replace(reading, comparisons=_comparisons(judge, ladder, everyone, answers))
    reading.keep(judge.job)
    return reading


def _read(judge: Judge, ladder: Ladder) -> tuple[Reading, Answers | None]:
    """Answer the sealed data once, by all that may ship, and score the answers.

    Returns:
        Scores, with the answers that labels will score where they are asked for; and all answers, where
        there is anything to compare them by.

    Raises:
        InputError: the original can't answer a sample.
    """
    job, ready, trials = judge.job, judge.ready, judge.trials
    alone, given = _to_answer(judge, ladder), ready.given
    # What is answered after a sequence's end says nothing.
    sequences = trials.bench.sequences is not None
    answers = None if sequences else Answers(keeps=_setting(judge, ladder).wanted)
    metric = over_steps(ready.promise.metric, trials.bench.sequences)
    comparing = Comparing(
        metric,
        (key for key in alone if key == judge.original or trials.done[key].exact),
        redecided={} if given is None else {judge.original: given.redecided},
    )
    batched = [batch_key(key, size) for key, one in ladder.batches.items() for size in one.sizes]
    missing = missing_labels(ready.promise.metric, ready.parts.sealed.labels)
    if missing is None:
        missing = np.zeros(len(ready.parts.sealed), bool)
    # One answer at a time is watched, and a sample that is a whole sequence has many.
    watched = () if trials.bench.sequences is not None else alone
    changed = ChangedAnswers(ready.promise.metric, watched)
    differences = Differences(ready.promise.metric, missing, (*alone, *batched))

    def watch(key: str, outputs: Tensors) -> None:
        if ready.asking:
            differences(key, outputs)
        if key == "" or key in alone:  # answers in batches are compared with none
            comparing(key, outputs)
            changed(key, outputs)
            if answers is not None and (key == "" or key != judge.original):
                answers(key, outputs)

    job.journal.append("sealed read", samples=len(ready.parts.sealed))
    original, scores = _scored(judge, ladder, alone, watch)
    told = differences.answers()
    rows = np.array(differences.rows, np.int64)
    fallen = _fallen(comparing, original, scores)
    parts = changed.of(len(original))
    return Reading(original, scores, rows, told, fallen=fallen, changed=parts), answers


def _scored(
    judge: Judge,
    ladder: Ladder,
    alone: Iterable[str],
    watch: Callable[[str, Tensors], None],
) -> tuple[Array, dict[str, Array | str]]:
    """Score the original and all that may ship, alone and in batches, in one pass over the sealed data.

    Returns:
        Scores of the original, and scores of each of the others, or the reason why it failed.
    """
    job, ready, trials = judge.job, judge.ready, judge.trials
    sealed = ready.parts.sealed_to_read()
    failed: dict[str, str] = {}
    opened: dict[str, OpenWorker] = {}
    decoded = _decoded_smaller(judge, ladder)

    def told(done: int) -> None:
        job.tell("certify", "reading the sealed data, once", done, len(sealed))
        if done < len(sealed) and _late(judge):
            raise OutOfTime("the time limit came before the sealed data was answered")

    with contextlib.ExitStack() as stack:
        exact = judge.open_exact()
        stack.callback(exact.worker.kill)
        for key in alone:
            try:
                opened[key] = stack.enter_context(judge.opened(key))
            except OutOfTime:
                raise
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
            told,
            units=ready.parts.sealed_units,
            watch=watch,
            exact_takes=None if ready.given is None else ready.given.takes,
            apart=decoded,
        )
    job.notes += _across(sealed)
    return original, {**scores, **failed}


def _decoded_smaller(judge: Judge, ladder: Ladder) -> dict[str, Dataset]:
    """Return the sealed samples for each rung whose pictures are decoded smaller, alone and in batches."""
    found: dict[str, Dataset] = {}
    for key in ladder.rungs:
        least = judge.trials.done[key].candidate.least
        samples = judge.ready.parts.sealed.decoded_to(least) if least else None
        if samples is not None:
            sizes = ladder.batches.get(key, Batches()).sizes
            found |= dict.fromkeys((key, *(batch_key(key, size) for size in sizes)), samples)
    return found


def _late(judge: Judge) -> bool:
    """Whether the time limit is reached; for a device elsewhere it ends the search alone."""
    elsewhere = judge.ready.target.kind == "compile-only"
    return not elsewhere and judge.job.deadline.most_s() <= 0


def _judged(judge: Judge, ladder: Ladder, reading: Reading) -> Sealed:
    """Judge the ladder at the level that its look at the sealed data has, and remember the look."""
    job, ready = judge.job, judge.ready
    tested = _tested(judge, ladder, reading)
    if not tested:
        return Sealed(fallen=reading.fallen)
    hashes = _sealed_hashes(judge)
    batched = sorted(key for key in reading.scores if key not in judge.trials.done)
    test = answers_digest(
        hashes,
        reading.original,
        _models(judge, tested, batched),
        reading.scores,
        ready.sealed_units,
        ready.promise,
        None if _exactly(judge) else _priors(judge, tested),
    )
    look = take_look(job, ready.parts.earlier.with_former(hashes), test)
    coverage: dict[str, Coverage] = {}

    def judged(promise: Promise) -> Judged:
        return _verdicts(judge, ladder, reading, promise, coverage)

    verdicts = judged_at(look, ready.promise, judged)
    held = all(
        len(found.sizes) > len(ladder.batches.get(key, Batches()).sizes)
        for key, found in coverage.items()
    )
    job.ledger.end(look, verdicts, held=held)
    return Sealed(
        verdicts=verdicts,
        fallen=reading.fallen,
        look=look,
        coverage=coverage,
        held=held,
        changed=_changed(judge, reading, verdicts, look, len(tested)),
    )


def _changed(
    judge: Judge, reading: Reading, verdicts: Judged, look: Look, models: int
) -> ChangedShare | None:
    """Return the share of answers that the fastest certified candidate changed; None if it isn't known."""
    passed = last_certified(verdicts)
    if passed is None or passed[0] not in reading.changed:
        return None
    ready = judge.ready
    return changed_share(
        ready.promise.metric,
        reading.changed[passed[0]],
        ready.sealed_units,
        ready.parts.unit_sizes,
        max_drop=ready.promise.max_drop,
        models=models,
        spent=look.alpha / look.asked,
    )


def _tested(judge: Judge, ladder: Ladder, reading: Reading) -> tuple[str, ...]:
    """Return the keys that the sealed data judge, safest first."""
    return (*_first(judge, ladder, reading), *ladder.rungs)


def _models(judge: Judge, keys: Iterable[str], batched: Iterable[str]) -> dict[str, str]:
    """Return the digest of what answers under each key, and of the exact model: files, settings and steps.

    Args:
        judge: Judge of the run.
        keys: Keys of candidates.
        batched: Keys of candidates in batches, which stand beside their own.
    """
    ready, done = judge.ready, judge.trials.done
    shared = [ready.given_sha256, None if ready.pipeline is None else to_record(ready.pipeline)]
    found = dict[str, str]()
    for key in keys:
        artifact = done[key].artifact
        files = "" if artifact is None else artifact_digest(artifact)
        found[key] = digest([*shared, done[key].candidate.key, files])
    return found | dict.fromkeys(batched, "")


def _sealed_hashes(judge: Judge) -> list[bytes]:
    return [bytes.fromhex(one) for one in judge.ready.parts.sealed_hashes]


def _first(judge: Judge, ladder: Ladder, reading: Reading) -> list[str]:
    """Return the exact candidate that changed an answer, which is then the ladder's safest rung."""
    exact = exact_of(judge, ladder)
    return [key for key in exact if key in reading.fallen and key not in ladder.rungs]


def _priors(judge: Judge, keys: Sequence[str]) -> dict[str, BettingPrior]:
    """Return what the search split tells of each candidate, by which its bets are set."""
    ready, trials = judge.ready, judge.trials
    return {
        key: prior_of(trials.drops(trials.done[key]), ready.search_units, ready.promise.mean_over)
        for key in keys
    }


def _verdicts(
    judge: Judge,
    ladder: Ladder,
    reading: Reading,
    promise: Promise,
    coverage: dict[str, Coverage],
) -> Judged:
    """Judge the ladder for a promise; what each rung covers in batches is added to `coverage`."""
    ready, trials = judge.ready, judge.trials
    units, sizes = ready.sealed_units, ready.parts.unit_sizes
    first = _first(judge, ladder, reading)
    priors = _priors(judge, (*first, *ladder.rungs))

    def holds(key: str, judgement: Judgement) -> bool:
        """Whether a certified rung holds at all its batch sizes too."""
        wanted = ladder.batches.get(key, Batches())
        coverage[key], _ = covered(
            key,
            wanted,
            judgement,
            reading.original,
            reading.scores,
            units,
            priors[key],
            promise,
            binary=trials.binary,
            sizes=sizes,
        )
        return len(coverage[key].sizes) > len(wanted.sizes)

    return judge_with_fallen(
        reading.original,
        first,
        ladder.rungs,
        reading.scores,
        units,
        priors,
        promise,
        binary=trials.binary,
        sizes=sizes,
        holds=holds,
    )


def surely_holds(judge: Judge, ladder: Ladder, reading: Reading) -> bool:
    """Whether every rung is certified, with each label that is missing taken as the worst.

    That is so in exact tests alone, where one fewer lost never turns a certificate into none: so
    looking at labels while they come certifies nothing that all labels together wouldn't.
    """
    ready = judge.ready
    if not _exactly(judge):
        return False
    verdicts = _verdicts(judge, ladder, reading, ready.tested or ready.promise, {})
    return all(
        isinstance(entry, str) or entry.verdict is Verdict.CERTIFIED for _, entry in verdicts
    )


def _exactly(judge: Judge) -> bool:
    """Whether all tests of lone samples are exact, so that none bets."""
    return judge.trials.binary and int(judge.ready.parts.unit_sizes.max()) == 1


def _across(sealed: Remembered) -> list[str]:
    """Return a note on sealed samples that are near copies of search samples, where nobody grouped them."""
    found = sealed.near_known()
    if sealed.groups is not None or not len(found.judged):
        return []
    return [
        f"{len(found.judged):,} of {found.samples:,} sealed samples look like near copies of "
        f"samples in the search split, such as {found.examples[0]}: if they belong together "
        "(frames of a video, crops of a photo), "
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


def _setting(judge: Judge, ladder: Ladder) -> Setting:
    """Return what models are compared by."""
    ready = judge.ready
    return Setting(
        metrics=ready.figures,
        pipeline=ready.pipeline,
        labels=ready.parts.sealed.labels,
        units=ready.parts.sealed_units,
        confidence=ready.promise.confidence,
        models=len(ladder.rungs) + len(exact_of(judge, ladder)),
    )


def _comparisons(
    judge: Judge, ladder: Ladder, keys: Iterable[str], answers: Answers | None
) -> tuple[Comparison, ...]:
    """Compare models with the original, by figures that decide nothing."""
    if answers is None:
        return ()
    if answers.too_large:
        judge.job.notes.append(
            "the answers to the sealed data are too large to keep in memory: no figures before and after"
        )
    if _late(judge):
        if answers.keeps:
            judge.job.notes.append("the time limit left no time for the figures before and after")
        return ()
    if answers.unlike:
        judge.job.notes.append(
            "answers differ in shape from sample to sample: no figures before and after over all of them"
        )
    labels = {key: judge.trials.done[key].candidate.label for key in keys}
    judge.job.tell("certify", "comparing with the original", 0, len(labels))
    return tuple(compared(_setting(judge, ladder), answers, labels).values())
