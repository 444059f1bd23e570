"""Tensors by name, and the specs that describe them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from hasten.errors import InputError

Array: TypeAlias = npt.NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]
_TOLERANCE = 0.02
"""Allowed difference between int8 kernels for one row and for many, relative to the row's largest
number."""

BY_VALUE = "by value"
"""Name of an output's first axis whose size depends on a request's values, so that it doesn't count a batch's rows."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of a model's input or output.

    Attributes:
        name: Name in the model.
        dtype: Element type by numpy's name: "float32", "int64", "uint8", "bool", ...
        shape: Entries per axis: a size, or the name of an open dimension ("batch", "?").
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def static(self) -> bool:
        """Whether every dimension is settled."""
        return all(isinstance(size, int) for size in self.shape)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Shape as integers.

        Raises:
            InputError: a dimension is open.
        """
        sizes = tuple(size for size in self.shape if isinstance(size, int))
        if len(sizes) != len(self.shape):
            raise InputError(f"{self}: every dimension must be fixed")
        return sizes

    def fits(self, array: Array) -> bool:
        """Whether an array has this dtype and a shape that fits.

        Args:
            array: Array to compare. A dimension with a name may have any size.
        """
        return (
            array.dtype == np.dtype(self.dtype)
            and array.ndim == len(self.shape)
            and all(
                not isinstance(size, int) or size == given
                for size, given in zip(self.shape, array.shape, strict=True)
            )
        )

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


def check_tensors(tensors: Tensors, specs: Sequence[TensorSpec]) -> None:
    """Check the names, dtypes and shapes of a model's inputs.

    Raises:
        InputError: a tensor doesn't fit; the message says which one and what was expected.
    """
    expected = {spec.name for spec in specs}
    if tensors.keys() != expected:
        raise InputError(
            f"the model takes the inputs {', '.join(s.name for s in specs)}; got {', '.join(tensors) or 'none'}"
        )
    for spec in specs:
        array = tensors[spec.name]
        if not spec.fits(array):
            raise InputError(
                f"input {spec.name!r}: the model takes {spec}; got {array.dtype}[{', '.join(map(str, array.shape))}]"
            )


def unlike_rows(answers: Tensors, others: Tensors, tolerance: float = _TOLERANCE) -> Array:
    """Find the rows in which two answers differ.

    Args:
        answers: Arrays by output name; the first axis counts the rows.
        others: Arrays by output name from another model or another batch, to compare with.
        tolerance: Allowed difference, relative to the largest absolute number in a row of `others`.

    Returns:
        bool of shape `(rows,)`: True if floats differ by more than the tolerance, integers differ
        at all, or only one of two numbers is NaN.
    """
    rows = rows_of(others)
    unlike = np.zeros(rows, bool)
    for name, other in others.items():
        mine = answers[name]
        if mine.shape != other.shape:
            return np.ones(rows, bool)
        if not other.size:
            continue
        pair = mine.reshape(rows, -1), other.reshape(rows, -1)
        if other.dtype.kind != "f":
            unlike |= (pair[0] != pair[1]).any(axis=1)
        else:
            one, two = (np.asarray(array, np.float64) for array in pair)
            same = (one == two) | (np.isnan(one) & np.isnan(two))
            largest = np.abs(np.where(np.isfinite(two), two, 0)).max(axis=1, keepdims=True)
            with np.errstate(invalid="ignore"):
                near = np.abs(one - two) <= tolerance * largest
            unlike |= ~(same | near).all(axis=1)
    return unlike


def rows_of(outputs: Tensors) -> int:
    """Return the number of rows that all outputs have; 1 if their first axes differ."""
    first = {array.shape[:1] for array in outputs.values()}
    (sizes,) = first if len(first) == 1 else ((1,),)
    return sizes[0] if sizes else 1
