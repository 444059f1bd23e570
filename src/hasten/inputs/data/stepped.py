"""Samples of another data set after further steps of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.core.tensors import Array
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.samples import stack
from hasten.inputs.pipeline.base import Pipeline, Step


class Stepped(Dataset):
    """Samples of one input after further steps, which are done whenever samples are read.

    Args:
        whole: Samples that the first step takes.
        steps: Further steps, in order.
    """

    def __init__(self, whole: Dataset, steps: Sequence[Step]) -> None:
        self.whole, self._steps = whole, Pipeline(tuple(steps))
        self.names, self.missing, self.ragged = whole.names, whole.missing, whole.ragged
        self.labels, self.groups = whole.labels, whole.groups

    def __len__(self) -> int:
        return len(self.whole)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        ((name, samples),) = self.whole.inputs(indices).items()
        return {name: stack(name, [self._steps(one) for one in samples], indices)}

    def content_hash(self, index: int) -> bytes:
        """Return the hash of the sample before these steps."""
        return self.whole.content_hash(index)

    def has_former_hashes(self) -> bool:
        return self.whole.has_former_hashes()

    def former_hash(self, index: int) -> bytes | None:
        return self.whole.former_hash(index)
