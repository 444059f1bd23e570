"""Metric that asks of every output whether it is the exact model's, up to rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.core.varying import Summarized, with_summaries
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import equal_highest

EXACT_TOLERANCE = 1e-3
"""Largest difference of an exact answer, relative to the largest output, that rounding explains."""


@dataclass(frozen=True)
class SameAnswers(Metric):
    """Score 1 where every output of a sample is the exact model's up to rounding, else 0.

    Floats may differ by 0.1% of the output's largest number, and everything else must be equal. Where an
    output has rows of several floats, the highest one must be the same as well.
    """

    binary: ClassVar[bool] = True
    infinite: ClassVar[bool] = True
    noun: ClassVar[str] = "share of answers like the original's"
    title: ClassVar[str] = "the share of answers like the original's"
    spellings: ClassVar[tuple[str, ...]] = ("same_answers",)

    @property
    def decides(self) -> bool:
        """Always: an answer is the original's or isn't."""
        return True

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        same = differences(outputs, exact) <= EXACT_TOLERANCE
        for name, own in exact.items():
            if own.ndim == 2 and own.shape[1] > 1 and own.dtype.kind == "f" and name in outputs:
                same &= equal_highest(outputs[name], own, 1)
        return np.asarray(same, np.float64)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where the answers are the same, since no label has a part in the score."""
        return np.asarray(self.score(outputs, others, None) == 1)


def differences(outputs: Tensors, exact: Tensors) -> Array:
    """Return each sample's largest difference, relative to the largest finite value of all samples, `(n,)`.

    Equal infinities don't differ. The difference is infinite where only one of two numbers is, and where
    either is NaN, so that an answer with NaN is never an unchanged one. Of an output whose size depends on
    the sample's values, the summaries are compared, relative to the output's own largest number.

    Args:
        outputs: Outputs of a model by name, each of shape `(n, ...)`.
        exact: Outputs of the exact model for these samples.
    """
    count = len(next(iter(exact.values())))
    worst, outputs = np.zeros(count), with_summaries(outputs)
    summed = exact.summed if isinstance(exact, Summarized) else {}
    for name, own in with_summaries(exact).items():
        if name not in outputs or outputs[name].shape != own.shape:
            return np.full(count, math.inf)
        if own.dtype.kind != "f":
            gap = (outputs[name] != own).reshape(count, -1).any(axis=1).astype(np.float64)
        else:
            pair = [array.astype(np.float64).reshape(count, -1) for array in (outputs[name], own)]
            with np.errstate(invalid="ignore"):
                apart = np.abs(pair[0] - pair[1])
            apart[pair[0] == pair[1]] = 0
            apart[np.isnan(apart)] = math.inf
            # Sums grow with the count of numbers, so they are no measure of what a number may move by.
            scale = pair[1][:, :1] if name in summed else pair[1]
            largest = max(float(np.abs(scale).max(initial=0, where=np.isfinite(scale))), 1e-12)
            gap = apart.max(axis=1, initial=0) / largest
        worst = np.maximum(worst, gap)
    return worst
