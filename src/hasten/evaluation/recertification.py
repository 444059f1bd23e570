"""Test of a bundle's certificate on new data: the gate of a pipeline."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.bundle import Manifest, Part, artifact_of, engine_of, read, unpacked
from hasten.bundle.covered import certified_sizes, has_batch_axis
from hasten.certificate.batches import Batches, Coverage, batch_key, covered
from hasten.certificate.betting import BettingPrior
from hasten.certificate.certification import guarded, judge_ladder, sealed_scores
from hasten.certificate.draws import Over
from hasten.certificate.figures import Answers, Setting, compared
from hasten.certificate.ledger import user_ledger
from hasten.certificate.looks import Judged, answers_digest
from hasten.certificate.planning import check_limits
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Guard, Judgement, Verdict
from hasten.core.devices import at_hand, family_of
from hasten.core.records import from_record, type_name
from hasten.core.sequences import Sequences
from hasten.core.shapes import extents
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec, check_tensors
from hasten.engines.base import Artifact
from hasten.errors import CandidateError, InputError, IntegrityError
from hasten.evaluation.agreement import comparing, exactness, needs_no_limit
from hasten.evaluation.seen import Recheck, fresh, looked, seen_by
from hasten.inputs.chains import is_chain
from hasten.inputs.data.dataset import Dataset, ShapesOf, Subset
from hasten.inputs.data.sequences import SequenceData, open_sequences
from hasten.inputs.data.source import open_data
from hasten.inputs.data.splits import units_of
from hasten.inputs.data.spool import write_spool
from hasten.inputs.metrics import check_outputs, for_labels, named_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.unlabelled import check_labelled, missing_labels
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import in_pixels
from hasten.inputs.set_metrics import chosen
from hasten.inputs.set_metrics.base import SetMetric
from hasten.measure.exactness import Comparing
from hasten.measure.steps import over_steps, scored_steps
from hasten.measure.workbench import CHUNK, Bench, OpenWorker
from hasten.measure.worker import request_of
from hasten.optimization.labelling.wanted import with_labels

_NO_LIMIT = 0.5
"""Limit that stands in the place of one where answers are only compared, and that bounds nothing."""


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
    listen: Callable[[int], None] = lambda done: None,
) -> Recheck:
    """Test a bundle's winner against its exact model on data.

    An exact bundle has no certificate, and needs none: unless `max_drop` or another part of a limit is
    given, the outcome is an `ExactCheck`, which says whether it answers all of the data as its exact
    model does.

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
        mean_over: What the mean is over, where samples have groups or repeat one another; by default the
            certificate's.
        metric: Metric that is scored; by default the bundle's, unless that is a function. A
            bundle's word alone runs no code, so a function must be named again.
        report: Metrics over the set that are stated for the exact model and the winner; by default
            those of a binary classification where labels are 0 and 1.
        pipeline: Steps from an image file to the input of the model as it was given; by default
            the bundle's. What the bundle's model does itself is left out.
        custom_ops: Paths of libraries with the model's own operators.
        batch_sizes: Batch sizes at which the limit must hold, beside lone samples; by default those
            that the certificate covers. Where the bundle doesn't state that its rows are answered each
            by itself, a batch is one draw.
        listen: Callback that receives the number of samples scored so far.

    Returns:
        The outcome, with the verdict on these samples.

    Raises:
        InputError: the bundle or the data can't be used, the bundle was made with groups and the
            data has none, or the device isn't here and its substitute isn't faithful.
        CandidateError: the winner failed.
    """
    if is_chain(bundle):
        if (
            metric is not None
            or report is not None
            or pipeline is not None
            or custom_ops
            or batch_sizes is not None
            or guard not in (None, "changed")
        ):
            raise InputError(
                "a chain is compared with the chain of its exact models, under the guard 'changed' and "
                "with its bundles' own pipelines: leave out the metric, the figures, the pipeline, other "
                "guards, batch sizes and operator libraries"
            )
        from hasten.evaluation.chains import certify_chain

        return certify_chain(
            os.fspath(bundle), data, max_drop=max_drop, confidence=confidence, listen=listen
        )
    if metric is not None:
        metric = named_metric(metric)
    folder, ledger = unpacked(bundle), user_ledger()
    manifest = read(folder)
    if manifest.exact is None and manifest.status == "exact":
        manifest = replace(manifest, exact=manifest.winner)
    if manifest.exact is None:
        raise InputError(
            f"{os.fspath(bundle)} was made with keep_exact=False: there is nothing to compare with"
        )
    _check_device(folder, manifest)
    free = needs_no_limit(manifest, max_drop, guard, mean_over, batch_sizes)
    limits = _limits(
        folder, manifest, _NO_LIMIT if free else max_drop, confidence, guard, mean_over
    )
    check_limits(limits.max_drop, limits.confidence)
    judged_by = guarded(_metric(folder, manifest.metric, metric), limits.guard)
    exact = artifact_of(folder, manifest.exact, manifest, custom_ops)
    check_outputs(judged_by, exact.outputs)
    winner = artifact_of(folder, manifest.winner, manifest, custom_ops)
    prepared_by = manifest.pipeline
    if pipeline is not None:
        prepared_by = in_pixels(pipeline, () if prepared_by is None else prepared_by.folded)
    sequences = manifest.sequences
    if sequences is None:
        opened = open_data(data, exact.inputs, prepared_by)
        given = with_labels(opened, judged_by, asking=False)
        judged_by = comparing(judged_by, given) if free else judged_by
        dataset = _labelled(given, judged_by)
        _check_fits(dataset, winner, manifest)
    else:
        whole = open_sequences(data, exact.inputs, sequences.states, None)
        dataset = _labelled(whole, judged_by)
        _check_step_fits(whole, winner.request)
        scored = scored_steps(
            None if metric is not None else sequences.scored, metric, whole.labels, whole.steps
        )
        sequences = Sequences(sequences.states, scored, whole.lengths)
    parts = ((manifest.exact, exact), (manifest.winner, winner))
    judged_by = for_labels(judged_by, dataset.labels).around(prepared_by)
    if free:
        compared_by = Comparing(over_steps(judged_by, sequences), ["winner"])
        units = units_of(dataset)
        own, scores, _ = _scores(
            parts, manifest.target, dataset, units, judged_by, listen, sequences, compared_by
        )
        if isinstance(scores["winner"], str):
            raise CandidateError(scores["winner"])
        changed = compared_by.changes["winner"].changed(scores["winner"], own)
        return exactness(changed, itself=winner == exact)
    seen = seen_by(folder, manifest)
    seen.check_groups(folder, dataset)
    earlier = ledger.past().earlier(1 - limits.confidence)
    chosen_data = fresh(dataset, seen, earlier)
    samples, units = chosen_data.samples, chosen_data.units
    if sequences is not None and report is not None:
        raise InputError(
            "report states figures of single answers, and this bundle was certified on whole sequences: "
            "leave report out"
        )
    wanted = report if sequences is None else ("none",)
    figures = chosen(wanted, samples.labels, exact.outputs, prepared_by)
    setting = Setting(figures, prepared_by, samples.labels, units, limits.confidence)
    check_labelled(judged_by, samples.labels, type_name(judged_by))
    answers, draws = Answers(), judged_by.draws(samples.labels, units)
    one_by_one = sequences is not None or (batch_sizes is None and dataset.ragged)
    asked = () if one_by_one else _asked_sizes(manifest, batch_sizes)
    if asked and dataset.ragged:
        raise InputError(
            "samples that differ in shape are answered one by one: leave out the batch sizes, or give samples "
            "of one shape"
        )
    own, scores, chunk = _scores(
        parts, manifest.target, samples, units, judged_by, listen, sequences, answers, asked
    )
    score = scores["winner"]
    promise = Promise(judged_by, limits.guard, limits.max_drop, limits.confidence, limits.mean_over)
    priors = {"winner": limits.prior}
    coverage: Coverage | None = None

    def judged(promise: Promise) -> Judged:
        nonlocal coverage
        verdicts = judge_ladder(own, ("winner",), {"winner": score}, draws, priors, promise)
        (_, judgement) = verdicts[0]
        if asked and isinstance(judgement, Judgement) and judgement.verdict is Verdict.CERTIFIED:
            apart = (manifest.certificate or {}).get("rows_apart") is True
            batches = Batches(asked, apart, chunk)
            coverage, _ = covered(
                "winner",
                batches,
                judgement,
                own,
                scores,
                draws,
                limits.prior,
                promise,
                binary=True,
            )
        return verdicts

    if isinstance(score, str):
        raise CandidateError(score)
    test = answers_digest(chosen_data.hashes, own, tuple(scores), scores, draws, promise)
    (entry,), kind, look = looked(
        ledger,
        chosen_data,
        test,
        promise,
        judged,
        lambda: coverage is None or set(asked) <= set(coverage.sizes),
    )
    judgement = entry[1]
    if isinstance(judgement, str):
        raise CandidateError(judgement)
    comparison = None
    if setting.wanted and manifest.winner != manifest.exact:
        comparison = compared(setting, answers, {"winner": manifest.winner.label}).get("winner")
    missing = missing_labels(judged_by, samples.labels)
    changed = None if isinstance(score, str) else own > score
    unlabelled = 0 if missing is None or changed is None else int((missing & changed).sum())
    return Recheck(
        kind,
        judgement,
        used=len(samples),
        left_out=len(dataset) - len(samples),
        comparison=comparison,
        look=look,
        elsewhere=chosen_data.elsewhere,
        notes=ledger.notes,
        batches=asked,
        coverage=coverage,
        unlabelled=unlabelled,
    )


def _asked_sizes(manifest: Manifest, given: Sequence[int] | None) -> tuple[int, ...]:
    """Return the batch sizes above 1 to test, ascending: those given, else the certificate's.

    Raises:
        InputError: a size isn't possible, or requests have no batch axis.
    """
    artifact = manifest.winner.artifact
    batched = has_batch_axis(artifact.inputs, artifact.outputs, artifact.request)
    if given is None:
        sizes = certified_sizes(manifest) if batched else (1,)
        return tuple(size for size in sizes if 1 < size <= CHUNK)
    for size in given:
        if type(size) is not int or not 1 <= size <= CHUNK:
            raise InputError(f"batch sizes are whole numbers from 1 to {CHUNK}: got {size!r}")
    sizes = tuple(sorted({size for size in given if size > 1}))
    if sizes and not batched:
        raise InputError("the model's requests have no open batch axis: leave out the batch sizes")
    return sizes


def _check_device(folder: Path, manifest: Manifest) -> None:
    """Check that the winner's answers here are those that it gives on its own device.

    Raises:
        InputError: the device isn't here, and its substitute isn't equal to it bit for bit.
    """
    here = at_hand(manifest.target)
    if here.kind != "compile-only":
        return
    for engine in engine_of(manifest.winner, here.threads).runtimes:
        try:
            engine.check_faithful()
        except InputError as error:
            raise InputError(
                f"{folder} is for {here.device}, which isn't here, and {error}: run hasten certify on a machine with the device ({family_of(here).noun})"
            ) from error


@dataclass(frozen=True)
class _Limits:
    """Limits that the winner must keep."""

    max_drop: float
    confidence: float
    guard: Guard
    mean_over: Over
    prior: BettingPrior = field(default_factory=BettingPrior)


def _limits(
    folder: Path,
    manifest: Manifest,
    max_drop: float | None,
    confidence: float | None,
    guard: Guard | None,
    mean_over: Over | None,
) -> _Limits:
    """Return the limits: those given here, else the bundle's own."""
    if manifest.certificate is None:
        if max_drop is None:
            raise InputError(f"{folder} has no certificate and therefore no limit: give max_drop=")
        return _Limits(
            max_drop,
            0.95 if confidence is None else confidence,
            guard or "net",
            mean_over or "samples",
        )
    try:
        stated = from_record(Judgement, manifest.certificate.get("judgement"))
    except (InputError, IntegrityError) as error:
        raise IntegrityError(f"{folder}: the certificate is damaged: {error}") from error
    for name, share in (("max_drop", stated.max_drop), ("confidence", stated.confidence)):
        if not 0 < share < 1:
            raise IntegrityError(
                f"{folder}: the certificate is damaged: {name} lies between 0 and 1, and it says "
                f"{share:g}"
            )
    return _Limits(
        stated.max_drop if max_drop is None else max_drop,
        stated.confidence if confidence is None else confidence,
        guard or stated.guard,
        mean_over or stated.over,
        stated.prior if guard in (None, stated.guard) else BettingPrior(),
    )


