"""Inputs of a session that take only the numbers for which its plan was made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hasten.core.tensors import Array
from hasten.core.words import numbers_in_words
from hasten.engines.base import Artifact
from hasten.engines.compiled.plan import Plan
from hasten.errors import InputError


class Constants:
    """Numbers of a plan's constant inputs, and the check of requests against them.

    Args:
        artifact: Artifact that was opened.
        plan: Its plan, checked.

    Attributes:
        numbers: The numbers in C order, by the name of the input.
    """

    def __init__(self, artifact: Artifact, plan: Plan) -> None:
        self.numbers: dict[str, tuple[int, ...]] = {}
        self._wanted: list[tuple[int, str, bytes]] = []
        for place, (spec, tensor) in enumerate(zip(artifact.request, plan.inputs, strict=True)):
            if tensor in plan.constant_inputs:
                numbers = plan.constant_inputs[tensor]
                self.numbers[spec.name] = numbers
                self._wanted.append((place, spec.name, np.array(numbers, spec.dtype).tobytes()))

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def check(self, given: Sequence[Array]) -> None:
        """Check a request.

        Args:
            given: Arrays in the order of the plan's inputs.

        Raises:
            InputError: an input has other numbers.
        """
        for place, name, wanted in self._wanted:
            if given[place].tobytes() != wanted:
                only = numbers_in_words(self.numbers[name])
                got = numbers_in_words(given[place].ravel()[:9].astype(int).tolist())
                raise InputError(
                    f"input {name!r} must be {only}, as in all of the data that the model was optimized "
                    f"with: got {got}; for other values, optimize the model with data that has them"
                )
