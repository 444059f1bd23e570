"""Define the task of the lighter networks: the user's own network, the data and the metric."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hasten.core.model import Model
from hasten.core.progress import Listener, Progress, StageName, nobody
from hasten.core.records import digest, read_json, type_name, write_json
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.core.words import amount
from hasten.errors import InputError, IntegrityError, told
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.data.labels_by_output import listed
from hasten.inputs.data.splits import held_out, units_of
from hasten.inputs.data.spool import Spool, write_spool
from hasten.inputs.metrics.agreeing import without_labels
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.choice import default_metric
from hasten.inputs.metrics.outputs import class_specs
from hasten.inputs.models import torch as frontend
from hasten.inputs.models.torch_inputs import input_names
from hasten.lightening.given import Given
from hasten.lightening.training.examples import Examples, teachable
from hasten.lightening.training.loop import Recipe, mean_score
from hasten.lightening.training.network import Network
from hasten.lightening.training.objective import Kind, Loss, Objective, Scale, scale_of
from hasten.measure.workbench import Workbench

HELD_OUT = 2000
"""Largest number of training samples held out, to measure how well a training does."""
_FEW = 8


@dataclass(frozen=True)
class Task:
    """Input and settings that all methods for lighter networks share.

    Attributes:
        network: The user's own network, which is the teacher.
        source: Model file of the user's own network, with its request settled.
        data: Samples to train on.
        held_out: Samples on disk that are never trained on and measure how well a training does.
        calibration: Training samples on disk that set the ranges of quantizers.
        metric: Metric that scores the answers.
        objective: Objective that training minimizes.
        recipe: Duration and learning rate of each method's training.
        budget_ns: Longest time that one request may take, in nanoseconds.
        max_drop: Largest accepted drop of the mean score, as an absolute share.
        target: Device that runs the lighter network.
        engines: Names of the runtimes to try.
        folder: Work folder of all files that are written.
        repeats: Whether a training sample is identical each time it is read.
        seed: Seed of all random orders.
        listen: Callback that is told of each step.
        notes: Messages for the reader of the report; steps append to the list.
    """

    network: Network
    source: Model
    data: Dataset
    held_out: Spool
    calibration: Spool
    metric: Metric
    objective: Objective
    recipe: Recipe
    budget_ns: float
    max_drop: float
    target: Target
    engines: tuple[str, ...]
    folder: Path
    repeats: bool = True
    seed: int = 0
    listen: Listener = nobody
    notes: list[str] = field(default_factory=list)

    @property
    def sample(self) -> dict[str, Any]:
        """One sample of the training data, without a batch axis."""
        return {name: array[0] for name, array in self.data.inputs([0]).items()}

    @cached_property
    def exact(self) -> list[dict[str, Array]]:
        """Answers of the user's network to the held-out samples, in chunks of `Workbench.chunk`."""
        count = len(self.held_out)
        chunks = (
            self.held_out.inputs(range(first, min(first + Workbench.chunk, count)))
            for first in range(0, count, Workbench.chunk)
        )
        return list(self.network.answers(chunks))

    @cached_property
    def scale(self) -> Scale:
        """Scale of the class scores in the user's network's only output, by a few of its answers."""
        few = self.held_out.inputs(range(min(_FEW, len(self.held_out))))
        (answers,) = self.network.answers(iter([few]))
        (scores,) = answers.values()
        return scale_of(torch.from_numpy(scores))

    def score(self, answers: Iterable[Mapping[str, Array]]) -> float:
        """Return the mean score of answers to the held-out samples.

        Args:
            answers: Outputs in chunks like those of `exact`; their names are free, their order is
                the original network's.
        """
        scores, at = [], 0
        for outputs, own in zip(answers, self.exact, strict=True):
            named = dict(zip(own, outputs.values(), strict=True))
            size = len(next(iter(own.values())))
            rows = self.held_out.labels
            labels = None if rows is None else rows[at : at + size]
            scores.append(self.metric.score(named, own, labels))
            at += size
        return mean_score(self.metric, scores, self.held_out)

    def export(self, module: torch.nn.Module, folder: Path) -> Model:
        """Write a network as an ONNX file whose inputs have the original's names.

        Raises:
            InputError: the network can't be exported.
        """
        names = [spec.name for spec in self.source.inputs]
        model = frontend.export(module, [self.sample[name] for name in names], folder, names)
        return model.settled_by(self.sample)

    def workbench(self, model: Model, folder: Path) -> Workbench:
        """Return a workbench that quantizes a network with the calibration samples of this task."""
        folder.mkdir(exist_ok=True)
        hashes = [self.calibration.content_hash(i).hex() for i in range(len(self.calibration))]
        return Workbench(
            folder,
            self.target,
            memory_bytes=self.target.memory_bytes // 2,
            model=model,
            calibration=self.calibration,
            calibration_hash=digest(hashes),
        )

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a result that an earlier session stored as JSON; else compute and store it.

        A resumed run thus makes its former decisions again, even if timings on a busy host would
        now differ. Notes that `make` appends are stored and restored too.
        """
        file = self.folder / f"{name}.json"
        if not file.exists():
            before = len(self.notes)
            found = make()
            write_json(file, {"found": found, "notes": self.notes[before:]})
            del self.notes[before:]
        kept = read_json(file)
        self.notes.extend(kept["notes"])
        return kept["found"]

    @property
    def classes(self) -> int | None:
        """Number of classes; None unless the network's only output is one row of class scores."""
        (first, *more) = self.source.outputs
        size = first.shape[-1]
        single = not more and len(first.shape) == 2 and isinstance(size, int)
        return int(size) if single and self.objective.kind == "classes" else None

    def tell(
        self, stage: StageName, doing: str, done: int, total: int, outcome: str | None = None
    ) -> None:
        """Report a step to the callback."""
        self.listen(Progress(stage, doing, done, total, outcome))


