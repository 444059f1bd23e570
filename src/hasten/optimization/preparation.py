"""Preparation of a run, for any device: model and data are read, split and checked."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hasten.certificate.certification import guarded
from hasten.certificate.draws import drawn
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, draws_needed, goal, uneven
from hasten.core.devices import family_of, find_target
from hasten.core.model import Model
from hasten.core.records import type_name
from hasten.core.sequences import Sequences
from hasten.core.shapes import Extent
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Engine
from hasten.engines.installed import (
    check_takes,
    engine_kinds,
    tried_on,
    unsuited,
    without_program,
)
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.sequences import SequenceData
from hasten.inputs.data.source import open_data
from hasten.inputs.data.spool import Spool
from hasten.inputs.data.table import reads_rows
from hasten.inputs.metrics import check_outputs, default_metric, for_labels, named_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.unlabelled import check_labelled, missing_labels
from hasten.inputs.models.embedding import check_vocabulary
from hasten.inputs.models.hugging_face import Folder
from hasten.inputs.models.source import (
    check_has_program,
    find_model,
    load_model,
    load_with_data,
    stated_pipeline,
)
from hasten.inputs.pipeline.base import Pipeline, check_steps
from hasten.inputs.set_metrics import chosen
from hasten.inputs.set_metrics.base import SetMetric
from hasten.measure.candidate import label
from hasten.measure.environment import versions
from hasten.measure.workbench import Workbench
from hasten.optimization.folding import Prepared, fold
from hasten.optimization.hints import hint_of_inputs, note_of_states
from hasten.optimization.job import Job
from hasten.optimization.labelling.wanted import (
    ASKING,
    asks,
    check_asked,
    with_labels,
    with_whole_labels,
)
from hasten.optimization.memory import earlier_of, expected_look, keep_earlier, leave_seen
from hasten.optimization.order import Order
from hasten.optimization.shapes import (
    check_asking,
    check_pads,
    check_takes_open,
    compare_means,
    extents_of,
    typical_sample,
)
from hasten.optimization.unrolling import (
    Unrolled,
    check_alone,
    first_step,
    load_with_sequences,
    sequences_of,
    unroll,
)
from hasten.optimization.without_data import (
    check_order,
    data_for_a_certificate,
    load_without_data,
)
from hasten.optimization.workspace import (
    SEARCH_VERSION,
    Parts,
    check_same_run,
    data_digest,
    lay_out,
)
from hasten.passes import already_quantized
from hasten.passes.base import Pass, Skipped
from hasten.passes.folding import folded
from hasten.passes.installed import without_modules
from hasten.passes.onnx_files import check_nodes, read_onnx
from hasten.passes.small_model import SmallModel, Student

_CHANGES = 2
"""Answers that may change for each that may be lost, as far as the search without labels goes."""


@dataclass(frozen=True)
class Ready:
    """A model and its data, read, split and checked against each other.

    Attributes:
        model: The original model, with the shapes that the data settles.
        parts: Parts of the data, laid out in the run's folder.
        training: Data to train on and to calibrate from; None where none was given.
        pipeline: Steps from an image file to the model's input; None where there are none.
        promise: Promise that the certificate makes.
        target: Device to run on.
        small_models: Smaller models to try in the original's place.
        trained: Name of a smaller model -> how it was made, in words.
        given_sha256: SHA-256 of the model that was given, before anything was folded into it.
        unrolled: States and single steps, where samples are whole sequences; None elsewhere.
        figures: Metrics over the sealed set that are stated before and after.
        tested: Promise with the confidence at which the sealed data will be tested, as far as the
            ledger tells beforehand; None where that is the promise's own.
        asking: Whether labels are asked for, of sealed samples on which answers differ.
        made_up: Whether no data was given, so that inputs were made up and nothing inexact may ship.
        extents: Dimensions in which samples differ; empty where all have one shape.
    """

    model: Model
    parts: Parts
    training: Dataset | None
    pipeline: Pipeline | None
    promise: Promise
    target: Target
    small_models: tuple[SmallModel, ...]
    trained: Mapping[str, str]
    given_sha256: str
    unrolled: Unrolled | None = None

    @property
    def single(self) -> Spool:
        """Return samples of single requests: of the search split, or the calibration's steps."""
        return self.parts.search if self.unrolled is None else self.unrolled.calibration

    @property
    def steps_each(self) -> float:
        """Return the mean number of steps of a sequence; 1 where a sample is one request."""
        return 1.0 if self.unrolled is None else self.unrolled.steps_each

    figures: tuple[SetMetric, ...] = ()
    tested: Promise | None = None
    asking: bool = False
    made_up: bool = False
    extents: tuple[Extent, ...] = ()

    @cached_property
    def search_promise(self) -> Promise:
        """Promise that the search goes by.

        Where labels will be asked for, the search has none, and it ranks candidates by the answers
        that change. Of those about as many become right as wrong, so twice the limit may change.
        """
        promise = self.tested or self.promise
        missing = missing_labels(promise.metric, self.parts.search.labels)
        if not self.asking or missing is None or not missing.all():
            return promise
        return replace(promise, max_drop=min(_CHANGES * promise.max_drop, 0.5))

    @cached_property
    def search_units(self) -> Array:
        """Number of each search sample's draw, as the metric draws them, `(n,)`."""
        return self.parts.search_draws(self.promise.metric)

    @cached_property
    def sealed_units(self) -> Array:
        """Number of each sealed sample's draw, as the metric draws them, `(n,)`."""
        return self.parts.sealed_draws(self.promise.metric)

    @property
    def sealed_draws(self) -> int:
        """Return the number of independent draws to certify by."""
        return len(np.unique(self.sealed_units))

    def bench(self, folder: Path, limit_s: float) -> Workbench:
        """Return the workbench for the device, with a time limit for each step, in seconds."""
        return Workbench(
            folder,
            self.target,
            limit_s=limit_s,
            memory_bytes=self.target.memory_bytes // 2,
            model=self.model,
            sequences=None if self.unrolled is None else self.unrolled.sequences,
            calibration=self.parts.calibration
            if self.unrolled is None
            else self.unrolled.calibration,
            calibration_hash=self.parts.calibration_hash,
        )


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
        pipeline: Steps from an image file to the model's input; by default the model's own.

    Raises:
        InputError: the model, the data or an option can't be used.
    """
    order = job.order
    target = _device(order, data, training, small_model)
    found = find_model(model, trust_code=order.trust_code)
    given = _read(job, target, found, data, training, pipeline, small_model)
    made = given
    if order.end_to_end:
        made, note = fold(given, _kinds(order, target), target, job.folder)
        job.notes.append(note)
    if target.kind != "host":
        check_takes(engine_names(order, target), target, program=made.model.program is not None)
    asking = asks(order, job.journal)
    parts, unlike = _split(job, target, made, asking=asking)
    dataset, preparation = made.dataset, made.pipeline
    source = made.model.settled_by(
        first_step(made.model, dataset, order.states)
        if isinstance(dataset, SequenceData)
        else typical_sample(parts.search)
    )
    _check_graph(job, target, source, preparation)
    sequences = sequences_of(order, dataset) if isinstance(dataset, SequenceData) else None
    metric = guarded(
        metric_for(order.metric, parts, source, sequences).around(preparation), order.guard
    )
    if asking:
        check_asked(metric)
        check_asking(source, unlike)
    for part in (parts.search, parts.sealed):
        check_labelled(metric, part.labels, type_name(metric))
    # Tensors have been prepared by their maker; rows are the same numbers before and after.
    images = isinstance(dataset, ImageFolder)
    if isinstance(dataset, ImageFolder) and dataset.numbering and metric.reads_classes:
        job.notes.append(dataset.numbering)
    prepared = images or reads_rows(preparation) is not None or isinstance(found, Folder)
    kept_pipeline = preparation if prepared else pipeline
    students = named_students(small_model)
    ready = Ready(
        model=source,
        parts=parts,
        training=None if made.training is None else with_whole_labels(made.training, metric),
        pipeline=kept_pipeline,
        promise=Promise(metric, order.guard, order.max_drop, order.confidence, order.mean_over),
        target=target,
        small_models=tuple(_small_models(students, given, made, order.custom_ops, job.folder)),
        trained={one.name: one.trained for one in students if one.name},
        given_sha256=given.model.sha256,
        figures=()
        if sequences is not None
        else chosen(order.report, parts.search.labels, source.outputs, kept_pipeline),
        asking=asking,
        made_up=data is None,
        extents=unlike,
    )
    keep_earlier(job, parts)
    check_same_run(job.journal, facts(order, ready))
    if asking and job.journal.last(ASKING) is None:
        job.journal.append(ASKING)
    if sequences is not None and isinstance(dataset, SequenceData):
        ready = replace(ready, unrolled=unroll(job, source, parts, sequences, dataset))
    ready = replace(ready, tested=expected_look(job, parts).promise(ready.promise))
    _note(job, ready, preparation if images else None)
    leave_seen(job, parts)
    return ready


def _device(order: Order, data: Any, training: Any, small_model: Any) -> Target:
    """Return the device to run on, after checking that what is asked for can be done for it.

    Raises:
        InputError: there is no such device, a tool for it is missing, or an option doesn't suit it.
    """
    target = find_target(order.target)
    if target.kind == "compile-only":
        check_measures_nothing(order, target, small_model)
    for kind in _kinds(order, target):
        kind.check_tools(target)
    check_passes(order.passes)
    if data is None:
        check_order(order, target, training=training, small_model=small_model)
    return target


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
    preparation = pipeline or stated_pipeline(found)
    job.notes += getattr(found, "hasten_notes", ()) if pipeline is None else ()
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
    return Prepared(source, preparation, dataset, known)


def _split(
    job: Job, target: Target, made: Prepared, *, asking: bool
) -> tuple[Parts, tuple[Extent, ...]]:
    """Split the data; return its parts, and the dimensions in which samples differ.

    Raises:
        InputError: the data is too little, or differs in shape where it may not.
    """
    order = job.order
    parts = lay_out(
        with_labels(made.dataset, order.metric, asking=asking),
        job.folder,
        calibration=order.calibration,
        seed=order.seed,
        training=made.training,
        earlier=earlier_of(job),
        allow_near_copies=order.allow_near_copies,
    )
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
    if preparation is not None:
        check_vocabulary(preparation, proto)


def _note(job: Job, ready: Ready, images_by: Pipeline | None) -> None:
    """Note what a person should know before the search begins.

    Args:
        job: The run at work.
        ready: Model and data of the run.
        images_by: Pipeline by which image files are prepared; None where there are none.
    """
    order, target = job.order, ready.target
    if images_by is not None:
        steps = ", ".join(label(step) for step in images_by.steps)
        job.notes.append(f"images were prepared by {steps}")
    if not order.engines:
        job.notes += without_program(target.family)
        job.notes += without_modules(order.passes) if target.kind == "host" else ()
        job.notes += unsuited(target) if target.kind == "attached" else ()
    if ready.made_up:
        job.notes.append(data_for_a_certificate(order))
    else:
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
        if "the model takes the inputs" not in str(error):
            raise
        raise InputError(f"{error}{hint_of_inputs(found, str(error))}") from error
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


def calibrating(order: Order, ready: Ready) -> int:
    """Return the most samples of the judging data to calibrate from: none if others were given."""
    return 0 if ready.training is not None else order.calibration


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


def named_students(small_model: Any) -> list[Student]:
    """Return the smaller models that a caller gave: one without a name, or several by name.

    Raises:
        InputError: two of them have the same name.
    """
    if small_model is None:
        return []
    if isinstance(small_model, Mapping):
        small_model = [Student(str(name), model) for name, model in small_model.items()]
    given = small_model if isinstance(small_model, (list, tuple)) else [Student("", small_model)]
    found = [
        one if isinstance(one, Student) else Student(f"{number}", one)
        for number, one in enumerate(given, 1)
    ]
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise InputError(f"smaller models need different names: got {', '.join(names)}")
    return found


def _small_models(
    students: Sequence[Student],
    given: Prepared,
    made: Prepared,
    custom_ops: Sequence[Path],
    folder: Path,
) -> Iterator[SmallModel]:
    """Read the smaller models; live ones are exported with a sample of the data.

    Args:
        students: Smaller models.
        given: The original and its data, as given: smaller models take the same.
        made: The original as it runs; where something was folded into it, it is into them too.
        custom_ops: Libraries of the user's own operators.
        folder: Folder of the run.
    """
    place = folder / "little"
    shutil.rmtree(place, ignore_errors=True)
    if not students:
        return
    first = {name: array[0] for name, array in given.dataset.inputs([0]).items()}
    original = made.model.settled_by(
        {name: array[0] for name, array in made.dataset.inputs([0]).items()}
    )

    def sample(names: Sequence[str]) -> dict[str, Array]:
        """Return the original's inputs, in order, under the names that a live model gives them."""
        return dict(zip(names or first, first.values(), strict=False))

    for number, student in enumerate(students):
        own = place / str(number)
        own.mkdir(parents=True)
        named = find_model(student.model)
        model = load_model(named, sample, own, custom_ops if isinstance(named, Path) else ())
        if made is not given and given.pipeline is not None:
            try:
                model, _ = folded(model, given.pipeline, own)
            except Skipped as why:
                raise InputError(
                    f"the original takes uint8 pixels with end_to_end=True, and the small model "
                    f"{student.name}".rstrip()
                    + f" can't: {why}"
                ) from why
        yield SmallModel.of(model, original, student.name, quantized=student.quantized)


