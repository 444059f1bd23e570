"""Metric that checks whether numbers are within a stated tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import ClassVar, Literal, Self

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.data.missing import lacking
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.outputs import equal_numbers, number, of_samples, one_output


@dataclass(frozen=True)
class Regression(Metric):
    """Share of a sample's numbers with |output - truth| <= tolerance + relative * |truth|.

    The truth is the label or, for data without labels, the exact model's output. A sample with a
    single number scores 0 or 1. An infinite number is within the tolerance of the same one alone.

    Attributes:
        tolerance: Absolute tolerance, in the output's unit.
        relative: Tolerance as a share of the truth's magnitude.
        whole: Whether a sample scores 1 only if all its numbers are within the tolerance, and else
            0.
        output: Name of the output to read; None for a model with a single output.
    """

    tolerance: float = 0.0
    relative: float = 0.0
    whole: bool = False
    output: str | None = None
    needs_labels: ClassVar[bool] = False
    infinite: ClassVar[bool] = True
    noun: ClassVar[str] = "share within the tolerance"
    title: ClassVar[str] = "the share of numbers within the tolerance"
    spellings: ClassVar[tuple[str, ...]] = ("regression:TOLERANCE", "regression:PERCENT%")
    answers: ClassVar[Literal["classes", "values"] | None] = "values"

    @property
    def binary(self) -> bool | None:  # type: ignore[override]
        """Whether scores are 0 or 1; None where that depends on how many numbers a sample has."""
        return True if self.whole else None

    def __post_init__(self) -> None:
        """Check the tolerances."""
        wide = (self.tolerance, self.relative)
        if not (all(0 <= bound < np.inf for bound in wide) and any(wide)):
            raise InputError(
                f"regression: tolerance {self.tolerance:g} and relative {self.relative:g}; "
                "give one above 0, as in regression:0.01"
            )

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read "regression:0.01", an absolute tolerance, or "regression:2%", a relative one."""
        if not setting:
            output, colon, behind = text.partition("@")[2].rpartition(":")
            raise InputError(
                f"metric {text!r}: write METRIC:SETTING@OUTPUT, as in regression:{behind}@{output}"
                if colon and not behind.isdecimal()  # "Identity:1" is a name
                else f"metric {text!r}: regression needs a tolerance, as in regression:0.02 or regression:2%"
            )
        if setting.endswith("%"):
            return cls(relative=number(text, setting[:-1]) / 100)
        return cls(number(text, setting))

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        mine = one_output(outputs, self.output, "regression").astype(np.float64)
        if labels is None:
            truth = one_output(exact, self.output, "regression").astype(np.float64)
        elif labels.dtype.kind not in "biuf":
            raise InputError(
                f"regression reads labels that are numbers; got {labels.dtype} {of_samples(labels)}"
            )
        elif lacking(labels).any():
            raise InputError(
                "regression reads every number of a label, but one has None, NaN or a masked value among its numbers: "
                "repair it, or leave the whole label or its sample out"
            )
        else:
            truth = labels.astype(np.float64)
        count = len(mine)
        whole = mine.size == truth.size and len(truth) == count
        if not whole or not _in_one_order(mine, truth):
            raise InputError(
                f"regression compares number by number, but the output is {of_samples(mine)} and the truth "
                f"{of_samples(truth, count)}: give labels "
                + (
                    "in the output's order of axes"
                    if whole
                    else "of the output's shape; if they are classes, use top1"
                )
            )
        mine, truth = mine.reshape(count, -1), truth.reshape(count, -1)
        with np.errstate(invalid="ignore"):
            within = np.abs(mine - truth) <= self.tolerance + self.relative * np.abs(truth)
        within = np.where(np.isinf(mine) | np.isinf(truth), mine == truth, within)
        return np.asarray(within.all(axis=1) if self.whole else within.mean(axis=1), np.float64)

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where the numbers are equal; of two that differ, a label may fit one alone."""
        mine, theirs = (one_output(a, self.output, "regression") for a in (outputs, others))
        return equal_numbers(mine, theirs)


def _in_one_order(one: Array, other: Array) -> bool:
    """Whether the numbers of two arrays stand in one order: on the same axes, or adjacent ones are one axis."""
    ends = [set(accumulate(array.shape[1:], mul, initial=1)) for array in (one, other)]
    return ends[0] <= ends[1] or ends[1] <= ends[0]
