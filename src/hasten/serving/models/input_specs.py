"""Specs of a model's inputs, in the form that requests are checked against."""

from __future__ import annotations

import numpy as np

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.serving.protocol.datatypes import datatype_of
from hasten.serving.protocol.errors import Kind, ProtocolError


class InputSpec:
    """Spec of an input in the form that requests are checked against.

    Args:
        spec: Spec of the input.
        batched: Whether its first axis is that of a batch.

    Attributes:
        name: Name of the input.
        batched: Whether its first axis is that of a batch.
        dtype: Type of its elements.
        datatype: The same in the protocol's terms.
        words: Type and shape for messages.
    """

    __slots__ = ("_shape", "batched", "datatype", "dtype", "name", "words")

    def __init__(self, spec: TensorSpec, batched: bool) -> None:
        self.name, self.batched = spec.name, batched
        self.dtype = np.dtype(spec.dtype)
        self._shape = tuple(size if isinstance(size, int) else None for size in spec.shape)
        shape = ", ".join(map(str, spec.shape))
        self.datatype = datatype_of(spec.dtype)
        self.words = f"{self.datatype}[{shape}]"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape has the spec's rank and every fixed size."""
        if len(shape) != len(self._shape):
            return False
        for want, size in zip(self._shape, shape, strict=True):
            if want != size and want is not None:
                return False
        return True

    def mismatch(self, datatype: str, shape: tuple[int, ...]) -> ProtocolError:
        """Return the error that states what the model takes and what it got."""
        return ProtocolError(
            Kind.INVALID,
            f"input {self.name!r}: the model takes {self.words}; got {datatype}{list(shape)}",
        )


def datatype_of_array(array: Array) -> str:
    """Return the protocol's datatype of an array; numpy's where the protocol has none."""
    try:
        return datatype_of(array.dtype.name)
    except InputError:
        return array.dtype.name
