"""Whether a candidate of the original's own precision really answers as the original does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.same_answers import EXACT_TOLERANCE, differences

Redecided: TypeAlias = Callable[[Tensors, Tensors], Array]

FAULT_TOLERANCE = 3e-2
"""Largest difference of an answer by exact settings, relative to the largest output, that a lack of precision explains.

Larger ones are an engine's fault. Between the two, the answers count as changed, and their scores decide.
"""
SCORE_TOLERANCE = 1e-4
"""Largest difference of a score that rounding explains, where a metric scores numbers."""


def difference(outputs: Tensors, exact: Tensors) -> float:
    """Return the largest absolute difference of any output, relative to its largest value.

    It is infinite where an output is missing or has another shape, or where `differences` says so.
    """
    return float(differences(outputs, exact).max(initial=0.0))


class Changes:
    """Samples that a model answers otherwise than the original, gathered chunk by chunk.

    An answer is what the metric scores: the decision where it scores decisions, such as the highest
    class, and else the score itself. An answer that is further from the original's than rounding
    explains counts as changed too.

    Args:
        metric: Metric that scores the answers.
        redecided: Function of both models' outputs on a chunk that returns where something else is
            decided from them, bool `(k,)`; by default the metric alone says so.
    """

    def __init__(self, metric: Metric, redecided: Redecided | None = None) -> None:
        self._metric, self._redecided = metric, redecided
        self._found: list[Array] = []

    def add(self, outputs: Tensors, own: Tensors) -> None:
        """Compare a model's outputs on a chunk with the original's, each of shape `(k, ...)`."""
        changed = differences(outputs, own) > EXACT_TOLERANCE
        changed |= self._metric.redecided(outputs, own)
        if self._redecided is not None:
            changed |= self._redecided(outputs, own)
        self._found.append(changed)

    def count(self, scores: Array, own: Array) -> int:
        """Return the number of samples whose answer changed; the arguments are those of `changed`."""
        return int(self.changed(scores, own).sum())

    def changed(self, scores: Array, own: Array) -> Array:
        """Return whether each sample's answer changed, bool `(n,)`.

        Args:
            scores: Scores of the model on all samples, `(n,)`.
            own: Scores of the original, `(n,)`.
        """
        changed = np.concatenate(self._found)
        if not self._metric.decides:
            changed |= ~(np.abs(scores - own) <= SCORE_TOLERANCE)
        return changed


class Comparing:
    """Callback for outputs on the sealed data, which compares some models with the original.

    Args:
        metric: Metric that scores the answers.
        keys: Models to compare.
        then: Callback that receives all outputs too.
        redecided: Key of a model -> `Changes.redecided` for it.
    """

    def __init__(
        self,
        metric: Metric,
        keys: Iterable[str],
        then: Callable[[str, Tensors], None] | None = None,
        redecided: Mapping[str, Redecided] | None = None,
    ) -> None:
        more = redecided or {}
        self.changes = {key: Changes(metric, more.get(key)) for key in keys}
        self._then = then
        self._own: Tensors = {}

    def __call__(self, key: str, outputs: Tensors) -> None:
        """Take a model's outputs on a chunk; those of the original, under "", come first."""
        if key == "":
            self._own = outputs
        elif key in self.changes:
            self.changes[key].add(outputs, self._own)
        if self._then is not None:
            self._then(key, outputs)


def changed_in_words(count: int) -> str:
    """Say how many answers changed."""
    return f"{count:,} answer{'' if count == 1 else 's'} changed"


def unchanged_in_words(samples: int, *, made_up: bool = False) -> str:
    """Say on how many samples, or on how many made-up ones, an exact candidate was compared with the original."""
    return f"no answer changed on {samples:,} {'made-up ' if made_up else ''}samples"
