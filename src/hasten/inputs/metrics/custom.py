"""Metric that is the user's own function."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from hasten.core.objects import can_take, load_function
from hasten.core.records import source_digest
from hasten.core.tensors import Array, Tensors
from hasten.errors import HastenError, InputError, at_fault
from hasten.inputs.metrics.base import Metric

_FIRST = 3
"""Number of an array's values that a message shows."""
_COMPARED = 3
_TRIED = 30
"""Number of calls, with scores other than all 0 or all 1, that are compared with calls for their parts."""
_ROUNDING = 1e-5
"""Largest difference of a score that is taken as rounding: products of matrices round by their height."""


@dataclass(frozen=True)
class Custom(Metric):
    """Score samples by a function `(outputs, labels)` or `(outputs, labels, exact)`.

    `outputs` and `exact` are arrays by output name, each `(n, ...)`; `labels` is `(n, ...)` or
    None. The function returns `(n,)` numbers in [0, 1]. It is called with a few samples at a time:
    one that needs them all is a figure instead, see `hasten.inputs.set_metrics.custom`, and is
    refused here where it says so by an attribute, `over_set = True`, or where its scores of some samples
    change when it is called with a part of them. A function with the attribute `binary = True` states that
    its scores are 0 or 1, so that the exact test judges them even where no search saw them; `binary = False`
    states that they aren't. Where it raises, or returns anything else, the error says what it was given:
    dtypes, shapes and first values.

    Attributes:
        path: Import path of the function, "file.py:function" or "module:function".
    """

    path: str
    needs_labels: ClassVar[bool] = False
    infinite: ClassVar[bool] = True
    noun: ClassVar[str] = "score"
    title: ClassVar[str] = "the score of your own metric"
    spellings: ClassVar[tuple[str, ...]] = ("my.py:function",)

    @classmethod
    def parse(cls, setting: str, text: str) -> Self:
        """Read "file.py:function" or "module:function"."""
        return cls(text)

    @property
    def function(self) -> str:
        """Import path of the function."""
        return self.path

    @cached_property
    def binary(self) -> bool | None:  # type: ignore[override]
        """Whether scores are 0 or 1, as the function's own `binary` states; None where it doesn't.

        Raises:
            InputError: the statement is neither true nor false.
        """
        stated = getattr(self._function, "binary", None)
        if stated is not None and not isinstance(stated, bool):
            raise InputError(
                f"{self.path} has binary = {stated!r}; it is True where all scores are 0 or 1, else False"
            )
        return stated

    @cached_property
    def _function(self) -> Callable[..., Any]:
        function = load_function(
            self.path, "a metric", "(outputs, labels)", "(outputs, labels, exact)"
        )
        if getattr(function, "over_set", False):
            raise InputError(
                f"{self.path} needs the whole set, as its over_set states, but a certificate "
                f"needs a score of each sample: use it as a figure, report={self.path!r}, "
                "together with another metric"
            )
        return function

    @property
    def source_sha256(self) -> str | None:
        """SHA-256 of the file that defines the function; None where there is none."""
        return source_digest(self._function)

    @cached_property
    def _takes_exact(self) -> bool:
        return not can_take(self._function, 2)

    def score(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        scores = self._scored(outputs, exact, labels)
        telling = sum(self._compared)
        if telling < _COMPARED and len(self._compared) < _TRIED and len(scores) >= 4:
            self._check_alone(scores, outputs, exact, labels)
            # A figure of the call may be 0 or 1 in its parts, too.
            self._compared.append(bool(0 < scores.mean() < 1))
        return scores

    @cached_property
    def _compared(self) -> list[bool]:
        """Whether each call that was compared with calls for its two parts could tell anything."""
        return []

    def _check_alone(
        self, scores: Array, outputs: Tensors, exact: Tensors, labels: Array | None
    ) -> None:
        """Check that the function gives samples the same scores in a smaller call.

        Raises:
            InputError: it doesn't, so its scores aren't those of single samples.
        """
        # A share of right answers in the whole can't be one in a part whose size has no common divisor with it.
        count = len(scores)
        cut = next(size for size in range(count // 2, 0, -1) if math.gcd(size, count) == 1)
        for part in (slice(None, cut), slice(cut, None)):
            fewer, fewer_exact = (
                {name: array[part] for name, array in given.items()} for given in (outputs, exact)
            )
            alone = self._scored(fewer, fewer_exact, None if labels is None else labels[part])
            apart = np.abs(alone - scores[part])
            if (apart > _ROUNDING).any():
                place = int(apart.argmax())
                raise InputError(
                    f"{self.path} gave sample {part.indices(count)[0] + place} of a call the score "
                    f"{scores[part][place]:.6g} among {count} samples and {alone[place]:.6g} among "
                    f"{len(alone)} of them. A certificate needs scores that don't depend on the other "
                    f"samples in the call: if it is a figure of the whole set, use report={self.path!r} "
                    "together with another metric"
                )

    def _scored(self, outputs: Tensors, exact: Tensors, labels: Array | None) -> Array:
        """Call the function, and check what it returns.

        Raises:
            InputError: it fails, or returns no scores.
        """
        given = (outputs, labels, exact) if self._takes_exact else (outputs, labels)
        count = len(next(iter(outputs.values())))
        function = self._function
        try:
            returned = function(*given)
        except HastenError:
            raise
        except Exception as error:  # the call runs the user's own code
            raise InputError(
                f"{self.path} failed: {at_fault(error)}; {came(outputs, labels)}"
            ) from error
        try:
            scores = self.checked(returned, count)
            if self.binary and (between := np.flatnonzero((scores > 0) & (scores < 1))).size:
                raise InputError(
                    f"{self.path} returned {scores[between[0]]:g} for sample {between[0]} of {count}, but "
                    "its binary = True states that each score is 0 or 1"
                )
            return scores
        except InputError as error:
            raise InputError(f"{error}; {came(outputs, labels)}") from error


def came(outputs: Tensors, labels: Array | None) -> str:
    """Say in one line what a function was given: each array's dtype, shape and first values."""
    told = ", ".join(f"{name} {_seen(array)}" for name, array in outputs.items())
    return f"it was given the outputs {told}, and " + (
        "no labels" if labels is None else f"the labels {_seen(labels)}"
    )


def _seen(array: Array) -> str:
    """Return an array's dtype, shape and first values."""
    first = ", ".join(
        f"{one:.4g}" if array.dtype.kind == "f" else str(one) for one in _first(array)
    )
    more = ", ..." if array.size > _FIRST else ""
    return f"{array.dtype} {list(array.shape)} ({first}{more})"


def _first(array: Array) -> list[Any]:
    return array.reshape(-1)[:_FIRST].tolist()  # type: ignore[no-any-return]
