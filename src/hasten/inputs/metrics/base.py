"""The contract of a metric: a number in [0, 1] per sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

from hasten.core.records import Value
from hasten.core.registry import Registry
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import InputError


class Metric(Value, ABC):
    """How good each answer is: a frozen dataclass whose fields are its settings.

    Attributes:
        needs_labels: Whether `score` reads labels; without, the exact model's answers are the truth.
        noun: What a fall of the mean score is called: "accuracy", "agreement", "F1", ...
        title: Name of the mean score in a certificate; the metric's own name where empty.
        spellings: Forms in which it is written on a command line, for people: "top1[:OUTPUT]"; its
            name alone where there are none.
        binary: Whether scores are 0 or 1 as a rule, so that little data suffices for a certificate.
        answers: Whether it judges classes or other numbers; None where the outputs tell.
        margin_rank: Rank of the class score whose distance to the next tells how sure a scored answer
            is: 1 for the highest; None where no margin tells, and no cascade can use one.
        of_changes: Whether what the score falls by is the share of answers that change.
    """

    registry: ClassVar[Registry] = Registry(
        "metric",
        "hasten.metrics",
        {
            "top1": "hasten.inputs.metrics.top_k:Top1",
            "top5": "hasten.inputs.metrics.top_k:Top5",
            "agreement": "hasten.inputs.metrics.agreement:Agreement",
            "embedding": "hasten.inputs.metrics.embedding:Embedding",
            "regression": "hasten.inputs.metrics.regression:Regression",
            "detection_f1": "hasten.inputs.metrics.detection_f1:DetectionF1",
            "custom": "hasten.inputs.metrics.custom:Custom",
        },
    )
    needs_labels: ClassVar[bool]
    noun: ClassVar[str]
    title: ClassVar[str] = ""
    spellings: ClassVar[tuple[str, ...]] = ()
    binary: ClassVar[bool] = True
    answers: ClassVar[Literal["classes", "values"] | None] = None
    margin_rank: ClassVar[int | None] = None
    of_changes: ClassVar[bool] = False

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read the metric as it is written on a command line.

        Args:
            setting: What follows the name and its colon; empty where nothing does.
            text: All that is written, for errors.

        Raises:
            InputError: it can't be read.
        """
        if setting:
            raise InputError(f"metric {text!r}: this metric takes no setting")
        return cls()

    @classmethod
    def default_for(cls, labels: Array | None, outputs: Sequence[TensorSpec]) -> Self | None:
        """Return the metric as it suits some data, where nobody names one; None where it doesn't.

        Args:
            labels: Labels of the data; None where it has none.
            outputs: Outputs of the model.
        """
        return None

    @property
    def output(self) -> str | None:
        """The name of the output that it reads; None where it names none."""
        return None

    @property
    def function(self) -> str | None:
        """The import path of the user's own code that it runs; None where it runs none."""
        return None

    @property
    def source_sha256(self) -> str | None:
        """SHA-256 of the file with the user's own code; None where there is none."""
        return None

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