def task_of(
    given: Given,
    module: torch.nn.Module,
    recipe: Recipe,
    folder: Path,
    *,
    budget_ns: float,
    max_drop: float,
    engines: Sequence[str],
    calibration: int,
    loss: Loss | None,
    features: float | None,
    listen: Listener,
) -> Task:
    """Return the task that all methods share; write the held-out and the calibration samples.

    Args:
        given: Model, data and metric as read from the user.
        module: The user's own network, which is the teacher.
        recipe: Duration and learning rate of each method's training.
        folder: Work folder of all files that are written.
        budget_ns: Longest time that one request may take, in nanoseconds.
        max_drop: Largest accepted drop of the mean score, as an absolute share.
        engines: Names of the runtimes to try.
        calibration: Number of samples that set the quantizers' ranges.
        loss: The user's own loss, which replaces the loss on labels; None for the latter.
        features: Weight of inner layers in the loss; None to choose it by the outputs.
        listen: Callback that is told of each step.

    Raises:
        InputError: there are too few samples, or the training data lacks labels that it needs.
    """
    rest, held = held_out(given.training, HELD_OUT, recipe.seed)
    notes: list[str] = []
    kind = _kind(given)
    names = tuple(spec.name for spec in given.source.inputs)
    if features is None:
        found = {spec.name for spec in given.source.outputs}
        # Detections have no useful gradient.
        features = float(loss is None and found >= {"boxes", "scores", "labels"})
    network = Network(
        module,
        input_names(module) or names,
        outputs=tuple(spec.name for spec in given.source.outputs),
    )
    if loss is not None:
        check_loss(loss, network, rest)
    return Task(
        network=network,
        source=given.source,
        data=rest,
        held_out=spooled(held, folder / "held-out"),
        calibration=spooled(rest, folder / "calibration", calibration, recipe.seed),
        metric=_steering(given, held, notes),
        objective=Objective(kind, feature_weight=features, loss=loss),
        recipe=recipe,
        budget_ns=budget_ns,
        max_drop=max_drop,
        target=Target.host(),
        engines=tuple(engines),
        folder=folder,
        repeats=given.repeats,
        seed=recipe.seed,
        listen=listen,
        notes=notes,
    )


