"""Data set of a Python sequence whose samples are read again on every access."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import HastenError, InputError, told
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.groups import group_array, in_text
from hasten.inputs.data.missing import stacked
from hasten.inputs.data.samples import check_counts, check_finite, stack, tensors_hash

_LOOKED_AT, _TIMES = 32, 3
"""Number of samples that are read again, and how often, to see whether they stay the same."""

Parts = tuple[Any, ...]
"""Sample: inputs by name, then its label and its group where it has them."""


class Rereading(Dataset):
    """Samples that are computed on every access, as an augmenting data set does.

    Opening reads every sample once, for labels and hashes. Where samples differ between reads, a
    sample's hash covers only its position and label, since only these are the same in the next
    process.

    Attributes:
        repeats: Whether a sample stays the same between reads.
    """

    def __init__(self, count: int, read: Callable[[int], Parts], source: str) -> None:
        """Read every sample once.

        Args:
            count: Number of samples.
            read: Function from a position to its sample.
            source: Name of the data in messages.

        Raises:
            InputError: there are no samples, one can't be read, or they differ in form.
        """
        if count < 1:
            raise InputError(f"{source} has no samples")
        self._make, self._source, self._hashes = read, source, []
        rows: list[Parts] = []
        self._shapes: list[dict[str, tuple[int, ...]]] = []
        for index in range(count):
            inputs, *more = self._read(index)
            try:
                for name, array in inputs.items():
                    check_finite(name, np.asarray(array)[None], [index])
            except InputError as error:
                raise InputError(f"{source}: {error}") from error
            self._hashes.append(tensors_hash(inputs))
            self._shapes.append({name: np.shape(array) for name, array in inputs.items()})
            rows.append((*map(np.asarray, more[:1]), *map(np.asarray, map(in_text, more[1:]))))
            if len(rows[-1]) != len(rows[0]):
                raise InputError(
                    f"{source}: sample {index} has {1 + len(more)} parts, but the first has "
                    f"{1 + len(rows[0])}"
                )
            if rows[-1] and rows[-1][0].shape != rows[0][0].shape:
                raise InputError(
                    f"{source}: the label of sample {index} has the shape "
                    f"{list(rows[-1][0].shape)}, but the first has {list(rows[0][0].shape)}"
                )
        self.names = tuple(self._read(0)[0])
        self.ragged = any(one != self._shapes[0] for one in self._shapes)
        self.labels = stacked([row[0] for row in rows]) if rows[0] else None
        self.groups = group_array([row[1][()] for row in rows]) if len(rows[0]) > 1 else None
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

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        return self._shapes[index] if self.repeats else super().shapes(index)

    def _read(self, index: int) -> Parts:
        try:
            return self._make(index)
        except HastenError:
            raise
        except Exception as error:  # reading runs the user's own code
            raise InputError(f"{self._source}: sample {index}: {told(error)}") from error

    def __len__(self) -> int:
        return len(self._hashes)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        samples = [self._read(int(index))[0] for index in indices]
        return {name: stack(name, [s[name] for s in samples], indices) for name in self.names}

    def content_hash(self, index: int) -> bytes:
        return self._hashes[index]

    def has_former_hashes(self) -> bool:
        """Whether a sample may have a former hash: none has whose hash covers no input."""
        return self.repeats and super().has_former_hashes()

    def former_hash(self, index: int) -> bytes | None:
        return super().former_hash(index) if self.repeats else None
