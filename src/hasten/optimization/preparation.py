"""Preparation of a run, for any device: model and data are read, split and checked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hasten.certificate.certification import guarded
from hasten.certificate.promise import Promise
from hasten.core.devices import family_of, find_target
from hasten.core.model import Model
from hasten.core.records import type_name
from hasten.core.sequences import Sequences
from hasten.core.shapes import Extent
from hasten.core.target import Target
from hasten.core.tensors import Array, TensorSpec
from hasten.engines.base import Engine
from hasten.engines.cuda.capability import check_shared
from hasten.engines.installed import (
    check_takes,
    engine_kinds,
    tried_on,
    unsuited,
    without_program,
)
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.class_files import ClassFiles
from hasten.inputs.data.class_folders import link_out
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.parts import Parts, data_digest, lay_out
from hasten.inputs.data.sequences import SequenceData
from hasten.inputs.data.source import open_data
from hasten.inputs.data.table import TableRows, reads_rows
from hasten.inputs.data.text_files import TextData
from hasten.inputs.metrics import check_outputs, default_metric, for_labels, named_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import over_samples
from hasten.inputs.metrics.same_answers import SameAnswers
from hasten.inputs.metrics.unlabelled import check_labelled
from hasten.inputs.models import frozen
from hasten.inputs.models.embedding import check_vocabulary
from hasten.inputs.models.hugging_face import Folder
from hasten.inputs.models.onnx import load as load_file
from hasten.inputs.models.onnx import read as read_proto
from hasten.inputs.models.source import (
    check_has_program,
    find_model,
    load_with_data,
    pipeline_around,
)
from hasten.inputs.models.tabular.base import Tabular
from hasten.inputs.models.zip_maps import note_of_maps, without_maps
from hasten.inputs.pipeline.base import Pipeline, check_steps
from hasten.inputs.pipeline.vectors import Quantity
from hasten.inputs.set_metrics import chosen
from hasten.measure.candidate import label
from hasten.measure.environment import versions
from hasten.optimization.constants import constant_inputs
from hasten.optimization.data_needed import calibrating, warnings
from hasten.optimization.folding import (
    Given,
    Prepared,
    check_answers,
    fold,
    folded_words,
    unfolded_words,
)
from hasten.optimization.hints import hint_of_inputs, hint_of_missing, note_of_states
from hasten.optimization.job import Job
from hasten.optimization.labelling.wanted import (
    ASKING,
    asks,
    check_asked,
    with_labels,
    with_whole_labels,
)
from hasten.optimization.masks import check_sizes, mask_notes
from hasten.optimization.memory import earlier_of, expected_look, keep_earlier, leave_seen
from hasten.optimization.order import Order
from hasten.optimization.own_answers import check_own_answers
from hasten.optimization.ready import Ready
from hasten.optimization.shapes import (
    check_asking,
    check_pads,
    check_takes_open,
    compare_means,
    extents_of,
    time_first,
    typical_sample,
)
from hasten.optimization.small_models import named_students, small_models
from hasten.optimization.unrolling import (
    check_alone,
    first_step,
    load_with_sequences,
    sequences_of,
    unroll,
)
from hasten.optimization.without_data import (
    check_order,
    comparison_note,
    data_for_a_certificate,
    load_without_data,
    metric_without_data,
)
from hasten.optimization.workspace import SEARCH_VERSION, check_same_run
from hasten.passes import already_quantized
from hasten.passes.base import Pass, Skipped
from hasten.passes.installed import without_modules
from hasten.passes.onnx_files import check_nodes, read_onnx

_FOLDED = "folded"
"""Kind of the journal's event that says whether the model normalizes pixels itself."""


