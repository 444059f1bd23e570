"""Folding in a run: the model normalizes pixels itself, where that changes none of the user's answers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.model import Model
from hasten.core.shapes import Extent
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Engine
from hasten.errors import CandidateError, InputError, Uneven
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.spool import Spool
from hasten.inputs.data.stepped import Stepped
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import class_output
from hasten.inputs.metrics.same_answers import EXACT_TOLERANCE
from hasten.inputs.pipeline.base import Origin, Pipeline, Step
from hasten.inputs.pipeline.image import ToLayout
from hasten.measure.accuracy import sealed_scores
from hasten.measure.exactness import Comparing, changed_in_words, unchanged_in_words
from hasten.measure.workbench import Bench, OpenWorker
from hasten.optimization.job import Job
from hasten.optimization.shapes import typical_sample
from hasten.passes.base import Skipped
from hasten.passes.folding import folded

_FORM, _AS_GIVEN = "folded", "as-given"
_SAMPLES = 32
"""Largest number of pictures whose preparation is timed."""
_TURNS = 3
_SHARE = 0.25
"""Share of a time limit after which the answers aren't compared any further, so that a search remains."""


@dataclass(frozen=True)
class Prepared:
    """A model, its pipeline, and data prepared by that pipeline.

    Attributes:
        model: The model.
        pipeline: Steps from an image file to the model's input; None where there are none.
        dataset: Data that judges.
        training: Data to train on and to calibrate from; None where none was given.
        made_up: Whether no data was given, so that inputs were made up.
    """

    model: Model
    pipeline: Pipeline | None
    dataset: Dataset
    training: Dataset | None = None
    made_up: bool = False


@dataclass(frozen=True)
class Given:
    """The model as it was given, where a run works on a form of it that normalizes pixels itself.

    Attributes:
        model: The model, with the shapes that the data settles.
        pipeline: Steps from an image file to its input.
        steps: Last of these steps, which the other form does itself.
        extents: Dimensions of its input in which samples differ; empty where all have one shape.
    """

    model: Model
    pipeline: Pipeline
    steps: tuple[Step, ...]
    extents: tuple[Extent, ...] = ()

    @classmethod
    def of(
        cls, given: Prepared, made: Prepared, samples: Spool, extents: Sequence[Extent] = ()
    ) -> Given:
        """Return the model as it was given.

        Args:
            given: The model as it was given.
            made: The form that was made of it.
            samples: Samples as that form takes them.
            extents: Dimensions in which these differ.
        """
        assert given.pipeline is not None
        assert made.pipeline is not None
        steps = made.pipeline.folded
        rest = Pipeline(steps)
        sample = {name: rest(array) for name, array in typical_sample(samples).items()}
        layout = steps[-1]
        first = isinstance(layout, ToLayout) and layout.layout == "CHW"
        return cls(
            given.model.settled_by(sample),
            given.pipeline,
            steps,
            tuple(replace(one, axis=one.axis + 1) if first else one for one in extents),
        )

    def takes(self, samples: Dataset) -> Dataset:
        """Return samples as this model takes them, from those that the other form takes."""
        return Stepped(samples, self.steps)

    def build(self, bench: Bench, engine: Engine) -> Artifact:
        """Build it on an engine.

        Raises:
            CandidateError: the engine can't take it.
        """
        folder = bench.folder / _AS_GIVEN
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return bench.build(engine, self.model, folder)

    def redecided(self, outputs: Tensors, own: Tensors) -> Array:
        """Return for which samples the pipeline decides otherwise, but for rounding, bool `(k,)`."""
        count = len(next(iter(own.values())))
        pairs = ((self._decision(one, row) for one in (outputs, own)) for row in range(count))
        return np.array([not same_decision(*pair) for pair in pairs], bool)

    def _decision(self, answers: Tensors, row: int) -> Any:
        """Return what is decided from a row of answers: by the pipeline, or the likeliest class."""
        outputs = {name: array[row] for name, array in answers.items()}
        if self.pipeline.after:
            return self.pipeline.decided(outputs, Origin())
        scores = class_output(self.model.outputs)
        return None if scores is None else int(np.argmax(outputs[scores.name]))


