"""Run `lighten`: find what fits the budget, train it, compare it with all else, certify, bundle."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from hasten.bundle import MANIFEST, replaceable
from hasten.certificate.certification import guarded
from hasten.certificate.ledger import Past, user_ledger
from hasten.certificate.promise import Promise
from hasten.core.extras import missing_extra
from hasten.core.invocation import asking, invocation
from hasten.core.objects import load_object
from hasten.core.progress import Listener, Outline, Progress, nobody
from hasten.core.records import digest, source_digest, type_name
from hasten.core.target import Target
from hasten.engines.installed import engine_kinds, tried_on
from hasten.errors import CandidateError, InputError
from hasten.inputs.data.near_copies import check_near_copies
from hasten.inputs.data.parts import groups_on_one_side
from hasten.inputs.data.splits import split
from hasten.inputs.metrics.unlabelled import check_labelled
from hasten.inputs.models.source import find_model
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.config import from_module
from hasten.inputs.set_metrics import chosen
from hasten.lightening.outline import outline_of
from hasten.lightening.shortlisting.options import check_names
from hasten.measure.environment import versions
from hasten.measure.journal import Journal
from hasten.optimization.data_needed import warnings
from hasten.optimization.memory import known_past, look_after
from hasten.optimization.optimize import optimize
from hasten.optimization.order import Options, Order, order_of
from hasten.optimization.preparation import check_passes
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


def _check_positive(name: str, value: Any, unit: str) -> None:
    """Check that an option is a finite number above 0.

    Raises:
        InputError: the option isn't a finite number above 0.
    """
    if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise InputError(f"the {name} is in {unit}, above 0: got {value!r}")


@dataclass(frozen=True)
class TrainingPlan:
    """Settings for training lighter networks.

    Attributes:
        minutes: Longest time that each method trains, in minutes.
        epochs: Largest number of passes over the training data.
        batch: Number of samples in a training step.
        rate: Highest learning rate.
        loss: Function that replaces the loss on labels, or its place as "my.py:loss"; called with
            the outputs by name and the labels, it returns a scalar tensor.
        features: Weight of inner layers in the loss, 0 to 1; by default 0 if the outputs can be
            learned, 1 if they have no gradient.

    Raises:
        InputError: a setting is out of its range.
    """

    minutes: float = 30.0
    epochs: float = 100.0
    batch: int = 64
    rate: float = 2e-3
    loss: Any = None
    features: float | None = None

    def __post_init__(self) -> None:
        for name, value, unit in (
            ("time for each method", self.minutes, "minutes"),
            ("number of epochs", self.epochs, "passes over the data"),
            ("learning rate", self.rate, "AdamW's steps"),
        ):
            _check_positive(name, value, unit)
        if self.batch < 2:
            raise InputError(
                "a batch must have at least 2 samples, because their mean and variance normalize "
                f"it: got {self.batch}"
            )
        if self.features is not None and not 0 <= self.features <= 1:
            raise InputError(f"the weight of features must be between 0 and 1: got {self.features}")


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
    _check_order(order)
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
            budget_ns=1e9 * _budget_s(order),
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


def _check_order(order: Order) -> None:
    """Check that an order is one that lighter networks can be trained for.

    Raises:
        InputError: it has no budget, or asks for something that training rules out.
    """
    if order.target != "host":
        raise InputError(
            f"lighten times networks on this host alone: leave out target={order.target!r}, or optimize the "
            "model for that device"
        )
    check_passes(order.passes)
    if order.ask_labels is not None:
        raise InputError(
            "lighten learns from labels: give them with the data, and leave out ask_labels="
        )
    if order.states:
        raise InputError(
            "lighten trains networks that answer each request by itself: leave out states=, or optimize "
            "the model"
        )
    if order.pad:
        raise InputError(
            "pad= is for samples that differ in shape, but lighter networks are trained on "
            "samples of one shape: leave it out"
        )
    _budget_s(order)


def _budget_s(order: Order) -> float:
    """Return the longest time that one request may take, in seconds.

    Raises:
        InputError: the order states none.
    """
    if order.budget_s is None:
        raise InputError(
            "lighten needs a budget, the longest time in seconds that one request may take on this "
            "machine: give budget_s=0.003 for 3 ms"
        )
    return order.budget_s


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


def check_judged(given: Given, order: Order, listen: Listener, *, resumed: bool) -> None:
    """Check before anything is trained that the data to judge on suits the order, and tell where it is too little.

    Args:
        given: Model, data and metric.
        order: Order of the comparison after the trainings.
        listen: Callback that is told where even a perfect candidate couldn't be certified on so little data, and where
            only one side has groups.
        resumed: Whether the trainings began before, and what earlier runs did was checked then.

    Raises:
        InputError: the data, or a part of the order, can't be used, or earlier runs searched on all of the data.
    """
    asked = 1 - order.confidence
    past = Past() if resumed else known_past(order.out, user_ledger())
    splits = split(
        given.judged,
        calibration=order.calibration,
        seed=order.seed,
        training=given.training,
        earlier=past.earlier(asked),
    )
    check_near_copies(given.training, given.judged, order.allow_near_copies)
    chosen(order.report, given.judged.labels, given.source.outputs, given.preparation)
    metric = guarded(given.metric.around(given.preparation), order.guard)
    for part in (splits.search, splits.sealed):
        check_labelled(metric, part.labels, type_name(metric))
    promise = Promise(metric, order.guard, order.max_drop, order.confidence, order.mean_over)
    tested = look_after(past, splits, asked=asked).promise(promise)
    one_side = groups_on_one_side(given.training, given.judged)
    for warning in (*one_side, *warnings(splits, promise, 0, tested)):
        listen(Progress("prepare", "splitting the data", 0, 1, news=warning))


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
        budget_ns=1e9 * _budget_s(order),
        trained_on=len(given.training),
        judged_on=len(given.judged),
    )


def training_folders(bundle: Path, *, resume: bool) -> tuple[Path, Path]:
    """Return the folder of the trainings, and the one of the comparison after them.

    Args:
        bundle: Folder of the bundle to make.
        resume: Whether a run that was stopped may be continued.

    Raises:
        InputError: a run was stopped there, and isn't to be continued.
    """
    folder = bundle.with_name(bundle.name + ".training")
    work = bundle.with_name(bundle.name + ".work")
    if begun(work) and not resume:
        raise InputError(
            f"there is an unfinished run in {work}: continue it with resume=True, or remove it and "
            f"{folder}"
        )
    return folder, work


def begin_race(journal: Journal, bundle: Path, folder: Path, work: Path) -> None:
    """Record that the trainings are done, and that what they made is compared from here on.

    Args:
        journal: Journal of the trainings.
        bundle: Folder of the bundle to make.
        folder: Folder of the trainings.
        work: Folder of the comparison.

    Raises:
        InputError: the comparison was over, too, when the run was killed; its folder is then removed.
    """
    if journal.last("race") is not None and not begun(work) and _newer(bundle, journal.path):
        shutil.rmtree(folder, ignore_errors=True)  # the run was killed just before doing so
        raise InputError(f"nothing to resume: the run has finished, and its bundle is {bundle}")
    journal.append("race")


def _newer(bundle: Path, journal: Path) -> bool:
    """Return whether a bundle was written after the last entry of a journal."""
    manifest = bundle / MANIFEST
    return manifest.is_file() and manifest.stat().st_mtime > journal.stat().st_mtime


def _listed(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def loss_of(plan: TrainingPlan) -> tuple[Any, list[Any] | None]:
    """Return the loss that replaces the usual one, and what tells it from another; None for none.

    Raises:
        InputError: it can't be imported, or is no function.
    """
    loss = load_object(plan.loss) if isinstance(plan.loss, str) else plan.loss
    if loss is None:
        return None, None
    if not callable(loss):
        raise InputError(f"a loss must be a function of outputs and labels: got {plan.loss}")
    return loss, [_named(loss), source_digest(loss)]


def _named(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


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


@contextlib.contextmanager
def cleared_up(folder: Path, *, resume: bool) -> Iterator[None]:
    """Remove the work folder of a failed run, unless the run was resumed or has a checkpoint.

    Raises:
        InputError: the block raised it, or raised a `CandidateError`, which is converted.
    """
    try:
        yield
    except (InputError, CandidateError) as error:
        if not resume and not any(folder.glob("ways/*/*/checkpoint.pt")):
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, CandidateError):
            raise InputError(str(error)) from error
        raise
