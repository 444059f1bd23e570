"""Labels of a run's data: whether any are missing, and whether some will be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hasten.core.objects import load_object
from hasten.core.records import type_name
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.missing import NO_CLASS, none_for, unlabelled, with_no_class
from hasten.inputs.metrics import parse_metric
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.embedding import Embedding
from hasten.inputs.metrics.tokens import EntityF1, TokenAccuracy
from hasten.inputs.metrics.unlabelled import missing_labels
from hasten.measure.journal import Journal
from hasten.optimization.order import Order, is_function

ASKING = "asking"
"""Kind of the journal's event that says that labels are asked for."""


@dataclass(frozen=True)
class Relabelled(Dataset):
    """Samples of another data set with labels of their own, or without any."""

    whole: Dataset
    own: Array | None

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the other data set's inputs."""
        return self.whole.names

    @property
    def labels(self) -> Array | None:  # type: ignore[override]
        """Labels in place of the other data set's."""
        return self.own

    @property
    def groups(self) -> Array | None:  # type: ignore[override]
        """Groups of the other data set."""
        return self.whole.groups

    @property
    def missing(self) -> bool:  # type: ignore[override]
        """Whether NaN stands for a value that isn't there."""
        return self.whole.missing

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        """Whether samples of the other data set differ in shape."""
        return self.whole.ragged

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        return self.whole.shapes(index)

    def __len__(self) -> int:
        return len(self.whole)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        return self.whole.inputs(indices)

    def content_hash(self, index: int) -> bytes:
        return self.whole.content_hash(index)

    def decoded_to(self, least: int) -> Dataset | None:
        whole = self.whole.decoded_to(least)
        return None if whole is None else Relabelled(whole, self.own)

    def has_former_hashes(self) -> bool:
        return self.whole.has_former_hashes()

    def former_hash(self, index: int) -> bytes | None:
        return self.whole.former_hash(index)


def asks(order: Order, journal: Journal) -> bool:
    """Whether labels are asked for in a run, or were before it was stopped.

    Raises:
        InputError: the function that labels can't be imported, or no metric could use labels.
    """
    how = order.ask_labels
    if how is not None:
        if is_function(how) and not callable(load_object(how)):
            raise InputError(
                f"{how} isn't a function; give a function that takes samples and "
                "returns their labels"
            )
        if order.guard == "changed":
            raise InputError(
                "the guard 'changed' bounds how many answers change, so labels don't matter: leave out "
                "ask_labels="
            )
        if order.states:
            raise InputError("ask_labels= asks for labels of single answers: leave out states=")
    return how is not None or journal.last(ASKING) is not None


def with_labels(dataset: Dataset, asked: str | Metric | None, *, asking: bool) -> Dataset:
    """Return a data set whose labels say in one way where there is none.

    Where no sample has a label the data has none, or all missing ones where labels will be asked
    for. Classes that a table or a list gives as floats, because some are NaN, are whole numbers.

    Args:
        dataset: Data as it was opened.
        asked: Metric that was asked for; None if none was.
        asking: Whether labels will be asked for.

    Raises:
        InputError: labels are -1 and 1, so that -1 can't be a missing one.
    """
    metric = parse_metric(asked) if isinstance(asked, str) else asked
    classes = metric is None or metric.reads_classes
    labels = dataset.labels
    if labels is not None:
        if classes:
            labels = _classes(labels)
        if unlabelled(labels, classes=classes).all():
            labels = None
    if labels is None and asking:
        labels = none_for(None, len(dataset), classes=classes)
    return dataset if labels is dataset.labels else Relabelled(dataset, labels)


def with_whole_labels(training: Dataset, metric: Metric) -> Dataset:
    """Return training data with all of its labels, or with none of them where some are missing."""
    missing = missing_labels(metric, training.labels)
    return training if missing is None else Relabelled(training, None)


def _classes(labels: Array) -> Array:
    """Return labels that are classes as whole numbers, where they are floats for NaN's sake alone.

    Raises:
        InputError: labels are -1 and 1.
    """
    single = labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)
    if single and labels.dtype.kind in "if":
        known = labels[~unlabelled(labels, classes=False)]
        if set(np.unique(known).tolist()) == {NO_CLASS, 1}:
            raise InputError(
                "the labels are -1 and 1, and -1 stands for a missing label: give the classes as 0 and 1"
            )
    labels = with_no_class(labels)
    if single and labels.dtype.kind == "f" and np.isnan(labels).any():
        known = labels[~np.isnan(labels)]
        if len(known) and (known == np.floor(known)).all():
            labels = np.where(np.isnan(labels), NO_CLASS, labels).astype(np.int64)
    return labels


def check_asked(metric: Metric) -> None:
    """Check that labels could change what a metric gives.

    Raises:
        InputError: it reads none, or it compares samples with each other.
    """
    name = type_name(metric)
    if isinstance(metric, (Agreement, Embedding)):
        raise InputError(
            f"the metric {name} compares with the original's answers and uses no labels: leave "
            "out ask_labels="
        )
    if isinstance(metric, (TokenAccuracy, EntityF1)):
        raise InputError(
            f"{name} needs a label for each token, which can't be asked for one sample at a time: give words with "
            "tags as data, and leave out ask_labels="
        )
    if metric.over_set:
        raise InputError(
            f"{name} compares samples with each other, so it needs every label: give them with the data, "
            "and leave out ask_labels="
        )
