"""Unstructured pruning: single weights set to zero, for the packed size alone.

No engine here skips zeros on a CPU, so it makes nothing faster and is never claimed as speed. Zeros
compress well: a bundle that is packed or downloaded gets smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from hasten.errors import InputError


@dataclass(frozen=True)
class Masks:
    """Which weights of a module are zero and stay so.

    Attributes:
        module: Whose they are.
        kept: Parameter's path -> True where a weight stays.
    """

    module: nn.Module
    kept: Mapping[str, torch.Tensor]

    @torch.no_grad()
    def apply_(self) -> None:
        """Set the pruned weights to zero again, as after each step of an optimizer."""
        for name, kept in self.kept.items():
            self.module.get_parameter(name).mul_(kept)

    @property
    def zeros(self) -> float:
        """The share of the weights under masks that are zero."""
        total = sum(kept.numel() for kept in self.kept.values())
        return 1 - sum(int(kept.sum()) for kept in self.kept.values()) / max(total, 1)


def sparsify(
    module: nn.Module, zeros: float, within: Literal["network", "layer"] = "network"
) -> Masks:
    """Set the smallest weights of a module to zero, in place.

    Args:
        module: Its convolutions and linear layers are pruned, without their biases.
        zeros: Share of their weights to set to zero, at least 0 and below 1.
        within: Whether weights of all layers are compared, or of each alone.

    Raises:
        InputError: no such share, or there are no such layers.

    Source: by magnitude, Han et al., arXiv:1506.02626.
    """
    if not 0 <= zeros < 1:
        raise InputError(f"the share of zeros is at least 0 and below 1; got {zeros}")
    weights = {
        f"{name}.weight" if name else "weight": part.weight.detach().abs()
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.conv._ConvNd | nn.Linear)
    }
    if not weights:
        raise InputError("there is nothing to set to zero: no convolution and no linear layer")
    if within == "network":
        everything = torch.cat([weight.flatten() for weight in weights.values()])
        kept = torch.split(_largest(everything, zeros), [w.numel() for w in weights.values()])
        masks = {name: k.view_as(w) for (name, w), k in zip(weights.items(), kept, strict=True)}
    else:
        masks = {name: _largest(w.flatten(), zeros).view_as(w) for name, w in weights.items()}
    found = Masks(module, masks)
    found.apply_()
    return found


def _largest(values: torch.Tensor, zeros: float) -> torch.Tensor:
    """Return True for all but a share of the values, which are the smallest."""
    kept = torch.ones(len(values), dtype=torch.bool, device=values.device)
    kept[values.argsort(stable=True)[: round(zeros * len(values))]] = False
    return kept