def metric_for(
    metric: str | Metric | None, parts: Parts, model: Model, sequences: Sequences | None = None
) -> Metric:
    """Return the metric that was asked for, or the one that labels and outputs suggest."""
    labels, outputs = parts.search.labels, model.outputs
    if sequences is not None:
        outputs = sequences.answers(outputs)
        if labels is not None and sequences.scored == "all" and labels.ndim > 1:
            labels = labels.reshape(-1, *labels.shape[2:])
    chosen = default_metric(labels, outputs) if metric is None else named_metric(metric)
    check_outputs(chosen, outputs)
    chosen = for_labels(chosen, labels)
    if chosen.needs_labels and parts.search.labels is None:
        raise InputError(
            f"the metric {type_name(chosen)} needs labels, but the data has none; give labels, or "
            'use metric="agreement"'
        )
    return chosen


def warnings(
    parts: Parts,
    promise: Promise,
    calibration: int,
    tested: Promise | None = None,
    binary: bool | None = None,
) -> list[str]:
    """Warn beforehand if even a perfect candidate couldn't be certified on so little data.

    Args:
        parts: Parts of the data.
        promise: Promise that the certificate makes.
        calibration: Most samples of the same data to calibrate from.
        tested: Promise with the confidence at which the sealed data will be tested, where earlier
            looks at it were refused.
        binary: Whether scores are 0 or 1; None for what the metric says of itself. Where it can't say, they
            are taken to be, since that takes the least data.
    """
    metric, guard, max_drop = promise.metric, promise.guard, promise.max_drop
    sure = promise.confidence if tested is None else tested.confidence
    units = parts.sealed_draws(metric)
    counted = metric.binary is not False if binary is None else binary
    zeros = np.zeros(len(units))
    draws = drawn(
        zeros,
        zeros,
        losses_only=guard != "net",
        binary=counted,
        groups=units,
        max_drop=max_drop,
        over=promise.mean_over,
        sizes=parts.unit_sizes,
    )
    least = draws_needed(draws, max_drop, sure)
    sealed = draws.differences.size
    if least is None or sealed >= least:
        return []
    noun = f"{metric.draw or ('group' if draws.grouped else 'sample')}s"
    enough = f"so some {_in_all(least, parts, metric, calibration)} in all"
    if sure != promise.confidence:
        fresh = draws_needed(draws, max_drop, promise.confidence)
        enough = f"after what earlier looks spent, or {fresh:,} samples that no run has read; a run with the same answers as an earlier one is judged as that one was"
    why, remedy = "", ""
    if promise.mean_over == "samples" and (why := uneven(draws.largest, draws.samples, sealed)):
        remedy = "; or ask for the mean over groups, in which each group counts once"
    return [
        f"{sealed:,} sealed {noun} can't show {goal(guard, type_name(metric), max_drop)}, even if nothing changes{why}: that takes {least:,}, {enough}{remedy}"
    ]


