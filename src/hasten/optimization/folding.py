"""Folding in a run: the model normalizes pixels itself, where the user's own samples allow it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Engine
from hasten.errors import CandidateError
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.spool import write_spool
from hasten.inputs.metrics.outputs import class_output
from hasten.inputs.pipeline.base import Origin, Pipeline
from hasten.measure.exactness import EXACT_TOLERANCE, difference
from hasten.measure.workbench import Bench
from hasten.passes.base import Skipped
from hasten.passes.folding import folded

_SAMPLES = 32
"""Largest number of pictures that both forms answer and are timed on."""
_TURNS = 3


@dataclass(frozen=True)
class Prepared:
    """A model, its pipeline, and data prepared by that pipeline.

    Attributes:
        model: The model.
        pipeline: Steps from an image file to the model's input; None where there are none.
        dataset: Data that judges.
        training: Data to train on and to calibrate from; None where none was given.
    """

    model: Model
    pipeline: Pipeline | None
    dataset: Dataset
    training: Dataset | None = None


def fold(
    given: Prepared, engines: Sequence[type[Engine]], target: Target, folder: Path
) -> tuple[Prepared, str]:
    """Return a model that normalizes pixels itself, if it answers the user's own samples the same.

    Args:
        given: The model as it was given, which takes what the pipeline gives today.
        engines: Engines of the run; the first that runs both forms compares them.
        target: Device to run on.
        folder: Folder of the run, to write to.

    Returns:
        The folded model with its pipeline and data, or what was given, and a note for people.
    """
    place = folder / "folded"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        made = _folded(given, place)
        _check_answers(given, made, engines, target, place)
    except (Skipped, CandidateError) as why:
        return given, f"pixels are normalized outside the model: {why}"
    return made, _words(given, made)


def _folded(given: Prepared, place: Path) -> Prepared:
    """Return the folded model, with its pipeline and data that this pipeline prepares."""
    if given.pipeline is None or not isinstance(given.dataset, ImageFolder):
        raise Skipped("the data is already prepared, not a folder of images")
    if not isinstance(given.training, (ImageFolder, type(None))):
        raise Skipped("the training data is already prepared, not a folder of images")
    model, pipeline = folded(given.model, given.pipeline, place)
    training = None if given.training is None else given.training.prepared_by(pipeline)
    return Prepared(model, pipeline, given.dataset.prepared_by(pipeline), training)


def _check_answers(
    given: Prepared,
    made: Prepared,
    engines: Sequence[type[Engine]],
    target: Target,
    place: Path,
) -> None:
    """Check that both forms give the same answers and decisions on some of the data.

    Raises:
        Skipped: an answer differs by more than rounding explains, or a decision differs.
        CandidateError: no engine runs both forms.
    """
    rows = _spread(len(given.dataset))
    before, after = _answers((given, made), rows, engines, target, place)
    if (gap := difference(after, before)) > EXACT_TOLERANCE:
        raise Skipped(
            f"answers differ by {gap:.1e} of the largest output; rounding explains "
            f"{EXACT_TOLERANCE:.0e}"
        )
    for row in range(len(rows)):
        one, other = (_decision(given, answers, row) for answers in (before, after))
        if not same_decision(one, other):
            raise Skipped(f"the decision on {row + 1} of {len(rows)} pictures differs")


def _answers(
    forms: Sequence[Prepared],
    rows: Array,
    engines: Sequence[type[Engine]],
    target: Target,
    place: Path,
) -> list[Tensors]:
    """Return the answers of each form by the first engine that runs all."""
    bench, why = Bench(place, target, chunk=len(rows)), "no engine runs it"
    spools = [
        write_spool(Subset(form.dataset, rows), place / f"samples{i}")
        for i, form in enumerate(forms)
    ]
    exact = (engine for kind in engines for engine in kind.variants(target))
    tried = [one for one in exact if one.exact and "onnx" in one.formats]
    for number, engine in enumerate(tried):
        answers = []
        try:
            for i, (form, spool) in enumerate(zip(forms, spools, strict=True)):
                sample = {name: array[0] for name, array in spool.inputs([0]).items()}
                folder = place / f"{number}-{i}"
                folder.mkdir()
                artifact = bench.build(engine, form.model.settled_by(sample), folder)
                opened = bench.open_built(engine, artifact, fresh=False)
                try:
                    answers += list(bench.predict(opened, spool))
                finally:
                    opened.worker.kill()
                shutil.rmtree(folder)
        except CandidateError as error:
            why = str(error)
            continue
        return answers
    raise CandidateError(why)


def _decision(given: Prepared, answers: Tensors, row: int) -> Any:
    """Return what is decided from a row of answers: by the pipeline, or the likeliest class."""
    outputs = {name: array[row] for name, array in answers.items()}
    assert given.pipeline is not None
    if given.pipeline.after:
        return given.pipeline.decided(outputs, Origin())
    scores = class_output(given.model.outputs)
    return None if scores is None else int(np.argmax(outputs[scores.name]))


def same_decision(one: Any, other: Any) -> bool:
    """Whether two decisions are equal but for rounding in their numbers."""
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(same_decision(value, other[key]) for key, value in one.items())
        )
    if isinstance(one, (list, tuple)):
        return (
            isinstance(other, (list, tuple))
            and len(one) == len(other)
            and all(map(same_decision, one, other))
        )
    if isinstance(one, (float, np.floating, np.ndarray)):
        return np.shape(one) == np.shape(other) and bool(
            np.allclose(one, other, rtol=EXACT_TOLERANCE, atol=EXACT_TOLERANCE)
        )
    return bool(one == other)


def _words(given: Prepared, made: Prepared) -> str:
    """Say what was folded, and what preparing a picture takes with and without it."""
    before, after = _preparation_ms(given, made)
    return (
        "the model takes pixels as uint8 and normalizes them itself; preparing a picture, before "
        f"the model, takes {after:.3g} ms instead of {before:.3g} ms (median of "
        f"{len(_spread(len(given.dataset)))} of the pictures, alternately)"
    )


def _preparation_ms(given: Prepared, made: Prepared) -> tuple[float, float]:
    """Return the median time of each pipeline from a file's bytes to the model's input, in ms."""
    assert isinstance(given.dataset, ImageFolder)
    pipelines = [form.pipeline for form in (given, made) if form.pipeline is not None]
    taken_ns: list[list[int]] = [[] for _ in pipelines]
    order = np.random.default_rng(0)
    for row in _spread(len(given.dataset)):
        data = given.dataset.files[row].read_bytes()
        for _ in range(_TURNS):
            for i in order.permutation(len(pipelines)):
                began = time.perf_counter_ns()
                pipelines[i](data)
                taken_ns[i].append(time.perf_counter_ns() - began)
    before, after = (float(np.median(taken)) / 1e6 for taken in taken_ns)
    return before, after


def _spread(count: int) -> Array:
    """Return rows spread over the data, in case it is ordered by class."""
    return np.unique(np.linspace(0, count - 1, min(count, _SAMPLES), dtype=np.int64))