def check_loss(loss: Loss, network: Network, data: Dataset) -> None:
    """Call the user's own loss once, with the model's answers to some training samples.

    Raises:
        InputError: the loss fails, or its value isn't a finite number that depends on the outputs; or the labels
            aren't numbers.
    """
    if data.labels is not None and not teachable(data.labels):
        kind = (
            "texts" if data.labels.dtype.names is None else f"several arrays, {listed(data.labels)}"
        )
        raise InputError(
            f"a loss gets the labels as one tensor of numbers, but the training data's are {kind}: give it one "
            "array of numbers, such as classes padded with -1, or no loss"
        )
    batch = Examples(data, min(_FEW, len(data))).at(0, network.device)
    with torch.no_grad():
        answers = replace(network.frozen(), low_precision=False)(batch.inputs)
    outputs = {
        name: tensor.detach().requires_grad_(tensor.is_floating_point())
        for name, tensor in answers.items()
    }
    given = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in outputs.items())
    shown = "none" if batch.labels is None else str(list(batch.labels.shape))
    called = f"called with the outputs {given} and labels {shown}"
    try:
        found = loss(outputs, batch.labels)
    except Exception as error:  # the user's own code runs here
        raise InputError(f"the loss failed, {called}: {told(error)}") from error
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        what = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise InputError(f"a loss must return a tensor of one number: {called}, it returned {what}")
    if not found.requires_grad:
        raise InputError(f"a loss must depend on the outputs: {called}, it returned a constant")
    if not bool(torch.isfinite(found)):
        raise InputError(f"the loss of the model itself is {float(found.detach())}, {called}")


def _kind(given: Given) -> Kind:
    """Return whether answers are classes or numbers; labels decide where the metric doesn't."""
    if given.metric.answers is not None:
        return given.metric.answers
    try:
        default_metric(given.training.labels, given.source.outputs)
    except InputError:
        return "values"
    return "classes"


def _steering(given: Given, held: Dataset, notes: list[str]) -> Metric:
    """Return the metric that judges a training; where it can't score what is held out, agreement with the model.

    Args:
        given: Model, data and metric.
        held: Samples that are held out.
        notes: Notes of the trainings, which get one where labels or groups don't suit the metric.

    Raises:
        InputError: the samples held out can't be scored by the metric, and the model gives no classes.
    """
    metric = given.metric if held.labels is not None else without_labels(given.metric)
    scores = [spec.name for spec in class_specs(given.source.outputs)]
    classes = metric.output in scores if metric.output is not None else len(scores) == 1
    if metric.needs_labels and held.labels is None:
        if not classes:
            raise InputError(
                f"{type_name(metric)} needs labels to show how a training does, but the training data has none, "
                "and the model gives no class scores to compare with its own: give labels"
            )
        return Agreement(metric.output)
    if metric.over_set:
        try:
            metric.draws(held.labels, units_of(held))
        except InputError as error:
            said = (
                f"of the training data, {amount(len(held), 'sample')} are held out to show how a training does, and "
                f"they can't be scored: {error}"
            )
            if not classes:
                raise InputError(said) from error
            notes.append(f"{said}; agreement with the model's own classes shows it instead")
            return Agreement(metric.output)
    return metric


def spooled(data: Dataset, folder: Path, count: int | None = None, seed: int = 0) -> Spool:
    """Write some or all samples to disk, unless a stopped run has written them completely."""
    if count is not None and count < len(data):
        rows = np.random.default_rng(seed).permutation(len(data))[:count]
        data = Subset(data, np.sort(rows))
    with contextlib.suppress(IntegrityError):
        return Spool.open(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return write_spool(data, folder)
