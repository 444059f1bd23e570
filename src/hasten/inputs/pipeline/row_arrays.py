"""Arrays of rows that come as the model takes them, checked for what the step `row` refuses in a row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.rows import Row

_FEW = 4096
"""Number of values up to which one product is quicker than a look for the least and the largest."""


class RowArrays:
    """Finds NaN in columns that need a value, and infinite numbers in columns that take none.

    Args:
        step: Step that reads a row.
    """

    def __init__(self, step: Row) -> None:
        self._columns, self._dtype = step.columns, step.dtype
        some = {column for column, _ in (*step.words, *step.choices)} | {*step.hashed}
        self._needed = np.array([column in step.needed for column in step.columns])
        self._finite = np.array(
            [step.infinite == "refuse" or column in some for column in step.columns]
        )
        self._some_needed, self._all_finite = bool(self._needed.any()), bool(self._finite.all())
        self._any = not (self._some_needed or self._finite.any())

    @classmethod
    def of(cls, pipeline: Pipeline | None, inputs: Sequence[TensorSpec]) -> RowArrays | None:
        """Return the check of a pipeline whose only step before the model is `row`.

        None for any other pipeline, and where the model takes whatever numbers there are.
        """
        steps = () if pipeline is None else pipeline.steps
        if len(steps) != 1 or not isinstance(steps[0], Row) or len(inputs) != 1:
            return None
        check, (spec,) = cls(steps[0]), inputs
        fits = spec.shape[1:] == (len(steps[0].columns),) and spec.dtype == steps[0].dtype
        return check if fits and not check._any else None

    def check(self, name: str, rows: Array) -> None:
        """Check the numbers of an input, at the cost of one product for a row that has nothing unusual.

        Args:
            name: Name of the input.
            rows: Floats of shape `(rows, columns)`.

        Raises:
            InputError: a number is refused; the message names the row, from 0, and the column.
        """
        # dot() would be quicker, but warns of overflows.
        if rows.size <= _FEW and math.isfinite(np.vdot(rows, rows)):
            return
        found = self.refused(rows)
        if found is not None:
            where = f"row {found[0]}: " if len(rows) > 1 else ""
            raise InputError(f"input {name!r}: {where}{found[1]}")

    def refused(self, rows: Array) -> tuple[int, str] | None:
        """Find the first row with a number that is refused.

        Args:
            rows: Floats of shape `(rows, columns)`.

        Returns:
            The row's place, from 0, and what is wrong with it; None if nothing is.
        """
        if self._any or _plain(rows):
            return None
        bad = np.isinf(rows)
        if not self._all_finite:
            bad &= self._finite
        if self._some_needed:
            bad |= np.isnan(rows) & self._needed
        if not np.count_nonzero(bad):  # a tenth of the time of any()
            return None
        row, column = divmod(int(bad.argmax()), len(self._columns))
        lacks = math.isnan(rows[row, column])
        why = "has no value" if lacks else f"isn't a number that {self._dtype} holds"
        return row, f"the column {self._columns[column]!r} {why}"


def _plain(rows: Array) -> bool:
    """Whether no number is NaN or infinite; False also for some whose squares are too large to add."""
    if rows.size <= _FEW:
        return math.isfinite(np.vdot(rows, rows))
    return math.isfinite(rows.min()) and math.isfinite(rows.max())
