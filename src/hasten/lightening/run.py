"""Run `lighten`: find what fits the budget, train it, compare it with all else, certify, bundle."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from hasten.bundle import replaceable
from hasten.certificate.ledger import user_ledger
from hasten.core.extras import missing_extra
from hasten.core.invocation import asking, invocation
from hasten.core.progress import Listener, Outline, Progress, nobody
from hasten.core.records import digest
from hasten.core.target import Target
from hasten.engines.installed import engine_kinds, tried_on
from hasten.errors import InputError
from hasten.inputs.models.source import find_model
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.config import from_module
from hasten.lightening.checks import budget_s, check_judged, check_order
from hasten.lightening.folders import begin_race, cleared_up, training_folders
from hasten.lightening.outline import outline_of
from hasten.lightening.plan import TrainingPlan, loss_of
from hasten.lightening.shortlisting.options import check_names
from hasten.measure.environment import versions
from hasten.optimization.optimize import optimize
from hasten.optimization.order import Options, Order, order_of
from hasten.optimization.workspace import begun, check_same_run, claimed_folder
from hasten.passes.small_model import Student
from hasten.reporting.result import Result

if TYPE_CHECKING:
    import torch

    from hasten.lightening.given import Given
    from hasten.lightening.task import Task
    from hasten.lightening.ways import Lighter

Kind = Literal["students", "pruned", "scratch"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def lighten(
    model: Any,
    train: Any,
    data: Any,
    *,
    methods: Sequence[str] = KINDS,
    students: int = 1,
    architectures: Sequence[str] = (),
    plan: TrainingPlan = TrainingPlan(),
    pipeline: Pipeline | None = None,
    resume: bool = False,
    listen: Listener = nobody,
    **options: Unpack[Options],
) -> Result:
    """Train lighter networks that fit a latency budget, and certify one to replace the model.

    Training data is required: a network that has lost a fifth of its channels answers most
    questions wrongly until it is trained again.

    Args:
        model: Live torch network, or "file.py:name" of a network or of a function that returns one.
        train: Training data in any form that `data` may have; its labels, if any, teach too.
        data: Data to judge on, in any form that `hasten.optimize` takes.
        methods: Methods to use: "students" for other architectures, taught by the model; "pruned"
            for the model with fewer channels and blocks; "scratch" for the first student's
            architecture, taught by labels alone.
        students: Number of other architectures to train.
        architectures: Names of the catalogue's architectures to choose among; empty for all.
        plan: Settings for training.
        pipeline: Steps from an image file to the model's input, for folders of images.
        resume: Whether to continue a run that was stopped.
        listen: Callback that is told of each step.
        **options: Fields of `hasten.Order`. `budget_s` is required: the longest time that one
            request may take on this machine, in seconds.

    Returns:
        The end of the run, as `hasten.optimize` returns it.

    Raises:
        InputError: the model, the data or an option can't be used, nothing meets the budget, or the
            unchanged model already meets it.
    """
    order = order_of(**options)
    check_order(order)
    asked = invocation(
        "lighten",
        {
            **{"model": model, "train": train, "data": data, "pipeline": pipeline},
            **{"methods": None if methods == KINDS else methods},
            **{"students": None if students == 1 else students},
            **{"architectures": architectures or None},
            **{"plan": None if plan == TrainingPlan() else plan},
            **options,
        },
    )
    methods, architectures = map(_listed, (methods, architectures))
    _check_methods(methods, students)
    check_names("classify", architectures)
    engines = order.engines or tried_on("host")
    engine_kinds(engines)
    replaceable(order.out)
    user_ledger()  # one that can't be used ends it before the training
    module = _network(model)
    # Imported here, since these modules need torch.
    from hasten.lightening.candidates import trained
    from hasten.lightening.task import task_of
    from hasten.lightening.training.loop import Recipe

    folder, work = training_folders(order.out, resume=resume)
    with claimed_folder(folder, resume=resume) as journal, cleared_up(folder, resume=resume):
        listen(Progress("prepare", "reading the model and the data", 0, 1))
        given = _given(module, train, data, pipeline, order, folder)
        check_judged(given, order, listen, resumed=journal.last("begin") is not None)
        recipe = Recipe(60 * plan.minutes, plan.epochs, plan.batch, plan.rate, seed=order.seed)
        loss, told_loss = loss_of(plan)
        check_same_run(
            journal,
            _facts(given, order, engines)
            | {
                "set of methods": [list(methods), students, list(architectures)],
                "recipe": [recipe, plan.features],
                "loss": told_loss,
            },
        )
        outline = _outline(given, order, plan, methods, students)
        listen(Progress("prepare", "timing the original", 0, 1, outline=outline))
        task = task_of(
            given,
            module,
            recipe,
            folder,
            budget_ns=1e9 * budget_s(order),
            max_drop=order.max_drop,
            engines=engines,
            calibration=order.calibration,
            loss=loss,
            features=plan.features,
            listen=listen,
        )
        lighter = trained(task, methods, students, architectures)
        begin_race(journal, order.out, folder, work)
        with asking(asked):
            result = _compared(
                given, task, lighter, options, resume=resume and begun(work), listen=listen
            )
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _compared(
    given: Given,
    task: Task,
    lighter: Sequence[Lighter],
    options: Options,
    *,
    resume: bool,
    listen: Listener,
) -> Result:
    """Compare the trained networks with what `optimize` makes of the model, and certify one."""
    settled: Options = {**options, "metric": given.metric}
    return optimize(
        given.source.path,
        given.judged,
        training=task.data,
        small_model=[
            Student(one.way.name, one.model.path, one.way.quantized, one.in_words)
            for one in lighter
        ],
        pipeline=given.preparation,
        resume=resume,
        notes=task.notes,
        listen=listen,
        **settled,
    )


def _network(model: Any) -> torch.nn.Module:
    """Return the live network to train by.

    Raises:
        InputError: torch isn't installed, or the model is something else.
    """
    try:
        import torch
    except ImportError as error:
        raise missing_extra("training lighter networks", "torch") from error
    module = find_model(model)
    if not isinstance(module, torch.nn.Module):
        raise InputError(
            f"lighten trains a live torch network, such as file.py:name; {model} isn't one "
            "(optimize can use it as it is)"
        )
    return module


def _given(
    module: torch.nn.Module,
    train: Any,
    data: Any,
    pipeline: Pipeline | None,
    order: Order,
    folder: Path,
) -> Given:
    """Read the model and the data.

    Raises:
        InputError: the model or a set of data can't be used.
    """
    from hasten.lightening.given import Given

    own = None if pipeline is not None and pipeline.steps else from_module(module)
    preparation = own if pipeline is None else pipeline.behind(own)
    return Given.read(module, train, data, preparation, order.metric, folder)


def _facts(given: Given, order: Order, engines: Sequence[str]) -> dict[str, Any]:
    """Return what must be the same where a run continues, apart from the training itself."""
    return {
        "model": given.source.sha256,
        "set of training data": given.training_digest,
        "data": digest([len(given.judged), given.judged.content_hash(0).hex()]),
        "machine": Target.host(),
        "pipeline": given.preparation,
        "set of versions": versions(),
        "budget": order.budget_s,
        "limit": [order.max_drop, order.guard, order.mean_over, order.confidence],
        "metric": given.metric,
        "set of engines": list(engines),
        "number of calibration samples": order.calibration,
        "file of the metric's function": given.metric.source_sha256,
    }


def _outline(
    given: Given, order: Order, plan: TrainingPlan, methods: Sequence[str], students: int
) -> Outline:
    return outline_of(
        methods,
        students=students,
        minutes=plan.minutes,
        budget_ns=1e9 * budget_s(order),
        trained_on=len(given.training),
        judged_on=len(given.judged),
    )


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _check_methods(methods: Sequence[str], students: int) -> None:
    """Check the names of methods and the number of students.

    Raises:
        InputError: a setting is out of its range.
    """
    unknown = [method for method in methods if method not in KINDS]
    if unknown or not methods:
        raise InputError(
            f"the methods are {', '.join(KINDS)}: got {', '.join(map(repr, unknown)) or 'none'}"
        )
    if students < 1:
        raise InputError(f"give at least 1 student, or leave that method out: got {students}")