def warn_of_scores(ready: Ready, calibration: int, notes: list[str], *, binary: bool) -> None:
    """Mend the warnings of a run where scores turn out to be fractional, which takes more data.

    Args:
        ready: Model and data of the run.
        calibration: Most samples of the same data to calibrate from.
        notes: Notes of the run.
        binary: Whether the original's scores are all 0 or 1.
    """
    if ready.promise.metric.binary is None and not binary:
        before = warnings(ready.parts, ready.promise, calibration, ready.tested)
        after = warnings(ready.parts, ready.promise, calibration, ready.tested, binary=False)
        notes[:] = [*(note for note in notes if note not in before), *after]


def _in_all(draws: int, parts: Parts, metric: Metric, calibration: int) -> str:
    """Return how much data there must be for a number of draws to be sealed: samples, or groups."""
    units = (parts.sealed_draws(metric), parts.search_draws(metric))
    sealed, searched = (len(np.unique(u)) for u in units)
    judging = draws * (1 + searched / sealed)
    samples_each = (len(parts.search) + len(parts.sealed)) / (searched + sealed)
    # The split calibrates on at most a third of all draws, that is half as many as judge.
    count = math.ceil(judging + min(calibration / samples_each, judging / 2))
    if metric.draw:
        return f"{math.ceil(count * samples_each):,} samples"
    return f"{count:,} {'groups' if sealed < len(parts.sealed) else 'samples'}"


