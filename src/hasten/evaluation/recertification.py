"""Test of a bundle's certificate on new data: the gate of a pipeline."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.bundle import Manifest, differences, engine_of
from hasten.bundle.covered import certified_sizes, has_batch_axis
from hasten.certificate.batches import Batches, Coverage, batch_key, covered
from hasten.certificate.betting import BettingPrior
from hasten.certificate.certification import judge_ladder
from hasten.certificate.draws import Over
from hasten.certificate.figures import Answers, Setting, compared
from hasten.certificate.ledger import Ledger, user_ledger
from hasten.certificate.looks import Judged, answers_digest
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Guard, Judgement, Verdict
from hasten.core.devices import at_hand
from hasten.core.records import digest, to_record, type_name
from hasten.core.tensors import Array, Tensors
from hasten.core.varying import no_batches, not_covered
from hasten.engines.artifacts import artifact_digest
from hasten.errors import CandidateError, InputError
from hasten.evaluation.agreement import ExactCheck, exactness
from hasten.evaluation.seen import Recheck, fresh, looked, seen_by
from hasten.evaluation.subject import (
    Asked,
    Material,
    Subject,
    open_material,
    open_subject,
    threads_of,
)
from hasten.inputs.chains import is_chain
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.data.splits import units_of
from hasten.inputs.data.spool import write_spool
from hasten.inputs.metrics import named_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.unlabelled import check_labelled, missing_labels
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.set_metrics import chosen
from hasten.inputs.set_metrics.base import SetMetric
from hasten.measure.accuracy import sealed_scores
from hasten.measure.alike import has_steady_shapes, kinds_of
from hasten.measure.environment import environment
from hasten.measure.exactness import Comparing
from hasten.measure.steps import over_steps
from hasten.measure.workbench import CHUNK, Bench, OpenWorker


def certify(
    bundle: str | os.PathLike[str],
    data: Any,
    *,
    max_drop: float | None = None,
    confidence: float | None = None,
    guard: Guard | None = None,
    mean_over: Over | None = None,
    metric: str | Metric | Sequence[str | Metric] | None = None,
    report: Sequence[str | SetMetric] | None = None,
    pipeline: Pipeline | None = None,
    custom_ops: Sequence[Path] = (),
    batch_sizes: Sequence[int] | None = None,
    reference: bool = False,
) -> Recheck:
    """Test a bundle's winner against its exact model on data.

    An exact bundle has no certificate, and needs none: unless `max_drop` or another part of a limit is
    given, the outcome is an `ExactCheck`, which says whether it answers all of the data as its exact
    model does. Such a check has no confidence. There, `confidence` is only that of the figures that
    `report` names; without them, a note says that it was left unused.

    Data is fresh if neither the making of the bundle nor another run of this user's searched on it,
    and none tested on it. The same answers on the same data under the same limits are a regression
    check from the second time on. Other answers, or other limits, are a further look, which is tested
    at a lower level once a look at these samples was refused: `hasten.certificate.looks` says how.

    Args:
        bundle: Folder of the bundle, which must hold the exact model. Or a chain, by a line or a file:
            then its own decisions are compared, under the guard "changed"; see
            `hasten.evaluation.chains.certify_chain`.
        data: Data, in any form that `optimize` takes. Samples that the bundle was made with are
            left out, unless there are no others.
        max_drop: Limit on the drop; by default the certificate's.
        confidence: Confidence of the verdict; by default the certificate's.
        guard: Quantity that is bounded; by default the certificate's.
        mean_over: Units of the mean, where samples have groups or repeat one another; by default the
            certificate's.
        metric: Metric that is scored; by default the bundle's, unless that is a function. A
            bundle's word alone runs no code, so a function must be named again.
        report: Metrics over the set that are stated for the exact model and the winner; by default
            those of a binary classification where labels are 0 and 1, and none for an exact bundle without a
            limit.
        pipeline: Steps from an image file to the input of the model as it was given; by default
            the bundle's. What the bundle's model does itself is left out.
        custom_ops: Paths of libraries with the model's own operators.
        batch_sizes: Batch sizes at which the limit must hold, beside lone samples; by default those
            that the certificate covers. Where the bundle doesn't state that its rows are answered each
            by itself, a batch is one draw.
        reference: Whether the winner's answers are calculated in numpy, as `load` does with `reference`. The
            exact model runs on its own engine.

    Returns:
        The outcome, with the verdict on these samples.

    Raises:
        InputError: the bundle or the data can't be used, the bundle was made with groups and the
            data has none, or the device isn't here and its substitute isn't faithful.
        CandidateError: the winner failed.
    """
    if is_chain(bundle):
        for_bundles = (metric, report, pipeline, custom_ops or None, batch_sizes, reference or None)
        other_guard = guard not in (None, "changed")
        if any(one is not None for one in for_bundles) or other_guard or mean_over == "groups":
            raise InputError(
                "a chain is compared with the chain of its exact models, under the guard 'changed' and "
                "with its bundles' own pipelines: leave out the metric, figures, pipeline, other guards and "
                "means, batch sizes, operator libraries and the reference engine"
            )
        from hasten.evaluation.chains import certify_chain

        return certify_chain(os.fspath(bundle), data, max_drop=max_drop, confidence=confidence)
    scored = None if metric is None else named_metric(metric)
    asked = Asked(max_drop, confidence, guard, mean_over, scored, batch_sizes, reference)
    ledger, unusable = _ledger()  # so that one that can't be used ends it before it begins
    try:
        subject = open_subject(bundle, asked, pipeline, custom_ops)
    except InputError as error:
        raise unusable or error from None
    if unusable is not None and not subject.unlimited:
        raise unusable
    material = open_material(subject, data, scored)
    if subject.unlimited:
        return _compared(subject, material, report, confidence)
    return _tested(subject, material, ledger, report, batch_sizes)


def _ledger() -> tuple[Ledger, InputError | None]:
    """Return the ledger, and why it can't be used; None where it can."""
    try:
        return user_ledger(), None
    except InputError as error:
        return Ledger(None), error


