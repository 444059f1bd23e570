"""Read what a person hands in to `lighten`: the model, two sets of data and the metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hasten.core.model import Model
from hasten.core.records import digest, type_name
from hasten.errors import InputError
from hasten.inputs.data.class_files import ClassFiles
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.source import open_data
from hasten.inputs.data.text_files import TextData
from hasten.inputs.metrics import check_outputs, default_metric, for_labels, parse_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import class_labels
from hasten.inputs.metrics.unlabelled import missing_labels
from hasten.inputs.models.source import load_with_data
from hasten.inputs.pipeline.base import Pipeline, check_steps


@dataclass(frozen=True)
class Given:
    """Model, data and metric that a person handed in, as read.

    Attributes:
        source: Model file, with its request settled.
        judged: Data to judge on.
        training: Data to train on.
        metric: Metric that scores the answers.
        preparation: Steps from an image file to the model's input; None unless `judged` is a folder
            of images.
    """

    source: Model
    judged: Dataset
    training: Dataset
    metric: Metric
    preparation: Pipeline | None

    @classmethod
    def read(
        cls,
        module: torch.nn.Module | Path,
        train: Any,
        data: Any,
        preparation: Pipeline | None,
        metric: str | Metric | None,
        folder: Path,
    ) -> Given:
        """Read a model and both sets of data.

        Args:
            module: Live model, or the path of an ONNX file.
            train: Training data in any form that `open_data` takes; the samples of a sequence are
                read again in each epoch.
            data: Data to judge on, in any form that `open_data` takes.
            preparation: Steps from an image file to the model's input.
            metric: Metric in any form that `hasten.optimize` takes.
            folder: Work folder of all files that are written.

        Raises:
            InputError: the model or a set of data can't be used, or they don't fit each other.
        """
        check_steps(preparation)
        source, judged = load_with_data(module, data, preparation, (), folder)
        source = source.settled_by({n: a[0] for n, a in judged.inputs([0]).items()})
        unpacked = folder / "unpacked-training"
        training = open_data(train, source.inputs, preparation, unpacked, reread=True)
        if judged.ragged or training.ragged:
            raise InputError(
                "samples differ in shape, but lighter networks are trained on samples of one "
                "shape: pad, crop or resize them to one shape"
            )
        if metric is None:
            metric = default_metric(judged.labels, source.outputs)
        elif isinstance(metric, str):
            metric = parse_metric(metric)
        check_outputs(metric, source.outputs)
        metric = for_labels(metric, judged.labels)
        if metric.needs_labels and judged.labels is None:
            raise InputError(
                f"the metric {type_name(metric)} needs labels, but the data to judge on has none; "
                'give labels, or use metric="agreement"'
            )
        check_all_labelled(training, metric)
        check_samples(training, source)
        check_names(training, judged)
        check_labels(training, judged, metric, source)
        prepared = isinstance(judged, (ClassFiles, TextData))
        return cls(source, judged, training, metric, preparation if prepared else None)

    @property
    def repeats(self) -> bool:
        """Whether a training sample is identical each time it is read."""
        return bool(getattr(self.training, "repeats", True))

    @property
    def training_digest(self) -> str:
        """Digest that identifies the training data, of its size alone if samples don't repeat."""
        count = len(self.training)
        looked_at = np.linspace(0, count - 1, 32 if self.repeats else 0).astype(int)
        return digest([count, [self.training.content_hash(int(i)).hex() for i in looked_at]])


def check_all_labelled(training: Dataset, metric: Metric) -> None:
    """Check that no training sample lacks its label, since each teaches.

    Raises:
        InputError: some do.
    """
    missing = missing_labels(metric, training.labels)
    if missing is not None:
        raise InputError(
            f"{int(missing.sum()):,} of {len(missing):,} training samples have no label: leave "
            "them out, or give all samples without labels, so that only the model teaches"
        )


def check_samples(training: Dataset, source: Model) -> None:
    """Check that training samples fit the model's inputs.

    Raises:
        InputError: an input is missing, or has another type or size.
    """
    found = {name: array[0] for name, array in training.inputs([0]).items()}
    for spec in source.request:
        if spec.name not in found:
            raise InputError(
                f"the training data lacks the model's input {spec.name!r}: "
                f"it has {', '.join(found)}"
            )
        own, sizes = found[spec.name], tuple(spec.sizes[1:])
        if (str(own.dtype), own.shape) != (spec.dtype, sizes):
            raise InputError(
                f"the training data's {spec.name} is {own.dtype} {list(own.shape)} per sample; the "
                f"model takes {spec.dtype} {list(sizes)}"
            )


def check_names(training: Dataset, judged: Dataset) -> None:
    """Check that two folders of images, of sounds or of texts have the same classes, since each numbers its own in order.

    Raises:
        InputError: the folders' classes differ.
    """
    known, asked = _folders(training), _folders(judged)
    if known and asked and known != asked:
        only = sorted(set(known) ^ set(asked))
        raise InputError(
            "the training data and the data to judge on have different classes: only one of them "
            f"has the folder {_listed(only)}; give both the same class folders"
        )


def _folders(data: Dataset) -> tuple[str, ...]:
    """Return the names of the classes that a folder of files numbers; none for other data."""
    if isinstance(data, ClassFiles):
        return data.classes or ()
    return data.numbered if isinstance(data, TextData) else ()


def check_labels(training: Dataset, judged: Dataset, metric: Metric, source: Model) -> None:
    """Check that the training data has all classes of the data to judge on.

    Raises:
        InputError: a label is no class of the model, or the training data lacks a class.
    """
    if metric.answers != "classes" or training.labels is None:
        return
    scores = [
        spec
        for spec in source.outputs
        if (spec.name == metric.output if metric.output else len(spec.shape) == 2)
    ]
    size = scores[0].shape[-1] if len(scores) == 1 else None
    if not isinstance(size, int):
        return
    found = []
    for which, data in (("the training data", training), ("the data to judge on", judged)):
        if data.labels is None:
            return
        try:
            missing = missing_labels(metric, data.labels)
            rows = data.labels if missing is None else data.labels[~missing]
            numbers = class_labels(rows, np.empty((len(rows), size)), "top1")
        except InputError as error:
            raise InputError(f"{which}: {str(error).removeprefix('top1: ')}") from error
        found.append(set(np.unique(numbers).tolist()))
    lacking = sorted(found[1] - found[0])
    if lacking:
        raise InputError(
            "the training data and the data to judge on have different classes: the training data "
            f"lacks {_listed(lacking)}; give training data of all classes"
        )


def _listed(classes: Sequence[object]) -> str:
    shown = ", ".join(map(str, classes[:5]))
    return shown if len(classes) <= 5 else f"{shown} and {len(classes) - 5} more"
