"""The run, top to bottom: prepare, search, freeze, certify, deliver. One run for every target."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Unpack

from hasten.core.invocation import invocation
from hasten.core.progress import Listener, nobody
from hasten.inputs.pipeline.base import Pipeline
from hasten.optimization.delivery import deliver
from hasten.optimization.estimated.judge import Estimated
from hasten.optimization.job import Job, claimed
from hasten.optimization.judge import Judge
from hasten.optimization.measured.judge import Measured
from hasten.optimization.order import Options, order_of
from hasten.optimization.preparation import Ready, prepare
from hasten.optimization.run import certify, freeze, search
from hasten.report.result import Result


def optimize(
    model: Any,
    data: Any,
    *,
    training: Any = None,
    small_model: Any = None,
    pipeline: Pipeline | None = None,
    notes: Sequence[str] = (),
    resume: bool = False,
    listen: Listener = nobody,
    **options: Unpack[Options],
) -> Result:
    """Find the fastest version of a model that is certified to still give the right answers.

    On this host, or on a device in it, candidates are timed. For a device that isn't here, its own
    tools compare them, and accuracy is judged on this host by what answers as the device does.

    Args:
        model: An .onnx, .pt2 or .keras path, "file.py:name", an `nn.Module`, an exported program
            or a Keras model.
        data: An .npz path, a folder of images, "module:function", `(inputs, labels)`, a mapping
            of arrays, or a `Dataset`.
        training: Training data to calibrate from, and to train for few bits where the device gains
            by it; then all of `data` judges.
        small_model: A smaller model of the same inputs and outputs, as `model` is given, or several
            by name. Each is tried in the model's place, as it is and in int8, and in a cascade: it
            answers, and the model is asked where its answer was close.
        pipeline: Steps from an image file to the model's input, for a folder of images.
        notes: What the result is to say besides.
        resume: Whether to go on with the run that was stopped.
        listen: Callback that is told of each step.
        **options: The fields of `hasten.Order`: max_drop, metric, target, effort, time_limit_s,
            out, ...

    Returns:
        What ships, how fast it is and how sure that is.

    Raises:
        InputError: the model, the data or an option can't be used; nothing is written then.
    """
    order = order_of(**options)
    given = {"model": model, "data": data, "training": training, "small_model": small_model}
    asked = invocation("optimize", {**given, "pipeline": pipeline, **options})
    with claimed(order, asked, resume=resume, listen=listen, notes=notes) as job:
        ready = prepare(
            job, model, data, training=training, small_model=small_model, pipeline=pipeline
        )
        with contextlib.closing(judge_for(job, ready)) as judge:
            search(judge)
            ladder = freeze(judge)  # from here on it stands
            verdicts = certify(judge, ladder)
            return deliver(judge, ladder, verdicts)


def judge_for(job: Job, ready: Ready) -> Judge:
    """Return what compares candidates: measurement where the device is here, else its own tools."""
    return (Estimated if ready.target.kind == "compile-only" else Measured)(job, ready)
