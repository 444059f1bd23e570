"""The run, top to bottom: prepare, search, freeze, certify, deliver. One run for every target."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Unpack

from hasten.certificate.ledger import Ledger, user_ledger
from hasten.core.invocation import invocation
from hasten.core.progress import Listener, nobody
from hasten.inputs.pipeline.base import Pipeline
from hasten.optimization.delivery import deliver
from hasten.optimization.estimated.judge import Estimated
from hasten.optimization.job import Job, claimed
from hasten.optimization.judge import Judge
from hasten.optimization.measured.judge import Measured
from hasten.optimization.order import Options, Order, order_of
from hasten.optimization.preparation import prepare
from hasten.optimization.ready import Ready
from hasten.optimization.run import certify, freeze, search, settled
from hasten.optimization.without_data import POPULATION
from hasten.reporting.result import Result


def optimize(
    model: Any,
    data: Any = None,
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
    tools estimate their speed, and their accuracy is judged on this host.

    Args:
        model: Path of an .onnx, .pt2 or .keras file or of a model of rows (.json, .ubj, .txt, .cbm,
            .skops), "file.py:name", an `nn.Module`, an exported program, a Keras model, or a fitted
            model of scikit-learn, XGBoost, LightGBM or CatBoost.
        data: Path of an .npz file, of a folder of images or of sounds, or of a CSV file ("rows.csv:label" names
            its label), "module:function", `(inputs, labels)`, a mapping of arrays, a data frame, or
            a `Dataset`. For a pipeline that tokenizes also a folder of .txt files, a .txt, .jsonl or .csv
            file of texts, or a list of texts. None makes up inputs: then exact candidates alone may ship, and the result says what
            others could reach and what data a certificate takes.
        training: Training data to calibrate from, and to train for few bits where the device gains
            from that; with it, all of `data` judges.
        small_model: Smaller model with the same inputs and outputs, in any form that `model` takes,
            or several by name. Each is tried in the model's place, as it is, in int8, and in a
            cascade, where the model is asked again if the smaller one's answer was close.
        pipeline: Steps from a picture, a sound or a row to the model's input, for a folder of files or a table, and
            from its outputs to a decision; by default what the model states itself. With only steps after the
            model, the model's own stay before it.
        notes: Further notes to include in the result.
        resume: Whether to continue the run that was stopped.
        listen: Callback that receives the progress.
        **options: Fields of `hasten.Order`, such as max_drop, metric, target, effort, or out.

    Returns:
        The result: what ships, how fast it is, and how sure that is.

    Raises:
        InputError: the model, the data or an option can't be used; then nothing is written.
    """
    if data is None and options.get("population", Order.population) == Order.population:
        options["population"] = POPULATION
    order = order_of(**options)
    given = {"model": model, "data": data, "training": training, "small_model": small_model}
    asked = invocation("optimize", {**given, "pipeline": pipeline, **options})
    # Of made-up samples nothing is remembered. A ledger that can't be used ends it before it begins.
    ledger = Ledger(None) if data is None else user_ledger()
    with claimed(order, asked, resume=resume, listen=listen, notes=notes, ledger=ledger) as job:
        ready = prepare(
            job, model, data, training=training, small_model=small_model, pipeline=pipeline
        )
        with contextlib.closing(judge_for(job, ready)) as judge:
            search(judge)
            ladder = freeze(judge)  # it doesn't change from here on
            sealed = certify(judge, ladder)
            return deliver(judge, settled(judge, ladder, sealed), sealed)


def judge_for(job: Job, ready: Ready) -> Judge:
    """Return the judge of a run: by measurement where the device is here, else by its tools."""
    return (Estimated if ready.target.kind == "compile-only" else Measured)(job, ready)
