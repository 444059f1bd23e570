"""Tables that a model looks its inputs' numbers up in, and the check that a request's numbers are rows of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.words import amount
from hasten.errors import InputError

MOST_NUMBERS = 1000
"""Largest number of places of an input that have a table each."""
_FAR = 1 << 62
"""Number that no row has, so that a row's neighbour is an int64 too."""
_FEW = 32
"""Size up to which Python compares numbers faster than NumPy."""


@dataclass(frozen=True)
class Lookup:
    """Rows of the tables that an input's numbers are looked up in.

    A table of `r` rows has the numbers -r <= n < r, since those below 0 count from its end, as for Gather of ONNX.
    If the graph adds a constant `c` before it looks them up, these are -r - c <= n < r - c. Of a float its whole
    part counts.

    Attributes:
        input: Name of the input.
        shape: Shape of `rows`: the input's size along axes on which tables differ, and 1 along others.
        rows: Rows of the smallest table for each place of the input, in C order, less what is added before it;
            0 for a place without a table.
        first: First number of each place, which is 0 or below; empty where that is `-rows` everywhere.
    """

    input: str
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    first: tuple[int, ...] = ()

    @property
    def least(self) -> int:
        """Rows of the smallest table."""
        return min(count for count in self.rows if count)

    def fits(self, spec: TensorSpec) -> bool:
        """Whether the tables can be those of an input."""
        sizes = zip(self.shape, spec.shape, strict=False)
        return (
            len(self.shape) == len(spec.shape)
            and all(own == 1 or own == size for own, size in sizes)
            and len(self.rows) == math.prod(self.shape) <= MOST_NUMBERS
            and all(0 <= count < _FAR for count in self.rows)
            and len(self.first) in (0, len(self.rows))
            and all(-_FAR < number <= 0 for number in self.first)
        )


def check_lookups(lookups: Sequence[Lookup], inputs: Sequence[TensorSpec]) -> None:
    """Check that tables can be those of a model's inputs.

    Raises:
        InputError: they can't.
    """
    specs = {spec.name: spec for spec in inputs}
    for one in lookups:
        if one.input not in specs or not one.fits(specs[one.input]):
            raise InputError(
                f"it states rows of tables of the input {one.input!r:.100}, which don't fit it"
            )


def _are_between(array: Array, below: int, above: int) -> bool:
    """Whether all numbers are between two others, as fast as it can be told."""
    if array.size <= _FEW:
        return all(below < one < above for one in array.ravel().tolist())
    return bool(below < array.min().item() and array.max().item() < above)


class RowNumbers:
    """Check of a request's numbers that a model looks up, in a few microseconds.

    Args:
        lookups: Tables, which fit the inputs.
    """

    def __init__(self, lookups: Sequence[Lookup]) -> None:
        self._tables: list[tuple[str, Array, Array, Array | None]] = []
        self._alone: dict[str, tuple[int, int]] = {}
        """Numbers below and above those of inputs that have one table."""
        for one in lookups:
            rows = np.array(one.rows, np.int64).reshape(one.shape)
            first = np.array(one.first, np.int64).reshape(one.shape) if one.first else -rows
            free = None if rows.all() else rows == 0
            self._tables.append((one.input, first - 1, rows, free))
            if rows.size == 1:
                self._alone[one.input] = int(first.item()) - 1, int(rows.item())

    @classmethod
    def of(cls, lookups: Sequence[Lookup], inputs: Sequence[TensorSpec]) -> Self | None:
        """Return the check of the inputs that have tables; None where none has."""
        names = {spec.name for spec in inputs}
        found = [one for one in lookups if one.input in names and any(one.rows)]
        return cls(found) if found else None

    def __call__(self, tensors: Tensors) -> None:
        """Check the numbers of a request whose shapes fit.

        Raises:
            InputError: a number is no row of its table; the message names the input, the number and the rows.
        """
        for name, below, rows, free in self._tables:
            array = tensors[name]
            if (alone := self._alone.get(name)) is not None and _are_between(array, *alone):
                continue
            found = (array > below) & (array < rows)  # NaN is none
            if free is not None:
                found |= free
            if not found.all():
                place = np.unravel_index(np.argmin(found), found.shape)
                count = int(np.broadcast_to(rows, found.shape)[place])
                added = int(np.broadcast_to(below, found.shape)[place]) + 1 != -count
                raise InputError(
                    f"input {name!r} has the number {array[place]}, and the table that it looks up has "
                    + ("no such row, after what the model adds" if added else amount(count, "row"))
                    + f": give numbers from 0 to {count - 1}, as the model's own tokenizer or categories do"
                )

    def within(self, tensors: Tensors) -> dict[str, Array]:
        """Return a made-up request with each number that is looked up made that of the nearest row from 0."""
        made = dict(tensors)
        for name, _, rows, free in self._tables:
            near = np.asarray(np.clip(made[name], 0, rows - 1), made[name].dtype)
            made[name] = near if free is None else np.where(free, made[name], near)
        return made