def _compared(
    subject: Subject,
    material: Material,
    report: Sequence[str | SetMetric] | None,
    confidence: float | None,
) -> ExactCheck:
    """Compare every answer of the winner with the exact model's, and state the figures that were asked for.

    Raises:
        InputError: the figures can't be stated.
        CandidateError: the winner failed.
    """
    dataset = material.dataset
    units = units_of(dataset)
    setting = _setting(subject, material, dataset, units, () if report is None else report)
    answers = Answers() if setting.metrics else None
    comparing = Comparing(over_steps(material.metric, material.sequences), ["winner"], answers)
    own, scores, *_ = _scores(subject, material, dataset, units, comparing)
    score = scores["winner"]
    if isinstance(score, str):
        raise CandidateError(score)
    changed = comparing.changes["winner"].changed(score, own)
    figures = None
    if answers is not None:
        label = {"winner": subject.manifest.winner.label}
        figures = compared(setting, answers, label).get("winner")
    notes = [*material.notes, *_elsewhere(subject), *_by_reference(subject)]
    if confidence is not None and answers is None:
        notes.append(
            "the answers were only compared, so the confidence wasn't used: give a limit on the drop to "
            "test at it"
        )
    return replace(
        exactness(changed, itself=subject.winner == subject.exact),
        comparison=figures,
        notes=tuple(notes),
    )


def _tested(
    subject: Subject,
    material: Material,
    ledger: Ledger,
    report: Sequence[str | SetMetric] | None,
    batch_sizes: Sequence[int] | None,
) -> Recheck:
    """Test whether the winner keeps its limits, and note the look in the ledger.

    Raises:
        InputError: the data or an option can't be used.
        CandidateError: the winner failed.
    """
    manifest, limits, metric = subject.manifest, subject.limits, material.metric
    seen = seen_by(subject.folder, manifest)
    seen.check_groups(subject.folder, material.dataset)
    data = fresh(material.dataset, seen, ledger.past().earlier(1 - limits.confidence))
    samples, units = data.samples, data.units
    setting = _setting(subject, material, samples, units, report)
    check_labelled(metric, samples.labels, type_name(metric))
    sizes = _sizes_to_test(manifest, material, batch_sizes)
    answers, draws = Answers(setting.wanted), metric.draws(samples.labels, units)
    stated = (manifest.certificate or {}).get("rows_apart") is True
    own, scores, chunk, moved = _scores(
        subject, material, samples, units, answers, sizes, probed=stated
    )
    score = scores["winner"]
    if isinstance(score, str):
        raise CandidateError(score)
    promise = Promise(metric, limits.guard, limits.max_drop, limits.confidence, limits.mean_over)
    kinds = _kinds(subject, samples) if sizes and samples.ragged else ()
    batches = Batches(sizes, stated and not moved, chunk, kinds=kinds)
    judge = _Judge(own, scores, draws, limits.prior, batches, limits.counts(metric))
    exactly = judge.binary and len(np.unique(draws)) == len(draws)
    priors = None if exactly else {"winner": limits.prior}
    models = {**dict.fromkeys(scores, ""), "winner": _models(subject)}
    test = answers_digest(data.hashes, own, models, scores, draws, promise, priors)
    (entry,), kind, look = looked(ledger, data, test, promise, judge.judged, judge.covers_all)
    judgement = entry[1]
    if isinstance(judgement, str):
        raise CandidateError(judgement)
    comparison = None
    unlike = manifest.winner != manifest.exact
    if material.sequences is None and (unlike or (report and setting.metrics)):
        comparison = compared(setting, answers, {"winner": manifest.winner.label}).get("winner")
    missing = missing_labels(metric, samples.labels)
    return Recheck(
        kind,
        judgement,
        used=len(samples),
        left_out=len(material.dataset) - len(samples),
        comparison=comparison,
        look=look,
        elsewhere=data.elsewhere,
        notes=(
            *material.notes,
            *ledger.notes,
            *_elsewhere(subject),
            *_by_reference(subject),
            *filter(None, [not_covered(subject.manifest.varying)]),
        ),
        remembered=ledger.file is not None,
        batches=sizes,
        coverage=judge.coverage,
        unlabelled=0 if missing is None else int((missing & (own > score)).sum()),
    )