def _metric(folder: Path, stated: dict[str, Any], given: Metric | None) -> Metric:
    """Return the metric to score by: the one given here, else the bundle's own."""
    if given is not None:
        return given
    try:
        metric = from_record(Metric, stated)
    except InputError as error:
        raise IntegrityError(f"{folder}: the metric is damaged: {error}") from error
    if metric.function is not None:
        raise InputError(
            f"{folder} was judged by the function {metric.function}: name it again in metric=, "
            "because hasten runs no code only because a bundle names it"
        )
    return metric


def _check_fits(dataset: Dataset, winner: Artifact, manifest: Manifest) -> None:
    """Check by the first sample that the model can take the data, or by all where they differ in shape.

    Raises:
        InputError: an input doesn't fit; the message says which, and what was expected.
    """
    first = request_of(dataset.inputs([0]), winner.request)
    ragged = dataset.ragged or bool(manifest.shapes)
    check_tensors(first, winner.inputs if ragged else winner.request)
    if dataset.ragged:
        extents(winner.inputs, ShapesOf(dataset))


def _check_step_fits(sequences: SequenceData, request: Sequence[TensorSpec]) -> None:
    """Check by the first step that the model can take the sequences.

    Raises:
        InputError: an input doesn't fit; the message says which, and what was expected.
    """
    step = sequences.step(0)
    specs = [spec for spec in request if spec.name in step]
    first = {name: array[np.newaxis] for name, array in step.items()}
    check_tensors(request_of(first, specs), specs)


