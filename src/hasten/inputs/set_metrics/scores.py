"""Read scores and classes for metrics over a set: from a model's outputs, and from labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal, Self, TypeAlias

import numpy as np

from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import InputError
from hasten.inputs.metrics.outputs import class_labels, of_samples
from hasten.inputs.set_metrics.base import SetMetric

Activation: TypeAlias = Literal["auto", "none", "sigmoid", "softmax"]
"""Function that turns outputs into probabilities; "auto" until the exact model's outputs decide."""

_NAMED: dict[str, Activation] = {"sigmoid": "sigmoid", "softmax": "softmax"}
_SLACK = 1e-3
"""Distance from [0, 1], and of a row's sum from 1, within which outputs count as probabilities."""


def score_output(outputs: Sequence[TensorSpec]) -> str | None:
    """Return the name of the only output that may hold scores; None if there are several or none.

    Scores are floats `(n, classes)`, else `(n, 1)` or `(n,)`.
    """
    floats = [spec for spec in outputs if "float" in spec.dtype]
    classes = [spec for spec in floats if len(spec.shape) == 2 and spec.shape[1] != 1]
    single = [spec for spec in floats if len(spec.shape) == 1 or spec.shape[1:] == (1,)]
    for fitting in (classes, single):
        if fitting:
            return fitting[0].name if len(fitting) == 1 else None
    return None


def named_output(outputs: Tensors, name: str | None, who: str) -> str:
    """Return the name of the output with a model's scores.

    Args:
        outputs: Outputs by name, each of shape `(n, ...)`.
        name: Name of the output; None for the only one that fits.
        who: Name of the metric, for messages.

    Raises:
        InputError: no output fits.
    """
    if name is None:
        specs = [TensorSpec(key, str(a.dtype), a.shape) for key, a in outputs.items()]
        name = score_output(specs)
    if name is None or name not in outputs:
        shapes = ", ".join(f"{key} {a.dtype} {of_samples(a)}" for key, a in outputs.items())
        wanted = (
            "one output of scores, (n,), (n, 1) or (n, classes)" if name is None else repr(name)
        )
        raise InputError(f"{who} reads {wanted}; the model gives {shapes}")
    return name


def score_columns(outputs: Tensors, name: str | None, who: str) -> Array:
    """Return a model's scores as float64 `(n, columns)`, one column for a single score.

    Args:
        outputs: Outputs by name, each of shape `(n, ...)`.
        name: Name of the output; None for the only one that fits.
        who: Name of the metric, for messages.

    Raises:
        InputError: no output fits, or a score isn't finite.
    """
    name = named_output(outputs, name, who)
    given = outputs[name]
    if given.ndim not in (1, 2) or given.dtype.kind not in "biuf" or 0 in given.shape:
        raise InputError(
            f"{who} reads scores (n,), (n, 1) or (n, classes); output {name!r} is {given.dtype} "
            f"{of_samples(given)}"
        )
    scores = given.astype(np.float64).reshape(len(given), -1)
    wrong = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(wrong):
        raise InputError(f"{who}: the score of sample {wrong[0]} of {len(scores)} isn't finite")
    return scores


def classes_of(labels: Array | None, columns: int, count: int, who: str) -> Array:
    """Return labels as class numbers `(n,)`: 0 or 1 for a single score or two columns.

    Args:
        labels: Class numbers `(n,)` or `(n, 1)`, or one-hot rows; None if there are no labels.
        columns: Number of columns of scores.
        count: Number of samples.
        who: Name of the metric, for messages.

    Raises:
        InputError: there are no labels, or they aren't classes.
    """
    if columns > 1 or (labels is not None and labels.shape == (count, 2)):
        columns = max(columns, 2)
        return class_labels(labels, np.empty((count, columns)), who)
    if labels is None:
        raise InputError(f"{who} needs labels; the data has none")
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "biuf":
        raise InputError(
            f"{who} reads labels (n,) that are 0 or 1; got {labels.dtype} {of_samples(labels, count)}"
        )
    numbers = labels.reshape(-1)
    wrong = np.flatnonzero((numbers != 0) & (numbers != 1))
    if len(wrong):
        raise InputError(
            f"{who} reads labels that are 0 or 1; sample {wrong[0]} of {count} has {numbers[wrong[0]]}"
        )
    return np.asarray(numbers, np.int64)


def ranking(scores: Array) -> Array:
    """Return numbers `(n,)` that rise with the chance of class 1, of one or two columns of scores.

    The difference of two columns ranks logits and probabilities alike.
    """
    return np.asarray(scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0])


@dataclass(frozen=True)
class Ranked:
    """Samples of one class beside all others, in order of their scores.

    Attributes:
        order: Positions of the samples, lowest score first, `(n,)`.
        starts: Places in `order` where a new score begins, `(scores,)`.
        positive: Whether each sample is of the class, in their own order, `(n,)`.
    """

    order: Array
    starts: Array
    positive: Array

    @classmethod
    def of(cls, scores: Array, positive: Array) -> Ranked:
        """Sort samples by their scores, `(n,)`."""
        order = np.argsort(scores, kind="stable")
        new = np.diff(scores[order], prepend=-np.inf) != 0
        return cls(order, np.flatnonzero(new), positive)

    def weights(self, counts: Array) -> tuple[Array, Array]:
        """Return how often samples of the class, and others, have each score, lowest score first.

        Args:
            counts: Number of times that each sample counts, `(n,)`.
        """
        ordered, own = counts[self.order].astype(np.float64), self.positive[self.order]
        return (
            np.add.reduceat(np.where(own, ordered, 0.0), self.starts),
            np.add.reduceat(np.where(own, 0.0, ordered), self.starts),
        )


