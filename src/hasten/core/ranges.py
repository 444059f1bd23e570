"""Ranges of the numbers in samples, against which later inputs are held."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import InputError

MOST_COLUMNS = 1000
"""Largest number of columns that have a range each; an input with more numbers has one for all."""


@dataclass(frozen=True)
class ValueRange:
    """Range of the finite numbers of one input, over some samples.

    Attributes:
        input: Name of the input.
        low: Least number in each column, or the one for all columns.
        high: Largest number in each column, or the one for all columns.
    """

    input: str
    low: tuple[float, ...]
    high: tuple[float, ...]

    def leaves(self, array: Array) -> bool:
        """Whether a number of some samples lies outside; NaN, for a missing value, doesn't.

        Args:
            array: The input of these samples, `(n, ...)`, or of one without an axis for samples.
        """
        if array.dtype.kind not in "fiub" or array.size == 0:
            return False
        if array.size % len(self.low):
            return True
        numbers = array.reshape(-1, len(self.low))
        low, high = np.array(self.low), np.array(self.high)
        return bool(((numbers < low) | (numbers > high)).any())


def ranges_of(parts: Iterable[Tensors]) -> tuple[ValueRange, ...]:
    """Return the range of each input of numbers.

    An input whose samples are vectors of few numbers, as rows of a table are, has a range for each
    column. Inputs without a finite number in some column, or with none at all, have none.

    Args:
        parts: Samples by input name, each `(n, ...)`.
    """
    lows: dict[str, Array] = {}
    highs: dict[str, Array] = {}
    for part in parts:
        for name, array in part.items():
            if array.dtype.kind not in "fiu" or array.size == 0:
                continue
            by_column = array.ndim == 2 and 1 < array.shape[1] <= MOST_COLUMNS
            numbers = array if by_column else array.reshape(-1, 1)
            low, high = (each.astype(np.float64) for each in (numbers.min(0), numbers.max(0)))
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                finite = np.isfinite(numbers)
                low = np.where(finite, numbers, np.inf).min(axis=0).astype(np.float64)
                high = np.where(finite, numbers, -np.inf).max(axis=0).astype(np.float64)
            if name in lows and lows[name].shape != low.shape:  # rows that differ in length
                low, high = low.min(keepdims=True), high.max(keepdims=True)
                lows[name], highs[name] = (
                    lows[name].min(keepdims=True),
                    highs[name].max(keepdims=True),
                )
            lows[name] = np.minimum(lows.get(name, low), low)
            highs[name] = np.maximum(highs.get(name, high), high)
    return tuple(
        ValueRange(name, tuple(low.tolist()), tuple(highs[name].tolist()))
        for name, low in lows.items()
        if np.isfinite(low).all() and np.isfinite(highs[name]).all()
    )


def check_ranges(ranges: Sequence[ValueRange], inputs: Sequence[TensorSpec]) -> None:
    """Check that ranges are of a model's inputs.

    Raises:
        InputError: one isn't, or its numbers can't be a range.
    """
    names = {spec.name for spec in inputs}
    for one in ranges:
        if one.input not in names:
            raise InputError(
                f"it states a range of the input {one.input!r:.100}, which isn't there"
            )
        if len(one.low) != len(one.high) or not 1 <= len(one.low) <= MOST_COLUMNS:
            raise InputError(f"it states {len(one.low)} ranges of the input {one.input!r:.100}")
        if not all(np.isfinite(one.low)) or not all(np.isfinite(one.high)):
            raise InputError(f"it states a range of the input {one.input!r:.100} without an end")
        if any(low > high for low, high in zip(one.low, one.high, strict=True)):
            raise InputError(f"it states a range of the input {one.input!r:.100} that is empty")