def prepare(
    job: Job,
    model: Any,
    data: Any,
    *,
    training: Any = None,
    small_model: Any = None,
    pipeline: Pipeline | None = None,
) -> Ready:
    """Read a model and data, split the data, and check that a resumed run has the same inputs.

    Args:
        job: The run at work.
        model: The model, in any form that `hasten.optimize` takes.
        data: The data, in any form that `hasten.optimize` takes; None for made-up inputs.
        training: Training data, in any form that `hasten.optimize` takes.
        small_model: Smaller model or models, in any form that `hasten.optimize` takes.
        pipeline: Steps from an image file to the model's input, and after the model; by default the model's
            own.

    Raises:
        InputError: the model, the data or an option can't be used.
    """
    _keep_nothing_linked(job, data, training)
    order = job.order
    target = _device(order, data, training, small_model)
    found = find_model(model, trust_code=order.trust_code)
    given = _read(job, target, found, data, training, pipeline, small_model)
    note, as_given = "", None
    if order.end_to_end:
        laid, as_given, note = _folded(job, target, given)
    else:
        laid = _laid_out(job, target, given)
    made, parts, source, metric = laid.made, laid.parts, laid.source, laid.metric
    dataset, preparation, sequences = made.dataset, made.pipeline, laid.sequences
    if isinstance(found, Tabular) and reads_rows(preparation) == found.row and data is not None:
        job.notes += filter(None, [check_own_answers(found, source, parts, job.folder)])
    if data is not None and target.kind == "host":
        source = replace(source, constant_inputs=constant_inputs(source, parts, sequences))
    asking = asks(order, job.journal)
    # Tensors have been prepared by their maker; rows are the same numbers before and after.
    images = isinstance(dataset, ImageFolder)
    texts = isinstance(dataset, TextData)
    files = isinstance(dataset, ClassFiles)
    numbered: tuple[str, ...] = ()
    if isinstance(dataset, (ClassFiles, TextData)) and dataset.numbering and metric.reads_classes:
        job.notes.append(dataset.numbering)
        numbered = dataset.numbered
    prepared = files or texts or reads_rows(preparation) is not None or isinstance(found, Folder)
    kept_pipeline = preparation if prepared else pipeline
    students = named_students(small_model)
    ready = Ready(
        model=source,
        parts=parts,
        training=None if made.training is None else with_whole_labels(made.training, metric),
        pipeline=kept_pipeline,
        promise=Promise(metric, order.guard, order.max_drop, order.confidence, order.mean_over),
        target=target,
        small_models=tuple(small_models(students, given, made, order.custom_ops, job.folder)),
        trained={one.name: one.trained for one in students if one.name},
        given_sha256=_given_sha256(found, given.model, order),
        figures=()
        if sequences is not None
        else chosen(order.report, parts.search.labels, source.outputs, kept_pipeline),
        asking=asking,
        made_up=data is None,
        extents=laid.unlike,
        given=as_given,
        files=_unsealed(dataset, parts) if order.end_to_end and images else (),
        numbered=numbered,
    )
    keep_earlier(job, parts)
    check_same_run(job.journal, facts(order, ready))
    if order.end_to_end and job.journal.last(_FOLDED) is None:
        job.journal.append(_FOLDED, kept=as_given is not None, note=note)
    if asking and job.journal.last(ASKING) is None:
        job.journal.append(ASKING)
    if sequences is not None and isinstance(dataset, SequenceData):
        ready = replace(ready, unrolled=unroll(job, source, parts, sequences, dataset))
    ready.check_numbers()
    ready = replace(ready, tested=expected_look(job, parts).promise(ready.promise))
    if isinstance(dataset, TableRows):
        job.notes += dataset.notes
    if isinstance(dataset, ClassFiles) and preparation is not None:
        steps = ", ".join(label(step) for step in preparation.steps)
        job.notes.append(f"{dataset.noun} were prepared by {steps}")
    _note(job, ready)
    leave_seen(job, parts)
    return ready


def _unsealed(dataset: Dataset, parts: Parts) -> tuple[Path, ...]:
    """Return the image files that aren't sealed."""
    assert isinstance(dataset, ImageFolder)
    sealed = set(parts.sealed.indices.tolist())
    return tuple(file for place, file in enumerate(dataset.files) if place not in sealed)


def _device(order: Order, data: Any, training: Any, small_model: Any) -> Target:
    """Return the device to run on, after checking that what is asked for can be done for it.

    Raises:
        InputError: there is no such device, a tool for it is missing, it lets in a single process, or
            an option doesn't suit it.
    """
    target = find_target(order.target)
    if target.kind == "compile-only":
        check_measures_nothing(order, target, small_model)
    for kind in _kinds(order, target):
        kind.check_tools(target)
    check_shared(target)
    check_passes(order.passes)
    if data is None:
        check_order(order, target, training=training, small_model=small_model)
    return target


def _given_sha256(found: Any, model: Model, order: Order) -> str:
    """Return the hash of the model that was given: of a user's ONNX file itself, also where hasten changed a copy."""
    if isinstance(found, Path) and found.absolute() != model.path:
        return load_file(found, order.custom_ops).sha256
    return model.sha256


def _program(target: Target) -> str:
    """Return whether engines for a device take a model's program: "needed", "taken" or "not taken"."""
    return "not taken" if target.kind == "host" else family_of(target).program


