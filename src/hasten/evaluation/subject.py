"""A bundle's winner, its exact model, the limits that the winner is held to, and data that fits both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.bundle import Manifest, artifact_of, engine_of, read, unpacked
from hasten.bundle.engines import reference_of
from hasten.bundle.manifest import naming_packages, unfinished
from hasten.certificate.betting import BettingPrior
from hasten.certificate.certification import guarded
from hasten.certificate.draws import Over
from hasten.certificate.planning import check_limits
from hasten.certificate.verdict import Guard, Judgement
from hasten.core.devices import at_hand, family_of
from hasten.core.records import from_record, type_name
from hasten.core.sequences import Sequences
from hasten.core.shapes import extents
from hasten.core.tensors import TensorSpec, check_tensors
from hasten.engines.base import Artifact, Engine
from hasten.errors import InputError, IntegrityError, UnknownMember
from hasten.evaluation.agreement import comparing, needs_no_limit
from hasten.inputs.data.class_files import ClassFiles
from hasten.inputs.data.class_folders import renumbered
from hasten.inputs.data.dataset import Dataset, ShapesOf
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.sequences import SequenceData, open_sequences
from hasten.inputs.data.source import open_data
from hasten.inputs.data.text_files import TextData
from hasten.inputs.metrics import check_outputs, for_labels
from hasten.inputs.metrics.base import Metric
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import in_pixels
from hasten.measure.steps import scored_steps
from hasten.measure.worker import request_of
from hasten.optimization.hints import hint_of_scalars
from hasten.optimization.labelling.wanted import with_labels

_NO_LIMIT = 0.5
"""Limit that stands in the place of one where answers are only compared, and that bounds nothing."""


@dataclass(frozen=True)
class Asked:
    """Values that a caller gives in place of the bundle's own; None stands for the bundle's own.

    Attributes:
        max_drop: Limit on the drop.
        confidence: Confidence of the verdict.
        guard: Quantity that is bounded.
        mean_over: Units of the mean.
        metric: Metric that is scored.
        batch_sizes: Batch sizes at which the limit must hold, beside lone samples.
        reference: Whether the winner is answered by the reference engine of its own.
    """

    max_drop: float | None = None
    confidence: float | None = None
    guard: Guard | None = None
    mean_over: Over | None = None
    metric: Metric | None = None
    batch_sizes: Sequence[int] | None = None
    reference: bool = False


@dataclass(frozen=True)
class Limits:
    """Limits that the winner must keep.

    Attributes:
        max_drop: Limit on the drop.
        confidence: Confidence of the verdict.
        guard: Quantity that is bounded.
        mean_over: Units of the mean.
        prior: Prior of the bets.
        counted: Name of the metric whose scores the certificate counts as 0/1; empty where it counts
            none.
    """

    max_drop: float
    confidence: float
    guard: Guard
    mean_over: Over
    prior: BettingPrior = field(default_factory=BettingPrior)
    counted: str = ""

    def counts(self, metric: Metric) -> bool:
        """Whether scores of a metric may be counted as 0/1, which isn't for the tested data to say.

        Args:
            metric: Metric that is scored. Of one that can't tell, as of a user's own function, scores
                are counted where the certificate counted them.
        """
        return type_name(metric) == self.counted if metric.binary is None else metric.binary


@dataclass(frozen=True)
class Subject:
    """A bundle whose winner is compared with its exact model.

    Attributes:
        folder: Folder of the bundle.
        manifest: Manifest of the bundle; its exact model is never None.
        exact: The exact model.
        winner: The winner.
        metric: Metric that is scored, before the labels are known.
        limits: Limits that the winner must keep.
        unlimited: Whether answers are only compared, under no limit.
        pipeline: Steps from a file to the model's input; None where there are none.
        engines: Engines of the exact model and of the winner.
    """

    folder: Path
    manifest: Manifest
    exact: Artifact
    winner: Artifact
    metric: Metric
    limits: Limits
    unlimited: bool
    pipeline: Pipeline | None
    engines: tuple[Engine, Engine]

    @property
    def parts(self) -> tuple[tuple[Engine, Artifact], ...]:
        """Return the exact model with its engine, then the winner with its own."""
        return (self.engines[0], self.exact), (self.engines[1], self.winner)


@dataclass(frozen=True)
class Material:
    """Data that both models of a bundle take.

    Attributes:
        dataset: The samples.
        metric: Metric that is scored on them.
        sequences: States to carry, where samples are whole sequences; None elsewhere.
        notes: Notes on the data for people.
    """

    dataset: Dataset
    metric: Metric
    sequences: Sequences | None
    notes: tuple[str, ...] = ()


def open_subject(
    bundle: str | os.PathLike[str],
    asked: Asked,
    pipeline: Pipeline | None,
    custom_ops: Sequence[Path],
) -> Subject:
    """Open a bundle to test its winner.

    Args:
        bundle: Folder of the bundle, or its packed file.
        asked: Values that the caller gives in place of the bundle's own.
        pipeline: Steps from an image file to the input of the model as it was given; by default the
            bundle's.
        custom_ops: Paths of libraries with the model's own operators.

    Raises:
        InputError: the bundle can't be used, or the device isn't here and its substitute isn't faithful.
    """
    folder = unpacked(bundle)
    manifest = read(folder)
    if manifest.exact is None and manifest.status == "exact":
        manifest = replace(manifest, exact=manifest.winner)
    if manifest.exact is None:
        raise InputError(
            f"{os.fspath(bundle)} was made with keep_exact=False: there is nothing to compare with"
        )
    _check_device(folder, manifest)
    unlimited = needs_no_limit(
        manifest, asked.max_drop, asked.guard, asked.mean_over, asked.batch_sizes
    )
    limits = _limits(folder, manifest, replace(asked, max_drop=_NO_LIMIT) if unlimited else asked)
    check_limits(limits.max_drop, limits.confidence)
    metric = guarded(_metric(folder, manifest, asked.metric), limits.guard)
    exact = artifact_of(folder, manifest.exact, manifest, custom_ops)
    check_outputs(metric, exact.outputs)
    winner = artifact_of(folder, manifest.winner, manifest, custom_ops)
    prepared_by = manifest.pipeline
    if pipeline is not None:
        given, own = pipeline.behind(prepared_by), prepared_by
        if given is pipeline:  # all of its steps before the model are the caller's
            given = in_pixels(pipeline, () if own is None else own.folded)
        prepared_by = given
    engines = _engines(bundle, manifest, reference=asked.reference)
    return Subject(folder, manifest, exact, winner, metric, limits, unlimited, prepared_by, engines)


def threads_of(manifest: Manifest) -> int:
    """Return the number of threads on which a bundle is tested: its own, or all that this host has."""
    return max(1, min(manifest.target.threads, at_hand(manifest.target).threads))


def _engines(
    bundle: str | os.PathLike[str], manifest: Manifest, *, reference: bool
) -> tuple[Engine, Engine]:
    """Return the engines of the exact model and of the winner.

    Raises:
        InputError: the winner has no reference engine.
    """
    assert manifest.exact is not None
    threads = threads_of(manifest)
    winner = engine_of(manifest.winner, threads, manifest.environment)
    if reference:
        winner = reference_of(manifest.winner, os.fspath(bundle), manifest.environment)
    return engine_of(manifest.exact, threads, manifest.environment), winner


def open_material(subject: Subject, data: Any, scored: Metric | None) -> Material:
    """Open data, and check that both models of a bundle take it.

    Args:
        subject: The bundle.
        data: Data, in any form that `optimize` takes.
        scored: Metric that the caller named; None for the bundle's.

    Raises:
        InputError: the data can't be used.
    """
    metric, sequences = subject.metric, subject.manifest.sequences
    notes: tuple[str, ...] = ()
    if sequences is None:
        opened = _opened(data, subject)
        numbering = opened.numbering if isinstance(opened, (ClassFiles, TextData)) else ""
        if numbering and metric.reads_classes:
            assert isinstance(opened, (ClassFiles, TextData))
            assert opened.labels is not None
            sealed = subject.manifest.sealed
            opened.labels, said = renumbered(opened.labels, opened.numbered, sealed)
            notes = (said or numbering,)
        if subject.manifest.least and opened.decoded_to(subject.manifest.least) is None:
            remedy = "folder of image files, since arrays can't show it"
            if isinstance(opened, ImageFolder):
                remedy = (
                    "pipeline that begins with decode, since no other step can decode files smaller"
                )
            raise InputError(
                "the bundle decodes JPEG files smaller for the model that ships, and its certificate counts what "
                f"that changes: give a {remedy}"
            )
        given = with_labels(opened, metric, asking=False)
        metric = comparing(metric, given) if subject.unlimited else metric
        dataset = _labelled(given, metric)
        _check_fits(dataset, subject.winner, subject.manifest)
    else:
        whole = open_sequences(data, subject.exact.inputs, sequences.states, None)
        dataset = _labelled(whole, metric)
        _check_step_fits(whole, subject.winner.request)
        stated = None if scored is not None else sequences.scored
        steps = scored_steps(stated, scored, whole.labels, whole.steps)
        sequences = Sequences(sequences.states, steps, whole.lengths)
    metric = for_labels(metric, dataset.labels).around(subject.pipeline)
    return Material(dataset, metric, sequences, notes)


def _opened(data: Any, subject: Subject) -> Dataset:
    """Open data for a bundle's models.

    Raises:
        InputError: the data can't be used; where it lacks single numbers, it says how to give them.
    """
    try:
        return open_data(data, subject.exact.inputs, subject.pipeline)
    except InputError as error:
        if "the model takes the inputs" not in error.whole:
            raise
        raise InputError(f"{error}{hint_of_scalars(subject.exact.inputs, error.whole)}") from error


def _check_device(folder: Path, manifest: Manifest) -> None:
    """Check that the winner's answers here are those that it gives on its own device.

    Raises:
        InputError: the device isn't here, and its substitute isn't equal to it bit for bit.
    """
    here = at_hand(manifest.target)
    if here.kind != "compile-only":
        return
    for engine in engine_of(manifest.winner, here.threads, manifest.environment).runtimes:
        try:
            engine.check_faithful()
        except InputError as error:
            raise InputError(
                f"{folder} is for {here.device}, which isn't here, and {error}: run hasten certify on a machine with the device ({family_of(here).noun})"
            ) from error


def _limits(folder: Path, manifest: Manifest, asked: Asked) -> Limits:
    """Return the limits: those given here, else the bundle's own."""
    if manifest.certificate is None:
        if asked.max_drop is None and unfinished(manifest.why):
            raise InputError(
                f"{folder} is from a run that has not finished, so it has no certificate yet: "
                "continue the run with resume=True, or give max_drop= to test what it found so far"
            )
        if asked.max_drop is None:
            raise InputError(f"{folder} has no certificate and therefore no limit: give max_drop=")
        return Limits(
            asked.max_drop,
            0.95 if asked.confidence is None else asked.confidence,
            asked.guard or "net",
            asked.mean_over or "samples",
        )
    try:
        stated = from_record(Judgement, manifest.certificate.get("judgement"))
    except (InputError, IntegrityError) as error:
        raise IntegrityError(f"{folder}: the certificate is damaged: {error}") from error
    for name, share in (("max_drop", stated.max_drop), ("confidence", stated.confidence)):
        if not 0 < share < 1:
            raise IntegrityError(
                f"{folder}: the certificate is damaged: {name} must be between 0 and 1, and it says "
                f"{share:g}"
            )
    return Limits(
        stated.max_drop if asked.max_drop is None else asked.max_drop,
        stated.confidence if asked.confidence is None else asked.confidence,
        asked.guard or stated.guard,
        asked.mean_over or stated.over,
        stated.prior if asked.guard in (None, stated.guard) else BettingPrior(),
        "" if stated.lost is None else stated.metric,
    )


def _metric(folder: Path, manifest: Manifest, given: Metric | None) -> Metric:
    """Return the metric to score by: the one given here, else the bundle's own."""
    if given is not None:
        return given
    try:
        with naming_packages(manifest.environment):
            metric = from_record(Metric, manifest.metric)
    except UnknownMember as error:
        raise IntegrityError(f"{folder}: {error}; or give another metric=") from error
    except InputError as error:
        raise IntegrityError(f"{folder}: the metric is damaged: {error}") from error
    if metric.function is not None:
        raise InputError(
            f"{folder} was judged by the function {metric.function}: name it again in metric=, "
            "because hasten never runs code that only a bundle names"
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
