"""Embeddings of length 1, and quantities in their unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, PostStep
from hasten.inputs.pipeline.outputs import (
    UNKNOWN,
    array_of,
    check_finite,
    check_shape,
    output_of,
)

_FAR = 0.05
"""Difference that makes another decision: relative to the larger quantity, or to an embedding's length."""


@dataclass(frozen=True)
class L2Normalize(PostStep):
    """Scale an embedding to length 1, so that a dot product is a cosine: a list of numbers.

    Attributes:
        output: Name of the model's output [numbers]; by default its only one.
    """

    output: str = ""
    scored: ClassVar[bool] = False

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that there is an output with one vector for a sample.

        Raises:
            InputError: there is none; the message says what is needed.
        """
        spec = output_of(outputs, self.output, "l2_normalize")
        check_shape(spec, (None,), "l2_normalize needs an embedding of shape [batch, numbers]")

    def __call__(self, value: Any, origin: Origin) -> list[float]:
        vector = array_of(value, self.output, "l2_normalize")
        if vector.ndim != 1:
            raise InputError(f"l2_normalize needs one vector; got {list(vector.shape)}")
        check_finite(vector, "l2_normalize", self.output)
        vector = vector.astype(np.float64)
        length = math.sqrt(vector @ vector)
        if not length:
            raise InputError(
                "l2_normalize needs a direction; the model gives zeros for this sample"
            )
        return (vector / length).tolist()  # type: ignore[no-any-return]

    def agrees(self, decision: Any, exact: Any) -> bool:
        """Whether the two embeddings are as long and at most 0.05 apart: a cosine of at least 0.99875."""
        return len(decision) == len(exact) and math.dist(decision, exact) <= _FAR


@dataclass(frozen=True)
class Quantity(PostStep):
    """Tell the numbers of a regression in their unit.

    The decision is `{"value", "unit"}`; with `names` a list of `{"name", "value", "unit"}`. The value is
    the model's number times `scale`, plus `offset`.

    Attributes:
        scale: Factor of each number, the standard deviation in training for instance.
        offset: Number that is added then, the mean in training for instance.
        unit: Unit of the values; empty where they have none, and then the answers have no `unit`.
        names: Name of each number; empty where there is one number.
        output: Name of the model's output; by default its only one.
    """

    scale: float = 1.0
    offset: float = 0.0
    unit: str = ""
    names: tuple[str, ...] = ()
    output: str = ""
    scored: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check that scale and offset are finite."""
        for name, number in (("scale", self.scale), ("offset", self.offset)):
            if not math.isfinite(number):
                raise InputError(f"quantity.{name}={number!r}: give a finite number")

    @property
    def _needs(self) -> str:
        count = len(self.names) or 1
        return f"quantity needs {count} number{'s'[: count > 1]} for a sample"

    def check(self, outputs: Sequence[TensorSpec]) -> None:
        """Check that there is an output with as many numbers as names.

        Raises:
            InputError: there is none; the message says what is needed.
        """
        spec = output_of(outputs, self.output, "quantity")
        sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
        settled = len(sizes) == len(spec.shape) - 1
        if spec.shape != UNKNOWN and settled and math.prod(sizes) != (len(self.names) or 1):
            raise InputError(f"{self._needs}; the model gives {spec}")

    def __call__(self, value: Any, origin: Origin) -> Any:
        numbers = array_of(value, self.output, "quantity")
        if numbers.size != (len(self.names) or 1):
            raise InputError(f"{self._needs}; got {list(numbers.shape)}")
        values = numbers.reshape(-1).astype(np.float64) * self.scale + self.offset
        check_finite(values, "quantity", self.output)
        unit = {"unit": self.unit} if self.unit else {}
        told = [{"value": number, **unit} for number in values.tolist()]
        if not self.names:
            return told[0]
        return [{"name": name, **one} for name, one in zip(self.names, told, strict=True)]

    def agrees(self, decision: Any, exact: Any) -> bool:
        """Whether each value is within 5% of the exact model's, of the larger of the two."""
        mine, values = ([one] if isinstance(one, dict) else one for one in (decision, exact))
        return len(mine) == len(values) and all(
            math.isclose(one["value"], other["value"], rel_tol=_FAR)
            for one, other in zip(mine, values, strict=True)
        )
