"""Weights that stay 0 once they are pruned, and weights that share values while they are trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from hasten.lightening.lossy.clustering import clustered


class PrunedWeight(torch.nn.Module):
    """Weight of which some elements are 0.

    Attributes:
        values: Values of the weight's shape; where an element is pruned, its value has no effect.
        kept: Whether each element is left, of the weight's shape.
    """

    kept: torch.Tensor

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(values.detach().clone())
        self.register_buffer("kept", self.values.detach() != 0)

    def forward(self) -> torch.Tensor:
        """Return the weight."""
        return self.values * self.kept

    def scores(self) -> torch.Tensor:
        """Return how much each element matters, comparable over layers; 0 for one that is pruned.

        An element's square counts as a share of all squares in its layer that are no smaller, so that
        no layer loses its largest element.

        Source: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning",
        arXiv:2010.07611, eq. 4.
        """
        squares = self().detach().flatten().double().square()
        order = squares.argsort()
        ordered = squares[order]
        larger = ordered.flip(0).cumsum(0).flip(0)
        shares = torch.zeros_like(squares)
        shares[order] = torch.where(ordered > 0, ordered / larger, 0.0)
        return shares.reshape(self.kept.shape)


class SharedWeight(torch.nn.Module):
    """Weight whose elements are 0 or one of a few values; a value learns from all elements that share it.

    Attributes:
        centers: Values, (k,).
        where: Places of the elements that aren't 0 in the flat weight, (m,).
        which: Place in `centers` of the value of each of them, (m,).
        shape: Shape of the weight.
    """

    where: torch.Tensor
    which: torch.Tensor

    def __init__(self, weight: torch.Tensor, values: int) -> None:
        """Share values among the elements of a weight that aren't 0.

        Args:
            weight: Weight.
            values: Largest number of values that the weight may have, 0 among them; at least 2.
        """
        super().__init__()
        flat = weight.detach().flatten().cpu()
        where = flat.nonzero().flatten()
        centers, which = clustered(flat[where].numpy(), values - 1) if len(where) else _NOTHING
        self.shape = tuple(weight.shape)
        self.centers = torch.nn.Parameter(torch.from_numpy(centers).to(weight.device))
        self.register_buffer("where", where.to(weight.device))
        self.register_buffer("which", torch.from_numpy(which).to(weight.device))

    def forward(self) -> torch.Tensor:
        """Return the weight."""
        shared = self.centers.index_select(0, self.which)
        flat = shared.new_zeros(int(np.prod(self.shape)))
        return flat.index_copy(0, self.where, shared).reshape(self.shape)


_NOTHING = (np.zeros(0, np.float32), np.zeros(0, np.int64))


class Compressible(torch.nn.Module):
    """Network of which some weights are pruned, or share values.

    In both modes it computes as in eval mode.

    Attributes:
        network: Network whose own values of these weights aren't used.
        names: Names of the weights in the network.
        weights: The weights, in the order of their names.
    """

    def __init__(self, network: torch.nn.Module, names: Sequence[str]) -> None:
        """Take over weights of a network, which must not be used afterwards."""
        super().__init__()
        self.network = network
        self.names = tuple(names)
        parameters = dict(network.named_parameters())
        self.weights = torch.nn.ModuleList(PrunedWeight(parameters[name]) for name in names)
        for name in names:
            parameters[name].requires_grad_(False)

    def forward(self, *arguments: torch.Tensor) -> Any:
        """Answer like the network."""
        return functional_call(self.network, self.values(), arguments)

    def train(self, mode: bool = True) -> Compressible:
        """Set the mode of all but the network, which stays in eval mode."""
        super().train(mode)
        self.network.eval()
        return self

    def values(self) -> dict[str, torch.Tensor]:
        """Return the weights by name."""
        return {name: weight() for name, weight in zip(self.names, self.weights, strict=True)}

    @torch.no_grad()
    def prune(self, kept: float) -> None:
        """Prune the elements that matter least; what is pruned already stays so.

        Args:
            kept: Share of the elements of all weights together to leave, 0 to 1.
        """
        pruned = [weight for weight in self.weights if isinstance(weight, PrunedWeight)]
        scores = [weight.scores() for weight in pruned]
        everything = torch.cat([score.flatten() for score in scores])
        left = max(1, round(kept * len(everything)))
        if left >= int((everything > 0).sum()):
            return
        least = everything.kthvalue(len(everything) - left + 1).values
        for weight, score in zip(pruned, scores, strict=True):
            weight.kept &= score >= least

    @torch.no_grad()
    def shared(self, bits: int) -> Compressible:
        """Return a copy whose weights have at most 2**bits values each, 0 among them."""
        made = copy.deepcopy(self)
        values = self.values().values()
        made.weights = torch.nn.ModuleList(SharedWeight(value, 2**bits) for value in values)
        return made

    @torch.no_grad()
    def apart(self) -> Compressible:
        """Return a copy whose elements are trained each by itself again; what is 0 stays 0."""
        made = copy.deepcopy(self)
        made.weights = torch.nn.ModuleList(PrunedWeight(value) for value in self.values().values())
        return made

    @property
    def left(self) -> float:
        """Share of the elements of all weights together that aren't 0."""
        values = [value.detach() for value in self.values().values()]
        return sum(int((v != 0).sum()) for v in values) / sum(v.numel() for v in values)


def kept_at(share: float, first: float, last: float, end: float) -> float:
    """Return the share of weights that is left at some point of a training.

    It falls fast at first, where many weights matter little, then slower and slower.

    Args:
        share: Finished share of the training.
        first: Share of weights that is left at its beginning.
        last: Share of weights that is left from `end` on.
        end: Share of the training after which no more is pruned.

    Source: Zhu and Gupta, "To prune, or not to prune", arXiv:1710.01878, eq. 1.
    """
    rest = max(0.0, 1 - share / end)
    return last + (first - last) * rest**3
