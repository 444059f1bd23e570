"""Pack with loss: prune a bundle's model, let its weights share values, train, and certify what came out."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from hasten.bundle import Manifest, artifact_of, read, replaceable
from hasten.bundle.manifest import naming_packages
from hasten.bundle.packing.unpacking import unpacked
from hasten.certificate.ledger import user_ledger
from hasten.core.extras import missing_extra
from hasten.core.invocation import Invocation, invocation
from hasten.core.progress import Listener, nobody
from hasten.core.records import digest, from_record
from hasten.core.target import Target
from hasten.errors import InputError
from hasten.inputs.metrics import parse_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.models import onnx
from hasten.inputs.models.source import find_model
from hasten.lightening.checks import check_judged
from hasten.lightening.folders import begin_race, cleared_up, training_folders
from hasten.lightening.plan import TrainingPlan, loss_of
from hasten.measure.environment import versions
from hasten.optimization.delivery import deliver
from hasten.optimization.job import claimed
from hasten.optimization.order import Options, Order, order_of
from hasten.optimization.preparation import prepare
from hasten.optimization.run import certify, freeze, search, settled
from hasten.optimization.workspace import begun, check_same_run, claimed_folder
from hasten.passes.small_model import Student
from hasten.reporting.result import Result

KEPT = (0.3, 0.15, 0.09, 0.06, 0.04, 0.025, 0.015)
"""Shares of the weights to keep, one after another, as long as accuracy allows."""
PLAN = TrainingPlan(minutes=10.0, epochs=20.0, batch=128)
_OTHERS = (
    *("target", "budget_s", "latency_bound_s", "engines", "passes", "keep_float", "custom_ops"),
    *("end_to_end", "states", "scored", "ask_labels", "objective", "effort", "calibration"),
    *("accept_uncertified", "time_limit_s", "pad"),
)
_CALIBRATION = 20
"""Samples that are laid aside for quantizers, of which there are none here: the least that is possible."""


def pack_lossy(
    bundle: str | Path,
    train: Any,
    data: Any,
    *,
    network: Any = None,
    kept: Sequence[float] = KEPT,
    bits: int = 4,
    plan: TrainingPlan = PLAN,
    resume: bool = False,
    listen: Listener = nobody,
    **options: Unpack[Options],
) -> Result:
    """Make the smallest form of a bundle's model that is certified to answer nearly as well.

    Weights that matter least become 0 while the network learns from the original; those that are left
    then share a few values in each tensor, which are trained further. Several such forms are compared by
    the size that they are packed to, and the smallest that is certified on sealed data becomes a bundle
    of its own. Where none is, that bundle holds the exact model as it is.

    A smaller file shortens the download and the cold start, never a request after them: the zeros and
    the shared values are computed with like any others.

    Args:
        bundle: Folder of the bundle, or the packed file, which must hold its exact model.
        train: Training data in any form that `data` may have; its labels, if any, teach too.
        data: Data to judge on, in any form that `hasten.optimize` takes.
        network: Live torch network that the bundle was made from, or "file.py:name" of it; or the ONNX
            file that it was made from. By default a network is made from the ONNX file in the bundle.
        kept: Shares of the weights to keep, falling; a form that loses far too much ends the row.
        bits: Bits of a shared value's number, 2 to 8: a tensor has at most 2**bits values.
        plan: Settings for training; its time and epochs are for each form.
        resume: Whether to continue a run that was stopped.
        listen: Callback that is told of each step.
        **options: Fields of `hasten.Order` on the promise, the data and the bundle: max_drop, guard,
            mean_over, confidence, metric, report, population, seed, out, keep_exact, keep_requests,
            allow_near_copies, trial_limit_s. `max_drop` is required. The exact model and
            requests are left out unless asked for.

    Returns:
        The result; its `sizes` compare the forms, and its `sizes.shipped` is None where none was certified.

    Raises:
        InputError: an option is missing or out of range, the bundle's model can't be trained, or the data
            can't be used; then nothing is written.
    """
    order = _order(train, data, kept, bits, options)
    asked = invocation(
        "pack",
        {
            **{"bundle": bundle, "lossy": True, "train": train, "data": data, "network": network},
            **{"kept": None if tuple(kept) == KEPT else tuple(kept)},
            **{"bits": None if bits == 4 else bits},
            **{"plan": None if plan == PLAN else plan},
            **options,
        },
    )
    replaceable(order.out)
    user_ledger()  # one that can't be used ends it before the training
    folder, work = training_folders(order.out, resume=resume)
    source = None if network is None else find_model(network)
    opened = _Opened.read(Path(bundle), source if isinstance(source, Path) else None)
    with claimed_folder(folder, resume=resume) as journal, cleared_up(folder, resume=resume):
        made = _trained(
            opened, train, data, order, plan, source, (tuple(kept), bits), folder, journal, listen
        )
        begin_race(journal, order.out, folder, work)
        result = _compared(made, opened, order, asked, listen, resume=resume and begun(work))
    shutil.rmtree(folder, ignore_errors=True)
    return result


@dataclass(frozen=True)
class _Opened:
    """Bundle that is packed.

    Attributes:
        folder: Folder of the bundle.
        manifest: Manifest of the bundle.
        model: File of the exact model, in ONNX.
    """

    folder: Path
    manifest: Manifest
    model: Path

    @classmethod
    def read(cls, folder: Path, source: Path | None) -> _Opened:
        """Read a bundle: a folder, or a packed file.

        Args:
            folder: The bundle.
            source: ONNX file that the bundle was made from; None for the exact model in the bundle.

        Raises:
            InputError: it holds no exact model in ONNX, or one of a kind that can't be trained; or the
                file is of another model.
        """
        folder = unpacked(folder)
        manifest = read(folder)
        part = manifest.exact
        if part is None and manifest.status == "exact":
            part = manifest.winner
        if part is None:
            raise InputError(
                f"{folder} was made with keep_exact=False: there is no exact model to train from"
            )
        if manifest.sequences is not None:
            raise InputError(
                f"{folder} answers sequences step by step: only networks that answer each request by "
                "itself can be packed with loss"
            )
        if part.custom_ops:
            raise InputError(
                f"{folder} needs operator libraries, and training can't run through their operators"
            )
        if source is not None:
            if onnx.load(source).sha256 != manifest.source_sha256:
                raise InputError(f"{source} isn't the model that {folder} was made from")
            return cls(folder, manifest, source)
        artifact = artifact_of(folder, part, manifest, ())
        if artifact.path.suffix != ".onnx":
            raise InputError(
                f"the exact model of {folder} is {artifact.path.name}, but only ONNX files can "
                "be trained: give the ONNX file that the bundle was made from, network=model.onnx"
            )
        return cls(folder, manifest, artifact.path)

    def metric(self, given: str | Metric | None) -> Metric:
        """Return the metric to score by: the one given, else the bundle's own.

        Raises:
            InputError: the bundle was judged by a function, which only the user may name.
        """
        if given is not None:
            return parse_metric(given) if isinstance(given, str) else given
        with naming_packages(self.manifest.environment):
            metric = from_record(Metric, self.manifest.metric)
        if metric.function is not None:
            raise InputError(
                f"{self.folder} was judged by the function {metric.function}: name it again in "
                "metric=, because hasten never runs code that only a bundle names"
            )
        return metric


def _order(train: Any, data: Any, kept: Sequence[float], bits: int, options: Options) -> Order:
    """Return what was asked for, after checking it.

    Raises:
        InputError: an option is missing, out of range, or isn't about packing.
    """
    if train is None:
        raise InputError(
            "packing with loss trains the model again: give training data with train=, or pack without loss"
        )
    if options.get("max_drop") is None:
        raise InputError(
            "packing with loss needs the largest drop in accuracy that is allowed: give max_drop=0.01 for "
            "one point"
        )
    if data is None:
        raise InputError(
            "packing with loss is judged on data that training never sees: give it with data="
        )
    if strange := [name for name in _OTHERS if name in options]:
        raise InputError(f"packing with loss doesn't take {strange[0]}=: leave it out")
    if not kept or list(kept) != sorted(set(kept), reverse=True) or not 0 < kept[-1] <= kept[0] < 1:
        raise InputError(
            "the shares of weights to keep must be between 0 and 1, each smaller than the one "
            "before: got "
            f"{', '.join(f'{share:g}' for share in kept) or 'none'}"
        )
    if type(bits) is not int or not 2 <= bits <= 8:
        raise InputError(f"the number of a shared value has 2 to 8 bits: got bits={bits!r}")
    usual: Options = {"keep_exact": False, "keep_requests": False}
    ours: Options = {"engines": ("onnxruntime",), "calibration": _CALIBRATION}
    wanted: Options = {**usual, **options, **ours}
    return order_of(**wanted)


@dataclass(frozen=True)
class _Made:
    """Trained forms, with the data that is left to compare them by.

    Attributes:
        forms: Forms, largest first.
        training: Samples that they were trained on.
        judged: Data to judge on.
        metric: Metric that scores the answers.
        notes: Notes of the trainings.
    """

    forms: tuple[Student, ...]
    training: Any
    judged: Any
    metric: Metric
    notes: tuple[str, ...]


def _trained(
    opened: _Opened,
    train: Any,
    data: Any,
    order: Order,
    plan: TrainingPlan,
    source: Any,
    shapes: tuple[tuple[float, ...], int],
    folder: Path,
    journal: Any,
    listen: Listener,
) -> _Made:
    """Train the smaller forms, or continue where a stopped run was.

    Raises:
        InputError: the data, the network or the plan can't be used, or no form could be trained.
    """
    try:
        import torch
    except ImportError as error:
        raise missing_extra("packing with loss", "torch") from error
    # Imported here, since these modules need torch.
    from hasten.lightening.given import Given
    from hasten.lightening.lossy.rungs import shrunk
    from hasten.lightening.lossy.trainable import trainable
    from hasten.lightening.task import task_of
    from hasten.lightening.training.loop import Recipe

    live = None if isinstance(source, Path) else source
    if live is not None and not isinstance(live, torch.nn.Module):
        raise InputError(
            "network= is a live torch network, such as file.py:name, or the ONNX file that the bundle was "
            f"made from: got a {type(live).__name__}"
        )
    metric = opened.metric(order.metric)
    given = Given.read(opened.model, train, data, opened.manifest.pipeline, metric, folder)
    check_judged(given, order, listen, resumed=journal.last("begin") is not None)
    recipe = Recipe(60 * plan.minutes, plan.epochs, plan.batch, plan.rate, seed=order.seed)
    loss, told_loss = loss_of(plan)
    check_same_run(
        journal,
        {
            "model": given.source.sha256,
            "set of training data": given.training_digest,
            "data": digest([len(given.judged), given.judged.content_hash(0).hex()]),
            "machine": Target.host(),
            "set of versions": versions(),
            "limit": [order.max_drop, order.guard, order.mean_over, order.confidence],
            "metric": given.metric,
            "set of forms": [list(shapes[0]), shapes[1], live is None],
            "recipe": [recipe, plan.features],
            "loss": told_loss,
            "file of the metric's function": given.metric.source_sha256,
        },
    )
    made = trainable(given.source, given.training, live)
    task = task_of(
        given,
        made.network.module,
        recipe,
        folder,
        budget_ns=0.0,
        max_drop=order.max_drop,
        engines=("onnxruntime",),
        calibration=order.calibration,
        loss=loss,
        features=plan.features,
        listen=listen,
    )
    task = replace(task, network=made.network)
    lighter = shrunk(task, made, *shapes)
    return _Made(
        tuple(Student(one.way.name, one.model.path, False, one.in_words) for one in lighter),
        task.data,
        given.judged,
        given.metric,
        tuple(task.notes),
    )


def _compared(
    made: _Made, opened: _Opened, order: Order, asked: Invocation, listen: Listener, *, resume: bool
) -> Result:
    """Compare the forms by size, certify them, and write the bundle of the smallest that passed."""
    # Imported here, since it needs onnx.
    from hasten.lightening.lossy.judge import Smallest

    order = order.changed(metric=made.metric)
    with claimed(
        order, asked, resume=resume, listen=listen, notes=made.notes, ledger=user_ledger()
    ) as job:
        ready = prepare(
            job,
            opened.model,
            made.judged,
            training=made.training,
            small_model=list(made.forms),
            pipeline=opened.manifest.pipeline,
        )
        with contextlib.closing(Smallest(job, ready)) as judge:
            search(judge)
            ladder = freeze(judge)
            sealed = certify(judge, ladder)
            return deliver(judge, settled(judge, ladder, sealed), sealed)