def _elsewhere(subject: Subject) -> tuple[str, ...]:
    """Say how this machine, which the test is about, differs from the one that the bundle was made on."""
    here = at_hand(subject.manifest.target)
    unlike = differences(subject.manifest, here, environment(here), artifact=subject.winner)
    if not unlike:
        return ()
    return (
        "the test is about this machine, which differs from the one that the bundle was made on: "
        f"{'; '.join(unlike)}",
    )


def _by_reference(subject: Subject) -> tuple[str, ...]:
    """Say how the winner's answers were calculated, if not by its own engine."""
    own, used = engine_of(subject.manifest.winner, 1), subject.engines[1]
    if type(own) is type(used):
        return ()
    alike = (
        "the same bits" if used.same_everywhere(subject.winner) else "near, but not the same bits"
    )
    return (
        f"the winner's answers were calculated by its reference engine ({used.words()}): {alike} as "
        f"those of {own.words()}",
    )


@dataclass
class _Judge:
    """Judge of the winner's scores, alone and in batches.

    Attributes:
        own: Scores of the exact model, `(n,)`.
        scores: Scores by key of the winner, alone and in batches.
        draws: Number of each sample's draw, `(n,)`.
        prior: Prior of the bets.
        batches: Batch sizes to judge.
        binary: Whether scores may be counted as 0/1.
        coverage: Batch sizes at which the limit holds; None before, and where none is to be judged.
    """

    own: Array
    scores: Mapping[str, Array | str]
    draws: Array
    prior: BettingPrior
    batches: Batches
    binary: bool
    coverage: Coverage | None = None

    def judged(self, promise: Promise) -> Judged:
        """Judge the winner alone and, if it passes, in batches."""
        alone = {"winner": self.scores["winner"]}
        priors = {"winner": self.prior}
        verdicts = judge_ladder(
            self.own, ("winner",), alone, self.draws, priors, promise, binary=self.binary
        )
        ((_, judgement),) = verdicts
        passed = isinstance(judgement, Judgement) and judgement.verdict is Verdict.CERTIFIED
        if self.batches.sizes and passed:
            assert isinstance(judgement, Judgement)
            self.coverage, _ = covered(
                "winner",
                self.batches,
                judgement,
                self.own,
                self.scores,
                self.draws,
                self.prior,
                promise,
                binary=self.binary,
            )
        return verdicts

    def covers_all(self) -> bool:
        """Return whether the limit holds at every batch size that was judged."""
        return self.coverage is None or set(self.batches.sizes) <= set(self.coverage.sizes)


def _setting(
    subject: Subject,
    material: Material,
    samples: Dataset,
    units: Array,
    report: Sequence[str | SetMetric] | None,
) -> Setting:
    """Return the figures to state beside the verdict.

    Args:
        subject: The bundle.
        material: All data.
        samples: Samples that are judged.
        units: Number of each one's group, `(n,)`.
        report: Figures that were asked for; None where the samples decide.

    Raises:
        InputError: figures were asked for, and samples are whole sequences.
    """
    if material.sequences is not None and report:
        raise InputError(
            "report states figures of single answers, and this bundle was certified on whole sequences: "
            "leave report out"
        )
    wanted = report if material.sequences is None else ("none",)
    figures = chosen(wanted, samples.labels, subject.exact.outputs, subject.pipeline)
    return Setting(figures, subject.pipeline, samples.labels, units, subject.limits.confidence)


def _sizes_to_test(
    manifest: Manifest, material: Material, given: Sequence[int] | None
) -> tuple[int, ...]:
    """Return the batch sizes above 1 to test, ascending.

    Raises:
        InputError: a size isn't possible, or samples that differ in shape aren't the same at each read.
    """
    if material.sequences is not None:
        return ()
    sizes = _asked_sizes(manifest, given)
    if not sizes or not material.dataset.ragged or has_steady_shapes(material.dataset):
        return sizes
    if given is None:
        return ()
    raise InputError(
        "samples have other shapes at each read, so nobody knows which share a batch: leave out the batch sizes"
    )


