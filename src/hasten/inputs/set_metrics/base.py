"""Contract of a metric over a set, which gives one figure for all samples together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np

from hasten.core.records import Value
from hasten.core.registry import Registry
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline


class SetMetric(Value, ABC):
    """One figure over a whole set: a frozen dataclass whose fields are the metric's settings.

    Such a figure is stated before and after, with an interval of its change. A certificate needs a
    `Metric` instead, which scores each sample (or each draw of samples) with a number in [0, 1].

    Attributes:
        noun: Name of the figure for people: "AUROC".
        spellings: Forms of the metric on a command line, shown to people; its name alone where empty.
        higher_is_better: Whether a model with a higher figure is the better one.
    """

    registry: ClassVar[Registry] = Registry(
        "metric over a set",
        "hasten.set_metrics",
        {
            "auroc": "hasten.inputs.set_metrics.auroc:SetAuroc",
            "ks": "hasten.inputs.set_metrics.ks:Ks",
            "brier": "hasten.inputs.set_metrics.brier:SetBrier",
            "log_loss": "hasten.inputs.set_metrics.log_loss:LogLoss",
            "calibration_error": "hasten.inputs.set_metrics.calibration_error:CalibrationError",
            "average_precision": "hasten.inputs.set_metrics.average_precision:AveragePrecision",
            "f1": "hasten.inputs.set_metrics.f1:F1",
            "map50": "hasten.inputs.set_metrics.mean_ap:MeanAp50",
            "map50_95": "hasten.inputs.set_metrics.mean_ap:MeanAp",
            "retrieval": "hasten.inputs.set_metrics.retrieval:Retrieval",
            "custom": "hasten.inputs.set_metrics.custom:SetCustom",
        },
    )
    noun: ClassVar[str] = "figure"
    spellings: ClassVar[tuple[str, ...]] = ()
    output: str | None = None
    """Name of the output that the metric reads; None where it names none. A metric with a field of this name can
    be written as NAME@OUTPUT."""
    higher_is_better: ClassVar[bool] = True

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read the metric from its form on a command line.

        Args:
            setting: Text after the name and its colon; empty where there is none.
            text: Whole text, for messages.

        Raises:
            InputError: the setting can't be read.
        """
        if setting:
            raise InputError(f"metric {text!r}: this metric takes no setting")
        return cls()

    @classmethod
    def suggested(
        cls, labels: Array | None, outputs: Sequence[TensorSpec], pipeline: Pipeline | None
    ) -> Self | None:
        """Return the metric where this data is expected to show it unasked; else None.

        Args:
            labels: Labels of the data; None where it has none.
            outputs: Outputs of the model, which have a batch axis.
            pipeline: Steps around the model.
        """
        return None

    def around(self, pipeline: Pipeline | None) -> Self:
        """Return the metric as it reads a model with these steps around it."""
        return self

    @property
    def source_sha256(self) -> str | None:
        """SHA-256 of the file with the user's own code; None where there is none."""
        return None

    def settled(self, outputs: Tensors) -> Self:
        """Return the metric with the settings that the exact model's outputs decide.

        Both models are then read alike.

        Args:
            outputs: Outputs of the exact model on the whole set, each of shape `(n, ...)`.

        Raises:
            InputError: the outputs aren't of the form that the metric reads.
        """
        return self

    @property
    def reading(self) -> str:
        """Words for how outputs become scores; empty where they are read as they are."""
        return ""

    @abstractmethod
    def value(self, outputs: Tensors, labels: Array) -> float:
        """Return the figure of a model.

        Args:
            outputs: Outputs of the model on the whole set by name, each of shape `(n, ...)`.
            labels: Labels of the samples, `(n, ...)`.

        Raises:
            InputError: the outputs or labels aren't of the form that the metric reads.
        """

    def values(self, outputs: Tensors, labels: Array, counts: Array) -> Array:
        """Return the figure on resampled sets, for a bootstrap.

        A metric overrides this where weighting samples is faster than repeating them.

        Args:
            outputs: Outputs of the model on the whole set by name, each of shape `(n, ...)`.
            labels: Labels of the samples, `(n, ...)`.
            counts: Number of times that each sample is in each resampled set, integers `(sets, n)`.

        Returns:
            Figures, `(sets,)`; NaN where a set has none, as without any sample of a class.
        """
        found = np.full(len(counts), np.nan)
        for number, count in enumerate(counts):
            rows = np.repeat(np.arange(len(count)), count)
            resampled = {name: array[rows] for name, array in outputs.items()}
            try:
                found[number] = self.value(resampled, labels[rows])
            except InputError:
                continue
        return found

    def draws(self, outputs: Tensors, labels: Array, units: Array) -> Array | None:
        """Return independent draws whose mean estimates the figure without bias, for an exact bound.

        How samples are drawn together must depend on the labels and the units alone, so that two
        models are compared draw by draw.

        Args:
            outputs: Outputs of the model on the whole set by name, each of shape `(n, ...)`.
            labels: Labels of the samples, `(n, ...)`.
            units: Number of each sample's group, `(n,)`; equal numbers were drawn together.

        Returns:
            Draws in [0, 1], `(draws,)`, higher for a better model; None where the metric has none.
        """
        return None
