"""Metrics that score several outputs at once: a sample's score is the lowest of its parts'."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import ClassVar, Self

import numpy as np

from hasten.core.records import type_name
from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.data.labels_by_output import listed
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.custom import Custom
from hasten.inputs.pipeline.base import Pipeline

READ_NO_LABELS = ("agreement", "embedding", "same_answers")
"""Names of the metrics that compare with the exact model whatever the labels are."""


class Combined(Metric):
    """Metric of several parts, each of which reads outputs of the same answer.

    A sample's score is the lowest of its parts' scores, so that one output can't make up for
    another.
    """

    title: ClassVar[str] = "lowest score of a sample's outputs"
    noun: ClassVar[str] = "lowest score of the outputs"

    @abstractmethod
    def of(self, names: Sequence[str]) -> tuple[Metric, ...]:
        """Return the parts, for a model with outputs of these names."""

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        parts = self.of(tuple(outputs))
        told = labels_of(parts, labels)
        count = len(next(iter(outputs.values())))
        scores = [
            part.checked(part.score(outputs, exact, own), count)
            for part, own in zip(parts, told, strict=True)
        ]
        return np.asarray(reduce(np.minimum, scores))

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where no part's answer changed."""
        parts = self.of(tuple(outputs))
        return np.asarray(np.logical_and.reduce([p.unchanged(outputs, others) for p in parts]))

    def redecided(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where any part decides otherwise."""
        parts = self.of(tuple(outputs))
        return np.asarray(np.logical_or.reduce([p.redecided(outputs, others) for p in parts]))


@dataclass(frozen=True)
class AllOf(Combined):
    """Score the lowest that several metrics give a sample: where all give 0 or 1, 1 if all are right.

    Labels in one array belong to the metrics that need labels, which must read one output, or
    else to the only metric that could read them. Labels of several outputs are a structured array
    with a field for each output that a metric names; a metric without a field compares with the
    exact model; a function of the user's gets all fields.

    Attributes:
        metrics: Metrics of the outputs, at least one.
    """

    metrics: tuple[Metric, ...]
    spellings: ClassVar[tuple[str, ...]] = ("METRIC@OUTPUT",)

    def __post_init__(self) -> None:
        """Check that there are metrics, each of which scores a sample by itself.

        Raises:
            InputError: there is none, one compares samples with each other, or one is given twice.
        """
        if not self.metrics:
            raise InputError("no metric is given: name at least one")
        for metric in self.metrics:
            if metric.over_set or isinstance(metric, Combined):
                raise InputError(
                    f"{type_name(metric)} can't be combined with other metrics: "
                    + (
                        "it compares samples with each other"
                        if metric.over_set
                        else "it combines some"
                    )
                    + "; name it alone"
                )
        if len(set(self.metrics)) < len(self.metrics):
            raise InputError(f"a metric is given twice: {', '.join(map(type_name, self.metrics))}")

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Refuse the name: the metrics themselves are given, one by one."""
        raise InputError(
            f"metric {text!r}: give the metrics of the outputs one by one, as in --metric "
            "top1@logits --metric regression:0.02@boxes"
        )

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        """Whether any of the metrics needs labels."""
        return any(metric.needs_labels for metric in self.metrics)

    @property
    def binary(self) -> bool | None:  # type: ignore[override]
        """Whether all of the metrics give 0 or 1; None where one can't tell."""
        kinds = [metric.binary for metric in self.metrics]
        return False if False in kinds else None if None in kinds else True

    def check_labels(self, labels: Array) -> None:
        for metric, own in zip(self.metrics, labels_of(self.metrics, labels), strict=True):
            if own is not None:
                metric.check_labels(own)

    @property
    def decides(self) -> bool:
        """Whether all of the metrics score decisions."""
        return all(metric.decides for metric in self.metrics)

    def takes_infinite(self, name: str) -> bool:
        return all(metric.takes_infinite(name) for metric in self.metrics)

    @property
    def reads_classes(self) -> bool:
        """Whether the metrics that need labels read classes."""
        needing = [metric for metric in self.metrics if metric.needs_labels]
        return bool(needing) and all(metric.reads_classes for metric in needing)

    @property
    def function(self) -> str | None:
        """Import path of the user's own code that one of the metrics runs."""
        return next((m.function for m in self.metrics if m.function is not None), None)

    @property
    def source_sha256(self) -> str | None:
        """SHA-256 of the files with the user's own code, joined by commas; None where there are none."""
        digests = [m.source_sha256 for m in self.metrics if m.source_sha256 is not None]
        return ",".join(digests) or None

    def around(self, pipeline: Pipeline | None) -> Metric:
        return AllOf(tuple(metric.around(pipeline) for metric in self.metrics))

    def of(self, names: Sequence[str]) -> tuple[Metric, ...]:
        return self.metrics


@dataclass(frozen=True)
class EachOutput(Combined):
    """Score the lowest that one metric gives for each of the model's outputs.

    Attributes:
        metric: Metric that reads one output, which it must not name.
    """

    metric: Metric
    spellings: ClassVar[tuple[str, ...]] = ("METRIC@all",)

    def __post_init__(self) -> None:
        """Check that the metric reads one output, scores each sample by itself, and names no output.

        Raises:
            InputError: it doesn't.
        """
        name = type_name(self.metric)
        if "output" not in {field.name for field in fields(self.metric)}:  # type: ignore[arg-type]
            raise InputError(f"{name} reads several outputs with fixed names; leave out @all")
        if self.metric.over_set:
            raise InputError(f"{name} compares samples with each other, by one output: name it")
        if self.metric.output is not None:
            raise InputError(f"{name} names the output {self.metric.output}; leave out @all")

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Refuse the name: it is written behind the metric's own."""
        raise InputError(
            f"metric {text!r}: name the metric that reads each output, as in agreement@all"
        )

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        """Whether the metric needs labels."""
        return self.metric.needs_labels

    @property
    def binary(self) -> bool | None:  # type: ignore[override]
        """Whether the metric gives 0 or 1."""
        return self.metric.binary

    @property
    def decides(self) -> bool:
        """Whether the metric scores decisions."""
        return self.metric.decides

    def takes_infinite(self, name: str) -> bool:
        return self.metric.infinite

    @property
    def reads_classes(self) -> bool:
        """Whether the metric's labels are classes."""
        return self.metric.reads_classes

    def of(self, names: Sequence[str]) -> tuple[Metric, ...]:
        return tuple(replace(self.metric, output=name) for name in names)  # type: ignore[type-var]


def for_labels(metric: Metric, labels: Array | None) -> Metric:
    """Return the metric that reads its own output's labels, where labels are of several outputs.

    A user's own function gets all of them.

    Raises:
        InputError: the metric compares samples with each other, by labels in one array.
    """
    if labels is None or labels.dtype.names is None or isinstance(metric, (Combined, Custom)):
        return metric
    if metric.over_set:
        raise InputError(
            f"{type_name(metric)} reads labels in one array, but the data has {listed(labels)}: "
            "give labels"
        )
    return AllOf((metric,))


def labels_of(metrics: Sequence[Metric], labels: Array | None) -> list[Array | None]:
    """Return the labels that each of several metrics reads; None where it compares with the exact model.

    Args:
        metrics: Metrics of the outputs.
        labels: Labels of the samples, `(n, ...)`; with a field for each output where they are of
            several.

    Raises:
        InputError: a field belongs to no metric, a metric that needs labels has none, or nothing
            says which of the metrics the labels are for.
    """
    if labels is None:
        return [None] * len(metrics)
    names = labels.dtype.names
    if names is not None:
        return _by_field(metrics, labels, names)
    readers = [m for m in metrics if m.needs_labels]
    could = [m for m in metrics if type_name(m) not in READ_NO_LABELS]
    if not readers and len(could) > 1:
        raise InputError(
            f"the labels are one array, and {' and '.join(map(_words, could))} could each read it: give "
            "labels of each output, as arrays labels@OUTPUT, or leave them out"
        )
    if len({metric.output for metric in readers}) > 1:
        raise InputError(
            f"the labels are one array, and {' and '.join(map(_words, readers))} each need their own: give "
            "labels of each output, as arrays labels@OUTPUT"
        )
    readers = readers or could
    return [labels if metric in readers else None for metric in metrics]


def _by_field(metrics: Sequence[Metric], labels: Array, names: Sequence[str]) -> list[Array | None]:
    """Return each metric's field of structured labels; a user's own function gets all of them."""
    read = [metric.output for metric in metrics]
    own = any(isinstance(metric, Custom) for metric in metrics)
    for field in names:
        if field not in read and not own:
            raise InputError(
                f"the data has labels@{field}, and no metric reads an output of that name; the "
                f"metrics read {', '.join(map(_words, metrics))}"
            )
        if labels[field].dtype.kind == "f" and not np.isfinite(labels[field]).all():
            raise InputError(f"labels@{field} has NaN or Inf; repair it")
    told: list[Array | None] = []
    for metric in metrics:
        if metric.needs_labels and metric.output not in names:
            raise InputError(
                f"{_words(metric)} needs labels, and the data has labels of {', '.join(names)}: add "
                "labels@OUTPUT, and name the output in the metric"
            )
        if isinstance(metric, Custom):
            told.append(labels)
        else:
            told.append(None if metric.output not in names else labels[metric.output])
    return told


def _words(metric: Metric) -> str:
    """Return a metric as it is written, with its output."""
    return f"{type_name(metric)}{f'@{metric.output}' if metric.output else ''}"
