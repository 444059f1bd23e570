"""Find the channels that several layers share, which can only be removed from all of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hasten.core.extras import missing_extra
from hasten.errors import InputError, named
from hasten.inputs.models.torch import evaluating
from hasten.lightening.pruning.layers import Sample, answers, call, is_attention, tensors
from hasten.lightening.pruning.plan import Axis, Cut, carry_out, cuttable

_TOLERANCE = 1e-3
"""Largest change by another order of float32 sums, as a share of an output's largest magnitude."""


@dataclass(frozen=True)
class Member:
    """Part of a layer in a group.

    Attributes:
        name: Path of the layer.
        axis: Axis along which the layer is cut.
        size: Number of indices along that axis.
        indices: Indices along that axis for each channel of the group, disjoint and not always
            exhaustive.
    """

    name: str
    axis: Axis
    size: int
    indices: tuple[tuple[int, ...], ...]

    def without(self, channels: Sequence[int]) -> set[int]:
        """Return the indices that are removed with these channels."""
        return {index for channel in channels for index in self.indices[channel]}


@dataclass(frozen=True)
class Group:
    """Group of channels that several layers share.

    Attributes:
        root: Layer that names the group.
        channels: Number of channels.
        members: Parts of all layers that have these channels.
        heads: Whether the channels are the heads of an attention.
    """

    root: str
    channels: int
    members: tuple[Member, ...]
    heads: bool = False


def groups(
    module: nn.Module, sample: Sample, keep: Sequence[str] = (), proven: Collection[Group] = ()
) -> tuple[Group, ...]:
    """Return the groups that can be pruned, each of them proven by a trial.

    A group counts only if its channels are interchangeable (an equal reordering in all members
    changes no answer) and if the module without half of them still returns answers of the same
    shapes. So the channels of a network's outputs are never among them.

    Args:
        module: Module to examine; it isn't changed.
        sample: Batch that the module can run, with at least one answer that has a gradient.
        keep: Paths of layers that must keep all output channels.
        proven: Groups of this module, proven before a block was skipped, that need no trial.

    Raises:
        InputError: the module can't run the sample, or can't be traced.

    Source: dependency graphs, Fang et al., DepGraph, arXiv:2301.12900, by Torch-Pruning.
    """
    wanted = answers(module, sample)
    found = [*_traced(module, sample), *_heads(module)]
    kept = set(keep)
    free = [
        group
        for group in found
        if not kept & {member.name for member in group.members if member.axis != "inputs"}
    ]
    return tuple(
        group for group in free if group in proven or _holds(module, sample, group, wanted)
    )


def cuts_of(removed: Sequence[tuple[Group, Sequence[int]]]) -> tuple[Cut, ...]:
    """Return the cuts that remove these channels from these groups."""
    gone: dict[tuple[str, Axis], set[int]] = {}
    sizes: dict[tuple[str, Axis], int] = {}
    for group, channels in removed:
        for member in group.members:
            key = (member.name, member.axis)
            sizes[key] = member.size
            gone.setdefault(key, set()).update(member.without(channels))
    return tuple(
        Cut(name, axis, tuple(i for i in range(sizes[name, axis]) if i not in indices))
        for (name, axis), indices in gone.items()
        if indices
    )


def _traced(module: nn.Module, sample: Sample) -> list[Group]:
    """Return Torch-Pruning's groups of layers that can be cut here."""
    try:
        import torch_pruning
    except ImportError as error:
        raise missing_extra("pruning", "torch") from error
    traced = copy.deepcopy(module).eval().requires_grad_(True)
    example = dict(sample) if not isinstance(sample, tuple) else sample
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")  # Torch-Pruning warns about its own internals
            if not any(tensor.requires_grad for tensor in tensors(call(traced, sample))):
                raise ValueError("no answer has a gradient")
            graph = torch_pruning.DependencyGraph().build_dependency(traced, example, verbose=False)
            found = list(graph.get_all_groups())
    except Exception as error:  # Torch-Pruning raises what its parts raise
        reason = named(error)
        raise InputError(
            f"the model can't be traced for pruning: {reason}; give a model whose answers are "
            "differentiable, or the part of it that is"
        ) from error
    names = {id(part): name for name, part in traced.named_modules()}
    bare = {id(parameter): name for name, parameter in traced.named_parameters()}
    groups = (_group(graph, one, names, bare) for one in found)
    return [group for group in groups if group is not None]


