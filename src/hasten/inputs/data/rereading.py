"""Samples of a Python sequence that are read anew whenever they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import HastenError, InputError, told
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.samples import check_counts, check_finite, stack, tensors_hash

_LOOKED_AT, _TIMES = 32, 3
"""Samples read again, and how often, to see whether they come as they were."""

Parts = tuple[Any, ...]
"""A sample: inputs by name, and its label and its group where it has them."""


class Rereading(Dataset):
    """A data set that makes its samples as it gives them, as one that augments does.

    All are read once when it is opened, for their labels and hashes. Where a sample is another each
    time, its hash is of its position and its label: nothing else is the same in the next process.

    Attributes:
        repeats: Whether a sample is the same whenever it is read.
    """

    def __init__(self, count: int, read: Callable[[int], Parts], source: str) -> None:
        """Read every sample once.

        Args:
            count: How many there are.
            read: From a position to a sample.
            source: What to call the data in a message.

        Raises:
            InputError: there are none, one can't be read, or they are unlike each other.
        """
        if count < 1:
            raise InputError(f"{source} has no samples")
        self._make, self._source, self._hashes = read, source, []
        rows: list[Parts] = []
        for index in range(count):
            inputs, *more = self._read(index)
            try:
                for name, array in inputs.items():
                    check_finite(name, np.asarray(array)[None], [index])
            except InputError as error:
                raise InputError(f"{source}: {error}") from error
            self._hashes.append(tensors_hash(inputs))
            rows.append(tuple(np.asarray(part) for part in more))
            if len(rows[-1]) != len(rows[0]):
                raise InputError(
                    f"{source}: sample {index} has {1 + len(more)} parts, the first has "
                    f"{1 + len(rows[0])}"
                )
            if rows[-1] and rows[-1][0].shape != rows[0][0].shape:
                raise InputError(
                    f"{source}: the label of sample {index} has the shape "
                    f"{list(rows[-1][0].shape)}, the first {list(rows[0][0].shape)}"
                )
        self.names = tuple(self._read(0)[0])
        self.labels = np.stack([row[0] for row in rows]) if rows[0] else None
        self.groups = np.array([row[1][()] for row in rows]) if len(rows[0]) > 1 else None
        check_counts({"samples": count}, self.labels, self.groups, source)
        looked_at = np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int)
        self.repeats = all(
            tensors_hash(self._read(int(i))[0]) == self._hashes[i]
            for _ in range(_TIMES)
            for i in looked_at
        )
        if not self.repeats:
            self._hashes = [
                hashlib.sha256(b"%d" % i + b"".join(part.tobytes() for part in row)).digest()
                for i, row in enumerate(rows)
            ]

    def _read(self, index: int) -> Parts:
        try:
            return self._make(index)
        except HastenError:
            raise
        except Exception as error:  # the user's own code runs here
            raise InputError(f"{self._source}: sample {index}: {told(error)}") from error

    def __len__(self) -> int:
        return len(self._hashes)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        samples = [self._read(int(index))[0] for index in indices]
        return {name: stack(name, [s[name] for s in samples], indices) for name in self.names}

    def content_hash(self, index: int) -> bytes:
        return self._hashes[index]
