"""Metric over a set that is the user's own function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from hasten.core.objects import load_function
from hasten.core.records import source_digest
from hasten.core.tensors import Array, Tensors
from hasten.core.words import type_in_words
from hasten.errors import InputError
from hasten.inputs.set_metrics.base import SetMetric


@dataclass(frozen=True)
class SetCustom(SetMetric):
    """Figure of a function `(outputs, labels)`, which gets the whole set at once.

    `outputs` are arrays by output name, each `(n, ...)`; `labels` is `(n, ...)`. The function returns
    one finite number; a higher one is better unless it has the attribute `higher_is_better = False`.

    Attributes:
        path: Import path of the function, "file.py:function" or "module:function".
    """

    path: str
    spellings: ClassVar[tuple[str, ...]] = ("my.py:function",)

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read "file.py:function" or "module:function"."""
        return cls(text)

    @cached_property
    def _function(self) -> Callable[..., Any]:
        return load_function(self.path, "a metric over a set", "(outputs, labels)")

    @property
    def noun(self) -> str:  # type: ignore[override]
        """Name of the function."""
        return self.path.rpartition(":")[2]

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """Whether the function says so by its attribute; True without one."""
        return bool(getattr(self._function, "higher_is_better", True))

    @property
    def source_sha256(self) -> str | None:
        """SHA-256 of the file that defines the function; None where there is none."""
        return source_digest(self._function)

    def value(self, outputs: Tensors, labels: Array) -> float:
        returned = self._function(outputs, labels)
        try:
            found = float(returned)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self.path} returned {type_in_words(returned)}; a metric over a set returns one number"
            ) from error
        if not np.isfinite(found):
            raise InputError(
                f"{self.path} returned {found}; a metric over a set returns one number"
            )
        return found
