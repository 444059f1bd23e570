"""Steps of a pipeline: from the bytes of a sensor's record to the model's input, and from its output to a grade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, PostStep, Step
from hasten.inputs.pipeline.outputs import array_of, check_finite, check_shape, output_of


@dataclass(frozen=True)
class Features(Step):
    """Read float32 numbers, `(numbers,)`, from their bytes, the lowest byte of a number first."""

    bounded: ClassVar[bool] = True

    def __call__(self, value: bytes) -> Array:
        if len(value) % 4:
            raise InputError(f"features are numbers of 4 bytes each; got {len(value)} bytes")
        return np.frombuffer(value, "<f4").astype(np.float32)


@dataclass(frozen=True)
class Grade(PostStep):
    """Name the grade with the highest score: `{"grade", "score"}`.

    Attributes:
        labels: Name of each grade, the lowest first.
        output: Name of the model's output `(grades,)`; by default its only one.
    """

    labels: tuple[str, ...] = ()
    output: str = ""

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that there is an output with a score for each grade.

        Raises:
            InputError: there is none; the message says what is needed.
        """
        spec = output_of(outputs, self.output, "grade")
        check_shape(spec, (len(self.labels),), "grade needs a score of each grade")

    def __call__(self, value: Any, origin: Origin) -> dict[str, Any]:
        scores = array_of(value, self.output, "grade")
        check_finite(scores, "grade", self.output)
        best = int(scores.argmax())
        return {"grade": self.labels[best], "score": float(scores[best])}
