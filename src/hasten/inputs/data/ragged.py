"""Samples of one input that differ in shape: in memory, on disk, and in an .npz archive."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset, ShapesOf
from hasten.inputs.data.groups import group_array
from hasten.inputs.data.missing import NO_NUMBER, filled
from hasten.inputs.data.raw import MOST_AXES, RawArray
from hasten.inputs.data.samples import (
    check_counts,
    check_rank,
    holds_numbers,
    stack,
    tensors_hash,
    unmasked,
)

SHAPES = ".shapes"
"""End of the name of the array that holds the shapes of an input's samples in an .npz archive."""


_MOST_VALUES = (2**63 - 1) // 8
"""Most numbers of an array, of the widest element."""
_CHECKED = 1 << 14
"""Shapes that are checked at once."""


class RaggedArray:
    """Samples in a file, one after another, each in C order and of a shape of its own.

    Args:
        path: Path of the file.
        dtype: Element type in the file.
        shapes: Shape of each sample, `(n, axes)`.
        offset_bytes: Offset of the first sample in the file.
    """

    def __init__(
        self,
        path: Path,
        dtype: np.dtype[np.generic],
        shapes: npt.NDArray[np.int64],
        offset_bytes: int = 0,
    ) -> None:
        self._path, self._dtype, self._shapes = path, dtype, shapes
        sizes = np.prod(shapes, axis=1, dtype=np.int64) * dtype.itemsize
        self._starts = offset_bytes + np.concatenate([[0], np.cumsum(sizes)])

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def holds_numbers(self) -> bool:
        """Whether any sample holds anything."""
        return bool(self._starts[-1] > self._starts[0])

    def shape_of(self, index: int) -> tuple[int, ...]:
        """Return the shape of one sample."""
        return tuple(map(int, self._shapes[index]))

    def rows(self, indices: Sequence[int]) -> Array:
        """Read the samples at some positions, all of one shape.

        Returns:
            New C-contiguous array of shape `(len(indices), ...)`.

        Raises:
            InputError: the shapes differ, the file can't be read, or it ends before a sample does.
        """
        shape = self.shape_of(indices[0]) if len(indices) else ()
        rows = []
        for index in indices:
            if self.shape_of(index) != shape:
                raise InputError(
                    f"samples {indices[0]} and {index} differ in shape, {list(shape)} and "
                    f"{list(self.shape_of(index))}, so they can't be read together"
                )
            one = RawArray(self._path, self._dtype, (1, *shape), int(self._starts[index]))
            rows.append(one.rows([0]))
        return np.concatenate(rows) if rows else np.empty((0,), self._dtype)


def checked_shapes(name: str, shapes: Array, values: tuple[int, ...]) -> None:
    """Check that the shapes of samples add up to the values that an archive holds.

    Args:
        name: Name of the input.
        shapes: Whole numbers `(n, axes)`.
        values: Shape of the array of values.

    Raises:
        InputError: a size is negative or absurd, or they don't add up.
    """
    if len(values) != 1:
        raise InputError(
            f"input {name!r} has the shapes {name}{SHAPES}, so its values must be one after "
            f"another, in the shape (values,): got {list(values)}; see hasten.save_ragged"
        )
    if shapes.size and (int(shapes.min()) < 0 or int(shapes.max()) >= 2**31):
        raise InputError(f"{name}{SHAPES} has sizes below 0 or above 2147483647")
    total = _total(shapes)
    if total is None:
        raise InputError(
            f"{name}{SHAPES} has samples of more than {MOST_AXES} axes or of more numbers than an array holds"
        )
    if total != values[0]:
        raise InputError(
            f"input {name!r}: the shapes in {name}{SHAPES} add up to {total:,} values, but there "
            f"are {values[0]:,}; see hasten.save_ragged"
        )