def _read(
    job: Job,
    target: Target,
    found: Any,
    data: Any,
    training: Any,
    pipeline: Pipeline | None,
    small_model: Any,
) -> Prepared:
    """Read the model, its pipeline and the data.

    Raises:
        InputError: one of them can't be used.
    """
    order, program = job.order, _program(target)
    preparation = pipeline_around(found, pipeline)
    if pipeline is None or preparation is not pipeline:
        job.notes += getattr(found, "hasten_notes", ())
    check_steps(preparation)
    if program == "needed":
        check_has_program(found)
    known: Dataset | None = None
    if data is None:
        source, dataset = load_without_data(job, found)
    elif order.states:
        check_alone(order, target, small_model, preparation)
        source, dataset, known = load_with_sequences(job, found, data, training)
    else:
        keep_program = program == "needed" or (program == "taken" and not order.end_to_end)
        source, dataset, known = _loaded(
            job, found, data, training, preparation, keep_program=keep_program
        )
        job.notes += note_of_states(source, dataset)
    if isinstance(found, Path) and source.path != found.absolute():
        job.notes += note_of_maps(without_maps(read_proto(found)))
    return Prepared(source, preparation, dataset, known, made_up=data is None)


@dataclass(frozen=True)
class _Laid:
    """A model with its data split and laid out, and its metric.

    Attributes:
        made: The model, its pipeline and its data.
        parts: Parts of the data, laid out in the run's folder.
        unlike: Dimensions in which samples differ.
        source: The model with the shapes that the data settles.
        sequences: States to carry, where samples are whole sequences; None elsewhere.
        metric: Metric that the certificate is about.
    """

    made: Prepared
    parts: Parts
    unlike: tuple[Extent, ...]
    source: Model
    sequences: Sequences | None
    metric: Metric


@contextlib.contextmanager
def _naming_step(dataset: Dataset, pipeline: Pipeline | None) -> Iterator[None]:
    """Let an error about a sample that doesn't fit the model name the step that made it.

    Raises:
        InputError: the sample doesn't fit.
    """
    try:
        yield
    except InputError as error:
        if (
            not isinstance(dataset, (ClassFiles, TextData))
            or pipeline is None
            or not pipeline.steps
        ):
            raise
        last = pipeline.steps[-1].name
        raise InputError(f"{error}; the pipeline's last step, {last}, gives it") from error


def _laid_out(job: Job, target: Target, made: Prepared) -> _Laid:
    """Split the data and lay it out, and check the model and the metric against it.

    Raises:
        InputError: the data, the model or the metric can't be used.
    """
    order = job.order
    if target.kind != "host":
        check_takes(engine_names(order, target), target, program=made.model.program is not None)
    asking = asks(order, job.journal)
    parts, unlike = _split(job, target, made, asking=asking)
    dataset, preparation = made.dataset, made.pipeline
    with _naming_step(dataset, preparation):
        source = made.model.settled_by(
            first_step(made.model, dataset, order.states)
            if isinstance(dataset, SequenceData)
            else typical_sample(parts.search)
        )
    _check_graph(job, target, source, preparation)
    sequences = sequences_of(order, dataset) if isinstance(dataset, SequenceData) else None
    wanted = order.metric
    if wanted is None and made.made_up:
        wanted = metric_without_data(source)
    metric = guarded(
        metric_for(wanted, parts, source, sequences, preparation).around(preparation), order.guard
    )
    if asking:
        check_asked(metric)
        check_asking(source, unlike)
    for part in (parts.search, parts.sealed):
        check_labelled(metric, part.labels, type_name(metric))
    return _Laid(made, parts, unlike, source, sequences, metric)


def _folded(job: Job, target: Target, given: Prepared) -> tuple[_Laid, Given | None, str]:
    """Lay the data out for a form of the model that normalizes pixels itself, if it changes no answer.

    A resumed run does what it did before.

    Returns:
        What was laid out: for that form, or else for the model as it was given; the latter, where the
        form takes its place; and a note for people.

    Raises:
        InputError: the data, the model or the metric can't be used.
    """
    known, asked, place = job.journal.last(_FOLDED), job.order, len(job.notes)
    as_given: Given | None = None
    try:
        if known is not None and not known["kept"]:
            raise Skipped("as before the run was stopped")
        made = fold(given, job.folder)
        laid = _laid_out(job, target, made)
        as_given = Given.of(given, made, laid.parts.search, laid.unlike)
        if known is None:
            kinds, draws = _kinds(asked, target), laid.parts.search_draws(laid.metric)
            check_answers(
                job, laid.source, as_given, laid.parts.search, draws, laid.metric, kinds, target
            )
        note = folded_words(given, made, len(laid.parts.search))
    except (Skipped, CandidateError) as why:
        job.order, as_given, note = asked, None, unfolded_words(why)
        del job.notes[place:]
        laid = _laid_out(job, target, given)
    note = known["note"] if known is not None else note
    job.notes.insert(place, note)
    return laid, as_given, note