def _group(graph: Any, found: Any, names: dict[int, str], bare: dict[int, str]) -> Group | None:
    """Convert one of Torch-Pruning's groups; return None if one of its layers can't be cut."""
    root = found[0].dep.target.module
    channels = len(found[0].idxs)
    members: dict[tuple[str, Axis], Member] = {}
    for item in found.items:
        target = item.dep.target.module
        axis: Axis = "outputs" if graph.is_out_channel_pruning_fn(item.dep.handler) else "inputs"
        if isinstance(target, nn.Parameter):
            if id(target) not in bare:
                return None
            axis = int(item.dep.target.pruning_dim) % target.dim()
            name, size = bare[id(target)], target.shape[axis]
        elif id(target) in names:
            if not cuttable(target):
                return None
            name = names[id(target)]
            axis = "outputs" if _one_axis(target) else axis
            size = _size(target, axis)
        else:
            continue  # an operation without weights
        indices: list[list[int]] = [[] for _ in range(channels)]
        for index, channel in zip(item.idxs, item.root_idxs, strict=True):
            if channel is None or not 0 <= channel < channels:
                return None
            indices[channel].append(index)
        members[name, axis] = Member(name, axis, size, tuple(tuple(sorted(i)) for i in indices))
    return Group(names[id(root)], channels, tuple(members.values()))


def _one_axis(layer: nn.Module) -> bool:
    """Return whether a layer's output channels are its input channels."""
    return not isinstance(layer, nn.Conv2d | nn.Linear) or getattr(layer, "groups", 1) > 1


def _size(layer: Any, axis: Axis) -> int:
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels if axis == "outputs" else layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features if axis == "outputs" else layer.in_features
    if isinstance(layer, nn.LayerNorm):
        return int(layer.normalized_shape[0])
    return int(layer.num_parameters if isinstance(layer, nn.PReLU) else layer.num_features)


def _heads(module: nn.Module) -> Iterator[Group]:
    """Yield each attention's heads, each with its rows in the thirds for q, k and v."""
    for name, part in module.named_modules():
        if not is_attention(part) or part.num_heads < 2:
            continue
        attention: Any = part
        width, heads = attention.head_dim, attention.num_heads
        if isinstance(attention.norm, nn.LayerNorm) or getattr(attention, "gate", None) is not None:
            continue  # the normalization and the gate span all heads
        columns = tuple(tuple(range(h * width, (h + 1) * width)) for h in range(heads))
        rows = tuple(
            tuple(third * heads * width + i for third in range(3) for i in c) for c in columns
        )
        yield Group(
            name,
            heads,
            (
                Member(f"{name}.qkv", "outputs", 3 * heads * width, rows),
                Member(f"{name}.proj", "inputs", heads * width, columns),
                Member(name, "heads", heads, tuple((h,) for h in range(heads))),
            ),
            heads=True,
        )


def _holds(module: nn.Module, sample: Sample, group: Group, wanted: list[torch.Tensor]) -> bool:
    """Return whether a group's channels are interchangeable and half of them can be removed."""
    if group.channels < 2:
        return False
    reordered = copy.deepcopy(module)
    try:
        for member in group.members:
            carry_out(reordered, Cut(member.name, member.axis, _turned(member)))
        same = _answers(reordered, sample)
        halved = copy.deepcopy(module)
        for cut in cuts_of([(group, range(1, group.channels, 2))]):
            carry_out(halved, cut)
        fewer = _answers(halved, sample)
    except Exception:  # whatever the error is, this group can't be pruned
        return False
    return _equal(same, wanted) and [t.shape for t in fewer] == [t.shape for t in wanted]


def _turned(member: Member) -> tuple[int, ...]:
    """Return all indices, with each channel of the group moved to the next channel's place."""
    order = list(range(member.size))
    for here, there in zip(member.indices, (*member.indices[1:], member.indices[0]), strict=True):
        for place, index in zip(here, there, strict=True):
            order[place] = index
    return tuple(order)


def _answers(module: nn.Module, sample: Sample) -> list[torch.Tensor]:
    with evaluating(module), torch.no_grad():
        return tensors(call(module, sample))


def _equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(
        one.shape == other.shape
        and bool(
            (one.double() - other.double()).abs().max() <= _TOLERANCE * other.double().abs().max()
        )
        for one, other in zip(some, others, strict=True)
        if one.numel()
    )