def _labelled(dataset: Dataset, metric: Metric) -> Dataset:
    """Return the data, after checking that it has labels if the metric reads them."""
    if metric.needs_labels and dataset.labels is None:
        raise InputError(
            f"the bundle is judged by {type_name(metric)}, which needs labels; the data has none"
        )
    return dataset


def _scores(
    parts: Sequence[tuple[Part, Artifact]],
    made_for: Target,
    samples: Dataset,
    units: Array,
    metric: Metric,
    listen: Callable[[int], None],
    sequences: Sequences | None,
    watch: Callable[[str, Tensors], None],
    sizes: Sequence[int] = (),
) -> tuple[Array, dict[str, Array | str], int]:
    """Score the exact model and the winner; a string in place of scores says why the winner failed.

    Args:
        parts: The exact model, then the winner.
        made_for: Target of the bundle; its number of threads is used, or all that this host has.
        samples: Samples to answer.
        units: Number of each sample's group, `(n,)`.
        metric: Metric that is scored.
        listen: Callback that receives the number of samples scored so far.
        sequences: States to carry, where samples are whole sequences.
        watch: Callback that receives the outputs of each model on each chunk.
        sizes: Batch sizes in which the winner answers all samples once more.

    Returns:
        Scores of the exact model; scores by key of the winner, alone and in batches; and the number of
        samples that batches are formed from.
    """
    host = at_hand(made_for)
    target = host.with_threads(max(1, min(made_for.threads, host.threads)))
    opened: list[OpenWorker] = []
    with tempfile.TemporaryDirectory(prefix="hasten-certify-") as work:
        desk = Bench(Path(work), target, sequences=sequences)
        try:
            for part, artifact in parts:
                engine = engine_of(part, target.threads)
                opened.append(desk.open_built(engine, artifact, fresh=False))
            first = write_spool(Subset(samples, np.arange(1)), desk.folder / "first")
            desk.fit_chunk(opened[0], first)
            several = {batch_key("winner", size): replace(opened[1], batch=size) for size in sizes}
            own, scores = sealed_scores(
                desk,
                opened[0],
                {"winner": opened[1], **several},
                samples,
                metric,
                listen,
                units=units,
                watch=lambda key, outputs: None if key in several else watch(key, outputs),
            )
        finally:
            for one in opened:
                one.worker.kill()
    return own, scores, desk.chunk
