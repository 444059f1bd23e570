"""Shared part of the metrics that read class scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from hasten.inputs.metrics.base import Metric


@dataclass(frozen=True)
class ClassMetric(Metric):
    """Metric that reads one output of class scores and gives each answer 0 or 1.

    Attributes:
        output: Name of the output with class scores `(n, classes)`; None where only one output has
            such a shape.
    """

    output: str | None = None
    binary: ClassVar[bool] = True
    infinite: ClassVar[bool] = True
    answers: ClassVar[Literal["classes", "values"] | None] = "classes"
    margin_rank: ClassVar[int | None] = 1

    @property
    def decides(self) -> bool:
        """Always: a class is a decision."""
        return True

    @property
    def reads_classes(self) -> bool:
        """Whether labels are classes: they are."""
        return True

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read the metric's name alone, or with an output: "top1" or "top1:OUTPUT"."""
        return cls(setting or None)
