"""Tensors of a plan, places in them, and the constants among them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.core.tensors import Array
from hasten.core.words import amount
from hasten.errors import CandidateError, IntegrityError

C_TYPES: Mapping[str, str] = {
    "float32": "float",
    "float64": "double",
    "int64": "i64",
    "int32": "i32",
    "uint8": "u8",
    "int8": "i8",
    "int16": "i16",
    "bool": "u8",
}
"""Element types that plans have, and their names in C."""
ALIGNMENT = 64
"""Bytes that the start of each tensor is a multiple of: a line of the cache, the widest vector."""
MOST_BYTES = 1 << 30
"""Largest number of bytes of all tensors of a plan together: a model beyond that isn't small."""
MOST_AXES = 64
"""Largest number of axes of a shape."""


@dataclass(frozen=True)
class Tensor:
    """Contiguous numbers.

    Attributes:
        dtype: Element type by numpy's name.
        size: Number of elements; of a tensor that depends on an input, for one row.
        offset: Place of a constant in the weights, in bytes; None for what is computed or given.
    """

    dtype: str
    size: int
    offset: int | None = None

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Access:
    """Elements of a tensor that a nest of loops reads or writes.

    Attributes:
        tensor: Name of the tensor.
        strides: Elements between neighbours along each loop's axis; 0 where all see the same one.
        offset: Element at the start of all loops.
    """

    tensor: str
    strides: tuple[int, ...]
    offset: int = 0

    @staticmethod
    def whole(tensor: str, shape: tuple[int, ...]) -> Access:
        """Return the access to a contiguous tensor of a shape, in order."""
        return Access(tensor, contiguous(shape))

    def is_whole(self, shape: tuple[int, ...]) -> bool:
        """Whether it is the access in order, over loops of a shape."""
        return not self.offset and all(
            stride == usual
            for size, stride, usual in zip(shape, self.strides, contiguous(shape), strict=True)
            if size != 1
        )


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides in elements of a contiguous array."""
    sizes = itertools.accumulate(reversed(shape[1:]), lambda a, b: a * b, initial=1)
    return tuple(reversed(list(sizes))) if shape else ()


@dataclass
class Weights:
    """Constants of a plan that is being made, each stored once.

    Attributes:
        content: Bytes, each constant at a multiple of `ALIGNMENT`.
    """

    content: bytearray

    def add(self, array: Array) -> Tensor:
        """Store an array and return its tensor."""
        data = np.ascontiguousarray(array).tobytes()
        self.content.extend(bytes(-len(self.content) % ALIGNMENT))
        offset = len(self.content)
        self.content.extend(data)
        return Tensor(str(array.dtype), int(array.size), offset)


def whole_numbers(dtype: str) -> tuple[int, int]:
    """Return the least and the largest number of an element type; (1, 0), so none, for floats."""
    if dtype == "bool":
        return 0, 1
    if np.dtype(dtype).kind not in "iu":
        return 1, 0
    limits = np.iinfo(dtype)
    return int(limits.min), int(limits.max)


def product(shape: Iterable[int]) -> int:
    """Return the product of sizes.

    Raises:
        IntegrityError: there are so many of them that it might take hours.
    """
    sizes = tuple(shape)
    if len(sizes) > MOST_AXES:
        raise IntegrityError(f"the plan is damaged: a shape has {len(sizes):,} axes")
    return math.prod(sizes)


def wrong_size(
    name: str, array: Array, tensor: Tensor, rows: int, batch: Sequence[int] | None
) -> CandidateError:
    """Return the error for an array of an input or an output that hasn't the size of the plan's tensor.

    Args:
        name: Name of the input or output.
        array: The array.
        tensor: The plan's tensor.
        rows: Rows of the request; 1 where the plan is for a whole batch.
        batch: Numbers of rows that the model takes; None for any.
    """
    wanted = f"{amount(rows * tensor.size, 'number')} of {tensor.dtype}"
    alike = "with the shapes and types of the model's inputs and outputs, and as many rows each"
    if batch is not None:
        alike = f"for a batch of {amount(batch[0], 'row')}, as the model was compiled"
    return CandidateError(
        f"the compiled model has {wanted} in {name!r}, and the array given for it has {array.size:,} of {array.dtype}, "
        f"in the shape {list(array.shape)}: give arrays {alike}"
    )
