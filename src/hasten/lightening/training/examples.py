"""Read training data in batches: in a new order each epoch, with some samples mixed in pairs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from hasten.core.tensors import Array
from hasten.inputs.data.dataset import Dataset
from hasten.lightening.training.network import tensors


@dataclass(frozen=True)
class Batch:
    """Batch of samples.

    Attributes:
        indices: Positions in the data, of shape `(n,)`.
        inputs: Inputs by name, each of shape `(n, ...)`.
        labels: Labels of shape `(n, ...)`; None if the data has none that are numbers.
        partner: Position in the batch of the sample that each is mixed with, of shape `(n,)`; None
            if samples aren't mixed.
        weight: Weight of each sample in its mix; the partner has the rest.
    """

    indices: Array
    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    partner: torch.Tensor | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Examples:
    """Reader of training data, batch by batch.

    Attributes:
        data: Samples, with labels or without.
        batch: Number of samples per batch.
        mixed: Share of batches whose samples are mixed in pairs, since a teacher also answers
            points between two samples; inputs that aren't floats are never mixed.
        seed: Seed of orders and mixes.

        Source: mixing, Zhang et al., arXiv:1710.09412; teacher's answers to the mix, Beyer et al.,
        "Knowledge distillation: a good teacher is patient and consistent", arXiv:2106.05237.
    """

    data: Dataset
    batch: int
    mixed: float = 0.0
    seed: int = 0

    @property
    def steps(self) -> int:
        """Number of batches in an epoch, which leaves out samples that don't fill a batch."""
        return max(1, len(self.data) // self.batch)

    def at(self, step: int, device: torch.device) -> Batch:
        """Return the batch of a step, counted over all epochs; repeated calls return the same."""
        epoch, place = divmod(step, self.steps)
        order = _order(self.seed, epoch, len(self.data))
        chosen = order[place * self.batch : (place + 1) * self.batch]
        batch = self._read(chosen, device)
        draw = np.random.default_rng([self.seed, step, 1])
        floats = all(tensor.is_floating_point() for tensor in batch.inputs.values())
        if not floats or draw.random() >= self.mixed:
            return batch
        weight = float(draw.uniform(0.5, 1.0))  # below 0.5 sample and partner would swap roles
        partner = torch.from_numpy(draw.permutation(len(chosen)))
        inputs = {
            name: torch.lerp(tensor[partner], tensor, weight)
            for name, tensor in batch.inputs.items()
        }
        return Batch(chosen, inputs, batch.labels, partner, weight)

    def _read(self, chosen: Array, device: torch.device) -> Batch:
        rows = self.data.labels
        labels = None
        if rows is not None and teachable(rows):
            own = np.ascontiguousarray(rows[chosen], rows.dtype.newbyteorder("="))
            labels = torch.from_numpy(own).to(device)
        inputs = tensors(self.data.inputs([int(i) for i in chosen]), device)
        return Batch(chosen, inputs, labels)

    def in_order(self) -> Iterator[dict[str, Array]]:
        """Yield all inputs once, in batches, in the data's order."""
        for first in range(0, len(self.data), self.batch):
            yield self.data.inputs(range(first, min(first + self.batch, len(self.data))))


def teachable(labels: Array) -> bool:
    """Return whether labels are a tensor of numbers: texts, and labels of several outputs, only judge."""
    return labels.dtype.kind in "biuf"


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Array:
    """Return the order of samples in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)