def fold(given: Prepared, folder: Path) -> Prepared:
    """Return a model that normalizes pixels itself, with its pipeline and data; no answer is compared yet.

    Args:
        given: The model as it was given, which takes what the pipeline gives today.
        folder: Folder of the run, to write to.

    Raises:
        Skipped: the model, the pipeline or the data doesn't allow it.
        CandidateError: the model can't be read, or the new one isn't valid.
    """
    place = folder / _FORM
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if given.pipeline is None or not isinstance(given.dataset, ImageFolder):
        raise Skipped("the data is already prepared, not a folder of images")
    if not isinstance(given.training, (ImageFolder, type(None))):
        raise Skipped("the training data is already prepared, not a folder of images")
    model, pipeline = folded(given.model, given.pipeline, place)
    training = None if given.training is None else given.training.prepared_by(pipeline)
    return Prepared(model, pipeline, given.dataset.prepared_by(pipeline), training)


def check_answers(
    job: Job,
    form: Model,
    given: Given,
    samples: Spool,
    units: Array,
    metric: Metric,
    engines: Sequence[type[Engine]],
    target: Target,
) -> None:
    """Check that a model that normalizes pixels itself answers every sample as the given one does.

    Samples are answered in chunks, by the first engine that runs both.

    Args:
        job: The run at work.
        form: Model that normalizes pixels itself, with the shapes that the data settles.
        given: The model as it was given.
        samples: All of the search split, as the form takes them.
        units: Number of each sample's group, `(n,)`.
        metric: Metric whose answers are compared.
        engines: Engines of the run.
        target: Device to run on.

    Raises:
        Skipped: an answer changed, the form failed, or the time limit left no time.
        CandidateError: no engine runs both.
        InputError: the given model can't answer a sample.
    """
    bench = Bench(job.folder / _FORM, target)
    comparing = Comparing(metric, (_FORM,), redecided={_FORM: given.redecided})

    def listen(done: int) -> None:
        job.tell("prepare", "comparing answers with pixels normalized inside", done, len(samples))
        limit_s = job.deadline.limit_s
        if limit_s is not None and job.deadline.elapsed_s > _SHARE * limit_s:
            raise Skipped("the time limit left no time to compare all answers")

    with _both_open(bench, form, given, engines) as (own, opened):
        bench.fit_chunk(opened, samples)
        try:
            scores, others = sealed_scores(
                bench,
                own,
                {_FORM: opened},
                samples,
                metric,
                listen,
                units=units,
                watch=comparing,
                exact_takes=given.takes,
            )
        except InputError as error:
            if isinstance(error.__cause__, Uneven):
                raise Skipped(f"{error.__cause__}, and such answers weren't compared") from error
            raise
    found = others[_FORM]
    if isinstance(found, str):
        raise Skipped(found)
    if count := comparing.changes[_FORM].count(found, scores):
        raise Skipped(
            f"with pixels normalized inside, {changed_in_words(count)} of {len(samples):,} in the search"
        )


@contextmanager
def _both_open(
    bench: Bench, form: Model, given: Given, engines: Sequence[type[Engine]]
) -> Iterator[tuple[OpenWorker, OpenWorker]]:
    """Yield the given model and a form of it, open on the first exact engine that runs both.

    Raises:
        CandidateError: no engine does.
    """
    why = "no engine runs it"
    exact = (engine for kind in engines for engine in kind.variants(bench.target))
    for engine in exact:
        if not engine.exact or "onnx" not in engine.formats:
            continue
        place = bench.folder / "form"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        with ExitStack() as stack:
            for made in (place, bench.folder / _AS_GIVEN):
                stack.callback(shutil.rmtree, made, ignore_errors=True)
            try:
                both = []
                for artifact in (given.build(bench, engine), bench.build(engine, form, place)):
                    both.append(bench.open_built(engine, artifact, fresh=False))
                    stack.callback(both[-1].worker.kill)
            except CandidateError as error:
                why = str(error)
                continue
            yield both[0], both[1]
            return
    raise CandidateError(why)


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


def folded_words(given: Prepared, made: Prepared, samples: int) -> str:
    """Say what was folded, on how many samples answers were compared, and what preparing a picture takes."""
    before, after = _preparation_ms(given, made)
    return (
        f"the model takes pixels as uint8 and normalizes them itself; {unchanged_in_words(samples)} of the "
        f"search split; preparing a picture, before the model, takes {after:.3g} ms instead of "
        f"{before:.3g} ms (median of {len(_spread(len(given.dataset)))} of the pictures, alternately)"
    )


def unfolded_words(why: Exception) -> str:
    """Say why pixels are normalized outside the model."""
    return f"pixels are normalized outside the model: {why}"


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
