"""The contract of a data set: samples read lazily, with labels and groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hasten.core.tensors import Array


class Dataset(ABC):
    """Samples by position.

    Attributes:
        names: The inputs that each sample has.
        labels: One row per sample, or None.
        groups: `(n,)` integers or strings: samples of one group (frames of a video, crops of a
            photo) are never split; None where each sample stands alone.
    """

    names: tuple[str, ...]
    labels: Array | None
    groups: Array | None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        """Read some samples.

        Returns:
            Arrays by input name, each of shape `(len(indices), ...)`.

        Raises:
            InputError: a sample can't be read, isn't finite, or has another shape than the first.
        """

    @abstractmethod
    def content_hash(self, index: int) -> bytes:
        """Return the SHA-256 of one sample's content (inputs, without its label).

        Every sample is hashed when a run begins, so this is also where a bad one is found in time.

        Raises:
            InputError: the sample can't be read, or isn't finite.
        """


@dataclass(frozen=True)
class Subset(Dataset):
    """Some samples of a data set, by position. Nothing is copied until it is read."""

    whole: Dataset
    indices: npt.NDArray[np.int64]

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """The whole's input names."""
        return self.whole.names

    @property
    def labels(self) -> Array | None:  # type: ignore[override]
        """The labels of these samples."""
        return None if self.whole.labels is None else self.whole.labels[self.indices]

    @property
    def groups(self) -> Array | None:  # type: ignore[override]
        """The groups of these samples."""
        return None if self.whole.groups is None else self.whole.groups[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        return self.whole.inputs([int(self.indices[i]) for i in indices])

    def content_hash(self, index: int) -> bytes:
        return self.whole.content_hash(int(self.indices[index]))
