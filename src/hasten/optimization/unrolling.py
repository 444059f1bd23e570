"""Preparation of a run on sequences: the model's states, the data, and single steps to calibrate."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.model import Model
from hasten.core.sequences import (
    Pairs,
    Sequences,
    check_states,
    likely_states,
    settled_states,
)
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.installed import engine_kinds
from hasten.errors import CandidateError, InputError, Uneven
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.parts import Parts
from hasten.inputs.data.sequences import SequenceData, open_sequences
from hasten.inputs.data.spool import Spool
from hasten.inputs.models import onnx
from hasten.inputs.pipeline.base import Pipeline
from hasten.measure.accuracy import unanswered
from hasten.measure.steps import scored_steps
from hasten.measure.workbench import Bench
from hasten.optimization.job import Job
from hasten.optimization.order import Order


@dataclass(frozen=True)
class Unrolled:
    """Single steps of a run's sequences, and a session's states.

    Attributes:
        sequences: States that the model carries, and which steps are scored.
        calibration: Single steps of the calibration's sequences, each with the states that the
            original model had there; for passes, profiles and warm-up.
        steps_each: Mean number of steps of a sequence.
    """

    sequences: Sequences
    calibration: Spool
    steps_each: float


def check_alone(order: Order, target: Target, small_model: Any, pipeline: Pipeline | None) -> None:
    """Check that nothing is asked that a run on sequences can't do.

    Raises:
        InputError: the message names what it can't do.
    """
    for what, given in (
        ("a smaller model, whose states are its own", small_model is not None),
        ("end_to_end=True", order.end_to_end),
        ("a pipeline", pipeline is not None),
        (f"the target {target.device}, which isn't here", target.kind == "compile-only"),
    ):
        if given:
            raise InputError(f"a model with states= can't be optimized with {what}: leave it out")


def load_with_sequences(
    job: Job, model: Any, data: Any, training: Any
) -> tuple[Model, Dataset, Dataset | None]:
    """Load a model that carries states, and data of whole sequences.

    Args:
        job: The run at work.
        model: Model that `find_model` returned: the path of an ONNX file.
        data: Sequences to judge on, in any form that `open_data` takes.
        training: Sequences to calibrate from, in such a form; None if there are none.

    Raises:
        InputError: the model isn't an ONNX file, or its states or the data don't fit.
    """
    states = job.order.states
    if not isinstance(model, Path):
        raise InputError(
            f"states= names inputs and outputs of an ONNX file; got a {type(model).__name__}: "
            "export it with torch.onnx.export, name the inputs and outputs, and give the file"
        )
    for name in ("unpacked", "unpacked-training"):  # a resumed run reads both again
        shutil.rmtree(job.folder / name, ignore_errors=True)
    source = onnx.load(model, job.order.custom_ops, job.folder)
    check_states(states, source.inputs, source.outputs)
    dataset = open_sequences(data, source.inputs, states, job.folder / "unpacked")
    known = None
    if training is not None:
        unpacked = job.folder / "unpacked-training"
        known = open_sequences(training, source.inputs, states, unpacked)
    return source, dataset, known


def first_step(model: Model, dataset: SequenceData, states: Pairs) -> dict[str, Array]:
    """Return the first step of the first sequence, with states of zeros, as one sample.

    Raises:
        InputError: the step doesn't fit the model.
    """
    sample = dataset.step(0)
    taken = tuple(spec for spec in model.inputs if spec.name in sample)
    request = Model(model.path, model.format, taken, ()).settled_by(sample).request
    for spec in settled_states(states, model.inputs, request).values():
        sizes = spec.sizes
        sample[spec.name] = np.zeros(sizes[1:] if sizes[:1] == (1,) else sizes, spec.dtype)
    return {spec.name: sample[spec.name] for spec in model.inputs}


def sequences_of(order: Order, dataset: SequenceData) -> Sequences:
    """Return the states of a run, and which steps are scored.

    Raises:
        InputError: all steps shall be scored, and the labels are of whole sequences.
    """
    scored = scored_steps(order.scored, order.metric, dataset.labels, dataset.steps)
    return Sequences(order.states, scored, dataset.lengths)


def unroll(
    job: Job, model: Model, parts: Parts, sequences: Sequences, dataset: SequenceData
) -> Unrolled:
    """Run the original over the calibration's sequences, and keep single steps with its states.

    Raises:
        InputError: no engine of this host runs the model on the data.
    """
    host = Target.host()
    failures = []
    work = job.folder / "unrolled"
    for kind in engine_kinds():
        engine = next(iter(kind.variants(host)))
        if model.format not in engine.formats:
            continue
        shutil.rmtree(work, ignore_errors=True)
        bench = Bench(work, host, sequences=sequences)
        (work / "model").mkdir(parents=True)
        try:
            artifact = bench.build(engine, model, work / "model")
            opened = bench.open_built(engine, artifact, fresh=False)
            try:
                steps = bench.unroll(
                    opened, parts.calibration, work / "steps", job.order.calibration
                )
            finally:
                opened.worker.kill()
        except Uneven as error:
            raise unanswered(error) from error
        except CandidateError as error:
            failures.append(str(error))
            continue
        each = dataset.mean_steps()
        job.notes.append(_in_words(sequences, each))
        return Unrolled(sequences, steps, each)
    raise InputError(
        f"the original model can't answer the sequences: {failures[0] if failures else 'no engine'}"
    )


def _in_words(sequences: Sequences, each: float) -> str:
    """Say what a sample and its score are, for the reader of the result."""
    pairs = ", ".join(f"{one} from {other}" for one, other in sequences.states)
    scored = (
        "the mean over its steps"
        if sequences.scored == "all"
        else "that of the answer to its last step"
    )
    return (
        f"a sample is a whole sequence, of {each:,.4g} steps on average, answered step by step from "
        f"the start state ({pairs}); its score is {scored}"
    )


def hint_of_states(model: Any) -> str:
    """Return a sentence on states that a model's own names show; "" where they show none.

    Args:
        model: Model that `find_model` returned.
    """
    if not isinstance(model, Path):
        return ""
    try:
        source = onnx.load(model)
    except InputError:
        return ""
    found = likely_states(source.inputs, source.outputs)
    if not found:
        return ""
    pairs = ",".join(f"{one}={other}" for one, other in found)
    like = "looks like a state" if len(found) == 1 else "look like states"
    return (
        f"; {' and '.join(one for one, _ in found)} {like} that the model carries from step to step: "
        f'give whole sequences and states="{pairs}"'
    )