def shortfall(
    judged: Sequence[tuple[str, Judgement | str]],
    ready: Ready,
    calibration: int,
    *,
    remembered: bool = False,
) -> list[str]:
    """Return a note on the data that would probably settle what the sealed data couldn't.

    Args:
        judged: Verdicts of the sealed data.
        ready: Model and data of the run.
        calibration: Most samples of the same data to calibrate from.
        remembered: Whether a ledger is kept, so that the next run tests on fresh samples alone.
    """
    entry = judged[0][1] if judged else None  # if the safest passed, something is certified
    if not isinstance(entry, Judgement) or entry.samples_needed is None:
        return []
    short = f"{ready.sealed_draws:,} draws of the data were sealed, but {entry.samples_needed:,} are needed: "
    if remembered:
        fresh = _fresh(entry.samples_needed, ready)
        return [
            f"{short}add about {fresh:,} samples that no run has read, which are then tested "
            "alone at the full confidence, or allow a larger drop in a further look at the "
            "present samples"
        ]
    total = _in_all(entry.samples_needed, ready.parts, ready.promise.metric, calibration)
    return [f"{short}give about {total} in all, or allow a larger drop"]


def _fresh(draws: int, ready: Ready) -> int:
    """Return how many fresh samples to add to the data for a number of fresh draws to be sealed.

    What was searched and tested on is for the search, which takes fresh ones too where that is less
    than its share.
    """
    searched, sealed = len(ready.parts.search), len(ready.parts.sealed)
    fresh = draws * sealed / ready.sealed_draws
    return math.ceil(max(fresh, fresh * (searched + sealed) / sealed - (searched + sealed)))
