"""The run, top to bottom: what fits the budget -> train -> one race with all else -> certify -> bundle."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

from hasten.bundle import MANIFEST
from hasten.certificate.planning import check_limits
from hasten.certificate.verdict import Guard
from hasten.core.extras import missing_extra
from hasten.core.invocation import asking, invocation
from hasten.core.objects import load_object
from hasten.core.progress import Listener, nobody
from hasten.core.records import digest, source_digest
from hasten.core.target import Target
from hasten.engines.installed import engine_kinds, tried_on
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.splits import split
from hasten.inputs.metrics.base import Metric
from hasten.inputs.models.source import find_model
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.config import from_module
from hasten.lightening.shortlisting.options import check_names
from hasten.measure.environment import versions
from hasten.optimization.delivery import check_place
from hasten.optimization.optimize import optimize
from hasten.optimization.workspace import begun, check_same_run, claimed
from hasten.passes.little import Student
from hasten.report.result import Result

Kind = Literal["students", "pruned", "scratch"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def lighten(
    model: Any,
    train: Any,
    data: Any,
    *,
    budget_ms: float,
    max_drop: float = 0.01,
    out: str | Path = "model.hasten",
    metric: str | Metric | None = None,
    guard: Guard = "net",
    confidence: float = 0.95,
    ways: Sequence[str] = KINDS,
    students: int = 1,
    architectures: Sequence[str] = (),
    minutes: float = 30.0,
    epochs: float = 100.0,
    batch: int = 64,
    rate: float = 2e-3,
    loss: Any = None,
    features: float | None = None,
    pipeline: Pipeline | None = None,
    engines: Sequence[str] = (),
    population: str = "inputs like the ones in this data",
    calibration: int = 300,
    seed: int = 0,
    keep_exact: bool = True,
    accept_uncertified: bool = False,
    resume: bool = False,
    listen: Listener = nobody,
) -> Result:
    """Train lighter networks that fit a budget, and find the one that is certified in the model's place.

    Without training data that can't be done: a network with a fifth of its channels cut off is wrong
    about most of what it knew until it has learnt again.

    Args:
        model: A live torch network, "file.py:name" of one, or of a function that gives one.
        train: Training data, as `data` is given; labels teach too where it has them.
        data: What judges, as `hasten.optimize` takes it.
        budget_ms: What one request may take on this machine, in milliseconds.
        max_drop: The most that accuracy may fall, in absolute share: 0.01 is one point.
        out: The bundle's folder.
        metric: As `hasten.optimize` takes it.
        guard: What is bounded.
        confidence: Of the certificate.
        ways: "students": other architectures, taught by the model; "pruned": the model with fewer
            channels and blocks; "scratch": the first student's architecture, by labels alone.
        students: How many other architectures are trained.
        architectures: Names from the catalogue to choose among; all by default.
        minutes: How long each way trains, at most.
        epochs: Passes over the training data, at most.
        batch: Samples per step.
        rate: The highest learning rate.
        loss: In the place of that by labels: called with the outputs by name and the labels, it gives
            a scalar tensor; or "my.py:loss".
        features: The weight of layers inside in what is learnt, 0 to 1; by default 0 where outputs
            can be learnt, 1 where they take no gradient.
        pipeline: From an image file to the model's input, for folders of images.
        engines: Which runtimes to try; by default all that suit this host.
        population: What `data` was drawn from, in words, for the certificate.
        calibration: How many training samples set the quantizers' ranges.
        seed: Of all orders.
        keep_exact: Keep the exact model in the bundle.
        accept_uncertified: Ship the fastest even where nothing certifies, marked so.
        resume: Go on with the run that was stopped.
        listen: Told of each step.

    Raises:
        InputError: the model, the data or an option can't be used, nothing meets the budget, or the
            model does as it is.
    """
    asked = invocation(lighten, locals())
    ways, architectures, engines = map(_listed, (ways, architectures, engines))
    engines = engines or tried_on("host")
    check_limits(max_drop, confidence)
    _check_options(budget_ms, minutes, epochs, batch, rate, students, ways, features)
    check_names("classify", architectures)
    engine_kinds(engines)
    bundle = Path(out)
    check_place(bundle)
    try:
        import torch
    except ImportError as error:
        raise missing_extra("training lighter networks", "torch") from error
    # Here, since they need torch.
    from hasten.lightening.candidates import trained
    from hasten.lightening.given import Given
    from hasten.lightening.task import task_of
    from hasten.lightening.training.loop import Recipe

    module = find_model(model)
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"lighten trains a live torch network, as file.py:name gives one; {model} is none (optimize "
            "takes it as it is)"
        )
    folder = bundle.with_name(bundle.name + ".training")
    work = bundle.with_name(bundle.name + ".work")
    if begun(work) and not resume:
        raise InputError(
            f"an unfinished run lies in {work}: go on with it by --resume, or remove it and {folder}"
        )
    with claimed(folder, resume=resume) as journal, _cleared_up(folder, resume=resume):
        given = Given.read(module, train, data, pipeline or from_module(module), metric, folder)
        split(given.judged, calibration=calibration, seed=seed, training=given.training)  # in time
        recipe = Recipe(60 * minutes, epochs, batch, rate, seed=seed)
        own_loss = load_object(loss) if isinstance(loss, str) else loss
        if loss is not None and not callable(own_loss):
            raise InputError(f"a loss is a function of outputs and labels: got {loss}")
        check_same_run(
            journal,
            {
                "model": given.source.sha256,
                "set of training data": given.training_digest,
                "data": digest([len(given.judged), given.judged.content_hash(0).hex()]),
                "machine": Target.host(),
                "pipeline": given.preparation,
                "set of versions": versions(),
                "budget": budget_ms,
                "limit": [max_drop, guard, confidence],
                "metric": given.metric,
                "set of ways": [list(ways), students, list(architectures)],
                "recipe": [recipe, features],
                "set of engines": list(engines),
                "number of calibration samples": calibration,
                "loss": None if loss is None else [_named(own_loss), source_digest(own_loss)],
                "file of the metric's function": given.metric.source_sha256,
            },
        )
        task = task_of(
            given,
            module,
            recipe,
            folder,
            budget_ns=1e6 * budget_ms,
            max_drop=max_drop,
            engines=engines,
            calibration=calibration,
            loss=own_loss,
            features=features,
            listen=listen,
        )
        lighter = trained(task, ways, students, architectures)
        if journal.last("race") is not None and not begun(work) and _newer(bundle, journal.path):
            shutil.rmtree(folder, ignore_errors=True)  # it was killed just before it did so itself
            raise InputError(f"nothing to resume: the run came to its end, in {bundle}")
        journal.append("race")
        with asking(asked):
            result = optimize(
                given.source.path,
                given.judged,
                training=task.data,
                little=[
                    Student(one.way.name, one.model.path, one.way.quantized, one.in_words)
                    for one in lighter
                ],
                max_drop=max_drop,
                out=out,
                metric=given.metric,
                guard=guard,
                confidence=confidence,
                pipeline=given.preparation,
                engines=engines,
                population=population,
                calibration=calibration,
                seed=seed,
                keep_exact=keep_exact,
                accept_uncertified=accept_uncertified,
                budget_s=budget_ms / 1e3,
                resume=resume and begun(work),
                notes=task.notes,
                listen=listen,
            )
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _newer(bundle: Path, journal: Path) -> bool:
    """Whether a bundle was written after the last entry of a journal."""
    manifest = bundle / MANIFEST
    return manifest.is_file() and manifest.stat().st_mtime > journal.stat().st_mtime


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _named(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _check_options(
    budget_ms: float,
    minutes: float,
    epochs: float,
    batch: int,
    rate: float,
    students: int,
    ways: Sequence[str],
    features: float | None,
) -> None:
    """Check the options that are numbers and names.

    Raises:
        InputError: which is out of its range.
    """
    for name, value, unit in (
        ("budget", budget_ms, "milliseconds"),
        ("time for each way", minutes, "minutes"),
        ("number of epochs", epochs, "passes over the data"),
        ("learning rate", rate, "AdamW's steps"),
    ):
        if not isinstance(value, Real) or not (math.isfinite(value) and value > 0):
            raise InputError(f"the {name} is in {unit}, above 0: got {value!r}")
    if batch < 2:
        raise InputError(
            f"a batch has at least 2 samples, whose mean and variance normalize it: got {batch}"
        )
    unknown = [way for way in ways if way not in KINDS]
    if unknown or not ways:
        raise InputError(
            f"ways are {', '.join(KINDS)}: got {', '.join(map(repr, unknown)) or 'none'}"
        )
    if students < 1:
        raise InputError(f"give at least 1 student, or leave that way out: got {students}")
    if features is not None and not 0 <= features <= 1:
        raise InputError(f"the weight of features is between 0 and 1: got {features}")


@contextlib.contextmanager
def _cleared_up(folder: Path, *, resume: bool) -> Iterator[None]:
    """Remove the work folder of a run that came to nothing; one with a training, or that was begun
    before, stays to be resumed.

    Raises:
        InputError: as what it is around; a candidate's failure that nothing else stands in for.
    """
    try:
        yield
    except (InputError, CandidateError) as error:
        if not resume and not any(folder.glob("ways/*/*/checkpoint.pt")):
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, CandidateError):
            raise InputError(str(error)) from error
        raise
