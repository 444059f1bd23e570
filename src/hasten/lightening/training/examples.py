"""Training data by batches: an order per epoch, and pairs of samples mixed with each other."""

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
    """Some samples.

    Attributes:
        indices: `(n,)`, positions in the data.
        inputs: By name, each `(n, ...)`.
        labels: `(n, ...)`, or None.
        partner: `(n,)`: with which sample of the batch each was mixed; None where none was.
        weight: Of each sample's own share of the mix; the partner has the rest.
    """

    indices: Array
    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    partner: torch.Tensor | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class Examples:
    """What is trained on, read batch by batch.

    Attributes:
        data: Samples, with labels or without.
        batch: How many at a time.
        mixed: The share of batches whose samples are mixed in pairs: a teacher answers what lies
            between two samples, too. 0 where inputs aren't floats.
        seed: Of all orders.

    Source: mixing, Zhang et al., arXiv:1710.09412; answering by the teacher on the mix, Beyer et al.,
    "Knowledge distillation: a good teacher is patient and consistent", arXiv:2106.05237.
    """

    data: Dataset
    batch: int
    mixed: float = 0.0
    seed: int = 0

    @property
    def steps(self) -> int:
        """Batches in an epoch; samples that don't fill one wait for the next epoch's order."""
        return max(1, len(self.data) // self.batch)

    def at(self, step: int, device: torch.device) -> Batch:
        """Return the batch of a step, counted over all epochs: the same whenever it is asked for."""
        epoch, place = divmod(step, self.steps)
        order = _order(self.seed, epoch, len(self.data))
        chosen = order[place * self.batch : (place + 1) * self.batch]
        batch = self._read(chosen, device)
        draw = np.random.default_rng([self.seed, step, 1])
        floats = all(tensor.is_floating_point() for tensor in batch.inputs.values())
        if not floats or draw.random() >= self.mixed:
            return batch
        weight = float(draw.uniform(0.5, 1.0))  # below a half the two would but change names
        partner = torch.from_numpy(draw.permutation(len(chosen)))
        inputs = {
            name: torch.lerp(tensor[partner], tensor, weight)
            for name, tensor in batch.inputs.items()
        }
        return Batch(chosen, inputs, batch.labels, partner, weight)

    def _read(self, chosen: Array, device: torch.device) -> Batch:
        rows = self.data.labels
        labels = None if rows is None else torch.from_numpy(np.ascontiguousarray(rows[chosen]))
        inputs = tensors(self.data.inputs([int(i) for i in chosen]), device)
        return Batch(chosen, inputs, None if labels is None else labels.to(device))

    def in_order(self) -> Iterator[dict[str, Array]]:
        """Yield all inputs once, in the data's order."""
        for first in range(0, len(self.data), self.batch):
            yield self.data.inputs(range(first, min(first + self.batch, len(self.data))))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Array:
    """Return the order of an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)