def _split(
    job: Job, target: Target, made: Prepared, *, asking: bool
) -> tuple[Parts, tuple[Extent, ...]]:
    """Split the data; return its parts, and the dimensions in which samples differ.

    Raises:
        InputError: the data is too little, or differs in shape where it may not.
    """
    order = job.order
    try:
        parts = lay_out(
            with_labels(made.dataset, order.metric, asking=asking),
            job.folder,
            calibration=order.calibration,
            seed=order.seed,
            training=made.training,
            earlier=earlier_of(job),
            allow_near_copies=order.allow_near_copies,
        )
    except InputError as error:
        if not (hint := hint_of_missing(made.model, str(error))):
            raise
        raise InputError(f"{error}{hint}") from error
    unlike = extents_of(made.model, made.dataset)
    check_takes_open(target, unlike)
    check_pads(order.pad, made.model)
    if made.training is not None:
        extents_of(made.model, made.training)
    if unlike:
        compare_means(job, unlike)
    return parts, unlike


def _check_graph(job: Job, target: Target, source: Model, preparation: Pipeline | None) -> None:
    """Check that a model's graph, outputs and vocabulary suit the order and the pipeline.

    Raises:
        InputError: they don't.
    """
    if preparation is not None:
        preparation.check(source.outputs)
    if _program(target) == "needed":
        return
    proto = read_onnx(source, weights=False)
    check_nodes(proto, job.order.keep_float)
    job.notes += filter(None, [already_quantized.words(proto)])
    job.notes += frozen.words(proto, source.inputs)
    if preparation is not None:
        job.notes += filter(None, [check_vocabulary(preparation, proto, source.inputs)])


def _keep_nothing_linked(job: Job, *folders: Any) -> None:
    """Have the bundle keep no samples of a folder that has links to files elsewhere, and say so.

    Whoever made the folder may have linked a private file, which a bundle would pass on.
    """
    for folder in folders if job.order.keep_requests else ():
        link = link_out(Path(folder)) if isinstance(folder, (str, os.PathLike)) else None
        if link is not None:
            job.order = replace(job.order, keep_requests=False)
            job.notes.append(
                f"the bundle keeps no samples to warm up with, because {link} is a link that leads out of the "
                "data's folder: copy the files into the folder to keep some"
            )
            return


def _note(job: Job, ready: Ready) -> None:
    """Note what a person should know before the search begins.

    Args:
        job: The run at work.
        ready: Model and data of the run.
    """
    order, target = job.order, ready.target
    if not order.engines:
        job.notes += without_program(target.family)
        job.notes += without_modules(order.passes) if target.kind == "host" else ()
        job.notes += unsuited(target) if target.kind == "attached" else ()
    if ready.unrolled is None:
        job.notes += filter(None, [time_first(ready.model, ready.parts.search)])
    if ready.made_up:
        if isinstance(ready.promise.metric, SameAnswers):
            job.notes.append(comparison_note(ready.model))
        job.notes.append(data_for_a_certificate(order))
    else:
        check_sizes(ready.model.inputs, ready.parts.search)
        job.doubts += mask_notes(ready.model.inputs, ready.parts.search)
        job.notes += job.doubts
        job.notes += warnings(ready.parts, ready.promise, calibrating(order, ready), ready.tested)


def _loaded(
    job: Job,
    found: Any,
    data: Any,
    training: Any,
    preparation: Pipeline | None,
    *,
    keep_program: bool,
) -> tuple[Model, Dataset, Dataset | None]:
    """Load the model, the data to judge on, and the training data where there is any.

    Raises:
        InputError: they can't be used; where inputs that nothing feeds look like states, or take a
            single number, it says so.
    """
    ops = job.order.custom_ops
    try:
        source, dataset = load_with_data(
            found, data, preparation, ops, job.folder, keep_program=keep_program
        )
    except InputError as error:
        if "the model takes the inputs" not in error.whole:
            raise
        raise InputError(f"{error}{hint_of_inputs(found, error.whole)}") from error
    known = None
    if training is not None:
        unpacked = job.folder / "unpacked-training"
        known = open_data(training, source.inputs, preparation, unpacked)
    return source, dataset, known


