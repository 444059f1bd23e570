"""Record what was removed from a module, and remove it from a new copy of the original."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from hasten.errors import InputError
from hasten.lightening.pruning.skip import Skip
from hasten.lightening.pruning.tokens import merging

Axis: TypeAlias = Literal["outputs", "inputs", "heads"] | int
"""Axis of a layer's channels; "heads" for attention; a dimension for a bare parameter."""


@dataclass(frozen=True)
class Cut:
    """Channels that stay in one layer.

    Attributes:
        name: Path of the layer, or of the bare parameter, in the module.
        axis: Axis along which channels are cut.
        kept: Indices in the original that stay, in their new order.
    """

    name: str
    axis: Axis
    kept: tuple[int, ...]


@dataclass(frozen=True)
class PruningPlan:
    """Changes to make to a copy of the original, in this order.

    Attributes:
        skipped: Paths of blocks that are replaced by the identity.
        cuts: Cuts, at most one per layer and axis.
        merged: Number of tokens that each block of a vision transformer merges; 0 for none.
    """

    skipped: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()
    merged: int = 0

    def then(self, later: PruningPlan) -> PruningPlan:
        """Return one plan for this plan followed by a later one, made for the result of this plan.

        The later plan's indices refer to the channels that this plan keeps.
        """
        cuts = {(cut.name, cut.axis): cut for cut in self.cuts}
        for cut in later.cuts:
            before = cuts.get((cut.name, cut.axis))
            kept = cut.kept if before is None else tuple(before.kept[i] for i in cut.kept)
            cuts[cut.name, cut.axis] = Cut(cut.name, cut.axis, kept)
        skipped = (*self.skipped, *later.skipped)
        left = tuple(cut for cut in cuts.values() if not _within(cut.name, skipped))
        return PruningPlan(skipped, left, self.merged or later.merged)


def apply(module: nn.Module, plan: PruningPlan) -> nn.Module:
    """Return a copy of a module with a plan applied; the original isn't changed.

    Its `state_dict` fits every module to which an equal plan was applied.

    Raises:
        InputError: the plan is for another module.
    """
    module = copy.deepcopy(module)
    for name in plan.skipped:
        part(module, name)
        module.set_submodule(name, Skip())
    for cut in plan.cuts:
        carry_out(module, cut)
    if plan.merged:
        module = merging(module, plan.merged)
    return module


def part(module: nn.Module, name: str) -> nn.Module:
    """Return the part of a module at a path.

    Raises:
        InputError: the module has no such part.
    """
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise InputError(f"the plan is for another model: this one has no {name!r}") from error


def carry_out(module: nn.Module, cut: Cut) -> None:
    """Cut one layer of a module, or reorder its channels, in place.

    Raises:
        InputError: the layer doesn't exist, is too small, or can't be cut.
    """
    if isinstance(cut.axis, int):
        owner, _, name = cut.name.rpartition(".")
        _select(part(module, owner), name, cut.axis, cut.kept)
        return
    layer, kept = part(module, cut.name), cut.kept
    try:
        _cut(layer, cut.axis, kept)
    except (IndexError, AttributeError) as error:
        raise InputError(
            f"the plan is for another model: {cut.name!r} can't be cut: {error}"
        ) from error


def cuttable(layer: nn.Module) -> bool:
    """Return whether `carry_out` can cut a layer."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 or layer.groups == layer.in_channels == layer.out_channels
    if isinstance(layer, nn.LayerNorm):
        return len(layer.normalized_shape) == 1
    return isinstance(layer, nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d | nn.PReLU)


def _cut(layer: Any, axis: Axis, kept: Sequence[int]) -> None:
    count = len(kept)
    if axis == "heads":
        layer.num_heads, layer.attn_dim = count, count * layer.head_dim
    elif isinstance(layer, nn.Conv2d | nn.Linear):
        _cut_weights(layer, axis, kept)
    elif isinstance(layer, nn.LayerNorm):
        for name in ("weight", "bias"):
            _select(layer, name, 0, kept)
        layer.normalized_shape = (count,)
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        for name in ("weight", "bias", "running_mean", "running_var"):
            _select(layer, name, 0, kept)
        layer.num_features = count
    elif isinstance(layer, nn.PReLU):
        if layer.num_parameters > 1:
            _select(layer, "weight", 0, kept)
            layer.num_parameters = count
    else:
        raise AttributeError(f"a {type(layer).__name__} has no channels to cut")


def _cut_weights(layer: Any, axis: Axis, kept: Sequence[int]) -> None:
    convolution = isinstance(layer, nn.Conv2d)
    depthwise = convolution and layer.groups > 1
    if axis == "inputs" and not depthwise:
        _select(layer, "weight", 1, kept)
        setattr(layer, "in_channels" if convolution else "in_features", len(kept))
        return
    for name in ("weight", "bias"):
        _select(layer, name, 0, kept)
    setattr(layer, "out_channels" if convolution else "out_features", len(kept))
    if depthwise:
        layer.in_channels = layer.groups = len(kept)


def _select(owner: Any, name: str, dim: int, kept: Sequence[int]) -> None:
    """Keep these slices of a parameter or buffer, if the owner has it."""
    tensor = getattr(owner, name)
    if tensor is None:
        return
    selected = tensor.detach().index_select(dim, torch.tensor(kept, device=tensor.device)).clone()
    if isinstance(tensor, nn.Parameter):
        selected = nn.Parameter(selected, requires_grad=tensor.requires_grad)
    setattr(owner, name, selected)


def _within(name: str, blocks: Sequence[str]) -> bool:
    return any(name == block or name.startswith(f"{block}.") for block in blocks)
