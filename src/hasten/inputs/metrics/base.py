"""Contract of a metric, which scores each sample with a number in [0, 1]."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import numpy as np

from hasten.core.records import Value, type_name
from hasten.core.registry import Registry
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.words import amount, type_in_words
from hasten.errors import InputError
from hasten.inputs.metrics.outputs import equal_bits
from hasten.inputs.pipeline.base import Pipeline


class Metric(Value, ABC):
    """Score of each answer: a frozen dataclass whose fields are the metric's settings.

    Attributes:
        needs_labels: Whether data without labels is refused; if not, the exact model's answers count as
            the truth there.
        noun: Noun for the mean score in phrases such as "accuracy drop": "accuracy", "agreement",
            "F1", ...
        title: Name of the mean score in a certificate: "top-1 accuracy"; "the mean" and the noun where
            empty.
        spellings: Forms of the metric on a command line, shown to people: "top1[:OUTPUT]"; its name
            alone where empty.
        binary: Whether scores are 0 or 1, so that little data suffices for a certificate; None where only
            the scores themselves can tell.
        answers: Kind of answers that it judges, "classes" or "values"; None where that depends on
            the outputs.
        margin_rank: Rank of the class score whose distance to the next one measures how sure an
            answer is: 1 for the highest. None where no margin does, so that no cascade is possible.
        of_changes: Whether the score falls by the share of answers that change.
        infinite: Whether it reads outputs with infinite numbers, such as -inf for a class that is masked.
        over_set: Whether samples are scored against each other. Then `score` gives a reading of
            each, any finite number or a row of them, `draws` says which samples are compared, and
            `over` gives the scores.
        draw: Noun for one independent draw, where it is neither a sample nor a group.
    """

    registry: ClassVar[Registry] = Registry(
        "metric",
        "hasten.metrics",
        {
            "top1": "hasten.inputs.metrics.top_k:Top1",
            "top5": "hasten.inputs.metrics.top_k:Top5",
            "agreement": "hasten.inputs.metrics.agreement:Agreement",
            "embedding": "hasten.inputs.metrics.embedding:Embedding",
            "same_answers": "hasten.inputs.metrics.same_answers:SameAnswers",
            "regression": "hasten.inputs.metrics.regression:Regression",
            "detection_f1": "hasten.inputs.metrics.detection_f1:DetectionF1",
            "auroc": "hasten.inputs.metrics.auroc:Auroc",
            "brier": "hasten.inputs.metrics.brier:Brier",
            "cer": "hasten.inputs.metrics.transcripts:Cer",
            "wer": "hasten.inputs.metrics.transcripts:Wer",
            "token_accuracy": "hasten.inputs.metrics.tokens:TokenAccuracy",
            "entity_f1": "hasten.inputs.metrics.tokens:EntityF1",
            "iou": "hasten.inputs.metrics.iou:Iou",
            "pck": "hasten.inputs.metrics.keypoints:Pck",
            "oks": "hasten.inputs.metrics.keypoints:Oks",
            "ndcg": "hasten.inputs.metrics.ranking:Ndcg",
            "recall": "hasten.inputs.metrics.ranking:Recall",
            "group_ndcg": "hasten.inputs.metrics.queries:GroupNdcg",
            "group_recall": "hasten.inputs.metrics.queries:GroupRecall",
            "all_of": "hasten.inputs.metrics.combined:AllOf",
            "each_output": "hasten.inputs.metrics.combined:EachOutput",
            "custom": "hasten.inputs.metrics.custom:Custom",
        },
    )
    needs_labels: ClassVar[bool] = False
    noun: ClassVar[str] = "score"
    title: ClassVar[str] = ""
    spellings: ClassVar[tuple[str, ...]] = ()
    binary: ClassVar[bool | None] = False
    answers: ClassVar[Literal["classes", "values"] | None] = None
    margin_rank: ClassVar[int | None] = None
    of_changes: ClassVar[bool] = False
    infinite: ClassVar[bool] = False
    over_set: ClassVar[bool] = False
    draw: ClassVar[str] = ""

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
    def default_for(cls, labels: Array | None, outputs: Sequence[TensorSpec]) -> Self | None:
        """Return the metric with settings that suit some data; None where it doesn't suit them.

        Args:
            labels: Labels of the data; None where it has none.
            outputs: Outputs of the model.
        """
        return None

    @property
    def output(self) -> str | None:
        """Name of the output that the metric reads; None where it names none."""
        return None

    @property
    def decides(self) -> bool:
        """Whether `unchanged` compares decisions, such as the highest class, which roundings leave alone."""
        return False

    @property
    def reads_classes(self) -> bool:
        """Whether labels are classes, so that a label of -1 stands for a missing one."""
        return False

    @property
    def function(self) -> str | None:
        """Import path of the user's own code that the metric runs; None where it runs none."""
        return None

    @property
    def source_sha256(self) -> str | None:
        """SHA-256 of the file with the user's own code; None where there is none."""
        return None

    def takes_infinite(self, name: str) -> bool:
        """Whether an output may hold infinite numbers: the metric reads them, or another output alone.

        Args:
            name: Name of the output.
        """
        return self.infinite or self.output not in (None, name)

    def around(self, pipeline: Pipeline | None) -> Metric:
        """Return the metric as it reads a model with these steps around it."""
        return self

    def checked(self, scores: object, count: int) -> Array:
        """Return scores as float64 of shape `(count,)`, each in [0, 1].

        Args:
            scores: Return value of `score` or of a user's own function.
            count: Number of samples.

        Raises:
            InputError: which score isn't one.
        """
        who = self.function or type_name(self)
        try:
            found = np.asarray(scores, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{who} returned {type_in_words(scores)}; a metric returns ({count},) numbers"
            ) from error
        if not found.ndim:
            raise InputError(
                f"{who} returned {type_in_words(scores)}; a metric returns ({count},) numbers"
            )
        if found.shape != (count,):
            raise InputError(
                f"{who} returned {list(found.shape)} for {amount(count, 'sample')}; a metric returns ({count},)"
            )
        wrong = np.flatnonzero(~((found >= 0) & (found <= 1)))
        if len(wrong):
            raise InputError(
                f"{who} returned {found[wrong[0]]:g} for sample {wrong[0]} of {count}; a score lies in "
                "[0, 1]"
            )
        return found

    def check_labels(self, labels: Array) -> None:
        """Check what only all labels together can tell, before any answer is scored.

        Args:
            labels: Labels of the samples, `(n, ...)`.

        Raises:
            InputError: the metric would misread them.
        """

    def draws(self, labels: Array | None, units: Array) -> Array:
        """Return the number of the independent draw that each sample belongs to, `(n,)`.

        Args:
            labels: Labels of the samples, `(n, ...)`, or None.
            units: Number of each sample's group, `(n,)`; equal numbers were drawn together.

        Raises:
            InputError: the labels aren't of the form that the metric reads.
        """
        return units

    def over(self, readings: Array, labels: Array | None, units: Array) -> Array:
        """Return scores of a whole set from what `score` gave for each sample.

        Args:
            readings: Numbers that `score` gave for all samples, in order, `(n,)`.
            labels: Labels of the samples, `(n, ...)`, or None.
            units: Number of each sample's group, `(n,)`; equal numbers were drawn together.

        Returns:
            Scores `(n,)`, each in [0, 1]; samples of one draw have the same.
        """
        return readings

    def unchanged(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where two models' answers get the same score, whatever the label.

        A metric that doesn't know better calls answers the same only where they are equal bit for bit.

        Args:
            outputs: Outputs of a model by name, each of shape `(n, ...)`.
            others: Outputs of the exact model for these samples, in the form of `outputs`.

        Returns:
            bool of shape `(n,)`: True only where every label, and none at all, would give both answers
            the same score. Of a metric over a set that is the same reading.

        Raises:
            InputError: the outputs aren't of the form that the metric reads.
        """
        return equal_bits(outputs, others)

    def redecided(self, outputs: Tensors, others: Tensors) -> Array:
        """Return where two models decide otherwise; nowhere for a metric that doesn't score decisions.

        Args:
            outputs: Outputs of a model by name, each of shape `(n, ...)`.
            others: Outputs of the exact model for these samples, in the form of `outputs`.

        Returns:
            bool of shape `(n,)`.

        Raises:
            InputError: the outputs aren't of the form that the metric reads.
        """
        if self.decides:
            return ~self.unchanged(outputs, others)
        return np.zeros(len(next(iter(outputs.values()))), bool)

    @abstractmethod
    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        """Score some samples.

        Args:
            outputs: Outputs of the judged model by name, each of shape `(n, ...)`.
            exact: Outputs of the exact model for these samples, in the form of `outputs`.
            labels: Labels of the samples, `(n, ...)`, or None.

        Returns:
            Scores as float64 of shape `(n,)`, each in [0, 1].

        Raises:
            InputError: the outputs or labels aren't of the form that the metric reads.
        """
