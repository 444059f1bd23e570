"""Bound the requests of a stream that are read ahead by the size that their answers have, or will have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hasten.core.tensors import Tensors, TensorSpec

MOST_REQUESTS = 128
"""Largest number of requests of one stream that are processed at once; further ones aren't read yet."""
MOST_BYTES = 8 << 20
"""Size of the unsent answers of one stream, made or foreseen, from which further requests aren't read yet."""
_UNKNOWN_BYTES = 1 << 20
"""Size at which an answer counts while nothing tells it."""


class Ahead:
    """Requests of a stream that were read but whose answers aren't sent yet.

    Attributes:
        requests: Number of these requests.
        size_bytes: Size of their answers, as far as it is known or foreseen.
    """

    __slots__ = ("_largest", "requests", "size_bytes")

    def __init__(self) -> None:
        self.requests, self.size_bytes = 0, 0
        self._largest: dict[str, int] = {}
        """Size of the largest answer so far, by the name of the model."""

    @property
    def full(self) -> bool:
        """Whether no further request may be read yet."""
        return self.requests >= MOST_REQUESTS or self.size_bytes >= MOST_BYTES

    def foreseen(
        self,
        model: str,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        tensors: Tensors,
    ) -> int:
        """Return the size that the answer to a request will have.

        Where only the model itself can tell, that is the size of the stream's largest answer so far.

        Args:
            model: Name of the model.
            inputs: Its inputs.
            outputs: Its outputs.
            tensors: Inputs of the request.
        """
        size = size_of(inputs, outputs, tensors)
        return self._largest.get(model, _UNKNOWN_BYTES) if size is None else size

    def answered(self, model: str, size_bytes: int) -> None:
        """Note how large an answer is."""
        if size_bytes > self._largest.get(model, -1):
            self._largest[model] = size_bytes


def size_of(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], tensors: Tensors
) -> int | None:
    """Return the size of all outputs of a model for the inputs of a request; None if their shapes don't tell it."""
    named: dict[int | str, int] = {}
    size = 0
    for output in outputs:
        if output.dtype == "object":
            return None
        if not named and not output.static:
            named = _sizes(inputs, tensors)
        dims = [dim if isinstance(dim, int) else named.get(dim, -1) for dim in output.shape]
        if -1 in dims:
            return None
        size += math.prod(dims) * np.dtype(output.dtype).itemsize
    return size


def _sizes(inputs: Sequence[TensorSpec], tensors: Tensors) -> dict[int | str, int]:
    """Return the sizes of a model's open dimensions in a request, by their names."""
    found: dict[int | str, int] = {}
    for spec in inputs:
        if (array := tensors.get(spec.name)) is not None:
            found.update(zip(spec.shape, array.shape, strict=False))
    found.pop("?", None)
    return found
