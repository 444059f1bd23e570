"""Data set of arrays that are already in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hasten.core.tensors import Array
from hasten.core.words import type_in_words
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.groups import group_array
from hasten.inputs.data.missing import filled
from hasten.inputs.data.samples import (
    check_counts,
    check_finite,
    holds_numbers,
    native,
    single_number,
    tensors_hash,
    unmasked,
)


class ArrayDataset(Dataset):
    """Arrays by input name, each of shape `(n, ...)`; they are read in place, never copied.

    Samples are in the machine's byte order, whatever that of the arrays is.
    """

    def __init__(
        self,
        inputs: Mapping[str, Array],
        labels: Array | None = None,
        groups: Array | None = None,
        *,
        missing: bool = False,
    ) -> None:
        """Check that the counts agree.

        Args:
            inputs: Arrays of shape `(n, ...)` by input name.
            labels: Labels of shape `(n, ...)`; None if there are none. Single ones may be missing: None, NaN, or
                -1 for a class.
            groups: Groups of shape `(n,)`, integers or strings; None if there are none.
            missing: Whether NaN stands for a value that isn't there.

        Raises:
            InputError: there are no samples, counts differ, or an array holds Python objects or masked values.
        """
        for name, array in inputs.items():
            if not isinstance(array, np.ndarray):
                raise InputError(f"input {name!r} is {type_in_words(array)}, not a numpy array")
            if not holds_numbers(array.dtype):
                raise InputError(f"input {name!r} is an array of {array.dtype}; give numbers")
            if array.ndim == 0:
                raise InputError(single_number(name, array))
        self._arrays = {name: unmasked(array) for name, array in inputs.items()}
        self.names = tuple(inputs)
        self.missing = missing
        self.labels = None if labels is None else filled(labels)
        self.groups = None if groups is None else group_array(groups)
        counts = {name: len(array) for name, array in inputs.items()}
        self._count = check_counts(counts, self.labels, self.groups)

    def __len__(self) -> int:
        return self._count

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        rows = np.asarray(indices, dtype=np.int64)
        read = {name: native(array[rows]) for name, array in self._arrays.items()}
        for name, samples in read.items():
            check_finite(name, samples, indices, missing=self.missing)
        return read

    def content_hash(self, index: int) -> bytes:
        for name, array in self._arrays.items():
            check_finite(name, array[index : index + 1], [index], missing=self.missing)
        return tensors_hash({name: array[index] for name, array in self._arrays.items()})
