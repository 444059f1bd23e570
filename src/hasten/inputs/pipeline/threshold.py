"""A yes or no from one score, or that it is too close to call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np

from hasten.core.tensors import TensorSpec
from hasten.core.words import amount
from hasten.errors import InputError
from hasten.inputs.pipeline.base import EitherOr, Origin, PostStep
from hasten.inputs.pipeline.outputs import (
    UNKNOWN,
    array_of,
    check_finite,
    output_of,
    probabilities,
    sigmoid,
)

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class Threshold(PostStep):
    """Decide yes or no by one score: `{"positive", "label", "score", "threshold"}`.

    A score at the threshold is positive. Both are compared in float32, so that a threshold that was
    chosen among a model's own scores means those scores.

    With `margin` the step may abstain, and the decision has `abstained` in either case. Where it
    abstains there is neither `positive` nor `label`.

    Attributes:
        threshold: Least score of a positive answer, such as one with the sensitivity that is asked.
        margin: Distance from the threshold within which the step abstains; 0 for a step that never
            does.
        activation: Function that turns the model's numbers into scores: "none", "sigmoid" or "softmax".
        position: Class whose score counts, from 0; None where the model gives one number only.
        labels: Names of the negative and the positive answer; without names there is no `label`.
        output: Name of the model's output; by default its only one.
    """

    threshold: float = 0.5
    margin: float = 0.0
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    position: int | None = None
    labels: tuple[str, ...] = ()
    output: str = ""

    def __post_init__(self) -> None:
        """Check that the settings fit each other."""
        if not math.isfinite(self.threshold):
            raise InputError(f"threshold.threshold={self.threshold!r}: give a finite number")
        if not 0 <= self.margin < math.inf:
            raise InputError(f"threshold.margin={self.margin!r}: give 0 or a positive number")
        if self.activation not in ("none", "sigmoid", "softmax"):
            raise InputError(
                f"threshold.activation={self.activation!r}: give 'none', 'sigmoid' or 'softmax'"
            )
        if self.position is None and self.activation == "softmax":
            raise InputError(
                "threshold.activation='softmax' needs the class whose score counts: give position=1, "
                "for instance"
            )
        if self.position is not None and self.position < 0:
            raise InputError(f"threshold.position={self.position!r}: give a class from 0")
        if len(self.labels) not in (0, 2):
            raise InputError(
                f"threshold.labels has {amount(len(self.labels), 'name')}: give the negative answer's and the "
                "positive one's"
            )

    @cached_property
    def _least(self) -> float:
        """Threshold as float32 has it."""
        return float(np.float32(self.threshold))

    @cached_property
    def _plain(self) -> tuple[float, float, tuple[str, ...] | None] | None:
        """Threshold in float32, threshold and labels, if the model's only number is the score, always decided on."""
        if self.output or self.margin or self.position is not None or self.activation != "none":
            return None
        return self._least, self.threshold, self.labels or None

    @property
    def _needs(self) -> str:
        if self.position is None:
            return "threshold needs one number for each sample, or `position` to say which class counts"
        return f"threshold needs scores of more than {amount(self.position, 'class', 'classes')}"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of two classes, in order; empty where there may be more."""
        if self.position is not None and self.position > 1:
            return ()
        return self.labels[::-1] if self.position == 0 else self.labels

    def naming(self, classes: tuple[str, ...]) -> Self:
        """Return the step with the names of the model's two classes, if it has none itself."""
        if self.labels or len(classes) != 2 or self.position not in (0, 1):
            return self
        return replace(self, labels=classes if self.position else classes[::-1])

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that there is an output with the score.

        Raises:
            InputError: there is none; the message says what is needed.
        """
        spec = output_of(outputs, self.output, "threshold")
        if spec.shape == UNKNOWN:
            return
        sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
        if self.position is None:
            fits = all(size == 1 for size in sizes)
        else:
            fits = len(spec.shape) == 2 and all(size > self.position for size in sizes)
        if not fits:
            raise InputError(f"{self._needs}; the model gives {spec}")

    def either_or(self, dtype: np.dtype[Any]) -> EitherOr | None:
        """Return both decisions, if the model's only number is the score and the step never abstains."""
        if type(self) is not Threshold or self._plain is None or dtype != _FLOAT32:
            return None
        below, reached = (
            {
                "positive": positive,
                **({"label": self.labels[positive]} if self.labels else {}),
                "score": None,
                "threshold": self.threshold,
            }
            for positive in (False, True)
        )
        return EitherOr(self._least, below, reached)

    def __call__(self, value: Any, origin: Origin) -> dict[str, Any]:
        # Half of the time of what follows.
        if (plain := self._plain) is not None and len(value) == 1:
            (array,) = value.values()
            if type(array) is np.ndarray and array.dtype is _FLOAT32 and array.size == 1:
                score = array.item()
                if math.isfinite(score):
                    least, threshold, labels = plain
                    positive = score >= least
                    if labels is None:
                        return {"positive": positive, "score": score, "threshold": threshold}
                    label = labels[positive]
                    return {
                        "positive": positive,
                        "label": label,
                        "score": score,
                        "threshold": threshold,
                    }
        scores = array_of(value, self.output, "threshold")
        if self.position is None:
            fits = scores.size == 1
        else:
            fits = scores.ndim == 1 and len(scores) > self.position
        if not fits:
            raise InputError(f"{self._needs}; got {list(scores.shape)}")
        alone = scores.size == 1 and scores.dtype.kind == "f"
        if not (alone and math.isfinite(scores.item())):  # a tenth of the time of asking numpy
            check_finite(scores, "threshold", self.output)
        if self.activation == "softmax":
            scores = probabilities(scores)
        elif self.activation == "sigmoid":
            scores = sigmoid(scores)
        score = scores.item() if alone else scores.reshape(-1)[self.position or 0]
        if scores.dtype != np.float32 or not alone:
            score = float(np.float32(score))
        told = {"score": score, "threshold": self.threshold}
        if self.margin:
            if abs(score - self.threshold) < self.margin:
                return {"abstained": True, **told, "margin": self.margin}
            told = {"abstained": False, **told}
        positive = score >= self._least
        label = {"label": self.labels[positive]} if self.labels else {}
        return {"positive": positive, **label, **told}