def _asked_sizes(manifest: Manifest, given: Sequence[int] | None) -> tuple[int, ...]:
    """Return the batch sizes above 1 to test, ascending: those given, else the certificate's.

    Raises:
        InputError: a size isn't possible, or requests have no batch axis.
    """
    artifact = manifest.winner.artifact
    batched = has_batch_axis(artifact.inputs, artifact.outputs, artifact.request)
    batched &= not manifest.varying
    if given is None:
        sizes = certified_sizes(manifest) if batched else (1,)
        return tuple(size for size in sizes if 1 < size <= CHUNK)
    for size in given:
        if type(size) is not int or not 1 <= size <= CHUNK:
            raise InputError(f"batch sizes are whole numbers from 1 to {CHUNK}: got {size!r}")
    sizes = tuple(sorted({size for size in given if size > 1}))
    if sizes and manifest.varying:
        raise InputError(f"{no_batches(manifest.varying)}: leave out the batch sizes")
    if sizes and not batched:
        raise InputError("the model's requests have no open batch axis: leave out the batch sizes")
    return sizes


def _scores(
    subject: Subject,
    material: Material,
    samples: Dataset,
    units: Array,
    watch: Callable[[str, Tensors], None],
    sizes: Sequence[int] = (),
    *,
    probed: bool = False,
) -> tuple[Array, dict[str, Array | str], int, bool]:
    """Score the exact model and the winner; a string in place of scores says why the winner failed.

    Args:
        subject: The bundle.
        material: All data, with the metric.
        samples: Samples to answer.
        units: Number of each sample's group, `(n,)`.
        watch: Callback that receives the outputs of each model on each chunk.
        sizes: Batch sizes in which the winner answers all samples once more.
        probed: Whether the winner is tested for answers that depend on their batch.

    Returns:
        Scores of the exact model; scores by key of the winner, alone and in batches; the number of
        samples that batches are formed from; and whether an answer was seen to depend on its batch.
    """
    manifest = subject.manifest
    target = at_hand(manifest.target).with_threads(threads_of(manifest))
    smaller = samples.decoded_to(manifest.least) if manifest.least else None
    opened: list[OpenWorker] = []
    with tempfile.TemporaryDirectory(prefix="hasten-certify-") as work:
        desk = Bench(
            Path(work), target, sequences=material.sequences, varying=subject.manifest.varying
        )
        try:
            for engine, artifact in subject.parts:
                opened.append(desk.open_built(engine, artifact, fresh=False))
            first = write_spool(Subset(samples, np.arange(1)), desk.folder / "first")
            desk.fit_chunk(opened[0], first)
            several = {batch_key("winner", size): replace(opened[1], batch=size) for size in sizes}
            own, scores = sealed_scores(
                desk,
                opened[0],
                {"winner": opened[1], **several},
                samples,
                material.metric,
                lambda done: None,
                units=units,
                watch=lambda key, outputs: None if key in several else watch(key, outputs),
                apart={} if smaller is None else dict.fromkeys(("winner", *several), smaller),
            )
            moved = probed and _moved(desk, opened[1], samples, sizes)
        finally:
            for one in opened:
                one.worker.kill()
    return own, scores, desk.chunk, moved


def _models(subject: Subject) -> str:
    """Return the digest of what answers for a bundle: the files and engines of both models, and their steps."""
    manifest = subject.manifest
    steps = (subject.pipeline, manifest.least, manifest.sequences)
    settings = [None if one is None else to_record(one) for one in (*subject.engines, *steps)]
    return digest([*settings, *(artifact_digest(artifact) for _, artifact in subject.parts)])


def _kinds(subject: Subject, samples: Dataset) -> tuple[int, ...]:
    """Return the kind of each sample, of which those of one kind may share a batch."""
    engine, artifact = subject.parts[1]
    padder = engine.shared_padder(artifact)
    return tuple(kinds_of(padder, samples, range(len(samples)), artifact.request))


def _moved(desk: Bench, winner: OpenWorker, samples: Dataset, sizes: Sequence[int]) -> bool:
    """Whether an answer depends on its batch: whether it changes where the others are eight times as loud.

    A winner that can't answer such batches has shown nothing.
    """
    if not sizes:
        return False
    few = Subset(samples, np.arange(min(len(samples), desk.chunk)))
    loud = str(write_spool(few, desk.folder / "loud").folder)
    try:
        return any(
            desk.ask(winner.worker, "moved_by_mates", samples=loud, batch=size) for size in sizes
        )
    except CandidateError:
        return True
