"""Scores of whole sequences, from a metric that scores single answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.core.sequences import LENGTHS, Scored, Sequences
from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.metrics import parse_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.custom import Custom


def scored_steps(
    asked: Scored | None, metric: str | Metric | None, labels: Array | None, steps: int
) -> Scored:
    """Return which steps of a sequence are scored.

    Without being asked, it is the last one where each sequence has one label, and else all. A
    user's own function sees all, whatever the labels are.

    Args:
        asked: Steps that were asked for; None if none were.
        metric: Metric that was asked for; None if none was.
        labels: Labels of the sequences, one row each; None if there are none.
        steps: Number of steps of a sequence.

    Raises:
        InputError: all steps were asked for, but there is one label for a whole sequence.
    """
    if isinstance(metric, str):
        metric = parse_metric(metric)
    each = (
        labels is None
        or isinstance(metric, Custom)
        or (labels.ndim > 1 and labels.shape[1] == steps)
    )
    if asked == "all" and not each:
        assert labels is not None
        raise InputError(
            f'scored="all" needs a label for each of {steps} steps; got labels {list(labels.shape)}: '
            "give labels (n, steps, ...), or score the last step"
        )
    return asked or ("all" if each else "last")


def over_steps(metric: Metric, sequences: Sequences | None) -> Metric:
    """Return the metric that scores whole sequences; without sequences, the same one.

    A user's own function gets the answers as they are, stacked along an axis of steps.
    """
    if sequences is None or isinstance(metric, OverSteps):
        return metric
    if isinstance(metric, Custom) and sequences.scored == "all":
        return metric
    return OverSteps(metric, sequences.scored, sequences.lengths)


@dataclass(frozen=True)
class OverSteps(Metric):
    """Mean of another metric's scores over a sequence's steps, or the last step's score.

    Attributes:
        metric: Metric that scores one step's answer.
        scored: "all" for the mean over the steps, without padding; "last" for the last one's.
        lengths: Whether the answers say how many steps each sequence has.
    """

    metric: Metric
    scored: Scored
    lengths: bool = False

    @property
    def decides(self) -> bool:
        """Whether the inner metric scores decisions."""
        return self.metric.decides

    @property
    def function(self) -> str | None:
        """Import path of the user's own code that the inner metric runs."""
        return self.metric.function

    @property
    def reads_classes(self) -> bool:
        """Whether the inner metric's labels are classes."""
        return self.metric.reads_classes

    def takes_infinite(self, name: str) -> bool:
        return self.metric.takes_infinite(name)

    def checked(self, scores: object, count: int) -> Array:
        """Return scores in [0, 1]; of a metric over a set its readings, which may be any numbers."""
        if self.metric.over_set:
            return self.metric.checked(scores, count)
        return super().checked(scores, count)

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        mine, theirs = dict(outputs), dict(exact)
        lengths = mine.pop(LENGTHS) if self.lengths else None
        if self.lengths:
            theirs.pop(LENGTHS)
        count, steps = next(iter(mine.values())).shape[:2]
        ends = np.full(count, steps) if lengths is None else lengths.reshape(count)
        each = labels is not None and labels.ndim > 1 and labels.shape[1] == steps
        if self.scored == "last":
            rows = (np.arange(count), ends - 1)
            told = labels if labels is None or not each else labels[rows]
            return self._inner(_at(mine, rows), _at(theirs, rows), told)
        sequence, step = np.nonzero(np.arange(steps) < ends[:, np.newaxis])
        places = (sequence, step)
        told = None if labels is None else labels[places]
        scores = self._inner(_at(mine, places), _at(theirs, places), told)
        return np.asarray(np.bincount(sequence, scores, count) / ends)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where the answer is the same at every step that is scored."""
        mine, theirs = dict(outputs), dict(others)
        count, steps = next(a for n, a in mine.items() if n != LENGTHS).shape[:2]
        ends, same = np.full(count, steps), np.ones(count, bool)
        if self.lengths:
            ends = mine.pop(LENGTHS).reshape(count)
            same = ends == theirs.pop(LENGTHS).reshape(count)
        scored = np.arange(steps) < ends[:, np.newaxis]
        if self.scored == "last":
            scored = np.arange(steps) == ends[:, np.newaxis] - 1
        scored &= same[:, np.newaxis]
        sequence, step = np.nonzero(scored)
        if len(sequence):
            places = (sequence, step)
            inner = self.metric.unchanged(_at(mine, places), _at(theirs, places))
            same[sequence[~inner]] = False
        return same

    def _inner(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        count = len(next(iter(outputs.values())))
        return self.metric.checked(self.metric.score(outputs, exact, labels), count)


def _at(tensors: Tensors, rows: Any) -> dict[str, Array]:
    return {name: array[rows] for name, array in tensors.items()}
