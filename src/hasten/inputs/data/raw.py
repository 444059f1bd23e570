"""Arrays that stay on disk and are read row by row.

They are read by pread, not mmap: pages of a mapped file count as the process's memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError

MOST_AXES = 32
"""Most axes of an array that a file may claim; each version of numpy takes as many."""


def is_possible(shape: Sequence[int], dtype: np.dtype[np.generic]) -> bool:
    """Whether numpy can have an array of a shape, of single elements, even if a size is 0."""
    if len(shape) > MOST_AXES or dtype.subdtype is not None or min(shape, default=0) < 0:
        return False
    return math.prod(max(1, size) for size in shape) * dtype.itemsize < 1 << 63


@dataclass(frozen=True)
class RawArray:
    """Array in C order within a file.

    Attributes:
        path: Path of the file.
        dtype: Element type in the file; bytes in another order than the machine's are swapped on
            reading.
        shape: Shape of the whole array, `(n, ...)`.
        offset_bytes: Offset of the first row in the file.
    """

    path: Path
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset_bytes: int = 0

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def holds_numbers(self) -> bool:
        """Whether a row holds anything."""
        return self.row_bytes > 0

    @property
    def row_bytes(self) -> int:
        """Size of one row in bytes."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def shape_of(self, index: int) -> tuple[int, ...]:
        """Return the shape of one row."""
        return self.shape[1:]

    def rows(self, indices: Sequence[int]) -> Array:
        """Read the rows at some positions.

        Returns:
            New C-contiguous array of shape `(len(indices), ...)`.

        Raises:
            InputError: the file can't be read, or it ends before the row does.
        """
        out = np.empty((len(indices), *self.shape[1:]), self.dtype)
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"can't read {self.path}: {error.strerror}") from error
        try:
            for row, index in enumerate(indices):
                if not 0 <= index < len(self):
                    raise IndexError(f"row {index} of {len(self)}")
                self._read_row(file, index, out, row)
        finally:
            os.close(file)
        return out if self.dtype.isnative else out.astype(self.dtype.newbyteorder("="))

    def _read_row(self, file: int, index: int, out: Array, row: int) -> None:
        """Fill `out[row]`; repeats pread, since one call may read less than was asked."""
        if not self.row_bytes:
            return
        wanted = out[row : row + 1].reshape(-1).view(np.uint8).data
        place = self.offset_bytes + index * self.row_bytes
        while wanted:
            try:
                count = os.preadv(file, [wanted], place)
            except OSError as error:
                raise InputError(f"can't read {self.path}: {error.strerror}") from error
            if count == 0:
                raise InputError(f"{self.path} is cut short: it ends before sample {index} does")
            wanted, place = wanted[count:], place + count