@dataclass(frozen=True)
class Cases:
    """A model's scores beside the samples' classes.

    Attributes:
        scores: Scores as the model gives them, float64 `(n, columns)`.
        classes: Class of each sample, integers `(n,)`.
        activation: Function that turns scores into probabilities.
        eps: Distance between 1 and the next number of the outputs' own type.
    """

    scores: Array
    classes: Array
    activation: Activation
    eps: float

    @property
    def binary(self) -> bool:
        """Whether there are two classes."""
        return bool(self.scores.shape[1] <= 2)

    @cached_property
    def probabilities(self) -> Array:
        """Probabilities in [0, 1], `(n, classes)`, with two columns for a single score."""
        from scipy import special  # here, since the help lists metrics without scipy

        if self.activation == "softmax":
            return np.asarray(special.softmax(self.scores, axis=1))
        if self.activation == "sigmoid":
            found = special.expit(self.scores)
        else:
            found = np.clip(self.scores, 0.0, 1.0)
        return np.hstack([1 - found, found]) if found.shape[1] == 1 else np.asarray(found)

    @cached_property
    def squared(self) -> Array:
        """Half the squared distance of each sample's probabilities from its class, in [0, 1], `(n,)`.

        For two classes that is the squared distance of the probability of class 1 from 0 or 1.
        """
        apart = self.probabilities.copy()
        apart[np.arange(len(apart)), self.classes] -= 1
        return np.asarray(np.minimum(np.square(apart).sum(axis=1) / 2, 1.0))

    @cached_property
    def ranked(self) -> tuple[Ranked, ...]:
        """Class 1 against class 0 for two classes; else each class against the rest."""
        if self.binary:
            return (Ranked.of(ranking(self.scores), self.classes == 1),)
        columns = self.probabilities if self.activation == "softmax" else self.scores
        return tuple(Ranked.of(column, self.classes == k) for k, column in enumerate(columns.T))

    def check_present(self, who: str) -> None:
        """Check that every class has a sample.

        Raises:
            InputError: a class has none; the message says which.
        """
        count = np.bincount(self.classes, minlength=max(2, self.scores.shape[1]))
        if (count == 0).any():
            lacking = int(np.flatnonzero(count == 0)[0])
            raise InputError(
                f"{who} needs samples of every class, but none of the {len(self.classes)} "
                f"samples has class {lacking}"
            )


@dataclass(frozen=True)
class ScoreMetric(SetMetric):
    """Shared part of the metrics that read scores of classes.

    Attributes:
        output: Name of the output with scores `(n,)`, `(n, 1)` or `(n, classes)`; None for the only one
            that fits.
        activation: Function that turns outputs into probabilities: "none", "sigmoid" or "softmax"; "auto" where
            the exact model's outputs decide. Those within [0, 1], each row with the sum 1, are
            probabilities already.
    """

    output: str | None = None
    activation: Activation = "auto"
    every_class: ClassVar[bool] = False
    """Whether the figure needs samples of every class."""

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read the metric's name alone, with an output, or with "sigmoid" or "softmax"."""
        if setting in _NAMED:
            return cls(activation=_NAMED[setting])
        return cls(setting or None)

    @property
    def _name(self) -> str:
        return self.registry.name_of(type(self)) or self.noun

    def settled(self, outputs: Tensors) -> Self:
        if self.activation != "auto":
            return self
        scores = score_columns(outputs, self.output, self._name)
        within = bool(((scores >= -_SLACK) & (scores <= 1 + _SLACK)).all())
        if scores.shape[1] > 1:
            whole = within and bool((np.abs(scores.sum(axis=1) - 1) <= _SLACK).all())
            return replace(self, activation="none" if whole else "softmax")
        return replace(self, activation="none" if within else "sigmoid")

    @property
    def reading(self) -> str:
        if self.activation in ("auto", "none"):
            return ""
        return f"{self.activation} of the output"

    def cases(self, outputs: Tensors, labels: Array | None) -> Cases:
        """Read a model's outputs and the labels.

        Raises:
            InputError: they aren't of the form that the metric reads.
        """
        settled = self.settled(outputs)
        scores = score_columns(outputs, self.output, self._name)
        if settled.activation == "softmax" and scores.shape[1] == 1:
            raise InputError(
                f"{self._name}: softmax needs a score of each class, but the model returns one "
                "score"
            )
        classes = classes_of(labels, scores.shape[1], len(scores), self._name)
        given = outputs[named_output(outputs, self.output, self._name)]
        single = settled.activation == "none" and given.dtype == np.float32
        eps = float(np.finfo(np.float32 if single else np.float64).eps)
        return Cases(scores, classes, settled.activation, eps)

    def value(self, outputs: Tensors, labels: Array) -> float:
        cases = self.cases(outputs, labels)
        if self.every_class:
            cases.check_present(self._name)
        return self.figure(cases, np.ones(len(cases.classes)))

    def values(self, outputs: Tensors, labels: Array, counts: Array) -> Array:
        cases = self.cases(outputs, labels)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.array([self.figure(cases, count) for count in counts])

    def figure(self, cases: Cases, counts: Array) -> float:
        """Return the figure of weighted samples; NaN where a class that it needs has none.

        Args:
            cases: Scores and classes.
            counts: Number of times that each sample counts, `(n,)`.
        """
        raise NotImplementedError
