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
            raise InputError(f"{self}: every dimension must be settled")
        return sizes

    def fits(self, array: Array) -> bool:
        """Whether an array has this dtype, this rank and every settled size."""
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