def engine_names(order: Order, target: Target) -> tuple[str, ...]:
    """Return the names of the runtimes to try for a target."""
    if order.engines:
        return order.engines
    return tried_on(target.family)


def facts(order: Order, ready: Ready) -> dict[str, Any]:
    """Return the facts that must agree for one run to continue from another's journal."""
    metric, target = ready.promise.metric, ready.target
    return {
        "model": ready.model.sha256,
        "data": data_digest(ready.parts),
        "machine": target,
        "pipeline": ready.pipeline,
        "set of versions": versions() | {"search": str(SEARCH_VERSION)},
        "set of tools": {kind.__name__: kind.tools() for kind in _kinds(order, target)},
        "set of states": [order.states, order.scored],
        "options": [
            *(order.max_drop, metric, order.guard, order.mean_over, order.confidence, order.seed),
            *(order.engines, order.passes, list(order.keep_float)),
        ],
        "objective": order.objective,
        "effort": order.effort,
        "set of figures": [(one, one.source_sha256) for one in ready.figures],
        "small model": [(one.name, one.sha256) for one in ready.small_models],
        "file of the metric's function": metric.source_sha256,
    }


def _kinds(order: Order, target: Target) -> list[type[Engine]]:
    return engine_kinds(engine_names(order, target), None if target.kind == "host" else target)


def check_passes(names: Sequence[str] | None) -> None:
    """Check that passes can be tried by their names.

    Raises:
        InputError: a name is unknown, its pass is proposed by the search alone, or lacks a module.
    """
    for name in names or ():
        if name not in Pass.registry or Pass.member(name).stage is None:
            there = [known for known, kind in Pass.members().items() if kind.stage is not None]
            raise InputError(
                f"no pass that you can choose is called {name!r}; the passes are: "
                f"{', '.join(there)}"
            )
        if missing := Pass.member(name).missing():
            raise InputError(
                f"the pass {name} needs the module {missing[0]}: pip install 'hasten[optimize]'"
            )


def check_measures_nothing(order: Order, target: Target, small_model: Any) -> None:
    """Check that nothing was asked that only the device itself could answer.

    Raises:
        InputError: an option needs the device, which isn't here.
    """
    asked = {
        "objective": order.objective != "p50",
        "latency_bound_s": order.latency_bound_s is not None,
        "small_model": small_model is not None,
        "end_to_end": order.end_to_end,
    }
    for name, given in asked.items():
        if given:
            raise InputError(
                f"{name}= needs measured latencies, but {target.device} isn't available: leave "
                "it out"
            )


def _by_default(
    labels: Array | None, outputs: Sequence[TensorSpec], model: Model, parts: Parts
) -> Metric:
    """Return the metric that labels and outputs suggest.

    Raises:
        InputError: they suggest none. It says so too if the first axis may be time instead of the batch.
    """
    try:
        return default_metric(labels, outputs)
    except InputError as error:
        if note := time_first(model, parts.search):
            raise InputError(f"{error}; {note}") from error
        raise


def metric_for(
    metric: str | Metric | None,
    parts: Parts,
    model: Model,
    sequences: Sequences | None = None,
    pipeline: Pipeline | None = None,
) -> Metric:
    """Return the metric that was asked for, or the one that labels and outputs suggest.

    Raises:
        InputError: none was asked for and none is suggested, or the one that was asked for doesn't suit.
    """
    after = () if pipeline is None else pipeline.after
    if metric is None and after and isinstance(after[0], Quantity):
        raise InputError(
            "the model gives quantities, and only you know how far they may be off: give a tolerance "
            'in their unit, as in metric="regression:0.01", or metric="regression:1%"'
        )
    labels, outputs = parts.search.labels, model.outputs
    scored = over_samples(outputs, model.inputs, model.request)
    if sequences is not None:
        outputs = scored = sequences.answers(outputs)
        if labels is not None and sequences.scored == "all" and labels.ndim > 1:
            labels = labels.reshape(-1, *labels.shape[2:])
    chosen = _by_default(labels, scored, model, parts) if metric is None else named_metric(metric)
    check_outputs(chosen, outputs)
    chosen = for_labels(chosen, labels)
    if chosen.needs_labels and parts.search.labels is None:
        raise InputError(
            f"the metric {type_name(chosen)} needs labels, but the data has none; give labels, or "
            'use metric="agreement"'
        )
    return chosen
