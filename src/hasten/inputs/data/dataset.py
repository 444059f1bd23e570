"""Contract of a data set: samples that are read lazily, with labels and groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from hasten.core.tensors import Array
from hasten.inputs.data.samples import SAME_HASH, former_hash


class Dataset(ABC):
    """Samples by position, with their labels and groups.

    Attributes:
        names: Names of the inputs that each sample has.
        labels: Labels of the samples, one row each; None if there are no labels.
        missing: Whether NaN stands for a value that isn't there.
        groups: Groups of the samples, `(n,)` integers or strings. Samples of one group (frames of a
            video, crops of a photo) are never split. None where every sample stands alone.
        ragged: Whether samples differ in shape. Then only samples of one shape are read together.
    """

    names: tuple[str, ...]
    labels: Array | None
    groups: Array | None
    missing: bool = False
    ragged: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        """Read the samples at some positions.

        Returns:
            Arrays by input name, each of shape `(len(indices), ...)`.

        Raises:
            InputError: a sample can't be read, isn't finite, or has another shape than the first of
                these.
        """

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one sample's inputs, without an axis for samples, by input name.

        Raises:
            InputError: the sample can't be read.
        """
        return {name: array.shape[1:] for name, array in self.inputs([index]).items()}

    @abstractmethod
    def content_hash(self, index: int) -> bytes:
        """Return the SHA-256 of one sample's inputs, without its label.

        A run hashes every sample when it begins, so a bad sample is found here, before any work is
        done.

        Raises:
            InputError: the sample can't be read, or isn't finite.
        """

    def decoded_to(self, least: int) -> Dataset | None:
        """Return the same samples, decoded from their files to no fewer pixels than are enough.

        Their hashes, labels and groups are those of these samples.

        Args:
            least: Pixels of the shorter side that are enough, as `Decode.least`.

        Returns:
            The samples; None where they aren't files of pictures.
        """
        return None

    def has_former_hashes(self) -> bool:
        """Whether records of older versions may know samples by other hashes, by the types of the first.

        A data set whose hashes aren't of its inputs says so here, and in `former_hash`.

        Raises:
            InputError: the sample can't be read.
        """
        return any(array.dtype not in SAME_HASH for array in self.inputs([0]).values())

    def former_hash(self, index: int) -> bytes | None:
        """Return the hash by which records of older versions know a sample; None where it is the same.

        Raises:
            InputError: the sample can't be read.
        """
        return former_hash({name: rows[0] for name, rows in self.inputs([index]).items()})


@dataclass(frozen=True)
class Subset(Dataset):
    """Samples of another data set at some positions; nothing is copied until it is read."""

    whole: Dataset
    indices: npt.NDArray[np.int64]

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the whole data set's inputs."""
        return self.whole.names

    @property
    def labels(self) -> Array | None:  # type: ignore[override]
        """Labels of these samples; None if there are no labels."""
        return None if self.whole.labels is None else self.whole.labels[self.indices]

    @property
    def groups(self) -> Array | None:  # type: ignore[override]
        """Groups of these samples; None if there are no groups."""
        return None if self.whole.groups is None else self.whole.groups[self.indices]

    @property
    def missing(self) -> bool:  # type: ignore[override]
        """Whether NaN stands for a value that isn't there."""
        return self.whole.missing

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        """Whether samples of the whole data set differ in shape."""
        return self.whole.ragged

    def __len__(self) -> int:
        return len(self.indices)

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        return self.whole.shapes(int(self.indices[index]))

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        return self.whole.inputs([int(self.indices[i]) for i in indices])

    def content_hash(self, index: int) -> bytes:
        return self.whole.content_hash(int(self.indices[index]))

    def decoded_to(self, least: int) -> Dataset | None:
        whole = self.whole.decoded_to(least)
        return None if whole is None else Subset(whole, self.indices)

    def has_former_hashes(self) -> bool:
        return self.whole.has_former_hashes()

    def former_hash(self, index: int) -> bytes | None:
        return self.whole.former_hash(int(self.indices[index]))


class ShapesOf(Sequence[dict[str, tuple[int, ...]]]):
    """Shapes of every sample of a data set, each told when it is asked for."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    @overload
    def __getitem__(self, place: int) -> dict[str, tuple[int, ...]]: ...

    @overload
    def __getitem__(self, place: slice) -> list[dict[str, tuple[int, ...]]]: ...

    def __getitem__(
        self, place: int | slice
    ) -> dict[str, tuple[int, ...]] | list[dict[str, tuple[int, ...]]]:
        if isinstance(place, slice):
            return [self._dataset.shapes(one) for one in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self._dataset.shapes(place)


def like_shaped(dataset: Dataset, indices: Iterable[int]) -> Iterator[list[int]]:
    """Yield the positions in order, cut wherever a sample's shape isn't that of the one before.

    Args:
        dataset: Data set of the samples; one that isn't ragged has nowhere to cut.
        indices: Positions of samples.

    Yields:
        Positions, at least one, of samples that can be read together.

    Raises:
        InputError: a sample can't be read.
    """
    group: list[int] = []
    before: object = None
    ragged = dataset.ragged
    for index in indices:
        shapes = dataset.shapes(index) if ragged else None
        if group and shapes != before:
            yield group
            group = []
        group.append(index)
        before = shapes
    if group:
        yield group