def _total(shapes: Array) -> int | None:
    """Return the number of values of samples with sizes from 0 to 2**31; None where one is no array.

    Nothing is made for all samples at once: a few bytes may claim any number of shapes without axes.
    """
    count, axes = shapes.shape
    if not axes:
        return int(count)  # single numbers
    if axes > MOST_AXES:
        return None
    total = 0
    for start in range(0, count, _CHECKED):
        sizes = shapes[start : start + _CHECKED].astype(np.int64)
        values = np.ones(len(sizes), np.int64)  # as if no size were 0
        for column in np.maximum(sizes, 1).T:
            if (values > _MOST_VALUES // column).any():
                return None
            values *= column
        values[(sizes == 0).any(axis=1)] = 0
        total += (int((values >> 32).sum()) << 32) + int((values & 0xFFFFFFFF).sum())
    return total


def is_ragged(value: Any) -> bool:
    """Whether a value is a list of arrays that differ in shape, or an object array of such."""
    if isinstance(value, np.ndarray):
        if value.dtype != object or value.ndim != 1:
            return False
    elif not isinstance(value, (list, tuple)):
        return False
    if not len(value) or not all(hasattr(each, "shape") for each in value):
        return False
    return len({tuple(each.shape) for each in value}) > 1


def extremes(dataset: Dataset) -> list[int]:
    """Return positions of samples that have, between them, the least and the largest size of every axis."""
    shapes = ShapesOf(dataset)
    found: dict[int, None] = {}
    for name in dataset.names:
        sizes = np.array([each[name] for each in shapes], np.int64)
        for column in sizes.T:
            if column.min() < column.max():
                found |= dict.fromkeys((int(column.argmin()), int(column.argmax())))
    return list(found)


class RaggedDataset(Dataset):
    """Samples in memory of which some input differs in shape; they are read in place.

    Args:
        inputs: By input name, a list of one array for each sample, or an array of shape `(n, ...)`.
        labels: Labels of shape `(n, ...)`; None if there are none. Single ones may be missing: None, NaN, or
            -1 for a class.
        groups: Groups of shape `(n,)`, integers or strings; None if there are none.

    Raises:
        InputError: there are no samples, counts differ, an array holds no numbers or has masked values,
            or samples differ in type or number of axes.
    """

    ragged = True

    def __init__(
        self,
        inputs: Mapping[str, Sequence[Array] | Array],
        labels: Array | None = None,
        groups: Array | None = None,
    ) -> None:
        self._samples = {n: list(map(unmasked, samples)) for n, samples in inputs.items()}
        self.names = tuple(inputs)
        self.labels = None if labels is None else filled(labels)
        self.groups = None if groups is None else group_array(groups)
        counts = {name: len(samples) for name, samples in self._samples.items()}
        self._count = check_counts(counts, self.labels, self.groups)
        for name, samples in self._samples.items():
            first = samples[0]
            for index, sample in enumerate(samples):
                if not holds_numbers(sample.dtype):
                    raise InputError(
                        f"input {name!r}: sample {index} is an array of {sample.dtype}; give numbers"
                    )
                check_rank(name, sample, first.shape, index)
                if sample.dtype != first.dtype:
                    raise InputError(
                        f"input {name!r}: sample {index} is {sample.dtype}, but the first is "
                        f"{first.dtype}"
                    )

    def __len__(self) -> int:
        return self._count

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        return {
            name: stack(name, [samples[int(i)] for i in indices], indices)
            for name, samples in self._samples.items()
        }

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        return {name: samples[index].shape for name, samples in self._samples.items()}

    def content_hash(self, index: int) -> bytes:
        return tensors_hash({name: array[0] for name, array in self.inputs([index]).items()})


def save_ragged(
    path: str | os.PathLike[str],
    inputs: Mapping[str, Sequence[Any] | Array],
    labels: Any = None,
    groups: Any = None,
) -> None:
    """Save samples that differ in shape as an .npz archive that hasten reads, without pickles.

    An input x of samples that differ in shape becomes two arrays: x, all values one after another, and
    x.shapes, their shapes `(n, axes)`. An input of one shape stays an array `(n, ...)`.

    Args:
        path: Path of the archive to write.
        inputs: By input name, a list of one array for each sample, or an array of shape `(n, ...)`. All
            samples of an input have one dtype.
        labels: Labels of shape `(n, ...)`; None if there are none. A single one that is None or masked is
            written as NaN, or as an empty text.
        groups: Groups of shape `(n,)`, integers or strings; None if there are none.

    Raises:
        InputError: counts differ, samples of an input differ in type or number of axes, an input or a group
            is masked, a label of several whole numbers lacks some, or the file can't be written.
    """
    arrays: dict[str, Array] = {}
    given = {n: [np.asanyarray(each) for each in samples] for n, samples in inputs.items()}
    checked = RaggedDataset(given, labels, groups)
    for name, samples in given.items():
        if len({sample.shape for sample in samples}) == 1:
            arrays[name] = np.stack(samples)
            continue
        arrays[name] = np.concatenate([sample.reshape(-1) for sample in samples])
        arrays[name + SHAPES] = np.array([sample.shape for sample in samples], np.int64)
    if checked.labels is not None:
        arrays["labels"] = _written(checked.labels)
    if checked.groups is not None:
        arrays["groups"] = checked.groups
    try:
        np.savez(path, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror or error}") from error


def _written(labels: Array) -> Array:
    """Return labels as an archive holds them: NaN instead of a whole number that is missing."""
    if labels.dtype != np.int64 or not (missing := labels == NO_NUMBER).any():
        return labels
    if labels.size > len(labels):
        raise InputError(
            "some labels of several whole numbers lack some or all of them: give a number below 0 for each that "
            "doesn't count, or leave out the samples"
        )
    return np.where(missing, np.nan, labels)
