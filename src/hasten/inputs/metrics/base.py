"""The contract of a metric: a number in [0, 1] per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from hasten.core.records import Value
from hasten.core.tensors import Array, Tensors


class Metric(Value, ABC):
    """How good each answer is: a frozen dataclass whose fields are its settings.

    Attributes:
        needs_labels: Whether `score` reads labels; without, the exact model's answers are the truth.
        noun: What a fall of the mean score is called: "accuracy", "agreement", "F1", ...
    """

    registry: ClassVar[Mapping[str, str]] = {
        "top1": "hasten.inputs.metrics.top_k:Top1",
        "top5": "hasten.inputs.metrics.top_k:Top5",
        "agreement": "hasten.inputs.metrics.agreement:Agreement",
        "embedding": "hasten.inputs.metrics.embedding:Embedding",
        "regression": "hasten.inputs.metrics.regression:Regression",
        "detection_f1": "hasten.inputs.metrics.detection_f1:DetectionF1",
        "custom": "hasten.inputs.metrics.custom:Custom",
    }
    needs_labels: ClassVar[bool]
    noun: ClassVar[str]

    @abstractmethod
    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        """Score a run of samples.

        Args:
            outputs: The judged model's outputs by name, each of shape `(n, ...)`.
            exact: The exact model's outputs for the same samples.
            labels: `(n, ...)`, or None.

        Returns:
            float64 of shape `(n,)`, each in [0, 1].

        Raises:
            InputError: outputs or labels aren't what this metric reads.
        """
