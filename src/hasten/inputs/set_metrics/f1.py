"""F1 of decisions over a whole set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self, TypeAlias, get_args

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, Pipeline
from hasten.inputs.pipeline.threshold import Threshold
from hasten.inputs.set_metrics.scores import ScoreMetric, classes_of, score_columns

Average: TypeAlias = Literal["macro", "micro", "positive"]


@dataclass(frozen=True)
class F1(ScoreMetric):
    """Harmonic mean of precision and recall: twice the right decisions for a class, by its decisions and labels.

    The class with the highest score is decided for. A single score decides for class 1 from a probability of
    0.5 on, or as the pipeline's step `threshold` does; where that abstains, neither class is decided for.
    Where labels are rows of 0 and 1 with any number of classes, each class is decided for from a
    probability of 0.5 on.

    Attributes:
        average: "macro" for the mean over classes that a sample has or is given; "micro" for the decisions of
            all classes together, which is the accuracy where each sample has one class; "positive" for
            class 1 of two classes alone.
        steps: The pipeline's step that decides, where there is one.

    Source: van Rijsbergen, Information Retrieval, 2nd ed. 1979, chapter 7; as in scikit-learn's `f1_score`.
    """

    average: Average = "macro"
    steps: tuple[Threshold, ...] = ()
    spellings: ClassVar[tuple[str, ...]] = ("f1[:macro|micro|positive]",)

    def __post_init__(self) -> None:
        """Check the average."""
        if self.average not in get_args(Average):
            raise InputError(f"f1.average={self.average!r}: give 'macro', 'micro' or 'positive'")

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read "f1" with "macro", "micro" or "positive", or with an output."""
        for average in get_args(Average):
            if setting == average:
                return cls(average=average)
        return super().parse(setting, text)

    @property
    def noun(self) -> str:  # type: ignore[override]
        """Name of the figure by its average."""
        return "F1" if self.average == "positive" else f"{self.average} F1"

    def around(self, pipeline: Pipeline | None) -> Self:
        """Return the metric with the pipeline's step that decides, where it reads the step's output."""
        after = () if pipeline is None else pipeline.after
        if len(after) != 1 or not isinstance(after[0], Threshold):
            return self
        step = after[0]
        if step.position not in (None, 1) or self.output not in (None, step.output or None):
            return self
        return replace(self, output=step.output or None, steps=(step,))

    def settled(self, outputs: Tensors) -> Self:
        if self.activation != "auto" or self.steps:
            return self
        scores = score_columns(outputs, self.output, self._name)
        if scores.min() >= 0 and scores.max() <= 1:
            return replace(self, activation="none")
        return replace(self, activation="softmax" if scores.shape[1] > 1 else "sigmoid")

    @property
    def reading(self) -> str:
        if self.steps:
            return "decided by threshold"
        return "" if self.activation in ("auto", "none") else "read as logits"

    def value(self, outputs: Tensors, labels: Array) -> float:
        found = float(self.values(outputs, labels, np.ones((1, len(labels)), np.int64))[0])
        if np.isnan(found):
            classes = "class 1" if self.average == "positive" else "any class"
            raise InputError(
                f"{self._name} needs decisions or labels of {classes}, but none of the {len(labels)} samples "
                "has one"
            )
        return found

    def values(self, outputs: Tensors, labels: Array, counts: Array) -> Array:
        decided, true = self._decided(outputs, labels)
        times = counts.astype(np.float64)
        right = times @ (decided & true).astype(np.float64)
        either = times @ (decided.astype(np.float64) + true)
        if self.average == "positive":
            right, either = right[:, 1:], either[:, 1:]
        elif self.average == "micro":
            right, either = (each.sum(axis=1, keepdims=True) for each in (right, either))
        with np.errstate(invalid="ignore", divide="ignore"):
            each_class = 2 * right / either  # NaN for a class that no sample has or is given
            present = (either > 0).sum(axis=1)
            return np.asarray(
                np.nansum(each_class, axis=1) / np.where(present > 0, present, np.nan)
            )

    def _decided(self, outputs: Tensors, labels: Array) -> tuple[Array, Array]:
        """Return which classes are decided for, and which are labelled, each bool `(n, classes)`.

        Raises:
            InputError: the outputs or labels aren't of the form that the metric reads.
        """
        if self.steps:
            told = _by_step(self.steps[0], outputs)
            return np.stack([told == 0, told == 1], axis=1), _one_of(
                labels, 1, len(told), self._name
            )
        scores = score_columns(outputs, self.output, self._name)
        count, columns = scores.shape
        if self.average == "positive" and columns > 2:
            raise InputError(
                f"f1:positive is for two classes, but the model gives scores of {columns}: ask for f1:macro or "
                "f1:micro"
            )
        logits = self.settled(outputs).activation != "none"
        cut = 0.0 if logits else 0.5
        if columns > 1 and labels.shape == scores.shape and _several(labels):
            return scores >= cut, labels.astype(bool)
        true = _one_of(labels, columns, count, self._name)
        if columns == 1:
            return np.hstack([scores < cut, scores >= cut]), true
        return scores.argmax(axis=1)[:, None] == np.arange(columns), true


def _several(labels: Array) -> bool:
    """Whether rows of labels are 0 and 1, with any number of classes to a sample."""
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) != 1).any())


def _one_of(labels: Array, columns: int, count: int, who: str) -> Array:
    """Return the labelled class of each sample as bool `(n, classes)`."""
    classes = classes_of(labels, columns, count, who)
    return np.asarray(classes[:, None] == np.arange(max(columns, 2)))


def _by_step(step: Threshold, outputs: Tensors) -> Array:
    """Return the class that a step decides for, `(n,)`, and -1 where it abstains."""
    names = [step.output] if step.output else list(outputs)
    count = len(outputs[names[0]])
    told = [step({name: outputs[name][row] for name in names}, Origin()) for row in range(count)]
    return np.array([int(one.get("positive", -1)) for one in told])
